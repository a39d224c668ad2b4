//! Memory that is written all the time, by a thread and by a child process: page after page gets the number of the round, so
//! that at any instant the pages up to one place have one number and the others the one before; and mappings that come and
//! go. An image of two instants shows in the first round that meets it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use victims::{
    Findings,
    memory::{Mapping, PAGE},
    play, wait_until,
};

/// Pages that are written in turn.
const PAGES: usize = 2048;
/// Mappings that are there at a time, and their pages.
const COMING: usize = 8;
const COMING_PAGES: usize = 64;

/// What both writers say, in shared memory.
#[repr(C)]
#[derive(Default)]
struct Board {
    rounds: [AtomicU64; 2],
    /// The page that was found wrong, and what it held; 0 for none.
    wrong: [AtomicU64; 2],
    held: [AtomicU64; 2],
    spoil: AtomicBool,
}

fn main() {
    play(|_| {
        let shared = Mapping::anonymous(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a page of zeros, which stays, aligned and large enough; all zeros is a board without news.
        let board: &'static Board = unsafe { &*(shared.address as *const Board) };
        // SAFETY: no thread has been started.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: plain numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            write(board, 1);
        }
        std::thread::spawn(move || write(board, 0));
        let go_on = move |more: u64| {
            (0..2).all(|who| {
                let from = board.rounds[who].load(Ordering::Acquire);
                wait_until(|| board.rounds[who].load(Ordering::Acquire) >= from + more || is_wrong(board, who))
            })
        };
        assert!(go_on(1), "the first round");
        move |findings: &mut Findings| {
            if findings.sabotage() {
                board.spoil.store(true, Ordering::Release);
            }
            findings.that(go_on(3), "a writer does not go on");
            for who in 0..2 {
                let page = board.wrong[who].load(Ordering::Acquire);
                let held = board.held[who].load(Ordering::Acquire);
                let round = board.rounds[who].load(Ordering::Acquire);
                findings.that(
                    page == 0,
                    format!("writer {who}: page {page} holds {held} in round {round}"),
                );
            }
        }
    })
}

fn is_wrong(board: &Board, who: usize) -> bool {
    board.wrong[who].load(Ordering::Acquire) != 0
}

fn number(mapping: &Mapping, page: usize) -> u64 {
    u64::from_ne_bytes(mapping.read(page * PAGE + 8, 8).try_into().expect("8 bytes"))
}

fn set(mapping: &Mapping, page: usize, number: u64) {
    mapping.write(page * PAGE + 8, &number.to_ne_bytes());
}

fn write(board: &Board, who: usize) -> ! {
    let pages = Mapping::private(PAGES * PAGE);
    let mut coming: Vec<(Mapping, u64)> = Vec::new();
    let report = |page: u64, held: u64| {
        board.held[who].store(held, Ordering::Release);
        board.wrong[who].store(page, Ordering::Release);
        loop {
            std::thread::park();
        }
    };
    for round in 1.. {
        for page in 0..PAGES {
            let held = number(&pages, page);
            if held != round - 1 {
                report(page as u64 + 1, held);
            }
            set(&pages, page, round);
            if board.spoil.load(Ordering::Acquire) && page == PAGES / 2 {
                set(&pages, page + 1, round + 7);
            }
        }
        if coming.len() == COMING {
            let (mapping, stamp) = coming.remove(0);
            if let Some(page) = (0..COMING_PAGES).find(|page| number(&mapping, *page) != stamp) {
                report((PAGES + page) as u64 + 1, number(&mapping, page));
            }
            // SAFETY: nobody else has this mapping, and it is gone from the list.
            unsafe { libc::munmap(mapping.address as *mut _, mapping.len) };
        }
        let mapping = Mapping::private(COMING_PAGES * PAGE);
        (0..COMING_PAGES).for_each(|page| set(&mapping, page, round));
        coming.push((mapping, round));
        board.rounds[who].store(round, Ordering::Release);
    }
    unreachable!("rounds do not end")
}
