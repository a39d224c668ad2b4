//! A file system of floe's own, in memory, which is mounted nowhere: fsopen(2), fsmount(2), Linux 5.2.

use crate::descriptor::owned;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// include/uapi/linux/mount.h.
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// Its root directory, empty. It goes with all files that are open there.
///
/// # Errors
/// EPERM for who lacks CAP_SYS_ADMIN.
pub fn file_system() -> Result<OwnedFd, Errno> {
    // SAFETY: a name that ends with a NUL, and a number.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<u8>();
    let number = context.as_raw_fd();
    // SAFETY: numbers, and no key or value.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, number, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, number, FSMOUNT_CLOEXEC, 0) })
}
