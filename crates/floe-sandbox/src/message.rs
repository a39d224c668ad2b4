//! The messages that launcher, monitor, PID 1 and attached clients exchange over SOCK_SEQPACKET sockets: one byte of
//! kind, then the payload.

use floe_sys::descriptor::adopt;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, send, sendmsg,
        socketpair,
    },
};
use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// Payload bytes of one message.
pub const PAYLOAD: usize = 32 << 10;

/// Kinds of messages.
pub mod kind {
    /// Monitor to PID 1: you are in your cgroup, go on.
    pub const PLACED: u8 = b'G';
    /// PID 1 to monitor: mounts are done.
    pub const MOUNTED: u8 = b'M';
    /// Monitor to PID 1: the console is there.
    pub const CONSOLE: u8 = b'T';
    /// PID 1 to monitor, monitor to launcher: all is ready for exec, and the state written.
    pub const READY: u8 = b'R';
    /// Launcher to monitor, monitor to PID 1: execute.
    pub const EXECUTE: u8 = b'X';
    /// To the launcher: the execve succeeded.
    pub const EXECUTED: u8 = b'E';
    /// Something failed. Payload: errno as 4 bytes, then text.
    pub const FAILED: u8 = b'F';
    /// Launcher to monitor: keep the sandbox from now on; and back, when that is done. With [`THAW`] as payload: it is
    /// frozen, let it run. With a
    /// [`Holding`](crate::handover::Holding) as JSON: leave it frozen until somebody decides ([`RELEASE`], [`DROP`]).
    pub const COMMIT: u8 = b'C';
    /// Launcher to monitor, with descriptors beside it: pages of memory are brought while the sandbox runs. The first of all
    /// is the way to who brings them; the others are to be held until [`LOADED`] comes that way, or nobody is left.
    pub const PAGES: u8 = b'P';
    /// Launcher to monitor, with a descriptor beside it: the way to who joins a held sandbox to networks when it is let run. That
    /// one to the monitor: its PID, 4 bytes. The monitor to that one: do so. Answered by [`NOTED`] or [`FAILED`].
    pub const JOIN: u8 = b'J';
    /// Page server to monitor: all memory is there. Client to monitor: tell me ([`NOTED`]) when it is.
    pub const LOADED: u8 = b'L';
    /// Client to monitor: standard input.
    pub const INPUT: u8 = b'i';
    /// Client to monitor: standard input has ended.
    pub const INPUT_END: u8 = b'e';
    /// Client to monitor: rows and columns, 2 bytes each.
    pub const WINDOW: u8 = b'w';
    /// Client to monitor: send me output from now on.
    pub const SUBSCRIBE: u8 = b's';
    /// Client to monitor: when PID 1 ends now, that is a checkpoint's doing. Holds until the client hangs up.
    pub const ANNOUNCE: u8 = b'a';
    /// Client to monitor: read what the workload has written, keep back further input until I hang up, and tell me what
    /// there is.
    pub const SURVEY: u8 = b'v';
    /// Monitor to client: input that waits to be written; comes before [`SURVEYED`].
    pub const WAITING: u8 = b'W';
    /// Monitor to client: 8 bytes, length of the log; one that is 1 where the input ends; one that is 1 where the
    /// terminal holds an unfinished line.
    pub const SURVEYED: u8 = b'V';
    /// Client to monitor: nobody reads what this kind of message ([`OUTPUT`], [`ERROR`]) brings any more, and nobody will.
    pub const UNREAD: u8 = b'p';
    /// Client to monitor: forget the files that are kept; those that I hand you from now on ([`HAND`]) are to be kept in their
    /// place when I say so. Payload: what they are all together.
    pub const HAND_ALL: u8 = b'K';
    /// Client to monitor, with a file: one to be kept. Payload: what it is.
    pub const HAND: u8 = b'j';
    /// Client to monitor: keep what I have handed you. Answered by [`NOTED`] with 4 bytes, for how many files there was room; or
    /// by [`FAILED`] where that were too many, and nothing is kept.
    pub const KEEP: u8 = b'D';
    /// Client to monitor: give me what you keep.
    pub const KEPT: u8 = b'q';
    /// Monitor to client, with a file: one that is kept; comes before [`KEPT_ALL`]. Payload: what it is.
    pub const KEPT_ONE: u8 = b'H';
    /// Monitor to client: that was all. Payload: what they are all together.
    pub const KEPT_ALL: u8 = b'Y';
    /// Monitor to client: taken note of. Answers [`SUBSCRIBE`] with the length of the log so far, 8 bytes: what comes
    /// later comes as messages.
    pub const NOTED: u8 = b'n';
    /// Monitor to client: standard output.
    pub const OUTPUT: u8 = b'o';
    /// Monitor to client: standard error.
    pub const ERROR: u8 = b'r';
    /// Monitor to client: PID 1 has ended; 4 bytes, its status as a shell tells it, and one that is 1 where a signal
    /// ended it.
    pub const EXITED: u8 = b'x';
    /// Client to monitor: it went to another host. Payload: [`HandedOver`](crate::handover::HandedOver) as JSON. Keep that
    /// record, and when it is safe on its disk end PID 1. Answered by [`NOTED`], or by [`FAILED`] where nothing was done.
    pub const HAND_OVER: u8 = b'h';
    /// Client to monitor: the one that is held counts, let it run; payload: the id of its hand-over. Answered as above.
    pub const RELEASE: u8 = b'l';
    /// Client to monitor: the one that is held does not count, remove all of it; payload: as above. Answered as above.
    pub const DROP: u8 = b'd';
    /// Monitor to client: the sandbox went into an image.
    pub const CHECKPOINTED: u8 = b'k';
}

/// Payload of [`kind::COMMIT`].
pub const THAW: &[u8] = b"thaw";

/// A connected pair of sockets.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message.
pub fn put(socket: &impl AsRawFd, kind: u8, payload: &[u8]) -> Result<(), Errno> {
    put_with(socket, kind, payload, MsgFlags::empty())
}

/// Sends one message without waiting for room.
pub fn put_now(socket: &impl AsRawFd, kind: u8, payload: &[u8]) -> Result<(), Errno> {
    put_with(socket, kind, payload, MsgFlags::MSG_DONTWAIT)
}

fn put_with(socket: &impl AsRawFd, kind: u8, payload: &[u8], flags: MsgFlags) -> Result<(), Errno> {
    let mut message = Vec::with_capacity(payload.len() + 1);
    message.push(kind);
    message.extend_from_slice(payload);
    loop {
        match send(socket.as_raw_fd(), &message, flags | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Descriptors that go beside one message (SCM_MAX_FD is 253).
pub const MOST_FILES: usize = 200;

/// Sends one message with a file, without waiting for room.
pub fn put_file_now(socket: &impl AsRawFd, kind: u8, payload: &[u8], file: BorrowedFd<'_>) -> Result<(), Errno> {
    put_files_with(socket, kind, payload, &[file], MsgFlags::MSG_DONTWAIT)
}

/// Sends one message with a file.
pub fn put_file(socket: &impl AsRawFd, kind: u8, payload: &[u8], file: BorrowedFd<'_>) -> Result<(), Errno> {
    put_files_with(socket, kind, payload, &[file], MsgFlags::empty())
}

/// Sends one message with up to [`MOST_FILES`] files.
pub fn put_with_files(socket: &impl AsRawFd, kind: u8, files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    put_files_with(socket, kind, &[], files, MsgFlags::empty())
}

fn put_files_with(
    socket: &impl AsRawFd,
    kind: u8,
    payload: &[u8],
    files: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<(), Errno> {
    let pieces = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(payload)];
    let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &pieces, &rights, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A message that may have brought a file.
pub type WithFile = (u8, Vec<u8>, Option<OwnedFd>);

/// Receives one message, and the file that it brings; `None` at the end of the connection.
pub fn get_with_file(socket: &impl AsRawFd) -> Result<Option<WithFile>, Errno> {
    let message = get_with_files(socket)?;
    Ok(message.map(|(kind, payload, files)| (kind, payload, files.into_iter().next())))
}

/// A message with the files that it brought.
pub type WithFiles = (u8, Vec<u8>, Vec<OwnedFd>);

/// Receives one message and its files; `None` at the end of the connection. What comes without its files, as there is no room
/// for more, has none.
pub fn get_with_files(socket: &impl AsRawFd) -> Result<Option<WithFiles>, Errno> {
    let mut buffer = vec![0; PAYLOAD + 1];
    loop {
        let mut space = cmsg_space!([RawFd; MOST_FILES]);
        let mut pieces = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let (got, files) = match recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags) {
            Ok(received) => {
                let mut files = Vec::new();
                for beside in received.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(numbers) = beside {
                        files.extend(numbers.into_iter().map(adopt));
                    }
                }
                (received.bytes, files)
            }
            Err(Errno::EINTR | Errno::ECONNRESET) => continue,
            Err(error) => return Err(error),
        };
        if got == 0 {
            return Ok(None);
        }
        buffer.truncate(got);
        let kind = buffer.remove(0);
        return Ok(Some((kind, buffer, files)));
    }
}

/// Receives one message; `None` at the end of the connection.
///
/// An end that closes before it has read all makes the other one's next call fail once with ECONNRESET, even where
/// messages still wait there (unix_release_sock in net/unix/af_unix.c); they are read all the same.
pub fn get(socket: &impl AsRawFd) -> Result<Option<(u8, Vec<u8>)>, Errno> {
    get_with(socket, MsgFlags::empty())
}

/// Receives one message without waiting for it: EAGAIN where there is none.
pub fn get_now(socket: &impl AsRawFd) -> Result<Option<(u8, Vec<u8>)>, Errno> {
    get_with(socket, MsgFlags::MSG_DONTWAIT)
}

fn get_with(socket: &impl AsRawFd, flags: MsgFlags) -> Result<Option<(u8, Vec<u8>)>, Errno> {
    let mut buffer = vec![0; PAYLOAD + 1];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, flags) {
            Ok(0) => return Ok(None),
            Ok(got) => {
                buffer.truncate(got);
                let kind = buffer.remove(0);
                return Ok(Some((kind, buffer)));
            }
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The payload of [`kind::FAILED`].
pub fn failure(error: Errno, text: &str) -> Vec<u8> {
    let mut payload = (error as i32).to_le_bytes().to_vec();
    payload.extend_from_slice(&text.as_bytes()[..text.len().min(PAYLOAD - 4)]);
    payload
}

/// Takes the payload of [`kind::FAILED`] apart.
pub fn parse_failure(payload: &[u8]) -> (Errno, String) {
    let number = payload
        .get(..4)
        .map_or(0, |bytes| i32::from_le_bytes(bytes.try_into().expect("4 bytes")));
    let text = String::from_utf8_lossy(payload.get(4..).unwrap_or_default()).into_owned();
    (Errno::from_raw(number), text)
}
