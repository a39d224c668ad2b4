//! Opens a file that is already open once more, with a position and flags of its own.

use super::FileError;
use nix::{fcntl::OFlag, sys::stat::Mode};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A new open file description of what `file` refers to.
///
/// # Errors
/// [`FileError`].
pub fn reopen(file: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, FileError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // These two would be about the link.
    let flags = flags & !(libc::O_NOFOLLOW | libc::O_DIRECTORY);
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(FileError::system("open again", path))
}
