//! Duties should floe be killed. Settings of sockets must be changed for a look, and packets held back while a tree ends:
//! a process of floe's, the *keeper*, knows what to put back until that is done, and does it should floe die before.

use super::number_option;
use floe_sys::{
    Pid, descriptor, fork,
    procfs::{Stat, Status},
    socket::{end_orphans, set_option},
};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send,
            sendmsg, socketpair,
        },
        wait::waitpid,
    },
};
use std::{
    cell::OnceCell,
    io::{IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// A setting of one number: level, name, value.
type Setting = (i32, i32, i32);

/// The keeper, which is started when it is needed.
#[derive(Default)]
pub(in crate::file) struct Keeper(OnceCell<Process>);

struct Process {
    child: nix::unistd::Pid,
    /// Until it ends. What it gets is one message a duty, with the file that it is about, and one when the last is none
    /// any more.
    link: Option<OwnedFd>,
}

/// Settings that are changed for a look. Dropping it puts them back.
pub(super) struct Changed<'a> {
    pub socket: BorrowedFd<'a>,
    keeper: &'a Process,
    back: Vec<Setting>,
}

impl Keeper {
    fn process(&self) -> Result<&Process, Errno> {
        if let Some(process) = self.0.get() {
            return Ok(process);
        }
        let process = Process::start()?;
        Ok(self.0.get_or_init(|| process))
    }

    /// Changes nothing yet: from now on these settings will be as `back` says when this is dropped, or floe ends.
    pub(super) fn keep<'a>(&'a self, socket: BorrowedFd<'a>, back: Vec<Setting>) -> Result<Changed<'a>, Errno> {
        let keeper = self.process()?;
        let numbers = back.iter().flat_map(|(level, name, value)| [*level, *name, *value]);
        let bytes: Vec<u8> = numbers.flat_map(i32::to_ne_bytes).collect();
        keeper.tell(CHANGE, &bytes, Some(socket))?;
        Ok(Changed { socket, keeper, back })
    }

    /// Has one setting be as it is now when this is dropped, or floe ends.
    pub(super) fn keep_one<'a>(
        &'a self,
        socket: BorrowedFd<'a>,
        (level, name): (i32, i32),
    ) -> Result<Changed<'a>, Errno> {
        let now = number_option(socket, level, name)?;
        self.keep(socket, vec![(level, name, now)])
    }

    /// Has bytes be sent should floe end, unless a process is ending then, until [`forget`](Self::forget).
    pub(super) fn send_at_end(&self, socket: BorrowedFd<'_>, bytes: &[u8], unless_ends: Pid) -> Result<(), Errno> {
        let body = [&unless_ends.raw().to_ne_bytes(), bytes].concat();
        self.process()?.tell(SEND, &body, Some(socket))
    }

    /// Has TCP sockets that nobody has any more be ended should floe end, if a process is ending then, and when it has ended:
    /// those of a network namespace that have these addresses, their own first.
    pub(super) fn end_orphans(
        &self,
        namespace: BorrowedFd<'_>,
        connections: &[(SocketAddr, SocketAddr)],
        if_ends: Pid,
    ) -> Result<(), Errno> {
        connections.chunks(ORPHANS).try_for_each(|some| {
            let ends = floe_image::codec::encode(&some).map_err(|_| Errno::EMSGSIZE)?;
            let body = [&if_ends.raw().to_ne_bytes(), &ends[..]].concat();
            self.process()?.tell(ORPHANS_END, &body, Some(namespace))
        })
    }

    /// Takes back all that was asked for.
    pub(super) fn forget(&self) -> Result<(), Errno> {
        self.process()?.tell(FORGET, &[], None)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        if let Err(error) = put_back(self.socket, &self.back).and_then(|()| self.keeper.tell(UNDONE, &[], None)) {
            tracing::error!(%error, "a socket's settings are not what they were");
        }
    }
}

fn put_back(socket: BorrowedFd<'_>, settings: &[Setting]) -> Result<(), Errno> {
    let each = |(level, name, value): &Setting| set_option(socket, *level, *name, &value.to_ne_bytes());
    // All of them, also where one can't be.
    let results: Vec<_> = settings.iter().map(each).collect();
    results.into_iter().collect()
}

impl Process {
    fn start() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (link, own) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let child = fork::child(|| {
            fork::close_all_but(&[own.as_raw_fd()]);
            fork::leave_session("floe-keep");
            live(&own);
            0
        })?;
        let link = Some(link);
        Ok(Self { child, link })
    }

    fn tell(&self, kind: u8, body: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let link = self.link.as_ref().ok_or(Errno::EBADF)?;
        let numbers: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if file.is_some() { &rights[..] } else { &[] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let kind = [kind];
        let parts = [IoSlice::new(&kind), IoSlice::new(body)];
        sendmsg::<UnixAddr>(link.as_raw_fd(), &parts, control, flags, None).map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.link = None;
        while let Err(Errno::EINTR) = waitpid(self.child, None) {}
    }
}

/// Kinds of messages.
const CHANGE: u8 = 1;
const SEND: u8 = 2;
const UNDONE: u8 = 3;
const FORGET: u8 = 4;
const ORPHANS_END: u8 = 5;

/// Bytes of a message, at most.
const MESSAGE: usize = 64 << 10;
/// Connections in one, at most.
const ORPHANS: usize = 512;

/// What the keeper does should floe end.
enum Duty {
    Set(OwnedFd, Vec<Setting>),
    Send(OwnedFd, Vec<u8>, Pid),
    /// In a network namespace, when a process that is ending has ended.
    EndOrphans(OwnedFd, Vec<(SocketAddr, SocketAddr)>, Pid),
}

impl Duty {
    fn perform(&self) -> Result<(), Errno> {
        match self {
            Self::Set(socket, settings) => put_back(socket.as_fd(), settings),
            Self::Send(_, _, process) if is_ending(*process) => Ok(()),
            Self::Send(socket, bytes, _) => send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(drop),
            Self::EndOrphans(_, _, process) if !is_ending(*process) => Ok(()),
            Self::EndOrphans(namespace, connections, process) => {
                match descriptor::pidfd_open(*process) {
                    Ok(process) => poll(
                        &mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)],
                        PollTimeout::NONE,
                    )
                    .map(drop)?,
                    Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error),
                }
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                end_orphans(connections).map(drop)
            }
        }
    }
}

/// Whether a process is gone, or can't be kept from ending: it has been sent SIGKILL. Of a task that is just taking note of the
/// signal neither the signal nor its flag shows, for some nanoseconds; so what seems alive is looked at once more.
pub(super) fn is_ending(process: Pid) -> bool {
    const PF_EXITING: u64 = 0x4;
    const PF_SIGNALED: u64 = 0x400;
    let folder = format!("/proc/{process}");
    let look = || {
        let killed = 1 << (libc::SIGKILL - 1);
        let has_pending =
            Status::read(&folder).is_ok_and(|status| (status.pending | status.shared_pending) & killed != 0);
        match Stat::of(process) {
            Ok(stat) => {
                has_pending || stat.flags & (PF_EXITING | PF_SIGNALED) != 0 || matches!(stat.state, b'Z' | b'X')
            }
            Err(error) => error.is_gone(),
        }
    };
    look() || look()
}

/// The keeper's life.
fn live(link: &OwnedFd) {
    let mut duties: Vec<Duty> = Vec::new();
    loop {
        match hear(link) {
            Ok(Heard::Duty(duty)) => duties.push(duty),
            Ok(Heard::Undone) => drop(duties.pop()),
            Ok(Heard::Forget) => duties.clear(),
            Ok(Heard::End) | Err(_) => break,
        }
    }
    for duty in duties.iter().rev() {
        // There is nobody to be told of a failure.
        let _ = duty.perform();
    }
}

enum Heard {
    Duty(Duty),
    /// The last duty is none any more.
    Undone,
    /// None is.
    Forget,
    End,
}

fn hear(link: &OwnedFd) -> Result<Heard, Errno> {
    let mut bytes = vec![0; MESSAGE];
    let mut control = cmsg_space!([RawFd; 1]);
    let (length, file) = {
        let mut vector = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = match recvmsg::<UnixAddr>(link.as_raw_fd(), &mut vector, Some(&mut control), flags) {
            Err(Errno::EINTR) => return hear(link),
            got => got?,
        };
        let files = got.cmsgs()?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => numbers.first().copied(),
            _ => None,
        });
        (got.bytes, files.map(floe_sys::descriptor::adopt).last())
    };
    let Some((kind, body)) = bytes[..length].split_first() else {
        return Ok(Heard::End);
    };
    let numbers = || -> Vec<i32> {
        let each = body.chunks_exact(4);
        each.map(|four| i32::from_ne_bytes(four.try_into().expect("4 bytes")))
            .collect()
    };
    Ok(match (*kind, file) {
        (CHANGE, Some(socket)) => {
            let numbers = numbers();
            let settings = numbers.chunks_exact(3).map(|three| (three[0], three[1], three[2]));
            Heard::Duty(Duty::Set(socket, settings.collect()))
        }
        (SEND, Some(socket)) if body.len() > 4 => {
            let (process, bytes) = body.split_at(4);
            let process = i32::from_ne_bytes(process.try_into().expect("4 bytes"));
            Heard::Duty(Duty::Send(socket, bytes.to_vec(), Pid::new(process)))
        }
        (ORPHANS_END, Some(namespace)) if body.len() > 4 => {
            let (process, connections) = body.split_at(4);
            let process = i32::from_ne_bytes(process.try_into().expect("4 bytes"));
            let connections = floe_image::codec::decode(connections).map_err(|_| Errno::EBADMSG)?;
            Heard::Duty(Duty::EndOrphans(namespace, connections, Pid::new(process)))
        }
        (FORGET, _) => Heard::Forget,
        _ => Heard::Undone,
    })
}
