//! File systems that are mounted nowhere: fsopen(2), fsmount(2), Linux 5.2.

use crate::descriptor::owned;
use nix::errno::Errno;
use std::{
    ffi::CStr,
    os::fd::{AsRawFd, OwnedFd},
};

/// include/uapi/linux/mount.h.
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// The root directory of one of a type: an empty one of `tmpfs`, which goes with the last file that is open there;
/// that of the caller's IPC namespace of `mqueue`.
///
/// # Errors
/// EPERM for who lacks CAP_SYS_ADMIN; ENODEV where the kernel has no such type.
pub fn file_system(kind: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: a name that ends with a NUL, and a number.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<u8>();
    let number = context.as_raw_fd();
    // SAFETY: numbers, and no key or value.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, number, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, number, FSMOUNT_CLOEXEC, 0) })
}
