//! What an end has sent, and the other has not acknowledged: it may have come all the same.

use super::{Look, Stream, repair::send_queue};
use crate::file::memory::Memory;
use floe_sys::socket::unacknowledged;
use std::{io, os::fd::BorrowedFd};

/// What is in a send queue.
pub(super) struct Sent {
    bytes: Vec<u8>,
    /// The sequence number behind it, and behind the end if that is sent.
    behind: u32,
    /// Which byte is urgent.
    urgent: Option<usize>,
}

impl Sent {
    /// That of a socket that has said its last or not; `None` where there is nothing.
    pub(super) fn read(
        socket: BorrowedFd<'_>,
        has_sent_end: bool,
        (keeper, memory): Look<'_>,
    ) -> io::Result<Option<Self>> {
        if unacknowledged(socket)? == 0 {
            return Ok(None);
        }
        // First: what is acknowledged meanwhile has come.
        let urgent = urgent_sent(socket, memory)?;
        let (bytes, behind) = send_queue(socket, keeper)?;
        let last = behind.wrapping_sub(has_sent_end.into());
        let from_end = urgent.map(|urgent| last.wrapping_sub(urgent) as usize + 1);
        let urgent = from_end.and_then(|from_end| bytes.len().checked_sub(from_end));
        Ok(Some(Self { bytes, behind, urgent }))
    }

    /// Adds to a stream what it lacks, of which the next byte that comes has this number; whether the end has not been told of
    /// an urgent byte in that. `None` where it does not fit.
    pub(super) fn append_behind(&self, next: u32, stream: &mut Stream) -> Option<bool> {
        // What came since the send queue was looked at makes the difference negative.
        let missing = usize::try_from(self.behind.wrapping_sub(next) as i32).unwrap_or(0);
        let from = self.bytes.len().checked_sub(missing)?;
        let urgent = self.urgent.and_then(|urgent| urgent.checked_sub(from));
        Some(stream.append(&self.bytes[from..], urgent))
    }
}

/// The sequence number behind an urgent byte that a socket has sent, or is to send, and that was not acknowledged; where the
/// kernel's memory can't be read it is not known of.
pub(super) fn urgent_sent(socket: BorrowedFd<'_>, memory: &Memory) -> io::Result<Option<u32>> {
    if memory.readable().is_err() {
        return Ok(None);
    }
    memory.urgent_sent(socket)
}
