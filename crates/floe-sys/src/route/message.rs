//! Messages of netlink(7).

use crate::descriptor::adopt;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of `struct nlmsghdr` and of `struct nlattr`.
const HEAD: usize = 16;
const ATTRIBUTE_HEAD: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Kinds of attributes without their two flags.
pub(super) const KIND: u16 = 0x3fff;

/// Attributes, one behind the other: kind and value.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    flagged(bytes).map(|(kind, value)| (kind & KIND, value))
}

/// The same; kinds have their flags, as NLA_F_NESTED.
pub(crate) fn flagged(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..ATTRIBUTE_HEAD)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(ATTRIBUTE_HEAD..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]), value))
    })
}

/// Adds one. Where it is longer than it can say, so is the request that it becomes a part of, which is then refused.
pub(super) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((value.len() + ATTRIBUTE_HEAD) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message to the kernel.
pub(super) struct Request {
    /// NETLINK_*.
    to: i32,
    bytes: Vec<u8>,
}

impl Request {
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        Self::to(libc::NETLINK_ROUTE, kind, flags, body)
    }

    /// For a part of the kernel (NETLINK_*).
    pub(super) fn to(to: i32, kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = ((HEAD + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        // Sequence number and port.
        bytes.extend([0; 8]);
        bytes.extend(body);
        Self { to, bytes }
    }

    /// # Errors
    /// EMSGSIZE where an attribute of it, or one within another, could be longer than it can say; others of netlink.
    fn send(&self) -> Result<OwnedFd, Errno> {
        if self.bytes.len() > usize::from(u16::MAX) {
            return Err(Errno::EMSGSIZE);
        }
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: numbers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, self.to) };
        let socket = Errno::result(socket).map(adopt)?;
        send(socket.as_raw_fd(), &self.bytes, MsgFlags::empty())?;
        Ok(socket)
    }

    /// Has it done.
    pub(super) fn perform(&self) -> Result<(), Errno> {
        self.answers().map(drop)
    }

    /// What it is answered with: bodies.
    pub(super) fn answers(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let socket = self.send()?;
        let mut all = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
            let mut rest = buffer.get(..got).ok_or(Errno::EMSGSIZE)?;
            while let Some((kind, body, behind)) = split(rest) {
                if is_interrupted(rest) {
                    return Err(Errno::EINTR);
                }
                match kind {
                    NLMSG_DONE => return Ok(all),
                    NLMSG_ERROR => {
                        let code = body
                            .get(..4)
                            .and_then(|code| code.try_into().ok())
                            .map(i32::from_ne_bytes);
                        return match code {
                            Some(0) => Ok(all),
                            Some(error) => Err(Errno::from_raw(-error)),
                            None => Err(Errno::EPROTO),
                        };
                    }
                    _ => all.push(body.to_vec()),
                }
                rest = behind;
            }
        }
    }
}

/// Kind and body of the first message, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let head = bytes.get(..HEAD)?;
    let length = u32::from_ne_bytes(head[..4].try_into().ok()?) as usize;
    let body = bytes.get(HEAD..length)?;
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([head[4], head[5]]), body, behind))
}

/// Whether things changed while the kernel told them.
fn is_interrupted(message: &[u8]) -> bool {
    let flags = message.get(6..8).map(|two| u16::from_ne_bytes([two[0], two[1]]));
    flags.is_some_and(|flags| flags & libc::NLM_F_DUMP_INTR as u16 != 0)
}

/// All that the packet filter has of a kind (NETLINK_NETFILTER): bodies.
///
/// # Errors
/// Those of netlink; EINTR where it changed meanwhile.
pub fn netfilter(kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    Request::to(libc::NETLINK_NETFILTER, kind, libc::NLM_F_DUMP as u16, body).answers()
}

/// All that the kernel has of a kind.
pub(super) fn dump(kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    Request::new(kind, libc::NLM_F_DUMP as u16, body).answers()
}

#[cfg(test)]
mod tests {
    use super::{Request, attribute, attributes};
    use nix::errno::Errno;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 3, b"lo\0");
        attribute(&mut bytes, 4 | 0x8000, &[]);
        assert_eq!(bytes.len(), 12);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"lo\0"[..]), (4, &[])]);
        assert_eq!(attributes(&bytes[..5]).count(), 0);
    }

    /// The kernel would take what is in it for attributes beside it.
    #[test]
    fn what_is_longer_than_it_can_say_is_not_sent() {
        let mut body = vec![0; 16];
        attribute(&mut body, 1, &[0; 65_536]);
        assert_eq!(Request::new(18, 0, &body).perform(), Err(Errno::EMSGSIZE));
    }
}
