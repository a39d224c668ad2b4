//! Namespaces that are held by descriptors: ioctl_nsfs(2), linux/nsfs.h.

use crate::descriptor;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const NS_GET_PARENT: libc::Ioctl = nix::request_code_none!(0xb7, 2);
const NS_GET_NSTYPE: libc::Ioctl = nix::request_code_none!(0xb7, 3);

/// Its kind: CLONE_NEW*.
///
/// # Errors
/// EBADF for one of O_PATH.
pub fn kind(namespace: BorrowedFd<'_>) -> Result<i32, Errno> {
    // SAFETY: no argument is read.
    Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) })
}

/// The one above it, of PID and user namespaces.
///
/// # Errors
/// EINVAL for other kinds, EPERM where that is not the caller's own or below it.
pub fn parent(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument is read.
    let number = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) })?;
    Ok(descriptor::adopt(number))
}

/// Sets the NIS domain name of the caller's UTS namespace.
///
/// # Errors
/// Those of setdomainname(2).
pub fn set_domain_name(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: the bytes have the stated length, and are read.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}
