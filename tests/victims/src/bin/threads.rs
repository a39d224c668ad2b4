//! Many threads: ids that do not ascend, names, thread-local memory, masks, what each waits in; and their ends are told
//! to those that join them.

use std::{
    cell::Cell,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use victims::{Findings, Team, call, own, play};

/// Threads that check themselves; some of them are made where others have ended.
const MEMBERS: usize = 300;
/// Threads that wait in a call, and end when the victim is checked.
const WAITERS: usize = 9;

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(0) };
}

fn main() {
    play(|_| {
        let mut team = Team::default();
        let mut gaps: Vec<(Arc<AtomicBool>, JoinHandle<()>)> = Vec::new();
        for n in 0..MEMBERS {
            // Every third has a short-lived neighbour, whose id is free later.
            if n.is_multiple_of(3) {
                gaps.push(parked());
            }
            team.spawn(&format!("member {n}"), move || member(n));
        }
        for (end, thread) in gaps {
            end.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            thread.join().expect("ends");
        }
        go_back_in_ids();
        for n in MEMBERS..MEMBERS + 20 {
            team.spawn(&format!("member {n}"), move || member(n));
        }
        let ids = thread_ids();
        assert!(
            ids.len() > MEMBERS && !ids.is_sorted(),
            "threads in the order of their ids"
        );
        let mut waiters = Some(Waiters::start());
        let mut own = member(1_000_000);
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
            if let Some(waiters) = waiters.take() {
                waiters.end(findings);
            }
            findings.same("threads, oldest first", &ids, &thread_ids());
            waiters = Some(Waiters::start());
        }
    })
}

fn member(n: usize) -> impl FnMut(&mut Findings) {
    OWN.set(n);
    let name = format!("t {n} \u{e9}\0");
    call::prctl(libc::PR_SET_NAME, [name.as_ptr() as usize, 0, 0, 0]).expect("set the name");
    let mask = (n as u64) << 40;
    set_mask(mask);
    let before = (call::gettid(), comm(), own::status("SigBlk"), pthread_id());
    move |findings| {
        if findings.sabotage() && n == 7 {
            call::prctl(libc::PR_SET_NAME, [c"other".as_ptr() as usize, 0, 0, 0]).expect("set the name");
        }
        let now = (call::gettid(), comm(), own::status("SigBlk"), pthread_id());
        findings.same("id, name, mask, pthread", &before, &now);
        findings.same("thread-local value", &n, &OWN.get());
    }
}

/// Threads that wait in different calls for their end, and one that waits for theirs.
struct Waiters {
    end: Arc<AtomicBool>,
    pipe: [i32; 2],
    barrier: Arc<Barrier>,
    joiner: JoinHandle<usize>,
}

impl Waiters {
    fn start() -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let pipe = call::pipe(0);
        let barrier = Arc::new(Barrier::new(WAITERS / 3 + 1));
        let started = Arc::new(Barrier::new(WAITERS + 2));
        let threads: Vec<JoinHandle<bool>> = (0..WAITERS)
            .map(|n| {
                let (end, barrier, started) = (Arc::clone(&end), Arc::clone(&barrier), Arc::clone(&started));
                std::thread::spawn(move || {
                    started.wait();
                    match n % 3 {
                        0 => call::read(pipe[0], 1).is_ok_and(|bytes| bytes == b"x"),
                        1 => {
                            barrier.wait();
                            true
                        }
                        _ => {
                            while !end.load(Ordering::Relaxed) {
                                std::thread::sleep(std::time::Duration::from_millis(5));
                            }
                            true
                        }
                    }
                })
            })
            .collect();
        // Waits in a futex that the kernel wakes when the first of them ends.
        let at_work = Arc::clone(&started);
        let joiner = std::thread::spawn(move || {
            at_work.wait();
            let ends = threads.into_iter().map(JoinHandle::join);
            ends.filter(|end| matches!(end, Ok(true))).count()
        });
        started.wait();
        Self {
            end,
            pipe,
            barrier,
            joiner,
        }
    }

    fn end(self, findings: &mut Findings) {
        self.end.store(true, Ordering::Relaxed);
        findings.take("write", call::write(self.pipe[1], &[b'x'; WAITERS / 3]));
        self.barrier.wait();
        let joined = victims::wait_until(|| self.joiner.is_finished());
        findings.that(joined, "the ends of threads are not told to the one that joins them");
        if joined {
            findings.same(
                "threads that got what they waited for",
                &WAITERS,
                &self.joiner.join().unwrap_or(0),
            );
        }
        self.pipe.into_iter().for_each(call::close);
    }
}

fn parked() -> (Arc<AtomicBool>, JoinHandle<()>) {
    let end = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&end);
    let thread = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            std::thread::park();
        }
    });
    (end, thread)
}

/// Makes ids below those of the threads there are the next to be given, as a namespace that wrapped round does.
fn go_back_in_ids() {
    let first = std::process::id() + 1;
    std::fs::write("/proc/sys/kernel/ns_last_pid", first.to_string()).expect("choose the next id");
}

fn thread_ids() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc/self/task");
    let names = tasks
        .flatten()
        .map(|task| task.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.parse().ok()).collect()
}

fn comm() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default()
}

fn pthread_id() -> usize {
    // SAFETY: no arguments.
    unsafe { libc::pthread_self() as usize }
}

fn set_mask(mask: u64) {
    let args = [libc::SIG_SETMASK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &args) }.expect("rt_sigprocmask");
}
