//! How connections are made again: one end connects from its own address with the other's, where the tree's own socket
//! listens, or one that floe makes for the purpose.

use super::{Body, Ends, NAME, OtherEnd, Stream, canonical, repair};
use crate::file::{
    FileError, OpenContext, decode,
    socket::{
        address::{Address, is_of_a_link},
        duplicate, has_events, inet,
        options::{self, SocketOption, Suspects},
        supply::new_in_tree,
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
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            Shutdown, SockFlag, SockaddrStorage, accept4, bind, connect, setsockopt, shutdown,
            sockopt::{Linger, SendTimeout},
        },
        time::{TimeVal, TimeValLike},
    },
};
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

type Records = Rc<HashMap<Ends, Body>>;

/// Connections made again so far.
#[derive(Default)]
pub(in crate::file) struct MadeConnections {
    records: Option<Records>,
    /// Sockets that listen for floe alone, by address.
    listening: HashMap<SocketAddr, OwnedFd>,
    /// Other ends of those that were asked for.
    others: HashMap<Ends, MadeEnd>,
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
        found.insert(body.ends(), body);
    }
    let records = Rc::new(found);
    context.connections.records = Some(Rc::clone(&records));
    Ok(records)
}

/// The end that `body` tells of, but for its options.
pub(super) fn make(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<MadeEnd, FileError> {
    if let Some(made) = context.connections.others.remove(&body.ends()) {
        return Ok(made);
    }
    let (local, remote) = body.ends();
    let records = records(context)?;
    let other = records.get(&(remote, local));
    if other.is_none() && matches!(body.other, OtherEnd::Tree) {
        return Err(FileError::Unknown {
            id,
            what: format!("the image lacks the other end of the connection from {local} to {remote}"),
        });
    }
    let family = other.map_or(body.family, |other| other.family);
    let remote_as_it_was = other.map_or(body.remote, |other| other.local);
    let there = End {
        family,
        address: remote_as_it_was,
        options: other.map_or(&[], |other| &other.options),
    };
    let here = End {
        family: body.family,
        address: body.local,
        options: &body.options,
    };
    // Where the tree itself listens, that accepts.
    let [mut own, mut far] = if inet::listener(local, context)?.is_some() || inet::listener(remote, context)?.is_none()
    {
        let [client, server] = connected(id, &there, &here, context)?;
        [server, client]
    } else {
        connected(id, &here, &there, context)?
    };
    own.receive(id, body, &far.socket)?;
    if let Some(other) = other {
        far.receive(id, other, &own.socket)?;
        context.connections.others.insert((remote, local), far);
    }
    Ok(own)
}

/// How long a connection within the host may take.
const CONNECT_SECONDS: i64 = 10;

/// A family and an address of it.
struct End<'a> {
    family: i32,
    address: SocketAddr,
    /// Of these, the device that it is bound to.
    options: &'a [SocketOption],
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
    let place = canonical(server.address);
    if inet::listener(place, context)?.is_none() && !context.connections.listening.contains_key(&place) {
        let socket = new_in_tree(id, (server.family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
        bind_again(socket.as_fd(), server, context).map_err(taken)?;
        listen(socket.as_fd(), 1).map_err(wrap("listen for"))?;
        context.connections.listening.insert(place, socket);
    }
    let end = new_in_tree(id, (client.family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
    bind_again(end.as_fd(), client, context).map_err(taken)?;
    let listening = match inet::listener(place, context)? {
        Some(found) => duplicate(id, found)?,
        None => duplicate(id, &context.connections.listening[&place])?,
    };
    // Else it would wait for data before it accepts.
    let defer = inet::without_deferring(listening.as_fd()).map_err(wrap("prepare the socket that accepts"))?;
    let to = in_family(server.address, client.family);
    // The queue of a socket that all can see may be full.
    let patience = TimeVal::seconds(CONNECT_SECONDS);
    setsockopt(&end, SendTimeout, &patience).map_err(wrap("set up"))?;
    let (end, to) = (end, SockaddrStorage::from(to));
    let connect = || connect(end.as_raw_fd(), &to);
    inet::or_without_leftovers(client.address, context, connect).map_err(|source| system("connect", id, source))?;
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
    inet::or_without_leftovers(end.address, context, bind)
}

/// One that is to be connected when all others are, with its options but for those that come late.
pub(super) fn unconnected(id: u32, body: &Body, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let wrap = |action| move |source| system(action, id, source);
    let socket = new_in_tree(id, (body.family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
    let end = End {
        family: body.family,
        address: body.local,
        options: &body.options,
    };
    bind_again(socket.as_fd(), &end, context).map_err(wrap("bind (is its port taken?)"))?;
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
pub(super) fn bind_reusing(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), Errno> {
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

/// The connection from `client`. Others may come meanwhile; they find theirs closed.
fn accept_from(listening: &OwnedFd, client: SocketAddr) -> Result<OwnedFd, Errno> {
    while has_events(listening.as_fd(), libc::POLLIN)? {
        let accepted = adopt(accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?);
        if Address::remote(accepted.as_fd())?.map(canonical) == Some(client) {
            return Ok(accepted);
        }
    }
    Err(Errno::ECONNABORTED)
}

/// An end whose connection was reset: what a program finds that is told so by the other end.
pub(super) fn reset(id: u32, body: &Body, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let [end, other] = with_nobody(id, body.family, None, context)?;
    close_hard(other).map_err(|source| system("reset", id, source.into()))?;
    Ok(end)
}

/// An end whose connection has ended, as both ends wanted, with what still waits to be read.
pub(in crate::file::socket) fn ended(
    id: u32,
    (family, local): (i32, Option<SocketAddr>),
    queue: &Stream,
    context: &OpenContext<'_>,
) -> Result<OwnedFd, FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    // Where this host does not have its address any more it gets another one.
    let named = with_nobody(id, family, local, context);
    let [end, other] = named.or_else(|error| match local {
        Some(_) => with_nobody(id, family, None, context),
        None => Err(error),
    })?;
    queue
        .send(queue.all(), other.as_fd(), Some(end.as_fd()))
        .map_err(wrap("put back what waited in"))?;
    drop(other);
    shutdown(end.as_raw_fd(), Shutdown::Write).map_err(wrap("shut down"))?;
    await_state(|| TcpState::read(end.as_fd()).map(|tcp| !tcp.is_connection()))
        .map_err(wrap("end the connection of"))?;
    Ok(end)
}

/// An end whose connection the other end has reset, with what still waits to be read and, behind that, the error.
pub(in crate::file::socket) fn reset_with(
    id: u32,
    (family, local): (i32, Option<SocketAddr>),
    queue: &Stream,
    context: &OpenContext<'_>,
) -> Result<OwnedFd, FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let [end, other] = with_nobody(id, family, local, context)?;
    queue
        .send(queue.all(), other.as_fd(), Some(end.as_fd()))
        .map_err(wrap("put back what waited in"))?;
    close_hard(other).map_err(wrap("reset"))?;
    await_error(end.as_fd()).map_err(wrap("wait for the error of"))?;
    Ok(end)
}

/// One that was refused when it connected, and was not told so yet.
pub(in crate::file::socket) fn refused(
    id: u32,
    (family, local): (i32, Option<SocketAddr>),
    context: &OpenContext<'_>,
) -> Result<OwnedFd, FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let socket = new_in_tree(id, (family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
    if let Some(local) = local {
        repair::bind_forced(socket.as_fd(), local).map_err(wrap("bind"))?;
    }
    // It has a port and does not listen.
    let ip = local.map_or(Ipv4Addr::LOCALHOST.into(), |local| canonical(local).ip());
    let here = SocketAddr::new(ip, 0);
    let of_nobody = if here.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let nobody = new_in_tree(id, (of_nobody, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
    bind(nobody.as_raw_fd(), &SockaddrStorage::from(here)).map_err(wrap("bind the other end of"))?;
    let place = Address::local(nobody.as_fd()).map_err(wrap("read the address of the other end of"))?;
    let place = place.ok_or_else(|| wrap("find the address of the other end of")(Errno::EADDRNOTAVAIL))?;
    // So that connect(2) leaves the error to others.
    let set = |flags| fcntl(&socket, FcntlArg::F_SETFL(flags)).map_err(wrap("set the flags of"));
    set(OFlag::O_NONBLOCK)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(in_family(place, family))) {
        Err(Errno::EINPROGRESS) => {}
        result => return Err(wrap("connect")(result.err().unwrap_or(Errno::EISCONN))),
    }
    await_error(socket.as_fd()).map_err(wrap("wait for the error of"))?;
    set(OFlag::empty())?;
    Ok(socket)
}

/// Closes an end with a reset.
fn close_hard(end: OwnedFd) -> Result<(), Errno> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&end, Linger, &at_once)?;
    drop(end);
    Ok(())
}

fn await_error(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    await_state(|| has_events(socket, libc::POLLERR))
}

/// Waits until an end has been told that the other says no more.
pub(super) fn await_end(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // Where this one has ended too the connection has.
    await_state(|| TcpState::read(socket).map(|tcp| tcp.has_got_end() || !tcp.is_connection()))
}

fn await_state(is_reached: impl Fn() -> Result<bool, Errno>) -> Result<(), Errno> {
    let until = Instant::now() + Duration::from_secs(CONNECT_SECONDS as u64);
    while !is_reached()? {
        if Instant::now() > until {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// A connection within the host, with an end at an address, if any, and its other end, which is nobody's.
fn with_nobody(
    id: u32,
    family: i32,
    local: Option<SocketAddr>,
    context: &OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let ip = local.map_or(Ipv4Addr::LOCALHOST.into(), |local| canonical(local).ip());
    let here = SocketAddr::new(ip, 0);
    let of_listener = if here.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = |family| (family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let listening = new_in_tree(id, kind(of_listener), context)?;
    bind(listening.as_raw_fd(), &SockaddrStorage::from(here)).map_err(wrap("bind the other end of"))?;
    listen(listening.as_fd(), 1).map_err(wrap("listen for"))?;
    let address = Address::local(listening.as_fd()).map_err(wrap("read the address of the other end of"))?;
    let address = address.ok_or_else(|| wrap("find the address of the other end of")(Errno::EADDRNOTAVAIL))?;
    let end = new_in_tree(id, kind(family), context)?;
    if let Some(local) = local {
        repair::bind_forced(end.as_fd(), local).map_err(wrap("bind"))?;
    }
    connect(end.as_raw_fd(), &SockaddrStorage::from(in_family(address, family))).map_err(wrap("connect"))?;
    let accepted = accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(wrap("accept"))?;
    Ok([end, adopt(accepted)])
}
