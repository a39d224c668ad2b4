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
            keeper::{Changed, Keeper},
            number_option, options,
            queue::PEEK_OFFSET,
            refuse,
        },
    },
    ns,
    refusal::{Refusals, Subject},
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    Pid,
    descriptor::pidfd_getfd,
    socket::{is_somebodys, option, set_option, unsent},
};
use nix::{
    errno::Errno,
    sched::CloneFlags,
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
    holder: Pid,
    pidfd: Rc<OwnedFd>,
    number: i32,
    subject: Subject,
    title: String,
    body: Body,
}

pub(super) fn dump(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let ends = addresses(file.as_fd()).map_err(FileError::system("read the addresses of", file.title()))?;
    let body = dump_end(file, ends, context)?;
    if let (None, Some((local, remote))) = (&body, ends) {
        context
            .connections
            .refused
            .insert((canonical(local), canonical(remote)));
    }
    Ok(body)
}

fn dump_end(file: &FoundFile, ends: Option<Ends>, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let wrap = |action| FileError::system(action, file.title());
    let tcp = TcpState::read(file.as_fd()).map_err(wrap("read the state of"))?;
    if !tcp.is_carried() {
        return refuse(
            file,
            context,
            "a TCP connection that is only being made can't be carried yet",
        );
    }
    if has_error(file.as_fd()).map_err(wrap("poll"))? {
        return refuse(
            file,
            context,
            "a socket with an error that nobody has read can't be carried yet",
        );
    }
    if has_events(file.as_fd(), libc::POLLPRI).map_err(wrap("poll"))? {
        return refuse(file, context, "urgent data of a TCP connection can't be carried yet");
    }
    if option(file.as_fd(), libc::IPPROTO_TCP, libc::TCP_ULP).is_ok_and(|name| !name.is_empty()) {
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
    let family = number_option(file.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).map_err(wrap("read the family of"))?;
    let fresh = floe_sys::socket::new(family, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(wrap("make one like"))?;
    let differing = options::differing(file.as_fd(), fresh.as_fd(), &OPTIONS);
    let (options, others) = differing.map_err(wrap("read the options of"))?;
    if !others.is_empty() {
        return refuse(file, context, &options::refusal(&others));
    }
    let body = Body {
        family,
        local,
        remote,
        alone: false,
        shut_write: tcp.has_sent_end(),
        shut_read: false,
        queue: Vec::new(),
        options,
    };
    let record = codec::encode(&body)?;
    context.connections.carried.push(FoundConnection {
        holder: file.holder,
        pidfd: Rc::clone(&file.pidfd),
        number: file.number,
        subject: file.subject.clone(),
        title: file.title(),
        body,
    });
    Ok(Some(record))
}

/// All that can be read.
fn waiting(socket: BorrowedFd<'_>, keeper: &Keeper) -> Result<Vec<u8>, Errno> {
    let (level, name) = PEEK_OFFSET;
    match number_option(socket, level, name) {
        Ok(0..) => {
            let _put_back = keeper.keep_one(socket, PEEK_OFFSET)?;
            set_option(socket, level, name, &(-1_i32).to_ne_bytes())?;
            peek(socket)
        }
        _ => peek(socket),
    }
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
struct Repair<'a>(Changed<'a>);

impl<'a> Repair<'a> {
    fn of(socket: BorrowedFd<'a>, keeper: &'a Keeper) -> Result<Self, Errno> {
        // The mode changes SO_REUSEADDR, and so does its end.
        let reuse = number_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        let back = [
            (libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse),
        ];
        let changed = keeper.keep(socket, back.to_vec())?;
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1_i32.to_ne_bytes())?;
        Ok(Self(changed))
    }

    /// Chooses a queue, and returns the sequence number behind it.
    fn queue(&self, which: i32) -> Result<u32, Errno> {
        let socket = self.0.socket;
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &which.to_ne_bytes())?;
        number_option(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ).map(|number| number as u32)
    }
}

fn send_queue(socket: BorrowedFd<'_>, keeper: &Keeper) -> Result<(Vec<u8>, u32), Errno> {
    let repair = Repair::of(socket, keeper)?;
    let behind = repair.queue(TCP_SEND_QUEUE)?;
    Ok((peek(socket)?, behind))
}

/// Completes the records of connections, in the order in which they were found; refuses those whose other end is outside.
///
/// Tasks stand still, but what they have sent is still on its way. So first all that has been sent is looked at, and only
/// then what has come: whatever comes in between is seen at least once, and sequence numbers tell what was seen twice.
pub(in crate::file) fn resolve(
    (all, keeper): (&FoundConnections, &Keeper),
    records: &mut [OpenFileRecord],
    refusals: &mut Refusals,
) -> Result<(), FileError> {
    let found = &all.carried;
    let mut sent = HashMap::with_capacity(found.len());
    for one in found {
        sent.insert(one.body.ends(), (one.unreceived(keeper)?, one.body.shut_write));
    }
    let connections = records.iter_mut().filter(|record| record.kind == NAME);
    for (record, one) in connections.zip(found) {
        let (local, remote) = one.body.ends();
        let mut body = one.body.clone();
        let other = sent.get(&(remote, local));
        let got_end = one.receive(keeper, &mut body, other)?;
        match other {
            Some(_) => {}
            // Its finding says it.
            None if all.refused.contains(&(remote, local)) => {}
            None if all.waiting.iter().any(|place| inet::comes_to(remote, *place)) => {}
            None if got_end && remote.ip().is_loopback() && !one.is_others(remote, local)? => body.alone = true,
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

/// What is in a send queue, with the sequence number behind it.
type Unreceived = Option<(Vec<u8>, u32)>;

/// What is in a receive queue, whether the other end's last is known to have come, and whether nothing more can be read.
type Come = (Vec<u8>, bool, bool);

impl FoundConnection {
    fn wrap(&self, action: &'static str) -> impl FnOnce(Errno) -> FileError {
        FileError::system(action, self.title.clone())
    }

    fn socket(&self) -> Result<OwnedFd, FileError> {
        pidfd_getfd(self.pidfd.as_fd(), self.number).map_err(self.wrap("fetch"))
    }

    /// What this end has sent and the other has not acknowledged.
    fn unreceived(&self, keeper: &Keeper) -> Result<Unreceived, FileError> {
        let socket = self.socket()?;
        match unsent(socket.as_fd()).map_err(self.wrap("read the send queue of"))? {
            0 => Ok(None),
            _ => send_queue(socket.as_fd(), keeper)
                .map(Some)
                .map_err(self.wrap("read the send queue of")),
        }
    }

    /// Whether a process outside of the tree has the end with these addresses.
    fn is_others(&self, local: SocketAddr, remote: SocketAddr) -> Result<bool, FileError> {
        let look = || Ok(is_somebodys(local, remote)?);
        let found = ns::inside::run(self.holder, CloneFlags::CLONE_NEWNET, look);
        found.map_err(|error| FileError::System {
            action: "look for the other end of",
            object: self.title.clone(),
            source: std::io::Error::other(error),
        })
    }

    /// Notes what has come to this end and what is on its way from the other; whether it knows that no more will come.
    fn receive(&self, keeper: &Keeper, body: &mut Body, other: Option<&(Unreceived, bool)>) -> Result<bool, FileError> {
        let socket = self.socket()?;
        let look = || -> Result<Come, Errno> {
            let queue = waiting(socket.as_fd(), keeper)?;
            let got_end = TcpState::read(socket.as_fd())?.has_got_end();
            Ok((queue, got_end, has_events(socket.as_fd(), libc::POLLRDHUP)?))
        };
        let Some((Some((sent, behind)), shut_write)) = other else {
            let (queue, got_end, ended) = look().map_err(self.wrap("look at what waits in"))?;
            (body.queue, body.shut_read) = (queue, ended && !got_end);
            return Ok(got_end);
        };
        let number = || Repair::of(socket.as_fd(), keeper).and_then(|repair| repair.queue(TCP_RECV_QUEUE));
        let stands = || -> Result<(u32, Come), Errno> {
            loop {
                let before = number()?;
                let seen = look()?;
                if number()? == before {
                    return Ok((before, seen));
                }
            }
        };
        let (got, (queue, got_end, ended)) = stands().map_err(self.wrap("look at what waits in"))?;
        (body.queue, body.shut_read) = (queue, ended && !got_end);
        // The end itself counts as one. What came since the send queue was looked at makes the difference negative.
        let end = u32::from(*shut_write && !got_end);
        let missing = behind.wrapping_sub(got).wrapping_sub(end) as i32;
        let missing = usize::try_from(missing).unwrap_or(0);
        let from = sent.len().checked_sub(missing).ok_or(Errno::EPROTO);
        let from = from.map_err(self.wrap("make out what is on its way to"))?;
        body.queue.extend(&sent[from..]);
        Ok(got_end)
    }
}
