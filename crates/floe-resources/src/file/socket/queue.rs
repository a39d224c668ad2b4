//! What waits in a unix socket. It is looked at without being taken out: by MSG_PEEK from an offset (SO_PEEK_OFF), that is
//! put back.

use super::{Keeper, Maker, has_events};
use floe_image::record::NsPid;
use floe_sys::{descriptor, socket::set_option};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize};
use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

/// A message, or of a stream a piece from one sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// Who sent it, where the socket wants to know (SO_PASSCRED).
    sender: Option<Maker>,
}

/// No message is longer: the largest buffer that a socket gets without being root is less.
const LONGEST: usize = 8 << 20;
const MOST_DESCRIPTORS: usize = 253;

/// The option that says from where on MSG_PEEK looks, each time behind what it saw; -1 for always from the start.
pub(super) const PEEK_OFFSET: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);

/// All that can be read; or why it can't be carried. `ends` tells whether nothing more can come, so that what has no bytes
/// is no message; `sender` makes out who has a PID in floe's namespace.
pub(super) fn waiting(
    (socket, keeper): (BorrowedFd<'_>, &Keeper),
    (is_stream, ends): (bool, bool),
    sender: impl Fn(i32) -> i32,
) -> Result<Result<Vec<Message>, &'static str>, Errno> {
    if has_events(socket, libc::POLLPRI)? {
        return Ok(Err("urgent data in a unix socket can't be carried yet"));
    }
    let mut messages = Vec::new();
    if !has_events(socket, libc::POLLIN)? {
        return Ok(Ok(messages));
    }
    let look_from = |place: i32| set_option(socket, PEEK_OFFSET.0, PEEK_OFFSET.1, &place.to_ne_bytes());
    let _put_back = keeper.keep_one(socket, PEEK_OFFSET)?;
    look_from(0)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match look(socket, &mut buffer, &sender)? {
            Look::Nothing => return Ok(Ok(messages)),
            Look::Message(message) if (is_stream || ends) && message.bytes.is_empty() => return Ok(Ok(messages)),
            Look::Message(message) => messages.push(message),
            Look::Descriptors => return Ok(Err("descriptors that wait in a socket can't be carried yet")),
            Look::Longer if is_stream || buffer.len() >= LONGEST => {
                return Ok(Err("a message of more than 8 MiB in a socket can't be carried"));
            }
            // The offset has moved behind what was seen of it: back to its beginning, with more room.
            Look::Longer => {
                buffer = vec![0; buffer.len() * 4];
                let seen = i32::try_from(bytes(&messages)).map_err(|_| Errno::EOVERFLOW)?;
                look_from(seen)?;
            }
        }
    }
}

enum Look {
    Nothing,
    Message(Message),
    /// With descriptors.
    Descriptors,
    /// Than the buffer.
    Longer,
}

fn look(socket: BorrowedFd<'_>, buffer: &mut [u8], sender: &impl Fn(i32) -> i32) -> Result<Look, Errno> {
    let mut control = cmsg_space!([RawFd; MOST_DESCRIPTORS], UnixCredentials, RawFd, [u8; 256]);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut vector = [IoSliceMut::new(buffer)];
    let got = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut vector, Some(&mut control), flags) {
        Ok(got) => got,
        Err(Errno::EAGAIN) => return Ok(Look::Nothing),
        Err(error) => return Err(error),
    };
    let (bytes, flags) = (got.bytes, got.flags);
    let (mut sent_by, mut with_descriptors) = (None, flags.contains(MsgFlags::MSG_CTRUNC));
    for message in got.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(numbers) => {
                numbers.into_iter().map(descriptor::adopt).for_each(drop);
                with_descriptors = true;
            }
            ControlMessageOwned::ScmCredentials(credentials) => {
                sent_by = Some(Maker {
                    pid: NsPid(sender(credentials.pid())),
                    uid: credentials.uid(),
                    gid: credentials.gid(),
                });
            }
            _ => {}
        }
    }
    Ok(if with_descriptors {
        Look::Descriptors
    } else if flags.contains(MsgFlags::MSG_TRUNC) {
        Look::Longer
    } else {
        Look::Message(Message {
            bytes: buffer[..bytes].to_vec(),
            sender: sent_by,
        })
    })
}

/// How many bytes all of them are.
pub(super) fn bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.bytes.len()).sum()
}

/// Sends all of them from `other`, the other end; `pid` tells a sender's PID in floe's namespace.
pub(super) fn send_all(
    other: BorrowedFd<'_>,
    messages: &[Message],
    is_stream: bool,
    pid: impl Fn(i32) -> i32,
) -> Result<(), Errno> {
    for message in messages {
        let credentials = message.sender.map(|sender| {
            let own = nix::unistd::Pid::this().as_raw();
            let pid = Some(pid(sender.pid.0)).filter(|pid| *pid != 0).unwrap_or(own);
            UnixCredentials::from(libc::ucred {
                pid,
                uid: sender.uid,
                gid: sender.gid,
            })
        });
        let control: Vec<_> = credentials.iter().map(ControlMessage::ScmCredentials).collect();
        let mut rest = &message.bytes[..];
        loop {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let sent = sendmsg::<UnixAddr>(other.as_raw_fd(), &[IoSlice::new(rest)], &control, flags, None)?;
            rest = &rest[sent..];
            if rest.is_empty() || !is_stream {
                break;
            }
        }
    }
    Ok(())
}
