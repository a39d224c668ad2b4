//! memfd_create(2) with the flags that nix lacks, and how files of that kind are known.

use crate::descriptor::adopt;
use nix::errno::Errno;
use std::{
    ffi::CStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

/// include/uapi/linux/memfd.h.
pub const MFD_NOEXEC_SEAL: u32 = 0x0008;
/// The same.
pub const MFD_EXEC: u32 = 0x0010;
/// include/uapi/linux/fcntl.h: the permission to execute can't be changed.
pub const F_SEAL_EXEC: u32 = 0x0020;

/// A memfd with these flags, close-on-exec. Before Linux 6.3, which does not know [`MFD_EXEC`], all are as that says.
///
/// # Errors
/// EACCES where the sysctl vm.memfd_noexec forbids executable ones, ENOMEM, EMFILE; EINVAL for a name that is too long.
pub fn create(name: &CStr, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the name ends with a NUL and outlives the call.
    let number = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    match Errno::result(number) {
        Err(Errno::EINVAL) if flags & MFD_EXEC != 0 => create(name, flags & !MFD_EXEC),
        made => made.map(adopt),
    }
}

/// The device number of the kernel's own tmpfs, which is mounted nowhere. Memfds, shared anonymous memory and System V
/// segments lie there; files of the same names may lie elsewhere.
///
/// # Errors
/// Those of memfd_create(2).
pub fn kernel_tmpfs() -> io::Result<u64> {
    let file = File::from(create(c"floe-probe", MFD_EXEC).or_else(|_| create(c"floe-probe", MFD_NOEXEC_SEAL))?);
    Ok(file.metadata()?.dev())
}
