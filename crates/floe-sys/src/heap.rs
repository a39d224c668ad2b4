//! The C library's heap: mallopt(3).

/// Bytes of the largest piece that comes from the heap; the library takes no more for it.
#[cfg(target_env = "gnu")]
const LARGEST: i32 = 32 << 20;
/// Bytes that may be free at its end.
#[cfg(target_env = "gnu")]
const FREE: i32 = 128 << 20;

/// Keeps what is freed for what is allocated next. As it is, the library gives large pieces back to the kernel at once, which makes the
/// same pages anew for the next list: of what a restore of 100,000 runs of pages takes, that was a sixth. For processes that do one
/// thing and end. Other libraries are left as they are.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, LARGEST), (libc::M_TRIM_THRESHOLD, FREE)] {
        // SAFETY: both are numbers, and the call takes the heap's own lock. It fails only for values that are too large.
        unsafe { libc::mallopt(parameter, value) };
    }
}
