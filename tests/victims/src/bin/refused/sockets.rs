//! Sockets that can't be carried.

use super::{Check, Make, descriptors::bpf_map, unchanged};
use std::{
    fs::File,
    io,
    mem::forget,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, IntoRawFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};
use victims::{Stage, call, letter};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("socket-raw", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("socket-netlink", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("socket-packet", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("socket-tcp-urgent", tcp_urgent),
    ("socket-udp-waiting", udp_waiting),
    ("socket-options", options),
    ("socket-unix-waiting", unix_waiting),
    ("socket-unix-flight", unix_flight),
    ("socket-unix-urgent", unix_urgent),
    ("socket-unix-nameless", unix_nameless),
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

/// A file comes with what was sent, and nobody has it.
fn unix_waiting(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("waiting");
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path)?;
    let file = File::open("/dev/null")?;
    letter::send(client.as_raw_fd(), b"with it", &[file.as_fd()])?;
    forget(client);
    Ok(kept(listener))
}

/// What is on its way is refused as it would be in a table.
fn unix_flight(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    let map = bpf_map()?;
    letter::send(near.as_raw_fd(), b"map", &[map.as_fd()])?;
    forget(near);
    Ok(kept(far))
}

fn unix_urgent(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    letter::send(near.as_raw_fd(), b"beside", &[far.as_fd()])?;
    send_urgent(near.as_raw_fd())?;
    forget(near);
    Ok(kept(far))
}

/// It sends to one end of a pair whose other end has gone to somebody else.
fn unix_nameless(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("somebody else");
    forget(UnixDatagram::bind(&path)?);
    let (one, two) = UnixDatagram::pair()?;
    two.connect(&path)?;
    // It is told of that.
    drop(one.take_error()?);
    forget(two);
    Ok(kept(one))
}
