//! Pipes.

use nix::{errno::Errno, fcntl::OFlag, unistd::pipe2};
use std::os::fd::OwnedFd;

/// A pipe whose ends (read, write) are closed by exec.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn close_on_exec() -> Result<(OwnedFd, OwnedFd), Errno> {
    pipe2(OFlag::O_CLOEXEC)
}
