//! Sockets of the internet families that have no connection: TCP ones that listen, UDP ones, and new ones.

use super::{
    duplicate, family, has_error, has_events, number_option,
    options::{self, SocketOption},
    refuse,
    supply::new_in_tree,
    system,
    tcp::{FoundListener, Waiting, connect_all, ended, is_connection, to_be_read},
};
use crate::{
    file::{
        ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, Unsent, decode, set_status,
    },
    ns,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::socket::{end_leftovers, option, set_option};
use floe_tracee::Puppet;
use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::socket::{SockaddrLike, SockaddrStorage, bind, connect, getpeername, getsockname},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
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
    /// That of a UDP socket's other end.
    remote: Option<SocketAddr>,
    /// How many connections may wait, where it listens.
    listens: Option<u32>,
    /// Those that do, the one that is accepted first at first.
    waiting: Vec<Waiting>,
    /// Of one whose connection has ended: what still waits to be read.
    ended: Option<ByteBuf>,
    options: Vec<SocketOption>,
}

impl Body {
    fn is_possible(&self) -> bool {
        let is_tcp = (self.kind, self.protocol) == (libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let is_udp =
            self.kind == libc::SOCK_DGRAM && [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&self.protocol);
        [libc::AF_INET, libc::AF_INET6].contains(&self.family)
            && (is_tcp && self.remote.is_none() || is_udp && self.listens.is_none())
            && (self.waiting.is_empty() || self.listens.is_some())
            && (self.ended.is_none() || is_tcp && self.listens.is_none())
            && options::are_possible(&self.options)
    }
}

/// What TCP_INFO tells of a connection's state, include/net/tcp_states.h, and of one that listens: how many connections
/// wait, and how many may.
pub(super) struct TcpState {
    state: u8,
    waiting: u32,
    most: u32,
}

const TCP_ESTABLISHED: u8 = 1;
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_LISTEN: u8 = 10;
const TCP_CLOSING: u8 = 11;

impl TcpState {
    pub(super) fn read(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let info = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let word = |at: usize| {
            let four = info.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
        };
        Ok(Self {
            state: *info.first().ok_or(Errno::EPROTO)?,
            waiting: word(24)?,
            most: word(28)?,
        })
    }

    /// Whether there is a connection, or is to be one.
    pub(super) fn is_connection(&self) -> bool {
        ![TCP_CLOSE, TCP_LISTEN].contains(&self.state)
    }

    pub(super) fn is_carried(&self) -> bool {
        self.state == TCP_ESTABLISHED || self.has_sent_end() || self.has_got_end()
    }

    /// Whether connections wait to be accepted.
    pub(super) fn waits(&self) -> bool {
        self.count() != 0
    }

    /// How many do.
    pub(super) fn count(&self) -> usize {
        self.waiting as usize
    }

    /// Whether this end sends no more.
    pub(super) fn has_sent_end(&self) -> bool {
        [TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_CLOSING].contains(&self.state)
    }

    /// Whether this end knows that the other sends no more.
    pub(super) fn has_got_end(&self) -> bool {
        [TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING].contains(&self.state)
    }
}

impl FileKind for Inet {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        matches!(family(file), Some(libc::AF_INET | libc::AF_INET6)) && !is_connection(file)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let wrap = |action| FileError::system(action, file.title());
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
            options: Vec::new(),
        };
        if !body.is_possible() {
            let reason = format!("a socket of protocol {protocol} can't be carried yet");
            return refuse(file, context, &reason);
        }
        // First: looking into it would take the error away.
        if has_error(socket.as_fd()).map_err(wrap("poll"))? {
            return refuse(
                file,
                context,
                "a socket with an error that nobody has read can't be carried yet",
            );
        }
        let mut listener = None;
        if kind == libc::SOCK_STREAM {
            let tcp = TcpState::read(socket.as_fd()).map_err(wrap("read the state of"))?;
            match tcp.state {
                TCP_LISTEN => match FoundListener::read(file, &context.memory, context.refusals)? {
                    Some(found) => (body.listens, listener) = (Some(tcp.most), Some(found)),
                    None => {
                        context.connections.hidden.extend(body.local);
                        return Ok(None);
                    }
                },
                _ if options::has_been_connected(socket) => {
                    let queue = to_be_read(socket, &context.keeper).map_err(wrap("look at what waits in"))?;
                    body.ended = Some(ByteBuf::from(queue));
                }
                _ => {}
            }
        } else {
            body.remote = Address::remote(socket).map_err(wrap("read the other address of"))?;
            if has_events(socket.as_fd(), libc::POLLIN).map_err(wrap("poll"))? {
                return refuse(file, context, "datagrams that wait in a socket can't be carried yet");
            }
        }
        if [body.local, body.remote].into_iter().flatten().any(has_scope) {
            return refuse(
                file,
                context,
                "an address of one network device (scope) can't be carried yet",
            );
        }
        let fresh = floe_sys::socket::new(family, kind, protocol).map_err(wrap("make a socket like"))?;
        let differing = options::differing(socket.as_fd(), fresh.as_fd(), &levels(protocol));
        let (options, others) = differing.map_err(wrap("read the options of"))?;
        if !others.is_empty() {
            return refuse(file, context, &options::refusal(&others));
        }
        body.options = options;
        context.connections.listening.extend(listener);
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body = possible(record)?;
        let socket = if body.listens.is_some() {
            listening(record.id, &body, context)?;
            duplicate(record.id, &context.inet.listening[&record.id].1)?
        } else if let Some(queue) = &body.ended {
            let socket = ended(record.id, (body.family, body.local), queue, context)?;
            let failed = |source| system("set the options of", record.id, source);
            options::set(socket.as_fd(), &body.options).map_err(|error| failed(error.into()))?;
            socket
        } else {
            let socket = new_in_tree(record.id, (body.family, body.kind, body.protocol), context)?;
            set_up(&socket, &body, context).map_err(|(action, source)| system(action, record.id, source))?;
            socket
        };
        set_status(socket.as_fd(), record)?;
        Ok(socket)
    }

    /// When all connections are made that come by this socket, those can be made that nobody has accepted.
    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        connect_all(record.id, &possible(record)?.waiting, holders)
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
            (None, Some(remote)) => format!(", sends to {remote}"),
            (None, None) if body.ended.is_some() => ", ended".to_owned(),
            (None, None) => String::new(),
        };
        Ok(format!("{protocol}{local}{state}"))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        possible(record).map(|_| None)
    }
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
    /// All of the image: number of the file and what it is.
    records: Option<Rc<Vec<(u32, Body)>>>,
    listening: HashMap<u32, (SocketAddr, OwnedFd)>,
}

fn listening(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<(), FileError> {
    if context.inet.listening.contains_key(&id) {
        return Ok(());
    }
    let socket = new_in_tree(id, (body.family, body.kind, body.protocol), context)?;
    set_up(&socket, body, context).map_err(|(action, source)| system(action, id, source))?;
    // One that listens without an address has got one by that.
    let place = Address::local(socket.as_fd()).map_err(|source| system("read the address of", id, source.into()))?;
    let place = place.ok_or_else(|| system("find the address of", id, Errno::EADDRNOTAVAIL.into()))?;
    context.inet.listening.insert(id, (place, socket));
    Ok(())
}

/// The tree's own socket that connections to an address come to, made if it is not there yet; `None` where there is none.
pub(super) fn listener<'c>(
    place: SocketAddr,
    context: &'c mut OpenContext<'_>,
) -> Result<Option<&'c OwnedFd>, FileError> {
    if context.inet.records.is_none() {
        let files = context.files.iter().filter(|record| record.kind == NAME);
        let found = files.map(|record| Ok((record.id, decode(record)?)));
        context.inet.records = Some(Rc::new(found.collect::<Result<_, FileError>>()?));
    }
    let records = Rc::clone(context.inet.records.as_ref().expect("just read"));
    let found = records
        .iter()
        .find(|(_, body)| body.listens.is_some() && body.is_at(place));
    let Some((id, body)) = found else {
        return Ok(None);
    };
    listening(*id, body, context)?;
    Ok(context.inet.listening.get(id).map(|(_, socket)| socket))
}

impl Body {
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

fn set_up(socket: &OwnedFd, body: &Body, context: &OpenContext<'_>) -> Result<(), (&'static str, io::Error)> {
    let failed = |action| move |source| (action, source);
    options::set(socket.as_fd(), &body.options).map_err(|error| ("set the options of", error.into()))?;
    if let Some(local) = body.local {
        let bind = || bind(socket.as_raw_fd(), &SockaddrStorage::from(local));
        or_without_leftovers(local, context, bind).map_err(failed("bind (is its port taken?)"))?;
    }
    if let Some(remote) = body.remote {
        let connected = connect(socket.as_raw_fd(), &SockaddrStorage::from(remote));
        connected.map_err(|error| ("connect", error.into()))?;
    }
    if let (Some(most), Some(local)) = (body.listens, body.local) {
        let listen = || floe_sys::socket::listen(socket.as_fd(), most);
        or_without_leftovers(local, context, listen).map_err(failed("listen (is its port taken?) at"))?;
    } else if let Some(most) = body.listens {
        floe_sys::socket::listen(socket.as_fd(), most).map_err(|error| ("listen at", error.into()))?;
    }
    Ok(())
}

/// Takes an address; where it is in use, once more when what connections of the tree that was saved have left there
/// (TIME_WAIT) is ended. Nobody has that any more, and without it the port would be taken for a minute.
pub(super) fn or_without_leftovers(
    address: SocketAddr,
    context: &OpenContext<'_>,
    take: impl Fn() -> Result<(), Errno>,
) -> Result<(), io::Error> {
    let Err(error) = take() else { return Ok(()) };
    let inside = context.puppets.values().next().map(Puppet::tid);
    let (Errno::EADDRINUSE | Errno::EADDRNOTAVAIL, Some(inside)) = (error, inside) else {
        return Err(error.into());
    };
    let end = || Ok(end_leftovers(address.port())?);
    match ns::inside::run(inside, CloneFlags::CLONE_NEWNET, end) {
        Ok(0) => Err(error.into()),
        Ok(_) => Ok(take()?),
        Err(other) => {
            tracing::debug!(%other, "what is left of old connections stays");
            Err(error.into())
        }
    }
}

/// Addresses of sockets.
pub(super) struct Address;

impl Address {
    /// Its own; `None` where it has neither an address nor a port.
    pub(super) fn local(socket: BorrowedFd<'_>) -> Result<Option<SocketAddr>, Errno> {
        address(getsockname(socket.as_raw_fd())?)
    }

    /// That of the other end.
    pub(super) fn remote(socket: BorrowedFd<'_>) -> Result<Option<SocketAddr>, Errno> {
        match getpeername(socket.as_raw_fd()) {
            Err(Errno::ENOTCONN) => Ok(None),
            found => address(found?),
        }
    }
}

fn address(found: SockaddrStorage) -> Result<Option<SocketAddr>, Errno> {
    let address = match (found.as_sockaddr_in(), found.as_sockaddr_in6()) {
        (Some(four), _) => SocketAddr::V4(SocketAddrV4::from(*four)),
        (_, Some(six)) => SocketAddr::V6(SocketAddrV6::from(*six)),
        _ if found.len() <= 2 => return Ok(None),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    Ok(Some(address).filter(|address| address.port() != 0 || !address.ip().is_unspecified()))
}

pub(super) fn has_scope(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(six) if six.scope_id() != 0)
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
