//! Hands open files to puppets: a socket pair that all puppets of a tree inherit, one end of which floe holds.

use floe_sys::Pid;
use floe_tracee::{PuppetError, Script};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
};
use std::{
    io::IoSlice,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// How many files one message carries (SCM_MAX_FD is 253).
const AT_ONCE: usize = 250;

/// A hand-over that failed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket.
    #[error("{action} the channel to task {tid}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// With whom.
        tid: Pid,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// The task.
    #[error(transparent)]
    Puppet(#[from] PuppetError),
    /// The task got fewer files than were sent: its RLIMIT_NOFILE is too low.
    #[error("task {tid} took {got} of {sent} files; its limit on open files is too low")]
    Short {
        /// Who.
        tid: Pid,
        /// Received.
        got: usize,
        /// Sent.
        sent: usize,
    },
}

/// The controller's end, and the number of the other end in every puppet.
#[derive(Debug)]
pub struct Channel {
    near: OwnedFd,
    number: RawFd,
}

impl Channel {
    /// A socket pair; the second end is to be inherited by the seed.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
    }

    /// The channel whose far end has this number in every puppet.
    #[must_use]
    pub fn new(near: OwnedFd, number: RawFd) -> Self {
        Self { near, number }
    }

    /// The number of the far end in every puppet.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.number
    }

    /// Gives files to a puppet; returns the numbers they have there: always the lowest free ones, in ascending order. Calls
    /// that wait in the script are run first.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn give(&self, script: &mut Script<'_>, files: &[BorrowedFd<'_>]) -> Result<Vec<RawFd>, ChannelError> {
        let mut numbers = Vec::with_capacity(files.len());
        for wave in files.chunks(AT_ONCE) {
            numbers.extend(self.give_wave(script, wave)?);
        }
        Ok(numbers)
    }

    fn give_wave(&self, script: &mut Script<'_>, files: &[BorrowedFd<'_>]) -> Result<Vec<RawFd>, ChannelError> {
        let tid = script.puppet().tid();
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let message = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(
            self.near.as_raw_fd(),
            &[IoSlice::new(b"f")],
            &message,
            MsgFlags::empty(),
            None,
        )
        .map_err(|source| ChannelError::Socket {
            action: "send files into",
            tid,
            source,
        })?;
        // struct cmsghdr is 16 bytes; then the numbers, 4 bytes each.
        let control_bytes = (16 + raw.len() * 4).next_multiple_of(8);
        let batch = script.reserve(1, control_bytes + 256)?;
        let control = batch.room(control_bytes);
        let byte = batch.room(1);
        let vector = batch.data(&[byte.to_ne_bytes(), 1u64.to_ne_bytes()].concat());
        // struct msghdr: name, name length, vectors, count, control, its length, flags.
        let words = [0, 0, vector, 1, control, control_bytes as u64, 0];
        let header = batch.data(
            &words
                .iter()
                .flat_map(|word: &u64| word.to_ne_bytes())
                .collect::<Vec<u8>>(),
        );
        batch.call("receive files", libc::SYS_recvmsg, &[self.number as u64, header, 0]);
        let batch = script.run()?;
        let bytes = batch.bytes(control, control_bytes);
        let length = u64::from_ne_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let got = length.saturating_sub(16) / 4;
        if got != raw.len() {
            return Err(ChannelError::Short {
                tid,
                got,
                sent: raw.len(),
            });
        }
        let number = |chunk: &[u8]| RawFd::from_ne_bytes(chunk.try_into().expect("chunks of 4"));
        Ok(bytes[16..16 + got * 4].chunks_exact(4).map(number).collect())
    }
}
