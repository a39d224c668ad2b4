//! Sockets that can't be carried.

use super::{Check, Make, descriptors::send_descriptor, unchanged};
use std::{
    io::{self, Read},
    mem::forget,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, IntoRawFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};
use victims::{Stage, call};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("socket-raw", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("socket-netlink", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("socket-packet", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("socket-tcp-urgent", tcp_urgent),
    ("socket-tcp-ended", tcp_ended),
    ("socket-tcp-waiting", tcp_waiting),
    ("socket-udp-waiting", udp_waiting),
    ("socket-options", options),
    ("socket-unix-waiting", unix_waiting),
    ("socket-unix-descriptors", unix_descriptors),
    ("socket-unix-urgent", unix_urgent),
    ("socket-unix-orphan", unix_orphan),
    ("socket-unix-removed", unix_removed),
    ("socket-unix-letters", unix_letters),
];

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<Check> {
    // SAFETY: plain numbers.
    let made = unsafe { call::raw(libc::SYS_socket, &[family as usize, kind as usize, protocol as usize]) };
    made.map(|fd| unchanged(fd as i32))
}

/// A descriptor that stays open and must look as it did.
fn kept(socket: impl IntoRawFd) -> Check {
    unchanged(socket.into_raw_fd())
}

fn tcp_urgent(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    send_urgent(client.as_raw_fd())?;
    forget(client);
    Ok(kept(server))
}

fn send_urgent(socket: i32) -> io::Result<()> {
    let byte = *b"!";
    let (address, flags) = (byte.as_ptr() as usize, libc::MSG_OOB as usize);
    // SAFETY: one byte is read.
    unsafe { call::raw(libc::SYS_sendto, &[socket as usize, address, 1, flags, 0, 0]) }.map(drop)
}

/// Both sides have closed it, and one of them has it open still.
fn tcp_ended(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    drop(server);
    let end = (&client).read(&mut [0])?;
    assert_eq!(end, 0);
    client.shutdown(Shutdown::Write)?;
    Ok(kept(client))
}

fn tcp_waiting(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    forget(TcpStream::connect(listener.local_addr()?)?);
    Ok(kept(listener))
}

fn udp_waiting(_: &Stage) -> io::Result<Check> {
    let server = UdpSocket::bind(ANY)?;
    UdpSocket::bind(ANY)?.send_to(b"unread", server.local_addr()?)?;
    Ok(kept(server))
}

fn options(_: &Stage) -> io::Result<Check> {
    let server = UdpSocket::bind(ANY)?;
    let device = *b"lo\0";
    // SAFETY: three bytes are read.
    unsafe {
        call::raw(
            libc::SYS_setsockopt,
            &[
                server.as_raw_fd() as usize,
                libc::SOL_SOCKET as usize,
                libc::SO_BINDTODEVICE as usize,
                device.as_ptr() as usize,
                device.len(),
            ],
        )
    }?;
    Ok(kept(server))
}

fn unix_waiting(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("waiting");
    let listener = UnixListener::bind(&path)?;
    forget(UnixStream::connect(&path)?);
    Ok(kept(listener))
}

fn unix_descriptors(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    send_descriptor(near.as_raw_fd(), far.as_raw_fd())?;
    forget(near);
    Ok(kept(far))
}

fn unix_urgent(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    send_urgent(near.as_raw_fd())?;
    forget(near);
    Ok(kept(far))
}

/// What accepted the connection is closed.
fn unix_orphan(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("orphan");
    let listener = UnixListener::bind(&path)?;
    forget(UnixStream::connect(&path)?);
    Ok(kept(listener.accept()?.0))
}

fn unix_removed(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("removed");
    let listener = UnixListener::bind(&path)?;
    std::fs::remove_file(path)?;
    Ok(kept(listener))
}

/// Datagrams wait in a socket with a name.
fn unix_letters(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("letters");
    let server = UnixDatagram::bind(&path)?;
    UnixDatagram::unbound()?.send_to(b"unread", path)?;
    Ok(kept(server))
}
