//! How connections are made again: one end connects from its own address with the other's, where the tree's own socket
//! listens, or one that floe makes for the purpose.

use super::{Body, NAME, OtherEnd, canonical, port::WantedPorts, repair};
use crate::file::{
    FileError, OpenContext, decode,
    socket::{
        address::{Address, is_of_a_link},
        duplicate, has_events, inet,
        options::{self, SocketOption, Suspects},
        supply::{new_in_network, new_in_tree},
        system,
        tcp_state::TcpState,
    },
};
use floe_sys::{
    descriptor::adopt,
    socket::{listen, set_option},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            Shutdown, SockFlag, SockaddrStorage, accept4, bind, connect, setsockopt, shutdown, sockopt::SendTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

/// By file, each with the network namespace that it is of.
type Records = Rc<HashMap<u32, (u32, Body)>>;

/// Connections made again so far.
#[derive(Default)]
pub(in crate::file) struct MadeConnections {
    records: Option<Records>,
    /// Sockets that listen for floe alone, by network namespace and address.
    listening: HashMap<(u32, SocketAddr), OwnedFd>,
    /// Other ends of those that were asked for, by file.
    others: HashMap<u32, MadeEnd>,
    pub(super) wanted: WantedPorts,
}

/// An end that was made, but for its options.
pub(super) struct MadeEnd {
    pub socket: OwnedFd,
    /// Which may be other ones than a new socket has.
    pub suspects: Suspects,
    /// The other end, which sends what is on its way here when this one has its options.
    pub sender: Option<OwnedFd>,
}

impl MadeEnd {
    /// Has what came wait, sent by the other end.
    fn receive(&mut self, id: u32, body: &Body, other: &OwnedFd) -> Result<(), FileError> {
        let wrap = |source: Errno| system("put back what waited in", id, source.into());
        let own = self.socket.as_fd();
        body.queue
            .send(0..body.come(), other.as_fd(), Some(own))
            .map_err(wrap)?;
        if body.got_end {
            shutdown(other.as_raw_fd(), Shutdown::Write)
                .and_then(|()| await_end(own))
                .map_err(wrap)?;
        }
        if body.coming != 0 {
            self.sender = Some(duplicate(id, other)?);
        }
        Ok(())
    }
}

fn records(context: &mut OpenContext<'_>) -> Result<Records, FileError> {
    if let Some(records) = &context.connections.records {
        return Ok(Rc::clone(records));
    }
    let mut found = HashMap::new();
    for record in context.files.iter().filter(|record| record.kind == NAME) {
        let body: Body = decode(record)?;
        found.insert(record.id, (record.network, body));
    }
    let records = Rc::new(found);
    context.connections.records = Some(Rc::clone(&records));
    Ok(records)
}

/// Has floe listen for all connections that the tree itself does not accept. That comes before any socket of the tree has a
/// port: one with a client at it could be listened at no more, and which end was the client shows nowhere.
pub(in crate::file::socket) fn prepare(context: &mut OpenContext<'_>) -> Result<(), FileError> {
    if context.connections.records.is_some() {
        return Ok(());
    }
    let records = records(context)?;
    for record in context.files.iter().filter(|record| record.kind == NAME) {
        let (_, body) = &records[&record.id];
        if !matches!(body.other, OtherEnd::Tree(_) | OtherEnd::Closed) {
            continue;
        }
        let ends = Both::of(record.id, &records)?;
        let server = if ends.accepts(context)? {
            &ends.here
        } else {
            &ends.there
        };
        let place = server.place();
        if inet::is_listened_at(place, context)? || context.connections.listening.contains_key(&place) {
            continue;
        }
        let kind = (server.family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let socket = new_in_network(record.id, (server.network, kind), context)?;
        bind_again(socket.as_fd(), server, context)
            .map_err(|source| system("bind (is its port taken?)", record.id, source))?;
        listen(socket.as_fd(), 1).map_err(|source| system("listen for", record.id, source.into()))?;
        context.connections.listening.insert(place, socket);
    }
    Ok(())
}

/// Both ends of a connection.
struct Both<'a> {
    here: End<'a>,
    there: End<'a>,
}

impl<'a> Both<'a> {
    fn of(id: u32, records: &'a HashMap<u32, (u32, Body)>) -> Result<Self, FileError> {
        let lacking = |what: String| FileError::Unknown { id, what };
        let (network, body) = records
            .get(&id)
            .ok_or_else(|| lacking("it is no TCP connection".to_owned()))?;
        let (local, remote) = body.ends();
        let other = match body.other {
            OtherEnd::Tree(other) => {
                let found = records.get(&other).filter(|(_, other)| {
                    let is_told = matches!(other.other, OtherEnd::Tree(back) if back == id);
                    is_told && other.ends() == (remote, local)
                });
                let what = || format!("the image lacks the other end of the connection from {local} to {remote}");
                Some(found.ok_or_else(|| lacking(what()))?)
            }
            _ => None,
        };
        Ok(Self {
            here: End {
                network: *network,
                family: body.family,
                address: body.local,
                options: &body.options,
            },
            there: match other {
                Some((network, other)) => End {
                    network: *network,
                    family: other.family,
                    address: other.local,
                    options: &other.options,
                },
                None => End {
                    network: *network,
                    family: body.family,
                    address: body.remote,
                    options: &[],
                },
            },
        })
    }

    /// Whether this end is the one that accepts: that does the end at which the tree listens, and where it does at none the
    /// one whose record comes first.
    fn accepts(&self, context: &mut OpenContext<'_>) -> Result<bool, FileError> {
        Ok(inet::is_listened_at(self.here.place(), context)?
            || !inet::is_listened_at(self.there.place(), context)?
                && !context.connections.listening.contains_key(&self.there.place()))
    }
}

/// The end that `body` tells of, but for its options.
pub(super) fn make(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<MadeEnd, FileError> {
    if let Some(made) = context.connections.others.remove(&id) {
        return Ok(made);
    }
    let records = records(context)?;
    let ends = Both::of(id, &records)?;
    let [mut own, mut far] = if ends.accepts(context)? {
        let [client, server] = connected(id, &ends.there, &ends.here, context)?;
        [server, client]
    } else {
        connected(id, &ends.here, &ends.there, context)?
    };
    own.receive(id, body, &far.socket)?;
    if let OtherEnd::Tree(other) = body.other {
        far.receive(id, &records[&other].1, &own.socket)?;
        context.connections.others.insert(other, far);
    }
    Ok(own)
}

/// How long a connection within the host may take.
const CONNECT_SECONDS: i64 = 10;

/// A family and an address of it, in a network namespace.
struct End<'a> {
    network: u32,
    family: i32,
    address: SocketAddr,
    /// Of these, the device that it is bound to.
    options: &'a [SocketOption],
}

impl End<'_> {
    /// Where it is found.
    fn place(&self) -> (u32, SocketAddr) {
        (self.network, canonical(self.address))
    }
}

/// The client's end, and the server's.
fn connected(
    id: u32,
    client: &End<'_>,
    server: &End<'_>,
    context: &mut OpenContext<'_>,
) -> Result<[MadeEnd; 2], FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let taken = |source| system("bind (is its port taken?)", id, source);
    let place = server.place();
    let kind = (client.family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let end = new_in_network(id, (client.network, kind), context)?;
    bind_client(end.as_fd(), client, context).map_err(taken)?;
    let listening = match inet::listener(place, context)? {
        Some(found) => duplicate(id, found)?,
        None => {
            let lacking = || system("find who listens for", id, Errno::ECONNREFUSED.into());
            duplicate(id, context.connections.listening.get(&place).ok_or_else(lacking)?)?
        }
    };
    // Else it would wait for data before it accepts.
    let defer = inet::without_deferring(listening.as_fd()).map_err(wrap("prepare the socket that accepts"))?;
    let to = in_family(server.address, client.family);
    // The queue of a socket that all can see may be full.
    let patience = TimeVal::seconds(CONNECT_SECONDS);
    setsockopt(&end, SendTimeout, &patience).map_err(wrap("set up"))?;
    let (end, to) = (end, SockaddrStorage::from(to));
    let connect = || connect(end.as_raw_fd(), &to);
    inet::or_without_leftovers(client.network, client.address, context, connect)
        .map_err(|source| system("connect", id, source))?;
    let accepted = accept_from(&listening, canonical(client.address)).map_err(wrap("accept"))?;
    set_option(end.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &0_i32.to_ne_bytes()).map_err(wrap("set up"))?;
    setsockopt(&end, SendTimeout, &TimeVal::zero()).map_err(wrap("set up"))?;
    defer
        .put_back(listening.as_fd())
        .map_err(wrap("put back the options of the socket that accepts"))?;
    let client = MadeEnd {
        socket: end,
        suspects: Suspects::These(Rc::new([])),
        sender: None,
    };
    let server = MadeEnd {
        socket: accepted,
        suspects: inet::suspects_of(place, context),
        sender: None,
    };
    Ok([client, server])
}

/// An address as a socket of the family takes it.
pub(super) fn in_family(address: SocketAddr, family: i32) -> SocketAddr {
    match address {
        SocketAddr::V4(four) if family == libc::AF_INET6 => (four.ip().to_ipv6_mapped(), four.port()).into(),
        _ if family == libc::AF_INET => canonical(address),
        _ => address,
    }
}

fn bind_again(socket: BorrowedFd<'_>, end: &End<'_>, context: &OpenContext<'_>) -> Result<(), io::Error> {
    if is_of_a_link(end.address.ip()) {
        options::set_device(socket, end.options)?;
    }
    let bind = || bind_reusing(socket, end.address);
    inet::or_without_leftovers(end.network, end.address, context, bind)
}

/// The same of one that is only to be connected: the kernel gives several a port that have different other ends.
fn bind_client(socket: BorrowedFd<'_>, end: &End<'_>, context: &OpenContext<'_>) -> Result<(), io::Error> {
    if is_of_a_link(end.address.ip()) {
        options::set_device(socket, end.options)?;
    }
    let bind = || bind_sharing(socket, end.address);
    inet::or_without_leftovers(end.network, end.address, context, bind)
}

/// Takes an address that the tree had, also where other sockets have its port; where floe may not do so, if these permit it.
pub(in crate::file::socket) fn bind_sharing(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), Errno> {
    match repair::bind_forced(socket, address) {
        Err(Errno::EPERM) => bind_reusing(socket, address),
        result => result,
    }
}

/// One that is to be connected when all others are, with its options but for those that come late.
pub(super) fn unconnected(id: u32, body: &Body, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let wrap = |action| move |source| system(action, id, source);
    let socket = new_in_tree(id, (body.family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
    let end = End {
        network: context.network(id),
        family: body.family,
        address: body.local,
        options: &body.options,
    };
    bind_client(socket.as_fd(), &end, context).map_err(wrap("bind (is its port taken?)"))?;
    set_option(
        socket.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_REUSEADDR,
        &0_i32.to_ne_bytes(),
    )
    .map_err(|error| wrap("set up")(error.into()))?;
    options::set_early(socket.as_fd(), &body.options).map_err(|error| wrap("set the options of")(error.into()))?;
    Ok(socket)
}

/// Takes an address that the tree had.
fn bind_reusing(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), Errno> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1_i32.to_ne_bytes())?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

/// Waits until a socket that was told to connect is connected.
pub(super) fn await_connected(socket: BorrowedFd<'_>, patience: Duration) -> Result<(), Errno> {
    let mut asked = [PollFd::new(socket, PollFlags::POLLOUT)];
    let limit = PollTimeout::try_from(patience).map_err(|_| Errno::EINVAL)?;
    match poll(&mut asked, limit)? {
        0 => Err(Errno::ETIMEDOUT),
        _ if has_events(socket, libc::POLLERR)? => Err(Errno::ECONNREFUSED),
        _ => Ok(()),
    }
}

/// The connection from `client`, which comes a moment later from another network namespace. Others may come meanwhile; they
/// find theirs closed.
fn accept_from(listening: &OwnedFd, client: SocketAddr) -> Result<OwnedFd, Errno> {
    let patience = PollTimeout::try_from(Duration::from_secs(CONNECT_SECONDS as u64)).map_err(|_| Errno::EINVAL)?;
    while poll(&mut [PollFd::new(listening.as_fd(), PollFlags::POLLIN)], patience)? > 0 {
        let accepted = adopt(accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?);
        if Address::remote(accepted.as_fd())?.map(canonical) == Some(client) {
            return Ok(accepted);
        }
    }
    Err(Errno::ECONNABORTED)
}

/// Waits until an end has been told that the other says no more.
pub(super) fn await_end(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // Where this one has ended too the connection has.
    await_state(|| TcpState::read(socket).map(|tcp| tcp.has_got_end() || !tcp.is_connection()))
}

pub(super) fn await_state(is_reached: impl Fn() -> Result<bool, Errno>) -> Result<(), Errno> {
    let until = Instant::now() + Duration::from_secs(CONNECT_SECONDS as u64);
    while !is_reached()? {
        if Instant::now() > until {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::yield_now();
    }
    Ok(())
}
