//! The three interval timers: they go on firing, at their pace, and what is left of a long one is not set back.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use victims::{Findings, play, stage::fork, wait_until};

/// How often each signal came.
static FIRED: [AtomicU64; 3] = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];
const SIGNALS: [i32; 3] = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF];
/// Microseconds between two.
const PACE: [u64; 3] = [5_000, 5_000, 7_000];
const HOUR: u64 = 3_600_000_000;

extern "C" fn note(signal: i32) {
    let which = SIGNALS.iter().position(|known| *known == signal);
    FIRED[which.unwrap_or(0)].fetch_add(1, Ordering::Relaxed);
}

fn main() {
    play(|stage| {
        // One that is not to fire: what is left of an hour and how it would go on.
        stage.child("long", |_| {
            let start = Instant::now();
            for which in 0..3 {
                set(which, HOUR, HOUR / 2 + which as u64);
            }
            // Setting a timer of the processor's time gives it a tick more, which must not look as if it was set back.
            while (0..3).any(|which| get(which).0 > HOUR - 150_000) {
                work(Duration::from_millis(1));
            }
            move |findings: &mut Findings| {
                if findings.sabotage() {
                    set(0, HOUR, HOUR);
                }
                for which in 0..3 {
                    let (left, interval) = get(which);
                    findings.same(
                        format!("interval of timer {which}"),
                        &(HOUR / 2 + which as u64),
                        &interval,
                    );
                    findings.that(
                        left < HOUR - 50_000,
                        format!("timer {which} was set back: {left} of {HOUR} are left"),
                    );
                    let past = start.elapsed().as_micros() as u64;
                    findings.that(
                        left + past + 100_000 > HOUR,
                        format!("timer {which} lost time: {left} left after {past}"),
                    );
                }
            }
        });
        // One shot, far away; the others not armed.
        stage.child("single", |_| {
            set(0, HOUR, 0);
            move |findings: &mut Findings| {
                let (left, interval) = get(0);
                findings.that(left > 0 && interval == 0, format!("single shot: {left}, {interval}"));
                findings.same("timers not armed", &[(0, 0); 2], &[get(1), get(2)]);
            }
        });
        for signal in SIGNALS {
            handle(signal);
        }
        for (which, pace) in PACE.into_iter().enumerate() {
            set(which, pace, pace);
        }
        // A child has no timers.
        let child = fork(|| assert_eq!([get(0), get(1), get(2)], [(0, 0); 3]));
        victims::call::wait(child, 0).expect("reap");
        let tick = tick();
        move |findings: &mut Findings| {
            for (which, pace) in PACE.into_iter().enumerate() {
                let (left, interval) = get(which);
                // One of the processor's time has a tick more when it is set, but never two.
                findings.that(
                    interval == pace && left > 0 && left <= pace + tick,
                    format!("timer {which}: {left} left, every {interval}"),
                );
                let before = FIRED[which].load(Ordering::Relaxed);
                let start = Instant::now();
                let fires = wait_until(|| {
                    work(Duration::from_millis(3));
                    FIRED[which].load(Ordering::Relaxed) >= before + 10
                });
                findings.that(fires, format!("timer {which} does not fire"));
                let most = start.elapsed().as_micros() as u64 / pace + 2;
                let count = FIRED[which].load(Ordering::Relaxed) - before;
                findings.that(
                    count <= most,
                    format!("timer {which} fires too often: {count} instead of {most}"),
                );
            }
        }
    })
}

/// A tick of the kernel in microseconds.
fn tick() -> u64 {
    let tick = nix::time::ClockId::CLOCK_MONOTONIC_COARSE
        .res()
        .expect("a coarse clock");
    tick.tv_nsec() as u64 / 1_000
}

/// Uses the processor.
fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn split(micros: u64) -> libc::timeval {
    libc::timeval {
        tv_sec: (micros / 1_000_000) as i64,
        tv_usec: (micros % 1_000_000) as i64,
    }
}

fn set(which: usize, value: u64, interval: u64) {
    let timer = libc::itimerval {
        it_interval: split(interval),
        it_value: split(value),
    };
    // SAFETY: a valid timer.
    let status = unsafe { libc::setitimer(which as _, &raw const timer, std::ptr::null_mut()) };
    assert_eq!(status, 0);
}

/// What is left, and the interval.
fn get(which: usize) -> (u64, u64) {
    let mut timer = libc::itimerval {
        it_interval: split(0),
        it_value: split(0),
    };
    // SAFETY: room for the answer.
    unsafe { libc::getitimer(which as _, &raw mut timer) };
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    (micros(timer.it_value), micros(timer.it_interval))
}

fn handle(signal: i32) {
    let action = libc::sigaction {
        sa_sigaction: note as *const () as usize,
        sa_flags: libc::SA_RESTART,
        sa_restorer: None,
        // SAFETY: zeros are an empty set.
        sa_mask: unsafe { std::mem::zeroed() },
    };
    // SAFETY: a handler of the right type.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}
