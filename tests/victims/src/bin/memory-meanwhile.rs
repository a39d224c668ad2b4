//! One thing that is done to memory as soon as the victim finds that it is somewhere else in time, over and over, by `DIR PAGES
//! WHAT`: `children` are forked, many, each of which looks at a page and ends; `threads` unmap and move what lies side by
//! side, in places that the kernel chooses, so that one gets what another has just left; `not-inherited` keeps memory from
//! a child that lives on.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use victims::{
    Findings,
    field::{Field, mixed, set_word, storms, wrong_at, zero_at},
    memory::{PAGE, flags_at},
    play,
};

/// Pages of a block that is moved.
const BLOCK: usize = 16;
/// Children of each thread that live at the same time.
const TOGETHER: usize = 2;
/// Children of each.
const CHILDREN: usize = 100;
/// Pages that children look at.
const NEAR: u64 = 200;
/// Threads that fork, or move blocks.
const THREADS: usize = 3;

struct Ground {
    kept: Field,
    changed: Mutex<Field>,
    /// A child, and what it waits for.
    waiting: Mutex<Option<(i32, io::PipeWriter)>>,
    wrong: Mutex<Vec<String>>,
    /// Where to write how much was done while memory came in the longest storm: children, threads' blocks, or once.
    note: PathBuf,
    most: AtomicUsize,
}

fn main() {
    play(|stage| {
        let pages = stage
            .arg(0)
            .map_or(512, |text| text.parse().expect("a number of pages"));
        let what = stage.arg(1).unwrap_or("children").to_owned();
        let ground: &'static Ground = Box::leak(Box::new(Ground {
            kept: Field::new(pages, 1 << 40),
            changed: Mutex::new(Field::new(pages, 2 << 40)),
            waiting: Mutex::default(),
            wrong: Mutex::default(),
            note: stage.path("meanwhile"),
            most: AtomicUsize::new(0),
        }));
        let change = move |round| match what.as_str() {
            "children" => ground.children(round),
            "threads" => ground.threads(round),
            "not-inherited" => ground.not_inherited(),
            other => panic!("nobody knows {other}"),
        };
        let mut storm = storms(change, || ground.look());
        move |findings: &mut Findings| {
            if findings.sabotage() {
                set_word(ground.kept.mapping.address, 7);
            }
            storm();
            let wrong = std::mem::take(&mut *ground.wrong.lock().expect("the lock"));
            wrong.into_iter().for_each(|wrong| findings.add(wrong));
        }
    })
}

impl Ground {
    fn report(&self, what: impl Into<String>) {
        self.wrong.lock().expect("the lock").push(what.into());
    }

    fn note(&self, meanwhile: usize) {
        let most = self.most.fetch_max(meanwhile, Ordering::AcqRel).max(meanwhile);
        fs::write(&self.note, format!("{most}\n")).expect("a note");
    }

    fn memory_comes(&self) -> bool {
        flags_at(self.kept.mapping.address).iter().any(|flag| flag == "um")
    }

    fn look(&self) {
        self.let_look();
        let changed = *self.changed.lock().expect("the lock");
        for (name, field) in [("kept", self.kept), ("changed", changed)] {
            if let Some(page) = field.wrong(field.seed, 0..field.pages) {
                self.report(format!("{name}: page {page} in the end"));
            }
        }
    }

    /// Lets the child look that waits.
    fn let_look(&self) {
        let waiting = self.waiting.lock().expect("the lock").take();
        if let Some((child, mut bell)) = waiting {
            bell.write_all(b"l").expect("tell the child");
            self.reap(child, "the child that lived on");
        }
    }

    fn reap(&self, child: i32, which: &str) {
        let mut status = 0;
        // SAFETY: the kernel writes the status.
        let got = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if got != child || status != 0 {
            self.report(format!("{which}: status {status:#x}"));
        }
    }

    /// Children of several threads.
    fn children(&self, round: u64) {
        thread::scope(|scope| {
            for who in 0..THREADS {
                scope.spawn(move || self.fork_often(round * 10 + who as u64));
            }
        });
        self.note(if self.memory_comes() { CHILDREN * THREADS } else { 0 });
    }

    fn fork_often(&self, from: u64) {
        let mut alive = VecDeque::new();
        for number in 0..CHILDREN as u64 {
            // Not all over the field: what is looked at comes, with what lies around it.
            let page = (mixed(from * 1000 + number) % NEAR) as usize;
            let child = fork(|| self.kept.wrong(self.kept.seed, std::iter::once(page)).is_none());
            alive.push_back((child, page));
            if alive.len() > TOGETHER
                && let Some((child, page)) = alive.pop_front()
            {
                self.reap(child, &format!("a child that looks at page {page}"));
            }
        }
        for (child, page) in alive {
            self.reap(child, &format!("a child that looks at page {page}"));
        }
    }

    /// Threads that unmap and move blocks that lie side by side, and look at them when all are done. In the end all is made anew.
    fn threads(&self, round: u64) {
        let mut field = self.changed.lock().expect("the lock");
        let blocks = field.pages / BLOCK;
        let meanwhile = AtomicUsize::new(0);
        thread::scope(|scope| {
            for who in 0..THREADS {
                let (field, meanwhile) = (*field, &meanwhile);
                scope.spawn(move || {
                    let mine = (who..blocks).step_by(THREADS);
                    let placed: Vec<_> = mine
                        .filter_map(|block| Some((block, move_block(&field, block, round)?)))
                        .collect();
                    if self.memory_comes() {
                        meanwhile.fetch_add(blocks / THREADS, Ordering::AcqRel);
                    }
                    for (block, place) in placed {
                        let first = block * BLOCK;
                        if let Some(page) = wrong_at(place.at, field.seed, first..first + BLOCK, first) {
                            self.report(format!("thread {who}: page {page} differs at {:#x}", place.at));
                        }
                        if !zero_at(place.at + BLOCK * PAGE, place.more) {
                            self.report(format!(
                                "thread {who}: behind block {block} at {:#x} are no zeros",
                                place.at
                            ));
                        }
                        unmap(place.at, BLOCK + place.more);
                    }
                });
            }
        });
        self.note(meanwhile.into_inner());
        *field = Field::new(field.pages, field.seed + 1);
    }

    /// A child that does not get half of a field.
    fn not_inherited(&self) {
        self.let_look();
        let (kept, changed) = (self.kept, *self.changed.lock().expect("the lock"));
        let half = changed.pages / 2;
        let advise = |advice| {
            changed
                .mapping
                .advise(0, half, advice)
                .expect("whether it is inherited");
        };
        advise(libc::MADV_DONTFORK);
        let (mut hears, bell) = io::pipe().expect("a pipe");
        let child = fork(move || {
            hears.read_exact(&mut [0]).is_ok()
                && kept.wrong(kept.seed, 0..kept.pages).is_none()
                && changed.wrong(changed.seed, half..changed.pages).is_none()
        });
        advise(libc::MADV_DOFORK);
        self.note(usize::from(self.memory_comes()));
        *self.waiting.lock().expect("the lock") = Some((child, bell));
    }
}

/// A child that ends when it has looked.
fn fork(look: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child only reads a pipe, looks at memory and ends.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            let is_right = look();
            // SAFETY: ends the process.
            unsafe { libc::_exit(i32::from(!is_right)) }
        }
        child => child,
    }
}

/// Where a block is now, and how many pages it has more.
struct Place {
    at: usize,
    more: usize,
}

/// Does something with a block, and looks at nothing. `None` where it is not mapped any more.
fn move_block(field: &Field, block: usize, round: u64) -> Option<Place> {
    let at = field.mapping.address + block * BLOCK * PAGE;
    match mixed(round * 1_000_003 + block as u64) % 5 {
        0 => {
            unmap(at, BLOCK);
            None
        }
        1 => Some(Place {
            at: moved(at, BLOCK, BLOCK + 1, 0),
            more: 1,
        }),
        2 => {
            let once = moved(at, BLOCK, BLOCK + 1, 0);
            let twice = moved(once, BLOCK + 1, BLOCK + 3, 0);
            Some(Place { at: twice, more: 3 })
        }
        3 => {
            let once = moved(at, BLOCK, BLOCK + 2, 0);
            unmap(once, BLOCK + 2);
            None
        }
        _ => {
            let place = moved(at, BLOCK, BLOCK, libc::MREMAP_DONTUNMAP);
            unmap(at, BLOCK);
            Some(Place { at: place, more: 0 })
        }
    }
}

fn moved(at: usize, pages: usize, new: usize, flags: i32) -> usize {
    let flags = libc::MREMAP_MAYMOVE | flags;
    // SAFETY: a block of the calling thread's, to a place of the kernel's choice.
    let place = unsafe { libc::mremap(at as *mut _, pages * PAGE, new * PAGE, flags, ptr::null_mut::<u8>()) };
    assert!(place != libc::MAP_FAILED, "{}", io::Error::last_os_error());
    place as usize
}

fn unmap(at: usize, pages: usize) {
    // SAFETY: a block of the calling thread's.
    let status = unsafe { libc::munmap(at as *mut _, pages * PAGE) };
    assert!(status == 0, "{}", io::Error::last_os_error());
}
