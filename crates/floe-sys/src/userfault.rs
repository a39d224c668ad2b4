//! Following what is written to memory: userfaultfd(2), linux/userfaultfd.h.

use crate::descriptor::owned;
use nix::errno::Errno;
use std::{mem::size_of, os::fd::AsRawFd};

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Api>() == 24);

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFDIO_API: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x3f, size_of::<Api>());
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;

/// Whether the kernel notes by itself which pages were written (UFFD_FEATURE_WP_ASYNC, Linux 6.7), so that nobody waits
/// for whoever follows.
///
/// # Errors
/// ENOSYS where it was built without; EPERM where the caller may not.
pub fn notes_written_pages() -> Result<bool, Errno> {
    // SAFETY: a number. Faults of the kernel's own accesses take a privilege, and are not needed for this.
    let file = owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) })?;
    let mut api = Api {
        api: UFFD_API,
        ..Api::default()
    };
    // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    Ok(api.features & UFFD_FEATURE_WP_ASYNC != 0)
}
