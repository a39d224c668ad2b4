//! Opens a file that is already open once more, with a position and flags of its own.

use super::FileError;
use nix::{
    fcntl::OFlag,
    sys::stat::{Mode, fstat},
};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A new open file description of what `file` refers to.
///
/// # Errors
/// [`FileError`].
pub fn reopen(file: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, FileError> {
    let asks_for_directory = flags & libc::O_DIRECTORY != 0;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // It would be about the link; and O_TMPFILE, which no second open can have, holds O_DIRECTORY.
    let mut flags = flags & !(libc::O_NOFOLLOW | libc::O_TMPFILE);
    let found = fstat(file).map_err(FileError::system("stat", path.clone()))?;
    if asks_for_directory && found.st_mode & libc::S_IFMT == libc::S_IFDIR {
        flags |= libc::O_DIRECTORY;
    }
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(FileError::system("open again", path))
}
