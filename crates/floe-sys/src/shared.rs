//! Numbers that a process shares with the children it has from then on: mmap(2) with MAP_SHARED and MAP_ANONYMOUS.

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
};
use std::{
    fmt,
    num::NonZeroUsize,
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// Bytes that are mapped; the kernel gives whole pages.
const BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");

/// `COUNT` numbers, at most 512, that are 0 at first. What a process writes into one all others see that have it: the one which
/// made them, and its children born since.
pub struct SharedNumbers<const COUNT: usize> {
    place: NonNull<[AtomicU64; COUNT]>,
}

impl<const COUNT: usize> SharedNumbers<COUNT> {
    const FITS: () = assert!(size_of::<[AtomicU64; COUNT]>() <= BYTES.get());

    /// Makes them.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        let () = Self::FITS;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses a place where nothing is, and no file is behind it.
        let place = unsafe { mmap_anonymous(None, BYTES, protection, MapFlags::MAP_SHARED)? };
        Ok(Self { place: place.cast() })
    }
}

// SAFETY: the place belongs to this value alone and is mapped until it is dropped, from whichever thread.
unsafe impl<const COUNT: usize> Send for SharedNumbers<COUNT> {}
// SAFETY: only atomic operations reach what is there.
unsafe impl<const COUNT: usize> Sync for SharedNumbers<COUNT> {}

impl<const COUNT: usize> Deref for SharedNumbers<COUNT> {
    type Target = [AtomicU64; COUNT];

    fn deref(&self) -> &Self::Target {
        // SAFETY: a page begins there, which is long enough, aligned, and mapped until this is dropped; all its bytes were
        // zero at first, and whoever else has it changes it by atomic operations alone.
        unsafe { self.place.as_ref() }
    }
}

impl<const COUNT: usize> Drop for SharedNumbers<COUNT> {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new` with this length, and nobody has a reference into it any more.
        let result = unsafe { munmap(self.place.cast(), BYTES.get()) };
        debug_assert_eq!(result, Ok(()), "what is mapped can be unmapped");
    }
}

impl<const COUNT: usize> fmt::Debug for SharedNumbers<COUNT> {
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
    use std::sync::atomic::Ordering;

    #[test]
    fn what_a_child_writes_its_parent_reads() {
        let numbers = SharedNumbers::<3>::new().expect("memory");
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
}
