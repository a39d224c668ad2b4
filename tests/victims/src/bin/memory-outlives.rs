//! Memory that outlives the process that made it: a child shares it (CLONE_VM) and goes on when its parent has ended, which
//! happens at the first check.

use std::sync::atomic::{AtomicU64, Ordering};
use victims::{
    Findings,
    memory::{Mapping, PAGE},
    pattern, play,
    stage::fork,
    wait_until,
};

const PAGES: usize = 512;
const SEED: u64 = 31;

/// What is said to the child, and what it says, in shared memory.
#[repr(C)]
struct Board {
    /// How often it is to have compared.
    asked: AtomicU64,
    compared: AtomicU64,
    /// How many pages it found wrong so far.
    wrong: AtomicU64,
    /// What it has in a page that it writes each time.
    written: AtomicU64,
}

/// What the child is given.
struct Task {
    board: &'static Board,
    memory: Mapping,
}

fn main() {
    play(|_| {
        let shown = Mapping::anonymous(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: zeros, aligned, large enough, and there till the end; all is atomic.
        let board: &'static Board = unsafe { &*(shown.address as *const Board) };
        let mut maker = Some(fork(|| make(board)));
        assert!(wait_until(|| board.compared.load(Ordering::Acquire) == 1), "no child");
        let mut rounds = 1;
        move |findings: &mut Findings| {
            if let Some(maker) = maker.take() {
                // SAFETY: a child of its own that is not waited for yet.
                findings.that(unsafe { libc::kill(maker, libc::SIGKILL) } == 0, "kill");
                // SAFETY: as above; nothing is written.
                let waited = unsafe { libc::waitpid(maker, std::ptr::null_mut(), 0) };
                findings.same("who made the memory has ended", &maker, &waited);
            }
            if findings.sabotage() {
                board.wrong.store(1, Ordering::Release);
            }
            rounds += 1;
            board.asked.store(rounds, Ordering::Release);
            let answered = wait_until(|| board.compared.load(Ordering::Acquire) >= rounds);
            findings.that(answered, "the child says nothing");
            findings.same("wrong pages", &0, &board.wrong.load(Ordering::Acquire));
        }
    })
}

/// Makes memory and a child that shares it.
fn make(board: &'static Board) -> ! {
    let memory = Mapping::private(PAGES * PAGE);
    (0..PAGES).for_each(|page| memory.mark(page, SEED + page as u64));
    let stack = Mapping::private(256 << 10);
    let top = (stack.address + stack.len) as *mut libc::c_void;
    let task = Box::into_raw(Box::new(Task { board, memory }));
    board.asked.store(1, Ordering::Release);
    // SAFETY: a stack of its own; this one does nothing with its thread-local storage, which the child has too, any more.
    let child = unsafe { libc::clone(attend, top, libc::CLONE_VM | libc::SIGCHLD, task.cast()) };
    assert!(child > 0, "clone");
    loop {
        // SAFETY: waits.
        unsafe { libc::pause() };
    }
}

extern "C" fn attend(task: *mut libc::c_void) -> i32 {
    // SAFETY: given away by `make`.
    let task = unsafe { Box::from_raw(task.cast::<Task>()) };
    let mut compared = 0;
    loop {
        while task.board.asked.load(Ordering::Acquire) <= compared {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let wrong = |page: &usize| {
            let held = task.memory.read(page * PAGE, PAGE);
            let seed = match (page, compared) {
                (7, 1..) => task.board.written.load(Ordering::Acquire),
                _ => SEED + *page as u64,
            };
            pattern::difference(&held, &pattern::bytes(PAGE, seed)).is_some()
        };
        let wrong = (0..PAGES).filter(wrong).count();
        task.board.wrong.fetch_add(wrong as u64, Ordering::AcqRel);
        compared += 1;
        task.memory.mark(7, SEED * 1000 + compared);
        task.board.written.store(SEED * 1000 + compared, Ordering::Release);
        task.board.compared.store(compared, Ordering::Release);
    }
}
