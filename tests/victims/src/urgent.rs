//! Urgent bytes of streams (MSG_OOB).

use crate::call::checked;
use std::{io, os::fd::AsRawFd};

/// Sends one.
///
/// # Errors
/// errno.
pub fn try_send(socket: &impl AsRawFd, byte: u8) -> io::Result<()> {
    let flags = libc::MSG_OOB | libc::MSG_DONTWAIT;
    // SAFETY: one byte is read.
    checked(unsafe { libc::send(socket.as_raw_fd(), (&raw const byte).cast(), 1, flags) } as i64).map(drop)
}

/// The same.
///
/// # Panics
/// Where that fails.
pub fn send(socket: &impl AsRawFd, byte: u8) {
    try_send(socket, byte).expect("send an urgent byte");
}

/// Receives the one that waits; or errno.
///
/// # Errors
/// errno.
pub fn receive(socket: &impl AsRawFd) -> Result<Option<u8>, i32> {
    let mut byte = [0_u8];
    let flags = libc::MSG_OOB | libc::MSG_DONTWAIT;
    // SAFETY: room for one byte.
    let got = unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
    match checked(got as i64) {
        Ok(got) => Ok((got == 1).then_some(byte[0])),
        Err(error) => Err(error.raw_os_error().unwrap_or(0)),
    }
}

/// Whether it is what would be read next (SIOCATMARK).
#[must_use]
pub fn at_mark(socket: &impl AsRawFd) -> bool {
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut answer: libc::c_int = 0;
    // SAFETY: room for the number.
    unsafe { libc::ioctl(socket.as_raw_fd(), SIOCATMARK, &raw mut answer) };
    answer != 0
}
