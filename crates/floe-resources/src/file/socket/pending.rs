//! Errors that wait in sockets of the internet's until somebody reads them (SO_ERROR). The kernel's memory tells them; they
//! are caused again.

use super::{
    address::Address,
    datagram::inject,
    has_error, system,
    tcp::{Stream, refused, reset_with},
};
use crate::file::{DumpContext, FileError, FoundFile, OpenContext, memory::Memory};
use floe_sys::{packet, socket::unread};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// What a finding says of an error that can't be caused again.
pub(super) const CANT: &str = "a socket with an error that nobody has read can't be carried yet";

/// The error that waits in a socket of a kind and protocol, 0 for none; or why it can't be carried.
pub(super) fn error(
    file: &FoundFile,
    (kind, protocol): (i32, i32),
    context: &DumpContext<'_>,
) -> Result<Result<i32, &'static str>, FileError> {
    if !has_error(file.as_fd()).map_err(FileError::system("poll", file.title()))? {
        return Ok(Ok(0));
    }
    let Ok(state) = context.memory.socket_state(file.as_fd(), false) else {
        return Ok(Err(CANT));
    };
    // Of a socket of UDP what the error is about says more.
    if kind == libc::SOCK_DGRAM {
        return Ok(Ok(state.error));
    }
    if state.queued_errors {
        return Ok(Err(
            "errors of TCP that wait with what they are about (MSG_ERRQUEUE) can't be carried",
        ));
    }
    if is_possible(state.error, (kind, protocol)) {
        Ok(Ok(state.error))
    } else {
        Ok(Err(CANT))
    }
}

/// Whether an error can be caused again.
pub(super) fn is_possible(error: i32, (kind, protocol): (i32, i32)) -> bool {
    let causes = |place: &str| {
        let place: SocketAddr = place.parse().expect("an address");
        packet::unreachable(error, (place, place), protocol as u8).is_some()
    };
    match kind {
        libc::SOCK_STREAM => [libc::ECONNRESET, libc::ECONNREFUSED].contains(&error),
        _ => causes("127.0.0.1:1") || causes("[::1]:1"),
    }
}

/// What waits to be read in a TCP socket in which an error waits behind it: a look for more would take that away.
pub(super) fn queue(socket: BorrowedFd<'_>, memory: &Memory) -> io::Result<Stream> {
    if let Some(marked) = Stream::marked(socket, memory)? {
        return Ok(marked);
    }
    let mut bytes = vec![0; unread(socket)?];
    if !bytes.is_empty() {
        let got = recv(
            socket.as_raw_fd(),
            &mut bytes,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        )?;
        if got != bytes.len() {
            return Err(Errno::EPROTO.into());
        }
    }
    Ok(Stream::plain(bytes))
}

/// A TCP socket in which an error waits, behind what waits to be read.
pub(super) fn make_tcp(
    id: u32,
    (family, local): (i32, Option<SocketAddr>),
    (queue, error): (&Stream, i32),
    context: &OpenContext<'_>,
) -> Result<OwnedFd, FileError> {
    match error {
        libc::ECONNREFUSED => refused(id, (family, local), context),
        _ => reset_with(id, (family, local), queue, context),
    }
}

/// Tells a UDP socket, which is connected, an error.
pub(super) fn tell_udp(
    id: u32,
    socket: BorrowedFd<'_>,
    (protocol, error): (i32, i32),
    context: &OpenContext<'_>,
) -> Result<(), FileError> {
    let failed = |source: Errno| system("tell its error to", id, source.into());
    let ends = (|| Ok((Address::local(socket)?, Address::remote(socket)?)))().map_err(failed)?;
    let (Some(local), Some(remote)) = ends else {
        return Err(failed(Errno::ENOTCONN));
    };
    let packet = packet::unreachable(error, (local, remote), protocol as u8).ok_or_else(|| failed(Errno::EINVAL))?;
    inject(id, &packet, || has_error(socket), (context, None))
}
