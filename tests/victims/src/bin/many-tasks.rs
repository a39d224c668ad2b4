//! A tree as large as its arguments say: `wide N` children, a chain `deep N`, or `threads N`; each checks who it is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use victims::{Findings, Stage, call, memory::Mapping, own, play, stage::fork, wait_until};

const MOST: usize = 512;

/// What the tasks tell, in memory that they share: a round that each has answered, or a number that says what is wrong.
#[derive(Clone, Copy)]
struct Board(Mapping);

impl Board {
    fn word(self, n: usize) -> &'static AtomicU64 {
        assert!(n <= MOST);
        let place = (self.0.address as *const AtomicU64).wrapping_add(n);
        // SAFETY: the page is mapped for good, and zeros are good counters.
        unsafe { &*place }
    }

    /// Answers every round until the process ends.
    fn answer(self, n: usize) -> ! {
        let before = (own::family(), call::gettid());
        let mut round = 0;
        loop {
            if self.word(0).load(Ordering::Acquire) > round {
                round += 1;
                let same = (own::family(), call::gettid()) == before;
                self.word(n)
                    .store(if same { round } else { u64::MAX }, Ordering::Release);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn main() {
    play(|stage| {
        let (kind, count) = (argument(stage, 0, "wide"), argument(stage, 1, "12"));
        let count: usize = count.parse().expect("a number");
        let board = Board(Mapping::anonymous(
            (MOST + 1) * 8,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        ));
        match kind.as_str() {
            "wide" => {
                for n in 1..=count {
                    fork(|| wide(board, n));
                }
            }
            "deep" => {
                fork(|| deep(board, 1, count));
            }
            _ => threads(board, count),
        }
        let round = Arc::new(AtomicU64::new(0));
        let check = move |findings: &mut Findings| {
            let now = round.fetch_add(1, Ordering::Relaxed) + 1;
            board.word(0).store(now, Ordering::Release);
            let expected = if findings.sabotage() { now + 1 } else { now };
            let patience = |n: usize| wait_until(|| board.word(n).load(Ordering::Acquire) >= now);
            for n in 1..=count {
                findings.that(patience(n), format!("task {n} does not answer"));
                findings.same(
                    format!("answer of task {n}"),
                    &expected,
                    &board.word(n).load(Ordering::Acquire),
                );
            }
        };
        check(&mut Findings::new(false));
        check
    })
}

fn argument(stage: &Stage, n: usize, default: &str) -> String {
    stage.arg(n).unwrap_or(default).to_owned()
}

/// Every seventh leads a group, every eleventh a session.
fn wide(board: Board, n: usize) -> ! {
    let status = match n {
        // SAFETY: plain numbers.
        n if n.is_multiple_of(7) => unsafe { libc::setpgid(0, 0) },
        // SAFETY: no arguments.
        n if n.is_multiple_of(11) => unsafe { libc::setsid() },
        _ => 0,
    };
    assert!(status >= 0);
    board.answer(n)
}

fn deep(board: Board, n: usize, count: usize) -> ! {
    if n < count {
        fork(|| deep(board, n + 1, count));
    }
    if n.is_multiple_of(5) {
        // SAFETY: plain numbers.
        unsafe { libc::setpgid(0, 0) };
    }
    board.answer(n)
}

fn threads(board: Board, count: usize) {
    for n in 1..=count {
        std::thread::spawn(move || board.answer(n));
    }
}
