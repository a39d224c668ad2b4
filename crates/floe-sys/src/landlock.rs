//! Landlock, Documentation/userspace-api/landlock.rst.

use nix::errno::Errno;

const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;

/// Whether the kernel can confine tasks by Landlock.
#[must_use]
pub fn is_there() -> bool {
    // SAFETY: asks for a version, and touches no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    Errno::result(result).is_ok()
}
