//! What state a TCP socket is in.

use floe_sys::socket::option;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// What TCP_INFO tells of a connection's state, include/net/tcp_states.h, and of one that listens: how many connections
/// wait, and how many may.
pub(super) struct TcpState {
    state: u8,
    waiting: u32,
    most: u32,
}

const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_LISTEN: u8 = 10;
const TCP_CLOSING: u8 = 11;

impl TcpState {
    pub(super) fn read(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let info = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let word = |at: usize| {
            let four = info.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
        };
        Ok(Self {
            state: *info.first().ok_or(Errno::EPROTO)?,
            waiting: word(24)?,
            most: word(28)?,
        })
    }

    /// How many segments have come to a socket.
    pub(super) fn segments(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
        /// tcpi_segs_in of struct tcp_info, linux/tcp.h.
        const SEGMENTS: usize = 140;
        let info = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let four = info.get(SEGMENTS..SEGMENTS + 4).and_then(|four| four.try_into().ok());
        four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
    }

    /// Whether there is a connection, or the other end has asked for one.
    pub(super) fn is_connection(&self) -> bool {
        ![TCP_CLOSE, TCP_LISTEN, TCP_SYN_SENT].contains(&self.state)
    }

    /// Whether this end has asked for one, and has no answer yet.
    pub(super) fn is_connecting(&self) -> bool {
        self.state == TCP_SYN_SENT
    }

    pub(super) fn is_carried(&self) -> bool {
        self.state == TCP_ESTABLISHED || self.has_sent_end() || self.has_got_end()
    }

    /// How many connections may wait, where it listens.
    pub(super) fn listens(&self) -> Option<u32> {
        (self.state == TCP_LISTEN).then_some(self.most)
    }

    /// Whether connections wait to be accepted.
    pub(super) fn waits(&self) -> bool {
        self.count() != 0
    }

    /// How many do.
    pub(super) fn count(&self) -> usize {
        self.waiting as usize
    }

    /// Whether this end sends no more.
    pub(super) fn has_sent_end(&self) -> bool {
        [TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_CLOSING].contains(&self.state)
    }

    /// Whether this end knows that the other sends no more.
    pub(super) fn has_got_end(&self) -> bool {
        [TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING].contains(&self.state)
    }
}
