//! Sockets of the internet families that have no connection: TCP ones that listen, UDP ones, and new ones.

use super::{
    address::{Address, is_of_a_link},
    devices::{Devices, devices_of, find_devices},
    duplicate, family, number_option,
    options::{self, Filter, SocketOption, Suspects},
    pending,
    queued::Ends,
    raw::is_raw,
    refuse,
    supply::new_in_tree,
    system,
    tcp::{FoundListener, Stream, Waiting, bind_sharing, connect_all, ended, is_connection, prepare, untold},
    tcp_state::TcpState,
    udp::Held,
    unknown,
};
use crate::file::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, Unsent, decode, set_status,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::socket::{end_leftovers, has_leftovers_alone, set_option};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{SockaddrStorage, bind, connect},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// The kind.
pub struct Inet;

const NAME: &str = "inet-socket";

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// AF_INET or AF_INET6.
    family: i32,
    /// SOCK_STREAM or SOCK_DGRAM.
    kind: i32,
    /// IPPROTO_TCP, IPPROTO_UDP or IPPROTO_UDPLITE.
    protocol: i32,
    /// Its own address, where it is bound.
    local: Option<SocketAddr>,
    /// That of a UDP socket's other end, or of where a TCP one is connecting to.
    remote: Option<SocketAddr>,
    /// How many connections may wait, where it listens.
    listens: Option<u32>,
    /// Those that do, the one that is accepted first at first.
    waiting: Vec<Waiting>,
    /// Of one whose connection has ended: what still waits to be read.
    ended: Option<Stream>,
    /// Of a UDP socket.
    held: Held,
    /// The error that nobody has read (errno), or 0.
    error: i32,
    options: Vec<SocketOption>,
    /// Network devices that options name by their numbers: number and name.
    devices: Vec<(u32, String)>,
}

impl Body {
    fn is_possible(&self) -> bool {
        let is_tcp = (self.kind, self.protocol) == (libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let is_udp =
            self.kind == libc::SOCK_DGRAM && [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&self.protocol);
        [libc::AF_INET, libc::AF_INET6].contains(&self.family)
            && (is_tcp || is_udp && self.listens.is_none())
            && (is_udp || self.remote.is_none() || self.listens.is_none() && self.ended.is_none())
            && (self.waiting.is_empty() || self.listens.is_some())
            && self.waiting.iter().all(Waiting::is_possible)
            && (self.ended.is_none() || is_tcp && self.listens.is_none())
            && self
                .ended
                .as_ref()
                .is_none_or(|ended| ended.is_possible() && ended.has_all())
            && self.held.is_possible((self.family, self.ends()), self.error, is_udp)
            && (self.error == 0 || is_udp || pending::is_possible(self.error, (self.kind, self.protocol)))
            && (self.error == 0 || is_udp || self.ended.is_some())
            && options::are_possible(&self.options)
    }
}

impl FileKind for Inet {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        matches!(family(file), Some(libc::AF_INET | libc::AF_INET6)) && !is_connection(file) && !is_raw(file.as_fd())
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let wrap = |action| FileError::system(action, file.title());
        let failed = |action| {
            move |source| FileError::System {
                action,
                object: file.title(),
                source,
            }
        };
        let socket = file.as_fd();
        let number = |name| number_option(socket.as_fd(), libc::SOL_SOCKET, name);
        let read = wrap("read the kind of");
        let (family, kind, protocol) = (|| {
            Ok((
                number(libc::SO_DOMAIN)?,
                number(libc::SO_TYPE)?,
                number(libc::SO_PROTOCOL)?,
            ))
        })()
        .map_err(read)?;
        let mut body = Body {
            family,
            kind,
            protocol,
            local: Address::local(socket).map_err(wrap("read the address of"))?,
            remote: None,
            listens: None,
            waiting: Vec::new(),
            ended: None,
            held: Held::default(),
            error: 0,
            options: Vec::new(),
            devices: Vec::new(),
        };
        if !body.is_possible() {
            let (reason, advice) = unknown::of_protocol(protocol);
            context.refusals.add(Some(&file.subject), file.title(), reason, advice);
            return Ok(None);
        }
        // First: looking into it would take the error away.
        match pending::error(file, (kind, protocol), context)? {
            Ok(error) => body.error = error,
            Err(reason) => return refuse(file, context, reason),
        }
        let mut listener = None;
        if kind == libc::SOCK_STREAM {
            let tcp = TcpState::read(socket.as_fd()).map_err(wrap("read the state of"))?;
            match tcp.listens() {
                Some(most) => match FoundListener::read(file, &context.memory, context.refusals)? {
                    Some(found) => (body.listens, listener) = (Some(most), Some(found)),
                    None => {
                        context.connections.hidden.extend(body.local);
                        return Ok(None);
                    }
                },
                None if tcp.is_connecting() => match context.memory.connected_with(socket) {
                    Ok(remote) if body.error == 0 => body.remote = remote,
                    _ => {
                        return refuse(
                            file,
                            context,
                            "a TCP connection that is only being made can't be carried yet",
                        );
                    }
                },
                None if options::has_been_connected(socket) => {
                    if let Some(reason) = untold(socket, &context.memory).map_err(wrap("poll"))? {
                        return refuse(file, context, &reason);
                    }
                    let queue = match body.error {
                        0 => Stream::read(socket, (&context.keeper, &context.memory)),
                        _ => pending::queue(socket, &context.memory),
                    };
                    let mut queue = queue.map_err(failed("look at what waits in"))?;
                    // Nobody sends it any more.
                    queue.forget_missing();
                    body.ended = Some(queue);
                }
                None => {}
            }
        } else {
            body.remote = Address::remote(socket).map_err(wrap("read the other address of"))?;
            match Held::of(file, body.ends(), context)? {
                Ok(held) if !held.can_tell(body.error, body.ends()) => return refuse(file, context, pending::CANT),
                Ok(held) => body.held = held,
                Err(reason) => return refuse(file, context, &reason),
            }
        }
        let is_of_a_link = body.is_of_a_link();
        if is_of_a_link && body.ended.is_some() {
            return refuse(
                file,
                context,
                "an address of one network device (scope), of a TCP connection that has ended, can't be carried yet",
            );
        }
        match all_options(file, (family, kind, protocol), context)? {
            Ok(options) => body.options = options,
            Err(reason) => return refuse(file, context, &reason),
        }
        // Both have the device that the socket is bound to, by its name.
        if is_of_a_link && options::bound_device(&body.options).is_none() {
            let reason =
                "an address of one network device (scope), in a socket that is bound to none, can't be carried";
            return refuse(file, context, reason);
        }
        body.devices = devices_of(file, &body.options, body.held.devices())?;
        context.connections.listening.extend(listener);
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        prepare(context)?;
        let mut body = possible(record)?;
        body.renumber(&find_devices(record.id, &body.devices, context)?);
        let socket = if body.listens.is_some() {
            listening(record.id, &body, context)?;
            duplicate(record.id, &context.inet.listening[&record.id].1)?
        } else if let Some(queue) = &body.ended {
            let place = (body.family, body.local);
            let socket = match body.error {
                0 => ended(record.id, place, queue, context)?,
                error => pending::make_tcp(record.id, place, (queue, error), context)?,
            };
            let failed = |source| system("set the options of", record.id, source);
            options::set(socket.as_fd(), &body.options).map_err(|error| failed(error.into()))?;
            socket
        } else {
            let socket = new_in_tree(record.id, (body.family, body.kind, body.protocol), context)?;
            set_up((record.network, &socket), &body, context)
                .map_err(|(action, source)| system(action, record.id, source))?;
            if body.kind == libc::SOCK_DGRAM {
                let of = (body.family, body.ends());
                body.held
                    .put_back(record.id, socket.as_fd(), (of, body.error), context)?;
            }
            options::set_late(socket.as_fd(), &body.options)
                .map_err(|error| system("set the options of", record.id, error.into()))?;
            socket
        };
        set_status(socket.as_fd(), record)?;
        Ok(socket)
    }

    /// When all connections are made that come by this socket, those can be made that nobody has accepted. New ones get its
    /// filter, so it has none until then.
    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        let body = possible(record)?;
        let (Some(_), Some(place)) = (body.listens, holders.first(record.id)) else {
            return Ok(());
        };
        connect_all((record.id, record.network), &body.waiting, holders)?;
        if !body.options.iter().any(SocketOption::is_of_filter) {
            return Ok(());
        }
        options::set_filter(holders.fetch(place)?.as_fd(), &body.options)
            .map_err(|error| system("set the options of", record.id, error.into()))
    }

    /// What was connecting asks once more, when all who listen are there.
    fn complete(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body = possible(record)?;
        let (Some(remote), Some(place)) = (body.remote, holders.first(record.id)) else {
            return Ok(());
        };
        if body.kind != libc::SOCK_STREAM {
            return Ok(());
        }
        let socket = holders.fetch(place)?;
        let failed = |source: Errno| system("connect", record.id, source.into());
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(remote)) {
            Ok(()) | Err(Errno::EINPROGRESS) => set_status(socket.as_fd(), record),
            Err(error) => Err(failed(error)),
        }
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let protocol = match body.protocol {
            libc::IPPROTO_TCP => "tcp",
            libc::IPPROTO_UDP => "udp",
            _ => "udplite",
        };
        let local = body.local.map(|local| format!(" {local}")).unwrap_or_default();
        let state = match (body.listens, body.remote) {
            (Some(_), _) if body.waiting.is_empty() => ", listens".to_owned(),
            (Some(_), _) => format!(", listens, {} connections wait", body.waiting.len()),
            (None, Some(remote)) if body.kind == libc::SOCK_STREAM => format!(", connects to {remote}"),
            (None, Some(remote)) => format!(", sends to {remote}"),
            (None, None) if body.ended.is_some() => ", ended".to_owned(),
            (None, None) => String::new(),
        };
        Ok(format!("{protocol}{local}{state}{}", body.held.describe()))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        possible(record).map(|_| None)
    }
}

/// Options that are not as in a new socket; or why they can't be carried.
fn all_options(
    file: &FoundFile,
    (family, kind, protocol): (i32, i32, i32),
    context: &DumpContext<'_>,
) -> Result<Result<Vec<SocketOption>, String>, FileError> {
    let (socket, wrap) = (file.as_fd(), |action| FileError::system(action, file.title()));
    let usual = context.usual.of((family, kind, protocol), &levels(protocol));
    let differing = options::differing(socket, &*usual.map_err(wrap("make a socket like"))?);
    let (mut options, others) = differing.map_err(wrap("read the options of"))?;
    if !others.is_empty() {
        return Ok(Err(options::refusal(&others)));
    }
    match options::filter(socket).map_err(wrap("read the filter of"))? {
        Filter::None => {}
        Filter::Classic(filter) => options.push(filter),
        Filter::Extended => return Ok(Err(options::EXTENDED.to_owned())),
    }
    match options::hidden(socket, &context.memory) {
        // Connections have no use for groups.
        Ok(Ok(hidden)) => {
            let is_meant = |option: &SocketOption| kind != libc::SOCK_STREAM || option.which().0 == libc::SOL_SOCKET;
            options.extend(hidden.into_iter().filter(is_meant));
        }
        Ok(Err(reason)) => return Ok(Err(reason.to_owned())),
        Err(error) if kind != libc::SOCK_STREAM && options::has_groups(&file.network) => {
            return Ok(Err(options::unreadable_groups(&error)));
        }
        Err(_) => {}
    }
    Ok(Ok(options))
}

/// Completes the records of sockets that listen, in the order in which they were found, with the connections that wait there.
pub(super) fn note_waiting(
    records: &mut [OpenFileRecord],
    waiting: impl Iterator<Item = Result<Vec<Waiting>, FileError>>,
) -> Result<(), FileError> {
    let mut waiting = waiting;
    for record in records.iter_mut().filter(|record| record.kind == NAME) {
        let mut body: Body = decode(record)?;
        if body.listens.is_some()
            && let Some(found) = waiting.next()
        {
            body.waiting = found?;
            record.body = codec::encode(&body)?;
        }
    }
    Ok(())
}

/// Sockets that listen, made again: of which file, and at what address.
#[derive(Default)]
pub(in crate::file) struct MadeInet {
    /// All of the image.
    records: Option<Rc<Vec<Known>>>,
    listening: HashMap<u32, (SocketAddr, OwnedFd)>,
}

/// One of an image: the number of its file, its network namespace and what it is.
type Known = (u32, u32, Body);

/// Where connections come to: an address in a network namespace.
type Listened = (u32, SocketAddr);

fn listening(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<(), FileError> {
    if context.inet.listening.contains_key(&id) {
        return Ok(());
    }
    let socket = new_in_tree(id, (body.family, body.kind, body.protocol), context)?;
    set_up((context.network(id), &socket), body, context).map_err(|(action, source)| system(action, id, source))?;
    options::set_choice(socket.as_fd(), &body.options)
        .map_err(|error| system("set the options of", id, error.into()))?;
    // One that listens without an address has got one by that.
    let place = Address::local(socket.as_fd()).map_err(|source| system("read the address of", id, source.into()))?;
    let place = place.ok_or_else(|| system("find the address of", id, Errno::EADDRNOTAVAIL.into()))?;
    context.inet.listening.insert(id, (place, socket));
    Ok(())
}

/// The tree's own socket that connections to an address come to, made if it is not there yet; `None` where there is none.
pub(super) fn listener<'c>(
    place: Listened,
    context: &'c mut OpenContext<'_>,
) -> Result<Option<&'c OwnedFd>, FileError> {
    let records = all_records(context)?;
    let Some((id, _, body)) = listener_among(&records, place) else {
        return Ok(None);
    };
    listening(*id, body, context)?;
    Ok(context.inet.listening.get(id).map(|(_, socket)| socket))
}

/// Whether the tree has a socket that connections to an address come to.
pub(super) fn is_listened_at(place: Listened, context: &mut OpenContext<'_>) -> Result<bool, FileError> {
    Ok(listener_among(&all_records(context)?, place).is_some())
}

fn all_records(context: &mut OpenContext<'_>) -> Result<Rc<Vec<Known>>, FileError> {
    if let Some(records) = &context.inet.records {
        return Ok(Rc::clone(records));
    }
    let files = context.files.iter().filter(|record| record.kind == NAME);
    let found = files.map(|record| {
        let mut body: Body = decode(record)?;
        body.renumber(&find_devices(record.id, &body.devices, context)?);
        Ok((record.id, record.network, body))
    });
    let records = Rc::new(found.collect::<Result<_, FileError>>()?);
    context.inet.records = Some(Rc::clone(&records));
    Ok(records)
}

fn listener_among(records: &[Known], (network, place): Listened) -> Option<&Known> {
    let is_it = |(_, own, body): &&Known| *own == network && body.listens.is_some() && body.is_at(place);
    records.iter().find(is_it)
}

/// The options that what is accepted at an address may have got from the socket that listens: the tree's own, or one of
/// floe's.
pub(super) fn suspects_of(place: Listened, context: &OpenContext<'_>) -> Suspects {
    let records = context.inet.records.as_ref();
    let listener = records.and_then(|records| listener_among(records, place));
    let options = listener.into_iter().flat_map(|(_, _, body)| &body.options);
    let reused = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    Suspects::These(options.map(SocketOption::which).chain([reused]).collect())
}

impl Body {
    /// Whether its addresses mean something only together with a network device.
    fn is_of_a_link(&self) -> bool {
        let mut places = [self.local, self.remote].into_iter().flatten();
        places.any(|place| is_of_a_link(place.ip()))
    }

    /// Has it name devices by the numbers that they have here.
    fn renumber(&mut self, devices: &Devices) {
        self.options.iter_mut().for_each(|option| option.renumber(devices));
        self.held.renumber(devices);
    }

    /// Its protocol and addresses.
    fn ends(&self) -> Ends {
        (self.protocol, self.local, self.remote)
    }

    /// Whether connections to an address come to this socket.
    fn is_at(&self, place: SocketAddr) -> bool {
        let only_six = options::is_on(&self.options, (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY));
        self.local.is_some_and(|own| comes_to(place, own)) && !(only_six && place.is_ipv4())
    }
}

/// Whether connections to an address come to a socket that listens at `own`.
pub(super) fn comes_to(address: SocketAddr, own: SocketAddr) -> bool {
    let ip = own.ip().to_canonical();
    let any = ip.is_unspecified() && (ip.is_ipv6() || address.is_ipv4());
    own.port() == address.port() && (ip == address.ip() || any)
}

/// Whether a socket waits for data before it accepts a connection, TCP_DEFER_ACCEPT.
pub(super) struct Deferring(i32);

/// Lets a socket accept at once.
pub(super) fn without_deferring(socket: BorrowedFd<'_>) -> Result<Deferring, Errno> {
    let before = number_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT)?;
    let deferring = Deferring(before);
    if before != 0 {
        Deferring(0).put_back(socket)?;
    }
    Ok(deferring)
}

impl Deferring {
    pub(super) fn put_back(self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &self.0.to_ne_bytes())
    }
}

/// The levels of options that a socket of a protocol has.
pub(super) const fn levels(protocol: i32) -> [i32; 4] {
    [libc::SOL_SOCKET, protocol, libc::IPPROTO_IP, libc::IPPROTO_IPV6]
}

fn set_up(
    (network, socket): (u32, &OwnedFd),
    body: &Body,
    context: &OpenContext<'_>,
) -> Result<(), (&'static str, io::Error)> {
    let failed = |action| move |source| (action, source);
    options::set_early(socket.as_fd(), &body.options).map_err(|error| ("set the options of", error.into()))?;
    if let Some(local) = body.local {
        let only_connects = body.kind == libc::SOCK_STREAM && body.remote.is_some();
        let bind = || match only_connects {
            true => bind_sharing(socket.as_fd(), local),
            false => bind(socket.as_raw_fd(), &SockaddrStorage::from(local)),
        };
        or_without_leftovers(network, local, context, bind).map_err(failed("bind (is its port taken?)"))?;
    }
    if let Some(remote) = body.remote.filter(|_| body.kind == libc::SOCK_DGRAM) {
        let connected = connect(socket.as_raw_fd(), &SockaddrStorage::from(remote));
        connected.map_err(|error| ("connect", error.into()))?;
    }
    if let (Some(most), Some(local)) = (body.listens, body.local) {
        let listen = || floe_sys::socket::listen(socket.as_fd(), most);
        or_without_leftovers(network, local, context, listen).map_err(failed("listen (is its port taken?) at"))?;
    } else if let Some(most) = body.listens {
        floe_sys::socket::listen(socket.as_fd(), most).map_err(|error| ("listen at", error.into()))?;
    }
    Ok(())
}

/// Takes an address of a network namespace; where it is in use, once more when what connections of the tree that was saved have left there
/// (TIME_WAIT) is ended. Nobody has that any more, and without it the port would be taken for a minute.
pub(super) fn or_without_leftovers(
    network: u32,
    address: SocketAddr,
    context: &OpenContext<'_>,
    take: impl Fn() -> Result<(), Errno>,
) -> Result<(), io::Error> {
    let Err(error) = take() else { return Ok(()) };
    let (Errno::EADDRINUSE | Errno::EADDRNOTAVAIL) = error else {
        return Err(error.into());
    };
    match context.inside(network, || Ok(end_leftovers(address.port())?)) {
        Ok(0) => Err(error.into()),
        Ok(_) => Ok(take()?),
        Err(other) => {
            tracing::debug!(%other, "what is left of old connections stays");
            Err(error.into())
        }
    }
}

/// Binds a socket in floe's own network namespace as that of a file is to be bound, if it is of this kind and its address alone
/// says where; or why that can't be. It stays bound as long as it is there. An address that nobody has here may be one of those
/// that the restore brings.
pub(super) fn try_address(
    record: &OpenFileRecord,
    brings_addresses: bool,
) -> Result<Result<Option<OwnedFd>, String>, FileError> {
    if record.kind != NAME {
        return Ok(Ok(None));
    }
    let body = possible(record)?;
    let shares = |name| options::is_on(&body.options, (libc::SOL_SOCKET, name));
    let datagrams = body.kind == libc::SOCK_DGRAM;
    // What is sent to one that shares its port would be lost.
    let would_take = datagrams && (shares(libc::SO_REUSEADDR) || shares(libc::SO_REUSEPORT));
    let needs_device =
        body.is_of_a_link() || !body.devices.is_empty() || options::bound_device(&body.options).is_some();
    let only_connects = !datagrams && body.listens.is_none();
    let Some(local) = body.local.filter(|_| !would_take && !needs_device && !only_connects) else {
        return Ok(Ok(None));
    };
    let attempt = || -> Result<Option<OwnedFd>, Errno> {
        let socket = floe_sys::socket::new(body.family, body.kind, body.protocol)?;
        if options::set_early(socket.as_fd(), &body.options).is_err() {
            return Ok(None);
        }
        if !datagrams {
            // What connections of the tree that was saved have left there (TIME_WAIT) is in nobody's way.
            set_option(
                socket.as_fd(),
                libc::SOL_SOCKET,
                libc::SO_REUSEADDR,
                &1_i32.to_ne_bytes(),
            )?;
        }
        match bind(socket.as_raw_fd(), &SockaddrStorage::from(local)) {
            Err(Errno::EADDRNOTAVAIL) if brings_addresses => Ok(None),
            // Nor what those have left that did not have that option; it is ended when the address is taken.
            Err(Errno::EADDRINUSE) if !datagrams && has_leftovers_alone(local.port())? => Ok(None),
            bound => bound.map(|()| Some(socket)),
        }
    };
    let name = if datagrams { "UDP" } else { "TCP" };
    Ok(attempt().map_err(|error| match error {
        Errno::EADDRINUSE => {
            format!("{name} address {local} is somebody else's in this network; is the tree still running?")
        }
        error => format!("{name} address {local} can't be had here: {error}"),
    }))
}

/// Names of the network devices that a file needs, where it is of this kind.
pub(super) fn devices_in(record: &OpenFileRecord) -> Result<BTreeSet<String>, FileError> {
    if record.kind != NAME {
        return Ok(BTreeSet::new());
    }
    let body = possible(record)?;
    let names = body.devices.into_iter().map(|(_, name)| name);
    Ok(names.chain(options::bound_device(&body.options)).collect())
}

/// The port that a file has, where it is of this kind.
pub(super) fn port_in(record: &OpenFileRecord) -> Result<Option<u16>, FileError> {
    if record.kind != NAME {
        return Ok(None);
    }
    Ok(possible(record)?.local.map(|local| local.port()))
}

fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    if body.is_possible() {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no such internet socket".to_owned(),
        })
    }
}
