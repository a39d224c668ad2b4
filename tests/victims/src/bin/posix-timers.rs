//! POSIX timers: each clock and each way to tell, with the same ids, times and signals; pending ones, overruns, those of
//! threads.

use std::sync::atomic::{AtomicU64, Ordering};
use victims::{
    Findings, Stage, Team,
    call::{gettid, prctl},
    play,
    timer::{SECOND, Taken, Timer, block, is_pending, now, take, work},
    wait_until,
};

const HOUR: u64 = 3600 * SECOND;
const MILLISECOND: u64 = 1_000_000;
/// How far apart two readings of the same time may be.
const SLACK: u64 = MILLISECOND / 2;
/// The same for a timer that can only be made again for a time from now on, which a busy machine makes later.
const SLACK_FROM_NOW: u64 = 200 * MILLISECOND;
const SI_TIMER: i32 = -2;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
/// Of linux/time.h: both alarms need a clock that wakes the host, so a host may have none.
const CLOCKS: [i32; 8] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_TAI,
    libc::CLOCK_PROCESS_CPUTIME_ID,
    libc::CLOCK_THREAD_CPUTIME_ID,
    libc::CLOCK_REALTIME_ALARM,
    libc::CLOCK_BOOTTIME_ALARM,
];
const WAYS: [i32; 4] = [
    libc::SIGEV_SIGNAL,
    libc::SIGEV_NONE,
    libc::SIGEV_THREAD_ID,
    libc::SIGEV_THREAD,
];

fn main() {
    play(|stage| {
        stage.child("kinds", kinds);
        stage.child("firing", firing);
        stage.child("pending", pending);
        stage.child("overruns", overruns);
        stage.child("library", library);
        threads()
    })
}

/// Whether a clock counts processor time.
fn is_processor(clock: i32) -> bool {
    [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID].contains(&clock)
}

/// The clock by which to read when one of its timers, set in this way, expires.
fn basis(clock: i32, is_absolute: bool) -> i32 {
    match clock {
        libc::CLOCK_REALTIME if !is_absolute => libc::CLOCK_MONOTONIC,
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        clock => clock,
    }
}

/// What the kernel lists: ids, signals, values, who is told, clocks.
fn listed() -> String {
    std::fs::read_to_string("/proc/self/timers").expect("the list of timers")
}

/// A timer that will not expire soon.
struct Far {
    timer: Timer,
    clock: i32,
    is_absolute: bool,
    interval: u64,
    /// When it expires, or what is left of it.
    time: u64,
}

impl Far {
    fn check(&self, findings: &mut Findings) {
        let name = format!(
            "timer {} of clock {}, absolute {}",
            self.timer.0, self.clock, self.is_absolute
        );
        let (left, interval) = self.timer.get();
        findings.same(format!("interval of {name}"), &self.interval, &interval);
        if is_processor(self.clock) {
            findings.that(
                left <= self.time && left > self.time - 60 * SECOND,
                format!("{name} was set back or lost time: {left} of {}", self.time),
            );
        } else {
            let (from, to) = self.timer.expiry(basis(self.clock, self.is_absolute));
            let is_from_now = self.clock == libc::CLOCK_REALTIME && !self.is_absolute;
            let slack = if is_from_now { SLACK_FROM_NOW } else { SLACK };
            findings.that(
                to >= self.time && from <= self.time + slack,
                format!("{name} expires between {from} and {to}, not at {}", self.time),
            );
        }
    }
}

fn kinds(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let mut timers = Vec::new();
    for clock in CLOCKS {
        for (n, notify) in (0..).zip(WAYS) {
            let signal = libc::SIGRTMIN() + n;
            let value = 0xfeed_0000_0000 + timers.len() as u64;
            // Every second one goes again, so that there are holes; where the host knows no alarms there are more.
            for keep in [false, true] {
                let Ok(timer) = Timer::make(clock, notify, signal, value, gettid()) else {
                    continue;
                };
                if keep {
                    timers.push(far(timer, clock, notify, n % 2 == 1));
                } else {
                    timer.delete();
                }
            }
        }
    }
    let idle = Timer::signalling(libc::CLOCK_MONOTONIC, libc::SIGUSR1, 1);
    let idle_of_thread = Timer::signalling(libc::CLOCK_THREAD_CPUTIME_ID, libc::SIGUSR1, 1);
    far_away_id();
    let before = listed();
    move |findings: &mut Findings| {
        if findings.sabotage() {
            timers[1].timer.set(false, HOUR, 0);
        }
        findings.same("the list of timers", &before, &listed());
        for far in &timers {
            far.check(findings);
        }
        for timer in [idle, idle_of_thread] {
            findings.same("a timer that is not armed", &(0, 0), &timer.get());
        }
    }
}

/// Sets a timer for an hour, or to a time in an hour.
fn far(timer: Timer, clock: i32, notify: i32, is_absolute: bool) -> Far {
    let interval = if notify == libc::SIGEV_NONE {
        0
    } else {
        HOUR + timer.0 as u64
    };
    // The kernel does not tell of one that signals nobody whether it was set to a time.
    let is_absolute = is_absolute && !(notify == libc::SIGEV_NONE && clock == libc::CLOCK_REALTIME);
    let time = if is_processor(clock) {
        HOUR
    } else {
        now(basis(clock, is_absolute)) + HOUR
    };
    timer.set(is_absolute, if is_absolute { time } else { HOUR }, interval);
    Far {
        timer,
        clock,
        is_absolute,
        interval,
        time,
    }
}

/// A timer whose id is far from the others, where the kernel can be asked for one.
fn far_away_id() {
    if prctl(PR_TIMER_CREATE_RESTORE_IDS, [1, 0, 0, 0]).is_ok() {
        let mut id = 5_000_000;
        // SAFETY: no event, and the id that is wanted.
        let made = unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &raw mut id) };
        assert_eq!((made, id), (0, 5_000_000));
        prctl(PR_TIMER_CREATE_RESTORE_IDS, [0; 4]).expect("ids as usual");
    }
}

/// How often each signal came.
static FIRED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
/// In which thread it came last.
static WHERE: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

extern "C" fn note(signal: i32) {
    let which = (signal - libc::SIGRTMIN()) as usize % FIRED.len();
    WHERE[which].store(gettid() as u64, Ordering::Relaxed);
    FIRED[which].fetch_add(1, Ordering::Relaxed);
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

fn fired(which: usize) -> u64 {
    FIRED[which].load(Ordering::Relaxed)
}

/// Timers that fire again and again keep their pace, and the moments at which they do.
fn firing(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    const PACE: u64 = 5 * MILLISECOND;
    const KINDS: [(i32, bool); 7] = [
        (libc::CLOCK_REALTIME, false),
        (libc::CLOCK_REALTIME, true),
        (libc::CLOCK_MONOTONIC, true),
        (libc::CLOCK_BOOTTIME, false),
        (libc::CLOCK_TAI, true),
        (libc::CLOCK_PROCESS_CPUTIME_ID, false),
        (libc::CLOCK_THREAD_CPUTIME_ID, false),
    ];
    let start = |(which, (clock, is_absolute)): (usize, (i32, bool))| {
        let signal = libc::SIGRTMIN() + which as i32;
        handle(signal);
        let timer = Timer::signalling(clock, signal, which as u64);
        let first = now(basis(clock, is_absolute)) + PACE;
        timer.set(is_absolute, if is_absolute { first } else { PACE }, PACE);
        (timer, clock, is_absolute, first)
    };
    let timers: Vec<_> = KINDS.into_iter().enumerate().map(start).collect();
    move |findings: &mut Findings| {
        if findings.sabotage() {
            timers[0].0.set(false, 0, 0);
            return;
        }
        for (which, &(timer, clock, is_absolute, first)) in timers.iter().enumerate() {
            let name = format!("timer {which} of clock {clock}");
            let (before, start) = (fired(which), now(libc::CLOCK_MONOTONIC));
            let fires = wait_until(|| {
                work(3 * MILLISECOND);
                fired(which) >= before + 5
            });
            findings.that(fires, format!("{name} does not fire"));
            let (count, most) = (fired(which) - before, (now(libc::CLOCK_MONOTONIC) - start) / PACE + 2);
            findings.that(
                count <= most,
                format!("{name} fires too often: {count} instead of {most}"),
            );
            findings.same(format!("interval of {name}"), &PACE, &timer.get().1);
            // One of CLOCK_REALTIME whose signal is pending can't be told from one that is set otherwise.
            if !is_processor(clock) && clock != libc::CLOCK_REALTIME {
                // Relative to the moments at which it should: the earliest reading must not be far behind one.
                let is_due = || {
                    let (from, to) = timer.expiry(basis(clock, is_absolute));
                    (to - from < SLACK).then(|| (from + PACE / 2 - first) % PACE)
                };
                let phase = (0..1000).find_map(|_| is_due()).unwrap_or(PACE / 2);
                findings.that(
                    phase.abs_diff(PACE / 2) < 2 * SLACK,
                    format!(
                        "{name} fires at other moments, by {} ns",
                        phase as i64 - (PACE / 2) as i64
                    ),
                );
            }
        }
    }
}

/// Timers whose signals wait to be taken.
fn pending(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    const PACE: u64 = 200 * MILLISECOND;
    let signal = |n: i32| libc::SIGRTMIN() + n;
    (0..6).for_each(|n| block(signal(n)));
    let single = [
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_REALTIME,
        libc::CLOCK_PROCESS_CPUTIME_ID,
    ];
    let single: Vec<(i32, Timer)> = (0..)
        .zip(single)
        .map(|(n, clock)| (signal(n), Timer::signalling(clock, signal(n), 77 + n as u64)))
        .collect();
    let again = [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME];
    let again: Vec<(i32, Timer)> = (3..)
        .zip(again)
        .map(|(n, clock)| (signal(n), Timer::signalling(clock, signal(n), 77 + n as u64)))
        .collect();
    let reset = (signal(5), Timer::signalling(libc::CLOCK_MONOTONIC, signal(5), 5));
    let fire = |(signal, timer): (i32, Timer)| {
        timer.set(false, 1, 0);
        assert!(wait_until(|| is_pending(signal)), "a timer fires");
    };
    let set_anew = move || {
        fire(reset);
        reset.1.set(false, HOUR, 0);
    };
    single.iter().copied().for_each(fire);
    for (signal, timer) in &again {
        timer.set(true, now(libc::CLOCK_REALTIME).min(now(libc::CLOCK_MONOTONIC)), PACE);
        assert!(wait_until(|| is_pending(*signal)), "a timer fires");
    }
    // Kernels differ in what becomes of the signal of a timer that is set anew.
    set_anew();
    let stale = take(reset.0, 0).is_some();
    set_anew();
    move |findings: &mut Findings| {
        for (signal, timer) in &single {
            if findings.sabotage() {
                timer.set(false, HOUR, 0);
            }
            let expected = Taken {
                code: SI_TIMER,
                timer: timer.0,
                overrun: 0,
                value: 77 + (signal - libc::SIGRTMIN()) as u64,
            };
            findings.same("a timer that has fired", &(0, 0), &timer.get());
            findings.same("its signal", &Some(expected), &take(*signal, 0));
            findings.same("another one", &None, &take(*signal, 0));
            fire((*signal, *timer));
        }
        for (signal, timer) in &again {
            let taken = take(*signal, 0).map(|taken| (taken.code, taken.timer, taken.value));
            let expected = (SI_TIMER, timer.0, 77 + (signal - libc::SIGRTMIN()) as u64);
            findings.same("the signal of a timer that goes on", &Some(expected), &taken);
            let (start, (left, interval)) = (now(libc::CLOCK_MONOTONIC), timer.get());
            findings.same("its interval", &PACE, &interval);
            let second = take(*signal, 0);
            // Of CLOCK_REALTIME the kernel does not tell how it was set, so it can't be made to have fired.
            let is_known = signal - libc::SIGRTMIN() == 3;
            findings.that(
                !is_known || second.is_none() || now(libc::CLOCK_MONOTONIC) >= start + left,
                format!("it left a second signal: {second:?}"),
            );
            findings.that(
                wait_until(|| is_pending(*signal)),
                "a timer does not go on behind its signal",
            );
        }
        findings.same(
            "the signal of a timer that was set anew",
            &stale,
            &take(reset.0, 0).is_some(),
        );
        let (left, _) = reset.1.get();
        findings.that(left > HOUR - 600 * SECOND, "a timer that was set anew is not armed");
        set_anew();
    }
}

/// Overruns that the last signal told of.
fn overruns(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let signal = libc::SIGRTMIN();
    block(signal);
    let timer = Timer::signalling(libc::CLOCK_REALTIME, signal, 3);
    let next = now(libc::CLOCK_REALTIME) + HOUR / 2;
    timer.set(true, next - 6 * HOUR, HOUR);
    let taken = take(signal, 10 * SECOND).expect("a timer fires");
    assert_eq!((taken.overrun, timer.overrun()), (5, 5));
    move |findings: &mut Findings| {
        if findings.sabotage() {
            timer.set(true, next, HOUR);
        }
        findings.same("overruns", &5, &timer.overrun());
        findings.same("the signal", &None, &take(signal, 0));
        let (from, to) = timer.expiry(libc::CLOCK_REALTIME);
        findings.that(
            from <= next + SLACK && to >= next,
            format!("it expires at {from}, not at {next}"),
        );
    }
}

static CALLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn called(_: libc::sigval) {
    CALLED.fetch_add(1, Ordering::Relaxed);
}

/// The C library's timers that call a function in a thread.
fn library(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // struct sigevent: value, signal and way, function, attributes.
    let mut event = [
        0_u64,
        (libc::SIGEV_THREAD as u64) << 32,
        called as *const () as u64,
        0,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: a struct sigevent of 64 bytes, and room for the timer.
    let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, event.as_mut_ptr().cast(), &raw mut timer) };
    assert_eq!(made, 0);
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    let pace = libc::itimerspec {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: the timer was made.
    let status = unsafe { libc::timer_settime(timer, 0, &raw const pace, std::ptr::null_mut()) };
    assert_eq!(status, 0);
    move |findings: &mut Findings| {
        let before = CALLED.load(Ordering::Relaxed);
        if findings.sabotage() {
            // SAFETY: it is not used afterwards.
            unsafe { libc::timer_delete(timer) };
            return;
        }
        let calls = wait_until(|| CALLED.load(Ordering::Relaxed) >= before + 5);
        findings.that(calls, "the library's timer calls nothing");
    }
}

/// Timers that threads made, for themselves and for others.
fn threads() -> impl FnMut(&mut Findings) {
    let mut team = Team::default();
    for n in 0..3_usize {
        team.spawn(&format!("thread {n}"), move || thread(n));
    }
    let first = listed();
    move |findings: &mut Findings| {
        findings.same("the list of timers", &first, &listed());
        team.check(findings);
    }
}

fn thread(n: usize) -> impl FnMut(&mut Findings) {
    const PACE: u64 = 5 * MILLISECOND;
    let of_thread = libc::CLOCK_THREAD_CPUTIME_ID;
    let tid = gettid();
    let armed = Timer::make(of_thread, libc::SIGEV_NONE, 0, 0, 0).expect("a timer");
    armed.set(false, HOUR, HOUR);
    let idle = Timer::make(of_thread, libc::SIGEV_SIGNAL, libc::SIGUSR1, 9, 0).expect("a timer");
    // One of the world's time that tells this thread, which is the leader only in name of its process.
    let signal = libc::SIGRTMIN() + n as i32;
    handle(signal);
    let own = Timer::make(libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD_ID, signal, 1, tid).expect("a timer");
    own.set(false, PACE, PACE);
    let working = Timer::make(of_thread, libc::SIGEV_THREAD_ID, signal + 4, 2, tid).expect("a timer");
    handle(signal + 4);
    working.set(false, PACE, PACE);
    move |findings: &mut Findings| {
        for (timer, is_armed) in [(armed, true), (idle, false)] {
            if !is_armed {
                findings.same("a timer that is not armed", &(0, 0), &timer.get());
                timer.set(false, HOUR, 0);
            }
            let (before, _) = timer.get();
            work(20 * MILLISECOND);
            let (after, _) = timer.get();
            findings.that(
                (15 * MILLISECOND..10 * SECOND).contains(&before.wrapping_sub(after)),
                format!("timer {} does not measure its thread: {before}, {after}", timer.0),
            );
            if !is_armed {
                timer.set(false, 0, 0);
            }
        }
        if findings.sabotage() {
            own.set(false, HOUR, HOUR);
        }
        findings.that(own.get().0 <= PACE, "a timer of the thread lost its pace");
        let firing: &[usize] = if findings.sabotage() { &[] } else { &[n, n + 4] };
        for &which in firing {
            let before = fired(which);
            let fires = wait_until(|| {
                work(2 * MILLISECOND);
                fired(which) >= before + 3
            });
            findings.that(fires, format!("a timer of the thread does not fire ({which})"));
            findings.same(
                "the thread it tells",
                &(tid as u64),
                &WHERE[which].load(Ordering::Relaxed),
            );
        }
    }
}
