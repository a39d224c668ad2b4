//! What an end holds, and which other one it belongs to.
//!
//! What one end has sent and the other has not got is read from its send queue, which the kernel shows in repair mode
//! (TCP_REPAIR) alone. That is switched off again at once, and is not needed where nothing is on its way, as nearly always.

use super::{Body, Ends, NAME, OPTIONS, addresses, canonical};
use crate::{
    file::{
        DumpContext, FileError, FoundFile,
        socket::{
            has_error, has_events,
            inet::{self, TcpState},
            number_option, options,
            queue::PeekOffset,
            refuse,
        },
    },
    refusal::{Refusals, Subject},
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    descriptor::pidfd_getfd,
    socket::{option, set_option, unsent},
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// Ends found so far.
#[derive(Default)]
pub(in crate::file) struct FoundConnections {
    carried: Vec<FoundConnection>,
    /// Those of ends that were refused.
    refused: HashSet<Ends>,
    /// Where the tree listens, and connections wait to be accepted.
    pub(in crate::file::socket) waiting: Vec<SocketAddr>,
}

/// An end that was found. Its record is complete when the other end is known.
struct FoundConnection {
    pidfd: Rc<OwnedFd>,
    number: i32,
    subject: Subject,
    title: String,
    body: Body,
    /// Whether the other end has said that it will send no more, and this one knows.
    got_end: bool,
    /// What is in its send queue, and the sequence number behind that.
    unreceived: Option<(Vec<u8>, u32)>,
}

pub(super) fn dump(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let socket = file.duplicate()?;
    let ends = addresses(&socket).map_err(FileError::system("read the addresses of", file.title()))?;
    let body = dump_end(file, &socket, ends, context)?;
    if let (None, Some((local, remote))) = (&body, ends) {
        context
            .connections
            .refused
            .insert((canonical(local), canonical(remote)));
    }
    Ok(body)
}

fn dump_end(
    file: &FoundFile,
    socket: &OwnedFd,
    ends: Option<Ends>,
    context: &mut DumpContext<'_>,
) -> Result<Option<Vec<u8>>, FileError> {
    let wrap = |action| FileError::system(action, file.title());
    let tcp = TcpState::read(socket.as_fd()).map_err(wrap("read the state of"))?;
    if !tcp.is_carried() {
        return refuse(
            file,
            context,
            "a TCP connection that is only being made can't be carried yet",
        );
    }
    if has_error(socket.as_fd()).map_err(wrap("poll"))? {
        return refuse(
            file,
            context,
            "a socket with an error that nobody has read can't be carried yet",
        );
    }
    if has_events(socket.as_fd(), libc::POLLPRI).map_err(wrap("poll"))? {
        return refuse(file, context, "urgent data of a TCP connection can't be carried yet");
    }
    if option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_ULP).is_ok_and(|name| !name.is_empty()) {
        return refuse(file, context, "TLS in the kernel (TCP_ULP) can't be carried");
    }
    let Some((local, remote)) = ends else {
        return refuse(file, context, "a TCP connection without addresses can't be carried");
    };
    if [local, remote].into_iter().any(inet::has_scope) {
        return refuse(
            file,
            context,
            "an address of one network device (scope) can't be carried yet",
        );
    }
    let family =
        number_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).map_err(wrap("read the family of"))?;
    let fresh = floe_sys::socket::new(family, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(wrap("make one like"))?;
    let differing = options::differing(socket.as_fd(), fresh.as_fd(), &OPTIONS);
    let (options, others) = differing.map_err(wrap("read the options of"))?;
    if !others.is_empty() {
        return refuse(file, context, &options::refusal(&others));
    }
    let ended = has_events(socket.as_fd(), libc::POLLRDHUP).map_err(wrap("poll"))?;
    let got_end = tcp.has_got_end();
    let body = Body {
        family,
        local,
        remote,
        alone: false,
        shut_write: tcp.has_sent_end(),
        shut_read: ended && !got_end,
        queue: waiting(socket.as_fd()).map_err(wrap("look at what waits in"))?,
        options,
    };
    let unreceived = match unsent(socket.as_fd()).map_err(wrap("read the send queue of"))? {
        0 => None,
        _ => Some(send_queue(socket.as_fd()).map_err(wrap("read the send queue of"))?),
    };
    let record = codec::encode(&body)?;
    context.connections.carried.push(FoundConnection {
        pidfd: Rc::clone(&file.pidfd),
        number: file.number,
        subject: file.subject.clone(),
        title: file.title(),
        body,
        got_end,
        unreceived,
    });
    Ok(Some(record))
}

/// All that can be read.
fn waiting(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let _offset = match number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF) {
        Ok(0..) => Some(PeekOffset::from_the_start(socket)?),
        _ => None,
    };
    peek(socket)
}

fn peek(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut room = 64 << 10;
    loop {
        let mut bytes = vec![0; room];
        let got = match recv(
            socket.as_raw_fd(),
            &mut bytes,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => 0,
            Err(error) => return Err(error),
        };
        if got < room {
            bytes.truncate(got);
            return Ok(bytes);
        }
        room *= 4;
    }
}

/// linux/tcp.h.
const TCP_RECV_QUEUE: i32 = 1;
const TCP_SEND_QUEUE: i32 = 2;
const TCP_REPAIR_OFF_NO_WP: i32 = -1;

/// A socket in repair mode. Dropping it ends that.
struct Repair<'a> {
    socket: BorrowedFd<'a>,
    /// SO_REUSEADDR, which the mode changes.
    reuse: i32,
}

impl<'a> Repair<'a> {
    fn of(socket: BorrowedFd<'a>) -> Result<Self, Errno> {
        let reuse = number_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1_i32.to_ne_bytes())?;
        Ok(Self { socket, reuse })
    }

    /// Chooses a queue, and returns the sequence number behind it.
    fn queue(&self, which: i32) -> Result<u32, Errno> {
        set_option(
            self.socket,
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR_QUEUE,
            &which.to_ne_bytes(),
        )?;
        number_option(self.socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ).map(|number| number as u32)
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        let off = set_option(
            self.socket,
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            &TCP_REPAIR_OFF_NO_WP.to_ne_bytes(),
        );
        let reuse = set_option(
            self.socket,
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            &self.reuse.to_ne_bytes(),
        );
        if let Err(error) = off.and(reuse) {
            tracing::error!(%error, "a TCP connection stays in repair mode");
        }
    }
}

fn send_queue(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, u32), Errno> {
    let repair = Repair::of(socket)?;
    let behind = repair.queue(TCP_SEND_QUEUE)?;
    Ok((peek(socket)?, behind))
}

/// Completes the records of connections, in the order in which they were found; refuses those whose other end is outside.
pub(in crate::file) fn resolve(
    all: &FoundConnections,
    records: &mut [OpenFileRecord],
    refusals: &mut Refusals,
) -> Result<(), FileError> {
    let found = &all.carried;
    let by_ends: HashMap<Ends, &FoundConnection> = found.iter().map(|one| (one.body.ends(), one)).collect();
    let connections = records.iter_mut().filter(|record| record.kind == NAME);
    for (record, one) in connections.zip(found) {
        let (local, remote) = one.body.ends();
        let mut body = one.body.clone();
        match by_ends.get(&(remote, local)) {
            Some(other) => body.queue.extend(one.on_its_way_from(other)?),
            None if one.got_end && remote.ip().is_loopback() => body.alone = true,
            // Its finding says it.
            None if all.refused.contains(&(remote, local)) => {}
            None if all.waiting.iter().any(|place| inet::comes_to(remote, *place)) => {}
            None => refusals.add(
                Some(&one.subject),
                one.title.clone(),
                format!(
                    "the other end of this TCP connection, {remote}, is outside of the tree, or has not accepted it yet"
                ),
                "end the connection, or try again",
            ),
        }
        record.body = codec::encode(&body)?;
    }
    Ok(())
}

impl FoundConnection {
    /// What the other end has sent and this one has not got.
    fn on_its_way_from<'o>(&self, other: &'o Self) -> Result<&'o [u8], FileError> {
        let Some((sent, behind)) = &other.unreceived else {
            return Ok(&[]);
        };
        let wrap = |action| FileError::system(action, self.title.clone());
        let socket = pidfd_getfd(self.pidfd.as_fd(), self.number).map_err(wrap("fetch"))?;
        let got = Repair::of(socket.as_fd())
            .and_then(|repair| repair.queue(TCP_RECV_QUEUE))
            .map_err(wrap("read the sequence number of"))?;
        // The end itself counts as one.
        let end = u32::from(other.body.shut_write && !self.got_end);
        let missing = behind.wrapping_sub(got).wrapping_sub(end) as usize;
        Ok(&sent[sent.len().saturating_sub(missing)..])
    }
}
