//! What goes through a connection: its bytes, and which of them were sent as urgent (MSG_OOB of tcp(7)).
//!
//! An end knows of one urgent byte, the last that it was told of, and is told before that comes. What of it calls tell,
//! POLLPRI and SIOCATMARK, is not all; the rest is in the kernel's memory. It is put back by the same call, which makes the
//! kernel tell the other end; nobody is sent SIGURG by that, since files get their owners later.

use super::{Ends, repair::to_be_read};
use crate::file::{
    FileError, FoundFile,
    memory::Memory,
    socket::{
        Keeper, has_events, number_option,
        options::{self, Buffer, Room},
        tcp_state::TcpState,
    },
};
use floe_sys::{
    kernel::{UrgentByte, UrgentMark},
    message::is_at_mark,
    socket::{listed_unread, set_option, unread},
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

/// How long a byte may take within the host.
const PATIENCE: Duration = Duration::from_secs(10);

/// What waits at an end, or is on its way there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::file::socket) struct Stream {
    /// All of it, also an urgent byte that was read already where it is not the first.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The urgent byte that the end was told of, and behind it one that it was not.
    pub marks: Vec<Mark>,
}

/// An urgent byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::file::socket) struct Mark {
    /// How many bytes come before it.
    pub at: u32,
    /// Where it is.
    pub byte: Byte,
}

/// Where an urgent byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::file::socket) enum Byte {
    /// It has not come yet.
    Coming,
    /// It waits.
    Waiting,
    /// It was read by MSG_OOB, before what comes before it.
    Read,
}

impl From<UrgentMark> for Mark {
    fn from(found: UrgentMark) -> Self {
        Self {
            at: found.place,
            byte: match found.byte {
                UrgentByte::Coming => Byte::Coming,
                UrgentByte::Waiting => Byte::Waiting,
                UrgentByte::Read => Byte::Read,
            },
        }
    }
}

/// Why urgent data that a socket has can't be told; `None` where it can, or calls tell of none.
pub(in crate::file::socket) fn untold(socket: BorrowedFd<'_>, memory: &Memory) -> Result<Option<String>, Errno> {
    match memory.readable() {
        Err(error) if has_events(socket, libc::POLLPRI)? || is_at_mark(socket)? => Ok(Some(format!(
            "urgent data of a TCP connection is told by the kernel's memory alone, which can't be read ({error})"
        ))),
        _ => Ok(None),
    }
}

/// Whether more waits in a connection than calls tell: an urgent byte that was read, and what comes behind it.
pub(super) fn hides_bytes(file: &FoundFile, tcp: &TcpState, (local, remote): Ends) -> Result<bool, FileError> {
    let look = || Ok(listed_unread(local, remote)?);
    let listed = file.network.run(look);
    let listed = listed.map_err(|error| FileError::System {
        action: "list what waits in",
        object: file.title(),
        source: io::Error::other(error),
    })?;
    // Behind that: what comes meanwhile is told.
    let told = unread(file.as_fd()).map_err(FileError::system("read what waits in", file.title()))?;
    Ok(listed.is_some_and(|listed| listed as usize > told + usize::from(tcp.has_got_end())))
}

impl Stream {
    /// One without urgent data.
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            marks: Vec::new(),
        }
    }

    /// What can be read from an end. Where the kernel's memory can't be read there is nothing urgent, see [`untold`].
    pub fn read(socket: BorrowedFd<'_>, (keeper, memory): (&Keeper, &Memory)) -> io::Result<Self> {
        match Self::marked(socket, memory)? {
            Some(found) => Ok(found),
            None => Ok(Self::plain(to_be_read(socket, keeper)?)),
        }
    }

    /// The same of an end that was told of an urgent byte; a look by calls ends before that.
    pub fn marked(socket: BorrowedFd<'_>, memory: &Memory) -> io::Result<Option<Self>> {
        if memory.readable().is_err() {
            return Ok(None);
        }
        let found = memory.marked_queue(socket)?;
        Ok(found.map(|found| Self {
            bytes: found.bytes,
            marks: vec![found.mark.into()],
        }))
    }

    /// Adds what is on its way there, with the place of an urgent byte in that; whether the end has not been told of it.
    pub fn append(&mut self, bytes: &[u8], urgent: Option<usize>) -> bool {
        let place = urgent.map(|urgent| (self.bytes.len() + urgent) as u32);
        self.bytes.extend(bytes);
        let is_told = |place| self.marks.last().is_some_and(|known| known.at >= place);
        let Some(at) = place.filter(|place| !is_told(*place)) else {
            return false;
        };
        self.marks.push(Mark { at, byte: Byte::Coming });
        true
    }

    /// Forgets urgent bytes that were told of and never came.
    pub fn forget_missing(&mut self) {
        let bytes = self.bytes.len();
        self.marks.retain(|mark| (mark.at as usize) < bytes);
    }

    /// The range of all its bytes.
    pub fn all(&self) -> Range<usize> {
        0..self.bytes.len()
    }

    /// Whether each urgent byte is one of the bytes.
    pub fn has_all(&self) -> bool {
        self.marks.iter().all(|mark| (mark.at as usize) < self.bytes.len())
    }

    /// Whether there can be such a stream of an end to which the rest may come later.
    pub fn is_possible(&self) -> bool {
        let in_order = self.marks.is_sorted_by(|one, other| one.at < other.at);
        let one_more = |mark: &Mark| {
            let missing = (mark.at as usize).checked_sub(self.bytes.len());
            // It was told of by a number of two bytes.
            missing.is_none_or(|missing| mark.byte == Byte::Coming && missing < usize::from(u16::MAX))
        };
        self.marks.len() <= 2 && in_order && self.marks.iter().all(one_more)
    }

    /// Sends some of its bytes by an end, to wait at the other, `to` where that can be seen to.
    pub fn send(&self, some: Range<usize>, from: BorrowedFd<'_>, to: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let is_meant = |mark: &&Mark| some.contains(&(mark.at as usize));
        let marks: Vec<Mark> = self.marks.iter().filter(is_meant).copied().collect();
        let _room = match to {
            // All of it must come, also what is more than the other end usually takes.
            Some(to) if !marks.is_empty() => Some(Room::make(to, Buffer::Receive, 4 * self.bytes.len())?),
            _ => None,
        };
        options::with_room(from, some.len(), || self.send_parts(some.clone(), &marks, (from, to)))
    }

    fn send_parts(
        &self,
        some: Range<usize>,
        marks: &[Mark],
        (from, to): (BorrowedFd<'_>, Option<BorrowedFd<'_>>),
    ) -> Result<(), Errno> {
        let mut sent = some.start;
        for mark in marks {
            let behind = mark.at as usize + 1;
            send_marked(from, &self.bytes[sent..behind], Some(mark.at as usize - sent))?;
            if let Some(to) = to {
                mark.arrive(to)?;
            }
            sent = behind;
        }
        send_all(from, &self.bytes[sent..some.end])
    }
}

impl Mark {
    /// Waits until the byte is there, and reads it if it was read.
    pub fn arrive(self, end: BorrowedFd<'_>) -> Result<(), Errno> {
        let until = Instant::now() + PATIENCE;
        while !has_events(end, libc::POLLPRI)? {
            if Instant::now() > until {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::yield_now();
        }
        if self.byte != Byte::Read {
            return Ok(());
        }
        // Among the others it can't be read for itself.
        let inline = number_option(end, libc::SOL_SOCKET, libc::SO_OOBINLINE)?;
        let set = |value: i32| set_option(end, libc::SOL_SOCKET, libc::SO_OOBINLINE, &value.to_ne_bytes());
        set(0)?;
        recv(end.as_raw_fd(), &mut [0], MsgFlags::MSG_OOB)?;
        set(inline)
    }
}

/// Sends bytes of which the one at a place may be urgent.
pub(super) fn send_marked(socket: BorrowedFd<'_>, bytes: &[u8], urgent: Option<usize>) -> Result<(), Errno> {
    let Some(at) = urgent else {
        return send_all(socket, bytes);
    };
    send_all(socket, &bytes[..at])?;
    send(socket.as_raw_fd(), &bytes[at..=at], AT_ONCE | MsgFlags::MSG_OOB)?;
    send_all(socket, &bytes[at + 1..])
}

const AT_ONCE: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Sends without waiting: there must be room.
pub(super) fn send_all(socket: BorrowedFd<'_>, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        let sent = send(socket.as_raw_fd(), rest, AT_ONCE)?;
        rest = &rest[sent..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Byte, Mark, Stream};

    fn stream(bytes: &[u8], marks: &[(u32, Byte)]) -> Stream {
        Stream {
            bytes: bytes.to_vec(),
            marks: marks.iter().map(|(at, byte)| Mark { at: *at, byte: *byte }).collect(),
        }
    }

    #[test]
    fn what_is_on_its_way_comes_behind() {
        let waiting = [(2, Byte::Waiting)];
        let mut all = stream(b"ab!c", &waiting);
        assert!(!all.append(b"de", None));
        assert_eq!(all, stream(b"ab!cde", &waiting));
        assert!(all.append(b"f!g", Some(1)));
        assert_eq!(all, stream(b"ab!cdef!g", &[(2, Byte::Waiting), (7, Byte::Coming)]));
        // It was told of already.
        let mut all = stream(b"ab", &[(3, Byte::Coming)]);
        assert!(!all.has_all());
        assert!(!all.append(b"c!", Some(1)));
        assert_eq!(all, stream(b"abc!", &[(3, Byte::Coming)]));
        assert!(all.has_all());
    }

    #[test]
    fn there_is_not_every_stream() {
        use Byte::{Coming, Read, Waiting};
        let is_possible = |bytes: &[u8], marks: &[(u32, Byte)]| stream(bytes, marks).is_possible();
        assert!(is_possible(b"", &[]));
        assert!(is_possible(b"!", &[(0, Read)]));
        assert!(is_possible(b"", &[(65_534, Coming)]));
        assert!(is_possible(b"!ab!", &[(0, Waiting), (3, Coming)]));
        assert!(!is_possible(b"", &[(65_535, Coming)]));
        assert!(!is_possible(b"", &[(u32::MAX, Coming)]));
        assert!(!is_possible(b"", &[(0, Waiting)]));
        assert!(!is_possible(b"a", &[(1, Read)]));
        assert!(!is_possible(b"!!", &[(1, Waiting), (0, Coming)]));
        assert!(!is_possible(b"!!", &[(1, Waiting), (1, Coming)]));
        assert!(!is_possible(b"!!!", &[(0, Read), (1, Waiting), (2, Coming)]));
    }
}
