//! fanotify(7).

use crate::descriptor::owned;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A group: `flags` are FAN_*, `event_flags` the open(2) flags of files that its events bring.
///
/// # Errors
/// Those of fanotify_init(2).
pub fn group(flags: u32, event_flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers.
    owned(unsafe { libc::syscall(libc::SYS_fanotify_init, flags, event_flags) })
}

/// Marks the very file that is open as `file`, its mount or its filesystem, as FAN_MARK_* in `how` say.
///
/// # Errors
/// Those of fanotify_mark(2).
pub fn mark(group: BorrowedFd<'_>, file: BorrowedFd<'_>, how: u32, mask: u64) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    // SAFETY: the path ends with a NUL.
    let status = unsafe { libc::fanotify_mark(group.as_raw_fd(), how, mask, libc::AT_FDCWD, path.as_ptr().cast()) };
    Errno::result(status).map(drop)
}
