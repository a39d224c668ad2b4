//! Sleeps of a given length end when they would have, however often they were stopped: neither early nor as much later as
//! they had slept already. The first check waits for all of them; once they have ended they can be checked no more.

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};
use victims::{Findings, call, play};

const LENGTH: Duration = Duration::from_millis(5000);
/// How long they sleep before the victim says that it is ready.
const BEFORE: Duration = Duration::from_millis(2000);
/// Less than that, so that a sleep that starts anew is late, and more than a busy machine makes of it.
const SLACK: Duration = Duration::from_millis(1200);

fn main() {
    play(|_| {
        let start = Instant::now();
        let sleepers: Vec<(&str, i64, Receiver<End>)> = kinds()
            .into_iter()
            .map(|(name, expected, issue)| {
                let (told, result) = channel();
                std::thread::spawn(move || {
                    let result = issue();
                    told.send((result, start.elapsed())).expect("the check waits");
                });
                (name, expected, result)
            })
            .collect();
        std::thread::sleep(BEFORE);
        let mut ended = Vec::new();
        move |findings: &mut Findings| {
            if ended.is_empty() {
                let end = |result: &Receiver<_>| result.recv_timeout(Duration::from_secs(30)).ok();
                ended = sleepers.iter().map(|(_, _, result)| end(result)).collect();
            }
            // The first one sleeps until a time, which no stop can change.
            let reference = ended[0].map_or(LENGTH, |(_, time): End| time);
            for ((name, expected, _), ended) in sleepers.iter().zip(&ended) {
                let Some((result, mut time)) = *ended else {
                    findings.add(format!("{name} does not end"));
                    continue;
                };
                if findings.sabotage() {
                    time += BEFORE;
                }
                findings.same(format!("result of {name}"), expected, &result);
                findings.that(time >= LENGTH, format!("{name} ended early, after {time:?}"));
                findings.that(
                    time < reference + SLACK,
                    format!("{name} ended late, after {time:?}; {reference:?} would be right"),
                );
            }
        }
    })
}

/// A call's result, and when it came.
type End = (i64, Duration);
type Issue = Box<dyn Fn() -> i64 + Send>;

fn kinds() -> Vec<(&'static str, i64, Issue)> {
    let time = libc::timespec {
        tv_sec: LENGTH.as_secs() as i64,
        tv_nsec: i64::from(LENGTH.subsec_nanos()),
    };
    let mut until = time;
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut until) };
    until.tv_sec += time.tv_sec;
    let absolute = libc::TIMER_ABSTIME as usize;
    let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
    let timed_out = -i64::from(libc::ETIMEDOUT);
    vec![
        (
            "sleep until a time",
            0,
            Box::new(move || sys(libc::SYS_clock_nanosleep, &[1, absolute, at(&until), 0])),
        ),
        (
            "nanosleep",
            0,
            Box::new(move || sys(libc::SYS_nanosleep, &[at(&time), 0])),
        ),
        (
            "nanosleep with a remainder",
            0,
            Box::new(move || sys(libc::SYS_nanosleep, &[at(&time), at_mut(&mut { time })])),
        ),
        (
            "clock_nanosleep",
            0,
            Box::new(move || sys(libc::SYS_clock_nanosleep, &[1, 0, at(&time), 0])),
        ),
        (
            "clock_nanosleep with a remainder",
            0,
            Box::new(move || sys(libc::SYS_clock_nanosleep, &[1, 0, at(&time), at_mut(&mut { time })])),
        ),
        (
            "poll",
            0,
            Box::new(|| sys(libc::SYS_poll, &[0, 0, LENGTH.as_millis() as usize])),
        ),
        (
            "ppoll",
            0,
            Box::new(move || sys(libc::SYS_ppoll, &[0, 0, at_mut(&mut { time }), 0, 8])),
        ),
        (
            "futex",
            timed_out,
            Box::new(move || sys(libc::SYS_futex, &[at(&0_u32), wait, 0, at(&time)])),
        ),
    ]
}

fn at<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

fn at_mut<T>(value: &mut T) -> usize {
    std::ptr::from_mut(value) as usize
}

fn sys(number: i64, args: &[usize]) -> i64 {
    // SAFETY: every caller in this file gives arguments that outlive the call and have the sizes it demands.
    unsafe { call::raw(number, args) }.unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(0)))
}
