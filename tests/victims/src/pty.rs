//! Pseudo-terminals, by bare calls.

use crate::{call, wait_until};
use nix::sys::termios::Termios;
use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
    time::{Duration, Instant},
};

/// A master and its slave.
#[derive(Debug, Clone, Copy)]
pub struct Pty {
    /// The master.
    pub master: RawFd,
    /// The slave.
    pub slave: RawFd,
    /// N of /dev/pts/N.
    pub number: u32,
}

/// ioctl(2) with a number that the kernel fills in, or reads.
///
/// # Errors
/// errno.
pub fn ioctl(fd: RawFd, request: libc::c_ulong, number: i32) -> io::Result<i32> {
    let mut number = number;
    // SAFETY: the requests that victims use take the address of a number, and it lives on.
    call::checked(unsafe { libc::ioctl(fd, request, &raw mut number) }.into()).map(|_| number)
}

/// ioctl(2) with a number itself.
///
/// # Errors
/// errno.
pub fn command(fd: RawFd, request: libc::c_ulong, argument: i32) -> io::Result<()> {
    // SAFETY: the requests that victims use take a number.
    call::checked(unsafe { libc::ioctl(fd, request, argument) }.into()).map(drop)
}

/// A descriptor as nix takes it.
#[must_use]
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: victims keep their terminals open to the end.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Opens a master, unlocked; its slave is not opened.
///
/// # Panics
/// Where none is to be had.
#[must_use]
pub fn master() -> (RawFd, u32) {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = crate::descriptor::open("/dev/ptmx".as_ref(), flags);
    ioctl(master, libc::TIOCSPTLCK, 0).expect("unlock");
    let number = ioctl(master, libc::TIOCGPTN, 0).expect("its number");
    (master, number as u32)
}

impl Pty {
    /// Makes one; both ends do not wait.
    ///
    /// # Panics
    /// Where none is to be had.
    #[must_use]
    pub fn new() -> Self {
        let (master, number) = master();
        let path = format!("/dev/pts/{number}");
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
        let slave = crate::descriptor::open(path.as_ref(), flags);
        Self { master, slave, number }
    }

    /// Changes settings.
    ///
    /// # Panics
    /// Where they can't be.
    pub fn set(&self, change: impl FnOnce(&mut Termios)) {
        let mut settings = self.settings();
        change(&mut settings);
        let now = nix::sys::termios::SetArg::TCSANOW;
        nix::sys::termios::tcsetattr(borrow(self.slave), now, &settings).expect("tcsetattr");
    }

    /// Its settings.
    ///
    /// # Panics
    /// Where they can't be read.
    #[must_use]
    pub fn settings(&self) -> Termios {
        nix::sys::termios::tcgetattr(borrow(self.master)).expect("tcgetattr")
    }
}

impl Default for Pty {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes all of it, as room comes.
///
/// # Panics
/// Where nobody takes it.
pub fn put(fd: RawFd, bytes: &[u8]) {
    let mut rest = bytes;
    let done = wait_until(|| {
        match call::write(fd, rest) {
            Ok(done) => rest = &rest[done..],
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "write to {fd}"),
        }
        rest.is_empty()
    });
    assert!(done, "{} bytes can't be written", rest.len());
}

/// Reads until `len` bytes are there, or no more have come for a while; then whatever comes besides.
#[must_use]
pub fn take(fd: RawFd, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        match call::read(fd, 8192) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => all.extend(bytes),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        if all.len() >= len {
            end = end.min(Instant::now() + Duration::from_millis(5));
        }
    }
    all
}
