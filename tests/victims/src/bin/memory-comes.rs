//! Memory that is used in every way at once as soon as the victim finds that it is somewhere else in time: threads that touch
//! it in no order and write it, children and their children that do so too, mappings that move, shrink, grow and go, system
//! calls that read and write it. With `DIR PAGES` each field has that many pages.

use std::{ptr, sync::Mutex, thread};
use victims::{
    Findings,
    field::{Field, WORDS, expected, set_word, storms, word_at, wrong_at, zero_at},
    memory::{Mapping, PAGE, flags_at},
    play,
};

/// Pages of a block of the field that is moved about.
const BLOCK: usize = 64;
/// include/uapi/asm-generic/mman-common.h, Linux 6.13.
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

/// What there is. Nobody but its thread changes a field while a storm is on.
struct Ground {
    steady: Field,
    written: Mutex<Field>,
    kept: Field,
    moved: Mutex<Field>,
    called: Field,
    wrong: Mutex<Vec<String>>,
}

fn main() {
    play(|stage| {
        let pages = stage
            .arg(0)
            .map_or(512, |text| text.parse().expect("a number of pages"));
        let ground: &'static Ground = Box::leak(Box::new(Ground {
            steady: Field::new(pages, 1 << 40),
            written: Mutex::new(Field::new(pages, 2 << 40)),
            kept: Field::new(pages, 3 << 40),
            moved: Mutex::new(Field::new(pages, 4 << 40)),
            called: Field::new(pages, 5 << 40),
            wrong: Mutex::default(),
        }));
        let mut storm = storms(|round| ground.storm(round), || ground.look());
        move |findings: &mut Findings| {
            if findings.sabotage() {
                set_word(ground.steady.mapping.address, 7);
            }
            storm();
            ground
                .wrong
                .lock()
                .expect("the lock")
                .drain(..)
                .for_each(|wrong| findings.add(wrong));
        }
    })
}

impl Ground {
    fn report(&self, what: impl Into<String>) {
        self.wrong.lock().expect("the lock").push(what.into());
    }

    fn storm(&self, round: u64) {
        thread::scope(|scope| {
            for who in 0..3 {
                scope.spawn(move || {
                    if let Some(page) = self
                        .steady
                        .wrong(self.steady.seed, self.steady.shuffled(round * 3 + who))
                    {
                        self.report(format!("toucher {who}: page {page}"));
                    }
                });
            }
            scope.spawn(|| self.write(round));
            scope.spawn(|| self.fork(round));
            scope.spawn(|| self.move_about(round));
            scope.spawn(|| self.call(round));
            scope.spawn(|| {
                for who in 0..24 {
                    let pages = self.steady.shuffled(round + 100 + who).take(20);
                    let found = thread::spawn({
                        let field = self.steady;
                        move || field.wrong(field.seed, pages)
                    });
                    if let Some(page) = found.join().expect("no panic") {
                        self.report(format!("short thread {who}: page {page}"));
                    }
                }
            });
        });
    }

    /// Everything, in order.
    fn look(&self) {
        let written = *self.written.lock().expect("the lock");
        let moved = *self.moved.lock().expect("the lock");
        for (name, field) in [
            ("steady", self.steady),
            ("written", written),
            ("kept", self.kept),
            ("moved", moved),
            ("called", self.called),
        ] {
            if let Some(page) = field.wrong(field.seed, 0..field.pages) {
                self.report(format!("{name}: page {page} in the end"));
            }
        }
    }

    fn write(&self, round: u64) {
        let mut field = self.written.lock().expect("the lock");
        let next = field.seed + 1;
        for page in field.shuffled(round + 7) {
            if field.wrong(field.seed, std::iter::once(page)).is_some() {
                self.report(format!("writer: page {page}"));
            }
            field.fill(page, next);
        }
        field.seed = next;
    }

    /// Children, some of which have children, some of which execute something else.
    fn fork(&self, round: u64) {
        for number in 0..10 {
            let (field, other) = (self.kept, self.kept.seed + 77);
            let mine: Vec<usize> = field.shuffled(round * 10 + number).take(120).collect();
            // SAFETY: the child only looks at memory, forks and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: ends the process.
                unsafe { libc::_exit(self.life(number, &mine, other)) };
            }
            let mut status = 0;
            // SAFETY: the kernel writes the status.
            let got = unsafe { libc::waitpid(child, &raw mut status, 0) };
            if got != child || status != 0 {
                self.report(format!("child {number}: status {status:#x}"));
            }
            if let Some(page) = field.wrong(field.seed, mine.into_iter()) {
                self.report(format!("behind child {number}: page {page}"));
            }
        }
    }

    /// A child's life: its exit status.
    fn life(&self, number: u64, mine: &[usize], other: u64) -> i32 {
        let field = self.kept;
        let (changed, rest) = mine.split_at(40);
        if field.wrong(field.seed, changed.iter().copied()).is_some() {
            return 11;
        }
        changed.iter().for_each(|page| field.fill(*page, other));
        if number % 3 == 1 {
            let arguments = [c"true".as_ptr(), ptr::null()];
            // SAFETY: both are strings, and the list ends with a null pointer.
            unsafe { libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr()) };
            return 12;
        }
        // SAFETY: the child only looks at memory and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let same = field.wrong(other, changed.iter().copied()).is_none()
                && field.wrong(field.seed, rest.iter().copied()).is_none();
            // SAFETY: ends the process.
            unsafe { libc::_exit(if same { 0 } else { 13 }) };
        }
        let mut status = 0;
        // SAFETY: the kernel writes the status.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        if status != 0 {
            return 14;
        }
        i32::from(field.wrong(other, changed.iter().copied()).is_some()) * 15
    }

    /// What becomes of blocks of a field. In the end it is made anew.
    fn move_about(&self, round: u64) {
        let mut field = self.moved.lock().expect("the lock");
        for block in 0..field.pages / BLOCK {
            let (first, kind) = (block * BLOCK, (block as u64 + round) % 8);
            if let Some(what) = move_block(&field, first, kind) {
                self.report(format!("block {block}, kind {kind}: {what}"));
            }
        }
        // Blocks that went elsewhere stay there, as others may use what lies between.
        *field = Field::new(field.pages, field.seed + 1);
    }

    /// System calls that read memory, and write to it.
    fn call(&self, round: u64) {
        let field = self.called;
        let mut ends = [0; 2];
        // SAFETY: room for two numbers.
        unsafe { libc::pipe(ends.as_mut_ptr()) };
        for page in field.shuffled(round + 5).take(200) {
            let address = field.mapping.address + page * PAGE;
            let mut copy = [0_u64; WORDS];
            // SAFETY: the page is there, and the buffer has its size.
            let moved = unsafe {
                let out = libc::write(ends[1], address as *const _, PAGE);
                let back = libc::read(ends[0], copy.as_mut_ptr().cast(), PAGE);
                out == PAGE as isize && back == PAGE as isize
            };
            if !moved || (0..WORDS).any(|word| copy[word] != expected(field.seed, page, word)) {
                self.report(format!("write(2) of page {page}"));
            }
        }
        for page in field.shuffled(round + 6).take(200) {
            let address = field.mapping.address + page * PAGE;
            // In the middle of a page; all others of its bytes stay.
            let half = [expected(field.seed, page, 3), expected(field.seed, page, 4)];
            // SAFETY: the page is there and writable, the buffer has its size.
            let moved = unsafe {
                let out = libc::write(ends[1], half.as_ptr().cast(), 16);
                let back = libc::read(ends[0], (address + 24) as *mut _, 16);
                out == 16 && back == 16
            };
            if !moved || (0..WORDS).any(|word| word_at(address + word * 8) != expected(field.seed, page, word)) {
                self.report(format!("read(2) into page {page}"));
            }
        }
        // SAFETY: both are this function's.
        unsafe {
            libc::close(ends[0]);
            libc::close(ends[1]);
        }
    }
}

/// Does something with a block; what went wrong.
fn move_block(field: &Field, first: usize, kind: u64) -> Option<String> {
    let (address, bytes) = (field.mapping.address + first * PAGE, BLOCK * PAGE);
    let same =
        |at: usize| wrong_at(at, field.seed, first..first + BLOCK, first).map(|page| format!("page {page} differs"));
    let zeros = |at: usize| (!zero_at(at, BLOCK)).then(|| "not zeros".to_owned());
    let done = |result: i32| assert!(result == 0, "{}", std::io::Error::last_os_error());
    let moved = |from: usize, more: usize, flags: i32, to: usize| {
        // SAFETY: a block that nobody else uses; the place is one that was just reserved.
        let at = unsafe { libc::mremap(from as *mut _, bytes, bytes + more, libc::MREMAP_MAYMOVE | flags, to) };
        assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        at as usize
    };
    // A place that is free: what was there is replaced.
    let elsewhere = || Mapping::anonymous(bytes, libc::PROT_NONE, libc::MAP_PRIVATE).address;
    match kind {
        0 => {
            field.mapping.unmap(first, BLOCK);
            let fixed = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the block was just unmapped, and its place is this thread's.
            let at = unsafe { libc::mmap(address as *mut _, bytes, 3, fixed, -1, 0) };
            assert_eq!(at as usize, address);
            zeros(address)
        }
        1 => same(moved(address, 0, libc::MREMAP_FIXED, elsewhere())),
        2 => {
            field
                .mapping
                .advise(first, BLOCK, libc::MADV_DONTNEED)
                .expect("drop it");
            zeros(address)
        }
        3 => {
            field.mapping.protect(first + BLOCK / 2, BLOCK / 2, libc::PROT_READ);
            let found = same(address);
            field
                .mapping
                .protect(first + BLOCK / 2, BLOCK / 2, libc::PROT_READ | libc::PROT_WRITE);
            found
        }
        4 => {
            let at = moved(address, bytes, 0, 0);
            same(at).or_else(|| zeros(at + bytes))
        }
        // The kernel tells nobody of guards (docs/unsupported.md), so that what comes may come again behind them. What no child gets comes at
        // once: where nothing comes now, nothing will, wherever this goes on.
        5 => {
            let advise = |advice| field.mapping.advise(first, BLOCK, advice).expect("advise");
            advise(libc::MADV_DONTFORK);
            let found = if flags_at(address).iter().any(|flag| flag == "um") {
                same(address)
            } else {
                advise(GUARD_INSTALL);
                advise(GUARD_REMOVE);
                zeros(address)
            };
            advise(libc::MADV_DOFORK);
            found
        }
        6 => {
            let there = moved(address, 0, libc::MREMAP_FIXED, elsewhere());
            let back = moved(there, 0, libc::MREMAP_FIXED, address);
            same(back)
        }
        _ => {
            // SAFETY: a range of the field.
            done(unsafe { libc::mlock(address as *const _, bytes / 2) });
            // SAFETY: the same.
            done(unsafe { libc::munlock(address as *const _, bytes / 2) });
            same(address)
        }
    }
}
