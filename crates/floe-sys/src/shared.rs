//! Numbers that a process shares with the children it has from then on: mmap(2) with MAP_SHARED and MAP_ANONYMOUS.

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
};
use std::{
    fmt,
    num::NonZeroUsize,
    ops::Deref,
    ptr::{NonNull, null, null_mut},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Numbers that are 0 at first. What a process writes into one all others see that have them: the one which made them, and
/// its children born since.
pub struct SharedNumbers {
    place: NonNull<AtomicU64>,
    count: usize,
}

impl SharedNumbers {
    /// Makes so many.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(count: usize) -> Result<Self, Errno> {
        let bytes = bytes(count).ok_or(Errno::ENOMEM)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses a place where nothing is, and no file is behind it.
        let place = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_SHARED)? };
        Ok(Self {
            place: place.cast(),
            count,
        })
    }

    /// Waits while a number is `value`, until somebody [wakes](Self::wake) who waits for it, or for so long: futex(2), which
    /// looks at the lower half. It may come back earlier.
    ///
    /// # Panics
    /// Where there is no such number.
    pub fn wait_while(&self, index: usize, value: u32, limit: Duration) {
        let limit = libc::timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // SAFETY: the number is mapped and aligned, and the time is there for as long as the call takes.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self[index].as_ptr(),
                libc::FUTEX_WAIT,
                value,
                &raw const limit,
            )
        };
    }

    /// Wakes all that wait for a number.
    ///
    /// # Panics
    /// Where there is no such number.
    pub fn wake(&self, index: usize) {
        let nobody: *const libc::timespec = null();
        // SAFETY: the number is mapped and aligned.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self[index].as_ptr(),
                libc::FUTEX_WAKE,
                i32::MAX,
                nobody,
                null_mut::<u32>(),
                0,
            )
        };
    }
}

fn bytes(count: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(count.checked_mul(size_of::<AtomicU64>())?.max(1))
}

// SAFETY: the place belongs to this value alone and is mapped until it is dropped, from whichever thread.
unsafe impl Send for SharedNumbers {}
// SAFETY: only atomic operations reach what is there.
unsafe impl Sync for SharedNumbers {}

impl Deref for SharedNumbers {
    type Target = [AtomicU64];

    fn deref(&self) -> &Self::Target {
        // SAFETY: a page begins there, so many numbers are mapped until this is dropped; all bytes were zero at first, and
        // whoever else has them changes them by atomic operations alone.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.count) }
    }
}

impl Drop for SharedNumbers {
    fn drop(&mut self) {
        let bytes = bytes(self.count).map_or(0, NonZeroUsize::get);
        // SAFETY: it was mapped by `new` with this length, and nobody has a reference into it any more.
        let result = unsafe { munmap(self.place.cast(), bytes) };
        debug_assert_eq!(result, Ok(()), "what is mapped can be unmapped");
    }
}

impl fmt::Debug for SharedNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|number| number.load(Ordering::Relaxed)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::SharedNumbers;
    use crate::fork;
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::{sync::atomic::Ordering, time::Duration};

    #[test]
    fn what_a_child_writes_its_parent_reads() {
        let numbers = SharedNumbers::new(3).expect("memory");
        numbers[0].store(7, Ordering::Relaxed);
        let child = fork::child(|| {
            let seen = numbers[0].load(Ordering::Relaxed);
            numbers[2].store(seen + 1, Ordering::Relaxed);
            0
        });
        let ended = waitpid(child.expect("a child"), None).expect("its end");
        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
        assert_eq!(format!("{numbers:?}"), "[7, 0, 8]");
    }

    #[test]
    fn there_may_be_many_or_none() {
        assert_eq!(format!("{:?}", SharedNumbers::new(0).expect("none")), "[]");
        let many = SharedNumbers::new(100_000).expect("memory");
        many[99_999].store(5, Ordering::Relaxed);
        assert_eq!(many.iter().map(|number| number.load(Ordering::Relaxed)).sum::<u64>(), 5);
        assert!(SharedNumbers::new(usize::MAX).is_err());
    }

    #[test]
    fn who_waits_is_woken_across_processes() {
        let numbers = SharedNumbers::new(600).expect("memory");
        numbers[599].store(1, Ordering::Release);
        let child = fork::child(|| {
            // For ever, unless it is woken.
            while numbers[599].load(Ordering::Acquire) == 1 {
                numbers.wait_while(599, 1, Duration::from_secs(3600));
            }
            numbers[0].load(Ordering::Acquire) as i32
        });
        numbers[0].store(9, Ordering::Release);
        numbers[599].store(2, Ordering::Release);
        numbers.wake(599);
        let ended = waitpid(child.expect("a child"), None).expect("its end");
        assert!(matches!(ended, WaitStatus::Exited(_, 9)), "{ended:?}");
    }
}
