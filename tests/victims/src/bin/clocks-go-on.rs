//! CLOCK_MONOTONIC and CLOCK_BOOTTIME never go back, and do not show the time that the victim was away, as CLOCK_REALTIME
//! does; sleeps until a time of theirs end when they show it. With the argument `away` a second that it was away must show.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use victims::{
    Findings,
    call::raw,
    play,
    timer::{SECOND, now},
    wait_until,
    waiting::spawn_into,
};

const MILLISECOND: u64 = 1_000_000;
const CLOCKS: [i32; 2] = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME];
/// Of a sleep, from the start on.
const LENGTH: u64 = 2 * SECOND;
/// How late a busy machine may make a thread, and how long floe may take to look at a tree and to let one go.
const SLACK: u64 = SECOND;

/// What a thread that looks at clocks again and again has seen.
#[derive(Debug, Default)]
struct Seen {
    looks: u64,
    last: [u64; 3],
    /// The largest steps forward: of both clocks, and of CLOCK_REALTIME.
    steps: [u64; 3],
    back: Vec<String>,
    /// How much CLOCK_REALTIME gained on CLOCK_MONOTONIC.
    away: i64,
}

impl Seen {
    fn look(&mut self) {
        let times = [now(CLOCKS[0]), now(CLOCKS[1]), now(libc::CLOCK_REALTIME)];
        if self.looks > 0 {
            for (which, (now, last)) in times.into_iter().zip(self.last).enumerate() {
                self.steps[which] = self.steps[which].max(now.saturating_sub(last));
                if which < 2 && now < last {
                    self.back.push(format!("clock {which} went from {last} to {now}"));
                }
            }
            let gained = |which: usize| times[which] as i64 - self.last[which] as i64;
            self.away += gained(2) - gained(0);
        }
        self.last = times;
        self.looks += 1;
    }
}

fn main() {
    play(|stage| {
        let must_be_away = stage.arg(0) == Some("away");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watch = Arc::clone(&seen);
        spawn_into(&[libc::SYS_clock_nanosleep], move || {
            loop {
                watch.lock().expect("nobody panics with it").look();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let sleeps: Vec<_> = CLOCKS.into_iter().map(Sleep::start).collect();
        let mut difference = None;
        move |findings: &mut Findings| {
            if findings.sabotage() {
                seen.lock().expect("nobody panics with it").last[0] += 1000 * SECOND;
            }
            let start = seen.lock().expect("nobody panics with it").looks;
            let looks = || seen.lock().expect("nobody panics with it").looks > start + 5;
            findings.that(wait_until(looks), "nobody looks at clocks");
            let seen = seen.lock().expect("nobody panics with it");
            seen.back.iter().for_each(|text| findings.add(text));
            for which in 0..2 {
                let step = seen.steps[which];
                findings.that(step < SLACK, format!("clock {which} went on by {step} ns at once"));
            }
            findings.that(
                !must_be_away || seen.away > SECOND as i64,
                format!("the victim was away for {} ns only", seen.away),
            );
            drop(seen);
            // By the calls, as the C library reads clocks without.
            let read = || CLOCKS.map(by_call);
            let (calls, own) = (read(), CLOCKS.map(now));
            for which in 0..2 {
                findings.that(
                    own[which].wrapping_sub(calls[which]) < SLACK,
                    format!("clock {which}: {} by the call, {} without", calls[which], own[which]),
                );
            }
            // Both go on by the same: neither shows the time away.
            let now = own[1].wrapping_sub(own[0]) as i64;
            let before = *difference.get_or_insert(now);
            findings.that(
                (now - before).unsigned_abs() < 50 * MILLISECOND,
                format!("between the clocks were {before} ns, now {now}"),
            );
            for sleep in &sleeps {
                sleep.check(findings);
            }
        }
    })
}

fn by_call(clock: i32) -> u64 {
    let mut time = [0_u64; 2];
    // SAFETY: room for the answer.
    unsafe { raw(libc::SYS_clock_gettime, &[clock as usize, time.as_mut_ptr() as usize]) }.expect("read a clock");
    time[0] * SECOND + time[1]
}

/// A thread that sleeps until a time.
struct Sleep {
    clock: i32,
    until: u64,
    /// When it woke.
    woke: Arc<Mutex<Option<u64>>>,
}

impl Sleep {
    fn start(clock: i32) -> Self {
        let until = now(clock) + LENGTH;
        let woke = Arc::new(Mutex::new(None));
        let told = Arc::clone(&woke);
        spawn_into(&[libc::SYS_clock_nanosleep], move || {
            let time = [until / SECOND, until % SECOND];
            let arguments = [clock as usize, libc::TIMER_ABSTIME as usize, time.as_ptr() as usize, 0];
            // SAFETY: a time that lives on.
            let result = unsafe { raw(libc::SYS_clock_nanosleep, &arguments) };
            *told.lock().expect("nobody panics with it") = Some(now(clock));
            result.expect("sleep");
        });
        Self { clock, until, woke }
    }

    fn check(&self, findings: &mut Findings) {
        let woke = || *self.woke.lock().expect("nobody panics with it");
        findings.that(wait_until(|| woke().is_some()), "a sleep does not end");
        let time = woke().unwrap_or(0);
        findings.that(
            (self.until..self.until + SLACK).contains(&time),
            format!("a sleep until {} of clock {} ended at {time}", self.until, self.clock),
        );
    }
}
