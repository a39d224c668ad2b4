//! A thread that is always inside a restartable sequence (rseq(2)). Whoever stops it must have it aborted: what it had
//! read, on which processor it was, may be true no more.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};
use victims::{
    Findings,
    arch::{rseq_area, spin_in_sequence},
    play, wait_until,
};

fn main() {
    play(|_| {
        let shared = Arc::new(Shared::default());
        let spinner = Arc::clone(&shared);
        std::thread::spawn(move || spinner.spin());
        wait_until(|| shared.runs.load(Ordering::SeqCst) > 0);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                // Until one comes while the thread is inside, as all but a few do.
                wait_until(|| {
                    shared.interrupt();
                    shared.release();
                    shared.missed.load(Ordering::SeqCst)
                });
            }
            shared.release();
            let missed = shared.missed.load(Ordering::SeqCst);
            findings.that(!missed, "a sequence that was interrupted went on as if it were none");
        }
    })
}

#[derive(Default)]
struct Shared {
    /// Where the thread's area is.
    area: AtomicUsize,
    release: AtomicU32,
    runs: AtomicU32,
    ends: AtomicU32,
    missed: AtomicBool,
}

impl Shared {
    /// Lets the sequence end, and waits until it has.
    fn release(&self) {
        let before = self.ends.load(Ordering::SeqCst);
        self.release.fetch_add(1, Ordering::SeqCst);
        wait_until(|| self.ends.load(Ordering::SeqCst) > before);
    }

    /// What the kernel does of a thread that it finds elsewhere.
    fn interrupt(&self) {
        let sequence = (self.area.load(Ordering::SeqCst) + 8) as *mut u64;
        // SAFETY: the area stays as long as the thread, which never ends; it reads this word by an instruction alone.
        unsafe { sequence.write_volatile(0) };
    }

    fn spin(&self) {
        let area = rseq_area().expect("the C library registers one");
        self.area.store(area, Ordering::SeqCst);
        let mut seen = 0;
        loop {
            self.runs.fetch_add(1, Ordering::SeqCst);
            // SAFETY: it is this thread's area, as the C library registered it.
            let (aborted, sequence) = unsafe { spin_in_sequence(area, &self.release, seen) };
            if !aborted {
                // Cleared: the kernel has seen the thread elsewhere, and nothing would have aborted it any more.
                self.missed.fetch_or(sequence == 0, Ordering::SeqCst);
                seen = self.release.load(Ordering::SeqCst);
                self.ends.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}
