//! Fields of pages that can be told to be what they were, wherever they are; and what a victim does to them as soon as it
//! finds itself somewhere else in time.

use crate::memory::{Mapping, PAGE};
use std::{
    ptr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// Words of a page.
pub const WORDS: usize = PAGE / 8;

/// Pages, each word of which follows from where it is.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Where it is.
    pub mapping: Mapping,
    /// How many there are.
    pub pages: usize,
    /// What they follow from besides.
    pub seed: u64,
}

/// A number that follows from another.
#[must_use]
pub fn mixed(mut number: u64) -> u64 {
    number ^= number >> 33;
    number = number.wrapping_mul(0xff51_afd7_ed55_8ccd);
    number ^ number >> 29
}

/// A word of a page.
#[must_use]
pub fn expected(seed: u64, page: usize, word: usize) -> u64 {
    mixed(seed.wrapping_add((page * WORDS + word) as u64))
}

/// The word at an address of the victim's memory.
#[must_use]
pub fn word_at(address: usize) -> u64 {
    // SAFETY: callers name addresses of their mappings.
    unsafe { ptr::read_volatile(address as *const u64) }
}

/// Writes a word of the victim's memory.
pub fn set_word(address: usize, word: u64) {
    // SAFETY: callers name addresses of their writable mappings.
    unsafe { ptr::write_volatile(address as *mut u64, word) }
}

/// The first wrong page of some that begin at an address: a word, another in the middle, and the last one of each.
#[must_use]
pub fn wrong_at(address: usize, seed: u64, pages: impl Iterator<Item = usize>, first: usize) -> Option<usize> {
    pages.into_iter().find(|page| {
        [0, 1 + page % 500, WORDS - 1]
            .iter()
            .any(|word| word_at(address + (page - first) * PAGE + word * 8) != expected(seed, *page, *word))
    })
}

/// Whether pages are zeros at both ends.
#[must_use]
pub fn zero_at(address: usize, pages: usize) -> bool {
    (0..pages).all(|page| word_at(address + page * PAGE) == 0 && word_at(address + page * PAGE + PAGE - 8) == 0)
}

impl Field {
    /// A full one.
    #[must_use]
    pub fn new(pages: usize, seed: u64) -> Self {
        let mapping = Mapping::private(pages * PAGE);
        let field = Self { mapping, pages, seed };
        (0..pages).for_each(|page| field.fill(page, seed));
        field
    }

    /// Fills a page anew.
    pub fn fill(&self, page: usize, seed: u64) {
        let address = self.mapping.address + page * PAGE;
        (0..WORDS).for_each(|word| set_word(address + word * 8, expected(seed, page, word)));
    }

    /// The first wrong page of some.
    #[must_use]
    pub fn wrong(&self, seed: u64, pages: impl Iterator<Item = usize>) -> Option<usize> {
        wrong_at(self.mapping.address, seed, pages, 0)
    }

    /// All pages in no order.
    pub fn shuffled(&self, from: u64) -> impl Iterator<Item = usize> + use<> {
        let (pages, start) = (self.pages, mixed(from) as usize);
        // No page twice where the step has no factor in common.
        let step = ((start | 1) % pages) | 1;
        let step = if gcd(step, pages) == 1 { step } else { 1 };
        (0..pages).map(move |n| (start % pages + n * step) % pages)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Has a storm made whenever the victim was restored: it is told how many there were before. What is returned waits until
/// there was one since it was called last, makes one where there was nothing to notice, and then looks, while there is none.
pub fn storms(storm: impl Fn(u64) + Send + 'static, look: impl Fn()) -> impl FnMut() {
    let weather = Arc::new(Mutex::new(Weather {
        storm,
        made: 0,
        apart: apart(),
    }));
    thread::spawn({
        let weather = Arc::clone(&weather);
        move || loop {
            thread::sleep(Duration::from_millis(1));
            weather.lock().expect("no storm failed").notice();
        }
    });
    let mut seen = 0;
    move || {
        let mut weather = weather.lock().expect("no storm failed");
        weather.notice();
        if weather.made == seen {
            weather.make();
        }
        seen = weather.made;
        look();
    }
}

/// Who has it makes or has made one storm for each restore, and nobody else does meanwhile.
struct Weather<S> {
    storm: S,
    made: u64,
    apart: i128,
}

impl<S: Fn(u64)> Weather<S> {
    fn notice(&mut self) {
        let now = apart();
        if now.abs_diff(self.apart) > 3_000_000 {
            self.make();
        }
        self.apart = now;
    }

    fn make(&mut self) {
        (self.storm)(self.made);
        self.made += 1;
    }
}

/// How far the time of day is from the time since the boot: a restore changes it.
fn apart() -> i128 {
    let time = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes the structure.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    // Somebody else may run between two looks.
    loop {
        let (before, day, after) = (
            time(libc::CLOCK_MONOTONIC),
            time(libc::CLOCK_REALTIME),
            time(libc::CLOCK_MONOTONIC),
        );
        if after - before < 500_000 {
            return day - before;
        }
    }
}
