//! What waits in a unix socket. It is looked at without being taken out: by MSG_PEEK from an offset (SO_PEEK_OFF), that is
//! put back.

use super::{Keeper, Maker, has_events, number_option};
use crate::file::FileError;
use floe_image::record::NsPid;
use floe_sys::{
    message::{self, Peeked},
    socket::set_option,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, sendmsg, socketpair,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    io::IoSlice,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// A message, or of a stream a piece from one sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Who sent it, where the socket wants to know (SO_PASSCRED, SO_PASSPIDFD).
    sender: Option<Maker>,
    /// Name of the socket that it came from, where that is not the other end.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
    /// Open files that come with it, by their numbers in the image.
    pub files: Vec<u32>,
    /// Whether its last byte is urgent (MSG_OOB).
    pub urgent: bool,
}

/// No message is longer: the largest buffer that a socket gets without being root is less.
const LONGEST: usize = 8 << 20;
/// More than a stream holds in one piece.
const BUFFER: usize = 256 << 10;
/// SCM_MAX_FD, include/net/scm.h.
const MOST_FILES: usize = 253;

/// The option that says from where on MSG_PEEK looks, each time behind what it saw; -1 for always from the start.
pub(super) const PEEK_OFFSET: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
const PASS_CREDENTIALS: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PASSCRED);
/// asm-generic/socket.h.
const SO_PASSPIDFD: i32 = 76;

/// How a socket's queue is to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Whether borders between messages are none.
    pub is_stream: bool,
    /// Whether nothing more can come, so that what has no bytes is no message.
    pub ends: bool,
    /// Whether others than its other end may send to it.
    pub of_anybody: bool,
}

/// What is done with files that come with a message: their numbers in the image.
pub(super) type Take<'a> = dyn FnMut(Vec<OwnedFd>) -> Result<Vec<u32>, FileError> + 'a;

/// What waits in a socket, or why it can't be carried.
type Waiting = Result<Vec<Message>, &'static str>;

/// Looks at it.
struct Look<'a> {
    socket: BorrowedFd<'a>,
    manner: Manner,
    buffer: Vec<u8>,
    /// How many bytes have been seen.
    seen: usize,
    messages: Vec<Message>,
    /// Makes out who has a PID in floe's namespace.
    sender: &'a dyn Fn(i32) -> i32,
}

/// All that can be read.
pub(super) fn waiting(
    (socket, keeper, title): (BorrowedFd<'_>, &Keeper, &str),
    manner: Manner,
    sender: &dyn Fn(i32) -> i32,
    take: &mut Take<'_>,
) -> Result<Waiting, FileError> {
    let wrap = || FileError::system("look at what waits in", title);
    if !has_events(socket, libc::POLLIN | libc::POLLPRI).map_err(wrap())? {
        return Ok(Ok(Vec::new()));
    }
    // What tells of senders by descriptors alone is to tell of them by numbers.
    let by_descriptor = number_option(socket, libc::SOL_SOCKET, SO_PASSPIDFD) == Ok(1);
    let prepare = || {
        let credentials = by_descriptor.then(|| keeper.keep_one(socket, PASS_CREDENTIALS));
        if by_descriptor {
            set_option(socket, PASS_CREDENTIALS.0, PASS_CREDENTIALS.1, &1_i32.to_ne_bytes())?;
        }
        Ok((keeper.keep_one(socket, PEEK_OFFSET)?, credentials.transpose()?))
    };
    let _put_back = prepare().map_err(wrap())?;
    let mut look = Look {
        socket,
        manner,
        buffer: vec![0; BUFFER],
        seen: 0,
        messages: Vec::new(),
        sender,
    };
    let urgent = has_events(socket, libc::POLLPRI).map_err(wrap())?;
    let trouble = if urgent {
        look.with_urgent().map_err(wrap())?
    } else {
        look.all(title, take)?
    };
    Ok(trouble.map_or(Ok(look.messages), Err))
}

const MANY_FILES: &str = "a message with more descriptors than floe may have open can't be carried";

impl Look<'_> {
    fn look_from(&self, place: usize) -> Result<(), Errno> {
        let place = i32::try_from(place).map_err(|_| Errno::EOVERFLOW)?;
        set_option(self.socket, PEEK_OFFSET.0, PEEK_OFFSET.1, &place.to_ne_bytes())
    }

    /// From `place` on, into as much of the buffer as `most` says.
    fn at(&mut self, place: usize, most: usize) -> Result<Option<Peeked>, Errno> {
        self.look_from(place)?;
        match message::peek(self.socket, &mut self.buffer[..most], 0) {
            Ok(seen) => Ok(Some(seen)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All messages; or what can't be carried.
    fn all(&mut self, title: &str, take: &mut Take<'_>) -> Result<Option<&'static str>, FileError> {
        let wrap = || FileError::system("look at what waits in", title);
        let is_stream = self.manner.is_stream;
        loop {
            let most = self.buffer.len();
            let Some(mut seen) = self.at(self.seen, most).map_err(wrap())? else {
                return Ok(None);
            };
            if seen.lacks_files {
                return Ok(Some(MANY_FILES));
            }
            let nothing = seen.bytes == 0 && seen.files.is_empty();
            if nothing && (is_stream || self.manner.ends) {
                return Ok(None);
            }
            if seen.is_longer {
                if is_stream || most >= LONGEST {
                    return Ok(Some("a message of more than 8 MiB in a socket can't be carried"));
                }
                self.buffer = vec![0; most * 4];
                continue;
            }
            if is_stream && !seen.files.is_empty() {
                let before = self.before_files(seen.bytes).map_err(wrap())?;
                if before > 0 {
                    seen.files.clear();
                    self.note(before, seen, Vec::new());
                    continue;
                }
            }
            let files = std::mem::take(&mut seen.files);
            let files = if files.is_empty() { Vec::new() } else { take(files)? };
            self.note(seen.bytes, seen, files);
        }
    }

    /// How many of the next `bytes` come before the piece with which files come: the kernel tells pieces without files as
    /// one with the first that has some, which is told up to its end.
    fn before_files(&self, bytes: usize) -> Result<usize, Errno> {
        self.look_from(self.seen)?;
        message::whole_pieces(self.socket, bytes.saturating_sub(1))
    }

    fn note(&mut self, bytes: usize, seen: Peeked, files: Vec<u32>) {
        let sender = seen.sender.map(|[pid, uid, gid]| Maker {
            pid: NsPid((self.sender)(pid as i32)),
            uid,
            gid,
        });
        self.seen += bytes;
        self.messages.push(Message {
            bytes: self.buffer[..bytes].to_vec(),
            sender,
            from: if self.manner.of_anybody { seen.from } else { Vec::new() },
            files,
            urgent: false,
        });
    }

    /// The same of a stream in which an urgent byte waits: what comes before it, the byte, and what follows.
    fn with_urgent(&mut self) -> Result<Option<&'static str>, Errno> {
        const BESIDE: Option<&str> = Some("urgent data beside descriptors or senders' names can't be carried yet");
        let most = self.buffer.len();
        // A look from the start ends before the byte, or where that is the first passes it over.
        let before = match message::is_at_mark(self.socket)? {
            true => None,
            false => self.at(0, most)?,
        };
        let is_plain = |seen: &Peeked| seen.files.is_empty() && seen.sender.is_none() && !seen.lacks_files;
        let mut place = 0;
        if let Some(seen) = before {
            if !is_plain(&seen) {
                return Ok(BESIDE);
            }
            place = seen.bytes;
            self.note(seen.bytes, seen, Vec::new());
        }
        let Some(byte) = self.urgent_byte(place)? else {
            return Ok(BESIDE);
        };
        let inline = number_option(self.socket, libc::SOL_SOCKET, libc::SO_OOBINLINE)? != 0;
        // Where it is the first and not among the others, looking begins behind it.
        let passed = usize::from(place > 0 || inline);
        let rest = self.at(place, most)?;
        let (mut urgent, mut behind) = (byte, None);
        if let Some(seen) = rest {
            if !is_plain(&seen) || seen.bytes == most {
                return Ok(BESIDE);
            }
            behind = Some(self.buffer[passed.min(seen.bytes)..seen.bytes].to_vec());
        }
        urgent.urgent = true;
        self.messages.push(urgent);
        self.messages
            .extend(behind.filter(|bytes| !bytes.is_empty()).map(Message::plain));
        Ok(None)
    }

    fn urgent_byte(&mut self, place: usize) -> Result<Option<Message>, Errno> {
        let seen = match message::peek(self.socket, &mut self.buffer[..1], libc::MSG_OOB) {
            // It stands among the others (SO_OOBINLINE).
            Err(Errno::EINVAL) => self.at(place, 1)?,
            seen => Some(seen?),
        };
        let byte = seen.filter(|seen| seen.bytes == 1);
        Ok(byte.map(|_| Message::plain(vec![self.buffer[0]])))
    }
}

impl Message {
    /// One that is known from elsewhere.
    pub(super) fn new(bytes: Vec<u8>, sender: Option<Maker>, files: Vec<u32>, urgent: bool) -> Self {
        let message = Self::plain(bytes);
        Self {
            sender,
            files,
            urgent,
            ..message
        }
    }

    fn plain(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            sender: None,
            from: Vec::new(),
            files: Vec::new(),
            urgent: false,
        }
    }

    /// Whether there can be such a message.
    pub(super) fn is_possible(&self, is_stream: bool) -> bool {
        let some = !self.bytes.is_empty() || !is_stream;
        let urgent = !self.urgent || is_stream && self.bytes.len() == 1 && self.files.is_empty();
        some && urgent && self.files.len() <= MOST_FILES
    }
}

/// Why floe can't send some of them as they were sent: it takes rights over PIDs and users to name others, unix(7).
pub(super) fn nameless(messages: &[Message]) -> Result<Option<&'static str>, Errno> {
    let own = nix::unistd::Pid::this().as_raw();
    for sender in messages.iter().filter_map(|message| message.sender) {
        // Somebody is PID 1 in every namespace.
        let pid = if sender.pid.0 == 0 { own } else { 1 };
        let (near, _far) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        let credentials = UnixCredentials::from(libc::ucred {
            pid,
            uid: sender.uid,
            gid: sender.gid,
        });
        let control = [ControlMessage::ScmCredentials(&credentials)];
        match sendmsg::<UnixAddr>(
            near.as_raw_fd(),
            &[IoSlice::new(b"?")],
            &control,
            MsgFlags::MSG_DONTWAIT,
            None,
        ) {
            Ok(_) => {}
            Err(Errno::EPERM | Errno::EINVAL) => {
                let reason =
                    "a message waits in it with its sender's name (SO_PASSCRED), which only the host's root may give";
                return Ok(Some(reason));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// How many bytes all of them are.
pub(super) fn bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.bytes.len()).sum()
}

/// Sends one from `socket`, with `files`, to its other end or to an address; `pid` tells a sender's PID in floe's namespace.
pub(super) fn send(
    (socket, to): (BorrowedFd<'_>, Option<&UnixAddr>),
    message: &Message,
    files: &[BorrowedFd<'_>],
    (is_stream, pid): (bool, &dyn Fn(i32) -> i32),
) -> Result<(), Errno> {
    let credentials = message.sender.map(|sender| {
        let own = nix::unistd::Pid::this().as_raw();
        let pid = Some(pid(sender.pid.0)).filter(|pid| *pid != 0).unwrap_or(own);
        UnixCredentials::from(libc::ucred {
            pid,
            uid: sender.uid,
            gid: sender.gid,
        })
    });
    let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let mut rights = (!numbers.is_empty()).then_some(ControlMessage::ScmRights(&numbers));
    let mut flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    flags.set(MsgFlags::MSG_OOB, message.urgent);
    let mut rest = &message.bytes[..];
    loop {
        let mut control: Vec<_> = credentials.iter().map(ControlMessage::ScmCredentials).collect();
        control.extend(rights.take());
        let sent = sendmsg(socket.as_raw_fd(), &[IoSlice::new(rest)], &control, flags, to)?;
        rest = &rest[sent..];
        if rest.is_empty() || !is_stream {
            return Ok(());
        }
    }
}
