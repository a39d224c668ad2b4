//! Seccomp's strict mode: read, write, exit and nothing else. Children in it answer through pipes, one spins; at each
//! check one calls what is forbidden, which ends it. And a child whose filter allows a sleep alone, of which not even the
//! kernel's own way of going on with it.

use std::sync::atomic::{AtomicU32, Ordering};
use victims::{Findings, call, memory::Mapping, own, play, seccomp, stage::fork, wait_until};

const CHILDREN: u32 = 6;
const FORBIDDEN: u8 = 0;

fn main() {
    play(|_stage| {
        let page = Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: the page is mapped for good, and a zero is a good counter.
        let counter: &'static AtomicU32 = unsafe { &*(page.address as *const AtomicU32) };
        let spinning = fork(|| {
            seccomp::strict().expect("strict mode");
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                for _ in 0..100_000 {
                    std::hint::spin_loop();
                }
            }
        });
        let (naps, napping) = napping();
        let mut children: Vec<Strict> = (0..CHILDREN).map(Strict::start).collect();
        let states = states(spinning, &children);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                findings.take("kill", call::kill(spinning, libc::SIGKILL));
            }
            let before = counter.load(Ordering::Relaxed);
            let counts = || counter.load(Ordering::Relaxed) > before;
            let gone = || call::wait(spinning, libc::WNOHANG).map_or(true, |(pid, _)| pid != 0);
            wait_until(|| counts() || gone());
            findings.that(counts(), "the child that spins does not go on");
            let before = naps.map(|counter| counter.load(Ordering::Relaxed));
            let gone = || call::wait(napping, libc::WNOHANG).map_or(true, |(pid, _)| pid != 0);
            for (counter, before) in naps.iter().zip(before) {
                wait_until(|| counter.load(Ordering::Relaxed) > before + 1 || gone());
            }
            findings.that(!gone(), "the child that may only sleep has ended");
            let now = self::states(spinning, &children);
            findings.same("how the kernel names their confinement", &states[..now.len()], &now[..]);
            for child in &children {
                findings.that(child.answers(), format!("child {} does not answer", child.n));
            }
            if let Some(child) = children.pop() {
                let end = child.forbidden();
                findings.same("end by a forbidden call", &libc::SIGKILL, &end);
            }
        }
    })
}

/// A child whose two threads sleep and count, for which all calls but nanosleep are deadly.
fn napping() -> ([&'static AtomicU32; 2], i32) {
    let page = Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let counters = [0, 64].map(|offset| {
        let place = (page.address + offset) as *const AtomicU32;
        // SAFETY: the page is mapped for good, and a zero is a good counter.
        unsafe { &*place }
    });
    let pid = fork(|| {
        let [first, second] = counters;
        std::thread::spawn(|| nap(second));
        wait_until(|| second.load(Ordering::Relaxed) > 0);
        let filter = seccomp::only(&[libc::SYS_nanosleep], seccomp::KILL);
        seccomp::install(&filter, seccomp::FLAG_TSYNC).expect("a filter for both");
        nap(first);
    });
    let both = || counters.iter().all(|counter| counter.load(Ordering::Relaxed) > 0);
    assert!(wait_until(both), "the sleepers sleep");
    (counters, pid)
}

fn nap(counter: &AtomicU32) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 300_000_000,
    };
    loop {
        // SAFETY: the time is read.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, 0) };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn states(spinning: i32, children: &[Strict]) -> Vec<String> {
    let pids = std::iter::once(spinning).chain(children.iter().map(|child| child.pid));
    pids.map(|pid| own::status_of(&pid.to_string(), "Seccomp")).collect()
}

/// A child that answers each byte with that byte and its own number added.
struct Strict {
    n: u32,
    pid: i32,
    ask: i32,
    answer: i32,
}

impl Strict {
    fn start(n: u32) -> Self {
        let ([asked, ask], [answer, answering]) = (call::pipe(0), call::pipe(0));
        let pid = fork(|| {
            seccomp::strict().expect("strict mode");
            let mut byte = 0_u8;
            loop {
                let place = &raw mut byte;
                // SAFETY: one byte.
                unsafe { libc::syscall(libc::SYS_read, asked, place, 1) };
                if byte == FORBIDDEN {
                    // SAFETY: no arguments.
                    unsafe { libc::syscall(libc::SYS_getpid) };
                }
                byte = byte.wrapping_add(n as u8);
                // SAFETY: one byte.
                unsafe { libc::syscall(libc::SYS_write, answering, place, 1) };
            }
        });
        let child = Self { n, pid, ask, answer };
        assert!(child.answers(), "child {n} answers");
        child
    }

    fn answers(&self) -> bool {
        let asked = call::write(self.ask, &[7]).is_ok();
        asked && call::read(self.answer, 1).is_ok_and(|bytes| bytes == [7 + self.n as u8])
    }

    /// The signal that ends it.
    fn forbidden(&self) -> i32 {
        call::write(self.ask, &[FORBIDDEN]).expect("ask");
        call::wait(self.pid, 0).map_or(0, |(_, status)| libc::WTERMSIG(status))
    }
}
