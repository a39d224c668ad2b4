//! An allocator that counts what the thread it serves holds, so that a test can say how much reading an image took.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// Counts, and hands everything on to the system's allocator.
pub struct Hoard;

thread_local! {
    // Far from zero: a thread may give back what another one took.
    static HELD: Cell<usize> = const { Cell::new(1 << 40) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// What `act` returns, and the most bytes this thread held at once meanwhile, beyond what it held before.
pub fn peak_of<T>(act: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = act();
    (result, PEAK.get() - before)
}

fn took(bytes: usize) {
    HELD.set(HELD.get() + bytes);
    PEAK.set(PEAK.get().max(HELD.get()));
}

fn gave(bytes: usize) {
    HELD.set(HELD.get() - bytes);
}

// SAFETY: every method hands its arguments on to `System`, unchanged, and returns what that returns.
unsafe impl GlobalAlloc for Hoard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps the promises of `alloc`, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps the promises of `alloc_zeroed`, which are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        gave(layout.size());
        // SAFETY: the caller keeps the promises of `realloc`, which are the same; `place` came from `System`.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: the caller keeps the promises of `dealloc`, which are the same; `place` came from `System`.
        unsafe { System.dealloc(place, layout) }
    }
}
