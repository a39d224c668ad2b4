//! Ends of connections whose other ends are nobody's any more: floe makes these, and ends them.

use super::{
    Body, Stream, canonical,
    make::{await_state, in_family},
    port::WantedPorts,
    repair,
};
use crate::file::{
    FileError, OpenContext,
    socket::{address::Address, has_events, supply::new_in_tree, system, tcp_state::TcpState},
};
use floe_sys::{descriptor::adopt, socket::listen};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{Shutdown, SockFlag, SockaddrStorage, accept4, bind, connect, setsockopt, shutdown, sockopt::Linger},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

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
    let (_nobody, place) = other_end(id, local, context)?;
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
    set_linger(&end, true)?;
    drop(end);
    Ok(())
}

/// Whether an end is to be closed with a reset.
fn set_linger(end: &OwnedFd, resets: bool) -> Result<(), Errno> {
    let linger = libc::linger {
        l_onoff: resets.into(),
        l_linger: 0,
    };
    setsockopt(end, Linger, &linger)
}

/// A connection within the host, with an end at an address, if any, and its other end, which is nobody's.
fn with_nobody(
    id: u32,
    family: i32,
    local: Option<SocketAddr>,
    context: &OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let (listening, address) = other_end(id, local, context)?;
    listen(listening.as_fd(), 1).map_err(wrap("listen for"))?;
    let to = SockaddrStorage::from(in_family(address, family));
    let connected = |local| -> Result<[OwnedFd; 2], FileError> {
        let end = new_in_tree(id, (family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
        if let Some(local) = local {
            repair::bind_forced(end.as_fd(), local).map_err(wrap("bind"))?;
        }
        connect(end.as_raw_fd(), &to).map_err(wrap("connect"))?;
        let accepted = accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(wrap("accept"))?;
        Ok([end, adopt(accepted)])
    };
    if local.is_some() {
        return connected(local);
    }
    // Those at other ports leave nothing behind.
    let [end, other] = WantedPorts::apart(context, || {
        let ends = connected(None)?;
        set_linger(&ends[0], true).map_err(wrap("set up"))?;
        let chosen = Address::local(ends[0].as_fd()).map_err(wrap("read the address of"))?;
        Ok((ends, chosen.map_or(0, |address| address.port())))
    })?;
    set_linger(&end, false).map_err(wrap("set up"))?;
    Ok([end, other])
}

/// A socket that the one at `local` can connect with, if only to be refused, and its address, whose port the kernel chose.
fn other_end(
    id: u32,
    local: Option<SocketAddr>,
    context: &OpenContext<'_>,
) -> Result<(OwnedFd, SocketAddr), FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let ip = local.map_or(Ipv4Addr::LOCALHOST.into(), |local| canonical(local).ip());
    let here = SocketAddr::new(ip, 0);
    let family = if here.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    WantedPorts::apart(context, || {
        let other = new_in_tree(id, (family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
        bind(other.as_raw_fd(), &SockaddrStorage::from(here)).map_err(wrap("bind the other end of"))?;
        let address = Address::local(other.as_fd()).map_err(wrap("read the address of the other end of"))?;
        let address = address.ok_or_else(|| wrap("find the address of the other end of")(Errno::EADDRNOTAVAIL))?;
        Ok(((other, address), address.port()))
    })
}

fn await_error(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    await_state(|| has_events(socket, libc::POLLERR))
}
