//! File systems that are mounted nowhere: fsopen(2), fsmount(2) (Linux 5.2).

use crate::descriptor::owned;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// linux/mount.h.
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// An empty tmpfs, by its root directory. It is gone with the last file that is open in it.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, and others of fsopen(2), fsconfig(2) and fsmount(2).
pub fn detached_tmpfs() -> Result<OwnedFd, Errno> {
    // SAFETY: the name ends with a NUL.
    let made = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(made)?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    let made = unsafe {
        let context = context.as_raw_fd();
        libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0)
    };
    Errno::result(made)?;
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}
