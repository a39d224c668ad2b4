//! Settings of sockets that must be changed for a look. A process of floe's, the *keeper*, has them until they are put
//! back, and does that should floe die before.

use super::number_option;
use floe_sys::{fork, socket::set_option};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
            sendmsg, socketpair,
        },
        wait::waitpid,
    },
};
use std::{
    cell::OnceCell,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// A setting of one number: level, name, value.
type Setting = (i32, i32, i32);

/// The keeper, which is started when it is needed.
#[derive(Default)]
pub(in crate::file) struct Keeper(OnceCell<Process>);

struct Process {
    child: nix::unistd::Pid,
    /// Until it ends. What it gets is one message a change, with the socket, and an empty one when the last is undone.
    link: Option<OwnedFd>,
}

/// Settings that are changed for a look. Dropping it puts them back.
pub(super) struct Changed<'a> {
    pub socket: BorrowedFd<'a>,
    keeper: &'a Process,
    back: Vec<Setting>,
}

impl Keeper {
    /// Changes nothing yet: from now on these settings will be as `back` says when this is dropped, or floe ends.
    pub(super) fn keep<'a>(&'a self, socket: BorrowedFd<'a>, back: Vec<Setting>) -> Result<Changed<'a>, Errno> {
        let keeper = match self.0.get() {
            Some(process) => process,
            None => {
                let process = Process::start()?;
                self.0.get_or_init(|| process)
            }
        };
        keeper.tell(&back, Some(socket))?;
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
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        if let Err(error) = put_back(self.socket, &self.back).and_then(|()| self.keeper.tell(&[], None)) {
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

    fn tell(&self, settings: &[Setting], socket: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let link = self.link.as_ref().ok_or(Errno::EBADF)?;
        let numbers = settings.iter().flat_map(|(level, name, value)| [*level, *name, *value]);
        let mut bytes = vec![u8::from(socket.is_some())];
        bytes.extend(numbers.flat_map(i32::to_ne_bytes));
        let numbers: Vec<RawFd> = socket.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if socket.is_some() { &rights[..] } else { &[] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<UnixAddr>(link.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None).map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.link = None;
        while let Err(Errno::EINTR) = waitpid(self.child, None) {}
    }
}

/// What the keeper does.
fn live(link: &OwnedFd) {
    let mut kept: Vec<(OwnedFd, Vec<Setting>)> = Vec::new();
    loop {
        match hear(link) {
            Ok(Heard::Change(socket, settings)) => kept.push((socket, settings)),
            Ok(Heard::Undone) => drop(kept.pop()),
            Ok(Heard::End) | Err(_) => break,
        }
    }
    for (socket, settings) in kept.iter().rev() {
        // There is nobody to be told of a failure.
        let _ = put_back(socket.as_fd(), settings);
    }
}

enum Heard {
    Change(OwnedFd, Vec<Setting>),
    /// The last change that was not yet.
    Undone,
    End,
}

fn hear(link: &OwnedFd) -> Result<Heard, Errno> {
    let mut bytes = [0; 64];
    let mut control = cmsg_space!([RawFd; 1]);
    let (length, socket) = {
        let mut vector = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = match recvmsg::<UnixAddr>(link.as_raw_fd(), &mut vector, Some(&mut control), flags) {
            Err(Errno::EINTR) => return hear(link),
            got => got?,
        };
        let sockets = got.cmsgs()?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => numbers.first().copied(),
            _ => None,
        });
        (got.bytes, sockets.map(floe_sys::descriptor::adopt).last())
    };
    let Some((_, numbers)) = bytes[..length].split_first() else {
        return Ok(Heard::End);
    };
    let numbers: Vec<i32> = numbers
        .chunks_exact(4)
        .map(|four| i32::from_ne_bytes(four.try_into().expect("4 bytes")))
        .collect();
    let settings = numbers.chunks_exact(3).map(|three| (three[0], three[1], three[2]));
    Ok(match socket {
        Some(socket) => Heard::Change(socket, settings.collect()),
        None => Heard::Undone,
    })
}
