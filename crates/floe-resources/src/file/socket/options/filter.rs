//! Socket filters, Documentation/networking/filter.rst: the classic ones are told as they were attached.

use super::SocketOption;
use floe_sys::socket::{classic_filter, set_program};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// What looks at what comes in.
pub(in crate::file::socket) enum Filter {
    /// Nothing.
    None,
    /// A program that was told by its instructions.
    Classic(SocketOption),
    /// One of bpf(2).
    Extended,
}

/// What a finding says of [`Filter::Extended`].
pub(in crate::file::socket) const EXTENDED: &str = "a socket filter of bpf(2) (SO_ATTACH_BPF) can't be carried: the kernel has changed its instructions since it was loaded";

/// The filter of a socket.
pub(in crate::file::socket) fn filter(socket: BorrowedFd<'_>) -> Result<Filter, Errno> {
    match classic_filter(socket) {
        Ok(program) if program.is_empty() => Ok(Filter::None),
        Ok(value) => Ok(Filter::Classic(SocketOption {
            level: libc::SOL_SOCKET,
            name: libc::SO_ATTACH_FILTER,
            value,
        })),
        Err(Errno::EACCES) => Ok(Filter::Extended),
        Err(error) => Err(error),
    }
}

/// Attaches a classic one.
pub(super) fn attach(socket: BorrowedFd<'_>, name: i32, program: &[u8]) -> Result<(), Errno> {
    set_program(socket, libc::SOL_SOCKET, name, program)
}
