//! Repair mode of a connection, TCP_REPAIR of linux/tcp.h, in which the kernel shows what else nobody may see: the send
//! queue, sequence numbers and windows.

use crate::file::socket::{
    keeper::{Changed, Keeper},
    number_option,
    queue::PEEK_OFFSET,
};
use floe_sys::socket::set_option;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, bind, recv},
};
use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

/// linux/tcp.h.
const TCP_RECV_QUEUE: i32 = 1;
const TCP_SEND_QUEUE: i32 = 2;
const TCP_REPAIR_OFF_NO_WP: i32 = -1;

/// The two queues of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    Receive = TCP_RECV_QUEUE as isize,
    Send = TCP_SEND_QUEUE as isize,
}

/// Whether the kernel would let floe set repair mode, which is asked by a value that means nothing.
pub(super) fn may_repair(socket: BorrowedFd<'_>) -> bool {
    const NOTHING: i32 = 77;
    let asked = set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &NOTHING.to_ne_bytes());
    asked != Err(Errno::EPERM)
}

/// A socket in repair mode for a look. Dropping it ends that.
pub(super) struct Repair<'a>(Changed<'a>);

impl<'a> Repair<'a> {
    pub(super) fn of(socket: BorrowedFd<'a>, keeper: &'a Keeper) -> Result<Self, Errno> {
        // The mode changes SO_REUSEADDR, and so does its end.
        let reuse = number_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        let back = [
            (libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse),
        ];
        let changed = keeper.keep(socket, back.to_vec())?;
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1_i32.to_ne_bytes())?;
        Ok(Self(changed))
    }

    /// Chooses a queue, and returns the sequence number behind it.
    pub(super) fn queue(&self, which: Queue) -> Result<u32, Errno> {
        let socket = self.0.socket;
        choose(socket, which)?;
        number_option(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ).map(|number| number as u32)
    }
}

/// Takes an address whoever else has the port: the socket is only to be connected.
pub(super) fn bind_forced(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), Errno> {
    let mode = |mode: i32| set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &mode.to_ne_bytes());
    mode(1)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    mode(TCP_REPAIR_OFF_NO_WP)
}

/// Chooses the queue that is meant from now on.
pub(super) fn choose(socket: BorrowedFd<'_>, which: Queue) -> Result<(), Errno> {
    let number = which as i32;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &number.to_ne_bytes())
}

/// The send queue and the sequence number behind it.
pub(super) fn send_queue(socket: BorrowedFd<'_>, keeper: &Keeper) -> Result<(Vec<u8>, u32), Errno> {
    let repair = Repair::of(socket, keeper)?;
    let behind = repair.queue(Queue::Send)?;
    Ok((peek(socket)?, behind))
}

/// All that can be read.
pub(in crate::file::socket) fn to_be_read(socket: BorrowedFd<'_>, keeper: &Keeper) -> Result<Vec<u8>, Errno> {
    let (level, name) = PEEK_OFFSET;
    match number_option(socket, level, name) {
        Ok(0..) => {
            let _put_back = keeper.keep_one(socket, PEEK_OFFSET)?;
            set_option(socket, level, name, &(-1_i32).to_ne_bytes())?;
            peek(socket)
        }
        _ => peek(socket),
    }
}

/// What is in the queue that is chosen, or outside of repair mode what can be read.
pub(super) fn peek(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut room = 64 << 10;
    loop {
        let mut bytes = vec![0; room];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let got = match recv(socket.as_raw_fd(), &mut bytes, flags) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => 0,
            Err(error) => return Err(error),
        };
        if got < room {
            bytes.truncate(got);
            return Ok(bytes);
        }
        room *= 4;
    }
}
