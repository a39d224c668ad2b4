//! Which thread made a timer of CLOCK_THREAD_CPUTIME_ID, which measures its maker. The kernel does not tell; but what is
//! left of it becomes less while that thread works and all others stand still.

use super::{
    super::dump::{DumpError, HeldProcess},
    clock::Clock,
    dump::{Pending, nanoseconds, run},
};
use crate::refusal::Refusals;
use floe_image::record::NsPid;
use floe_sys::procfs::PosixTimer;
use floe_tracee::{Batch, CallHost};
use std::collections::HashMap;

const TIMER_ABSTIME: u64 = 1;
/// So many timers are looked at in one batch.
const AT_ONCE: usize = 20;
/// Further away than any processor time that a thread can have used, in seconds.
const FAR: u64 = 1 << 32;
/// What a timer has left, in nanoseconds, whose time has come but which has not fired: it does so when a tick of the clock
/// finds its thread at work.
const DUE: u64 = 1;
/// So often a thread works for some milliseconds, which some ticks are in.
const ROUNDS: usize = 10;
const BYTES: usize = 16 << 10;

/// The makers of such timers by the timers' ids. Those that can't be found are refused.
pub(super) fn find(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    listed: &[PosixTimer],
    refusals: &mut Refusals,
) -> Result<HashMap<i32, NsPid>, DumpError> {
    let mut search = Search {
        host,
        held,
        makers: HashMap::new(),
        left: HashMap::new(),
    };
    let of_maker = listed
        .iter()
        .filter(|timer| Clock::of(timer.clock) == Some(Clock::OfMaker));
    let timers: Vec<&PosixTimer> = of_maker.collect();
    search.read(&timers)?;
    search.leave_fired()?;
    // Most makers are also those that get the signals.
    let is_target = |index: &usize| {
        timers
            .iter()
            .any(|timer| timer.target == held.found.threads[*index].tid)
    };
    let mut threads: Vec<usize> = (0..held.threads.len()).collect();
    threads.sort_by_key(|index| !is_target(index));
    for index in &threads {
        search.look(*index, |_| true, 1, little)?;
    }
    for index in &threads {
        search.look(*index, |left| left == DUE, ROUNDS, much)?;
    }
    for timer in timers.iter().filter(|timer| !search.makers.contains_key(&timer.id)) {
        refusals.add(
            Some(&held.found.subject()),
            format!("POSIX timer {} (timer_create)", timer.id),
            "the thread whose processor time it measures has ended, or can't be told",
            "delete it",
        );
    }
    Ok(search.makers)
}

struct Search<'a> {
    host: &'a CallHost<'a>,
    held: &'a HeldProcess<'a>,
    makers: HashMap<i32, NsPid>,
    /// What is left of the others, in nanoseconds; 0 for those that are not armed.
    left: HashMap<i32, u64>,
}

impl Search<'_> {
    fn read(&mut self, timers: &[&PosixTimer]) -> Result<(), DumpError> {
        for timers in timers.chunks(AT_ONCE) {
            let mut batch = self.host.batch();
            let places: Vec<u64> = timers.iter().map(|timer| ask(&mut batch, timer.id)).collect();
            run(self.host, self.held, 0, &mut batch)?;
            let left = places.iter().map(|place| nanoseconds(&batch, place + 16));
            self.left.extend(timers.iter().map(|timer| timer.id).zip(left));
        }
        Ok(())
    }

    /// Arming a timer that is not armed would take its signal back that is pending; then only a process of one thread
    /// leaves no doubt.
    fn leave_fired(&mut self) -> Result<(), DumpError> {
        for id in Pending::read(self.held)?.timers() {
            if self.left.get(&id) == Some(&0) {
                self.left.remove(&id);
                if self.held.threads.len() == 1 {
                    self.makers.insert(id, NsPid(self.held.found.ns_pid));
                }
            }
        }
        Ok(())
    }

    /// Lets a thread work, up to so many times, and notes it as the maker of those of the timers that became less.
    fn look(
        &mut self,
        thread: usize,
        is_wanted: fn(u64) -> bool,
        rounds: usize,
        work: fn(&mut Batch),
    ) -> Result<(), DumpError> {
        for _ in 0..rounds {
            let wanted = self.left.iter().filter(|(_, left)| is_wanted(**left));
            let mut ids: Vec<i32> = wanted.map(|(id, _)| *id).collect();
            ids.sort_unstable();
            for ids in ids.chunks(AT_ONCE) {
                let mut batch = self.host.batch();
                let looks = look_twice(&mut batch, ids, &self.left, work);
                run(self.host, self.held, thread, &mut batch)?;
                for (id, (first, second)) in ids.iter().zip(looks) {
                    let second = nanoseconds(&batch, second + 16);
                    if nanoseconds(&batch, first + 16) != second {
                        self.left.remove(id);
                        self.makers.insert(*id, NsPid(self.held.found.threads[thread].ns_tid));
                    } else if let Some(left) = self.left.get_mut(id).filter(|left| **left != 0) {
                        // It may have become due before it was looked at.
                        *left = second;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where the answers will be.
fn look_twice(batch: &mut Batch, ids: &[i32], left: &HashMap<i32, u64>, work: fn(&mut Batch)) -> Vec<(u64, u64)> {
    // A timer that is not armed is for as long as the batch takes, which runs to its end also if floe dies.
    let idle = |id: &&i32| left.get(id) == Some(&0);
    ids.iter().filter(idle).for_each(|id| set(batch, *id, FAR));
    let first: Vec<u64> = ids.iter().map(|id| ask(batch, *id)).collect();
    work(batch);
    let second: Vec<u64> = ids.iter().map(|id| ask(batch, *id)).collect();
    ids.iter().filter(idle).for_each(|id| set(batch, *id, 0));
    first.into_iter().zip(second).collect()
}

/// Returns where the timer's interval will be, and behind it what is left.
fn ask(batch: &mut Batch, id: i32) -> u64 {
    let place = batch.room(32);
    batch.call("read a timer", libc::SYS_timer_gettime, &[id as u64, place]);
    place
}

/// Fails for a timer whose maker has ended.
fn set(batch: &mut Batch, id: i32, seconds: u64) {
    let place = batch.data(&[0, 0, seconds, 0].map(u64::to_ne_bytes).concat());
    let arguments = [id as u64, TIMER_ABSTIME, place, 0];
    batch.attempt("set a timer", libc::SYS_timer_settime, &arguments);
}

fn little(batch: &mut Batch) {
    for _ in 0..5 {
        batch.call("use the processor", libc::SYS_getpid, &[]);
    }
}

fn much(batch: &mut Batch) {
    let place = batch.room(BYTES);
    for _ in 0..100 {
        let arguments = [place, BYTES as u64, u64::from(libc::GRND_NONBLOCK)];
        batch.attempt("use the processor", libc::SYS_getrandom, &arguments);
    }
}
