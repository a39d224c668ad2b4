//! Reads timers: what they are from /proc, where they stand by calls in the held process.

use super::{
    super::dump::{DumpError, HeldProcess},
    clock::{Clock, REALTIME},
    makers,
    restore::timer_of,
};
use crate::refusal::Refusals;
use floe_image::record::{NsPid, PosixTimerRecord, TimerExpiry};
use floe_sys::{
    procfs::{self, PosixTimer, Status},
    ptrace::Queue,
};
use floe_tracee::{Batch, CallHost, CallId, Stopped};
use std::{cell::OnceCell, collections::HashSet};

const SECOND: u64 = 1_000_000_000;
/// So many timers are asked about in one batch.
const AT_ONCE: usize = 40;
/// Nanoseconds in which a timer is read, and how often that is tried.
const SHORT: u64 = 20_000;
const TRIES: usize = 5;

/// The timers of a process, in the order of their ids, and the signals that are pending with them.
pub(in crate::task) fn dump(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    refusals: &mut Refusals,
) -> Result<(Vec<PosixTimerRecord>, Pending), DumpError> {
    let listed = PosixTimer::all(held.found.pid)?;
    let mut pending = Pending::read(held)?;
    if listed.is_empty() {
        return Ok((Vec::new(), pending));
    }
    let makers = makers::find(host, held, &listed, refusals)?;
    let on_realtime = OnceCell::new();
    loop {
        let mut records = Vec::with_capacity(listed.len());
        for timers in listed.chunks(AT_ONCE) {
            let (batch, asked) = ask(host, held, timers)?;
            for (timer, asked) in timers.iter().zip(asked) {
                let find = |from, to, interval| {
                    let earlier = expiration(&held.sleepers.armed, from, to, interval);
                    earlier
                        .or_else(|| expiration(on_realtime.get_or_init(procfs::armed_on_realtime), from, to, interval))
                };
                let mut record = asked.record(&batch, timer, held, find);
                if let Some(maker) = makers.get(&timer.id) {
                    record.maker = *maker;
                }
                records.push(record);
            }
        }
        // One that fired meanwhile stands elsewhere by now. It does not fire again before its signal is taken, so this
        // comes to an end.
        let before = std::mem::replace(&mut pending, Pending::read(held)?).timers();
        if pending.timers().is_subset(&before) {
            return Ok((records, pending));
        }
    }
}

/// Asks where timers stand, again if the process was kept from its processor meanwhile.
fn ask(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    timers: &[PosixTimer],
) -> Result<(Batch, Vec<Standing>), DumpError> {
    let mut tries = 0;
    loop {
        let mut batch = host.batch();
        let asked: Vec<Standing> = timers.iter().map(|timer| Standing::ask(&mut batch, timer)).collect();
        run(host, held, 0, &mut batch)?;
        tries += 1;
        if tries == TRIES || asked.iter().all(|standing| standing.took(&batch) < SHORT) {
            return Ok((batch, asked));
        }
    }
}

/// The signals that are pending in a process, each the 128 bytes of a `siginfo_t`, oldest first.
pub(in crate::task) struct Pending {
    /// For the process.
    pub(in crate::task) process: Vec<Vec<u8>>,
    /// For each of its threads.
    pub(in crate::task) threads: Vec<Vec<Vec<u8>>>,
}

impl Pending {
    pub(super) fn read(held: &HeldProcess<'_>) -> Result<Self, DumpError> {
        let read = |thread: &Stopped, queue| -> Result<Vec<Vec<u8>>, DumpError> {
            Ok(thread.pending(queue)?.into_iter().map(Vec::from).collect())
        };
        let threads = held.threads.iter();
        Ok(Self {
            process: read(held.threads[0], Queue::Process)?,
            threads: threads
                .map(|thread| read(thread, Queue::Thread))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The timers that they came from.
    pub(super) fn timers(&self) -> HashSet<i32> {
        let all = self.threads.iter().flatten().chain(&self.process);
        all.filter_map(|info| timer_of(info)).collect()
    }
}

/// The next expiration, between two times, of a timer that expired or was to expire at one of `armed`.
fn expiration(armed: &[u64], from: u64, to: u64, interval: u64) -> Option<u64> {
    let next = |time: &u64| match (to.checked_sub(*time)?, interval) {
        (past, 0) => Some(to - past),
        (past, interval) => Some(to - past % interval),
    };
    armed.iter().filter_map(next).find(|time| *time >= from)
}

pub(super) fn run(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    thread: usize,
    batch: &mut Batch,
) -> Result<(), DumpError> {
    let (task, found) = (held.threads[thread], held.found);
    let status = Status::read(&format!("/proc/{}/task/{}", found.pid, task.tid()))?;
    Ok(host.run(task, found.threads[thread].own_tid(), &status, batch)?)
}

/// Nanoseconds of a `struct timespec` that a call wrote.
pub(super) fn nanoseconds(batch: &Batch, address: u64) -> u64 {
    let word = |at| u64::from_ne_bytes(batch.bytes(at, 8).try_into().expect("asked for 8 bytes"));
    word(address).saturating_mul(SECOND).saturating_add(word(address + 8))
}

/// Where a timer stands: questions about it.
struct Standing {
    before: u64,
    setting: u64,
    after: u64,
    monotonic: u64,
    overrun: CallId,
}

impl Standing {
    fn ask(batch: &mut Batch, timer: &PosixTimer) -> Self {
        let (before, setting, after, monotonic) = (batch.room(16), batch.room(32), batch.room(16), batch.room(16));
        let id = timer.id as u64;
        let overrun = batch.call("read a timer's overruns", libc::SYS_timer_getoverrun, &[id]);
        let clock = match Clock::of(timer.clock) {
            Some(Clock::World(clock)) => clock,
            // A rest is kept, so it does not matter.
            _ => libc::CLOCK_MONOTONIC,
        };
        let time = |batch: &mut Batch, clock: i32, place| {
            batch.call("read a clock", libc::SYS_clock_gettime, &[clock as u64, place]);
        };
        time(batch, clock, before);
        batch.call("read a timer", libc::SYS_timer_gettime, &[id, setting]);
        time(batch, libc::CLOCK_MONOTONIC, monotonic);
        time(batch, clock, after);
        Self {
            before,
            setting,
            after,
            monotonic,
            overrun,
        }
    }

    /// Nanoseconds between the two looks at its clock.
    fn took(&self, batch: &Batch) -> u64 {
        nanoseconds(batch, self.after).saturating_sub(nanoseconds(batch, self.before))
    }

    /// `find` tells when exactly a timer of CLOCK_REALTIME with some interval expires that follows that clock, if one does
    /// between two times.
    fn record(
        &self,
        batch: &Batch,
        timer: &PosixTimer,
        held: &HeldProcess<'_>,
        find: impl FnOnce(u64, u64, u64) -> Option<u64>,
    ) -> PosixTimerRecord {
        let (interval, left) = (nanoseconds(batch, self.setting), nanoseconds(batch, self.setting + 16));
        // Rather a moment late than early.
        let from = |clock| nanoseconds(batch, clock).saturating_add(left);
        let expiry = match Clock::of(timer.clock) {
            _ if left == 0 => TimerExpiry::Never,
            Some(Clock::World(_)) if timer.clock == REALTIME => {
                match find(from(self.before), from(self.after), interval) {
                    Some(time) => TimerExpiry::At(time),
                    None => TimerExpiry::Unset(from(self.monotonic)),
                }
            }
            Some(Clock::World(_)) => TimerExpiry::At(from(self.after)),
            _ => TimerExpiry::After(left),
        };
        let target = held.found.threads.iter().find(|thread| thread.tid == timer.target);
        let is_alone = timer.notify & libc::SIGEV_THREAD_ID != 0;
        PosixTimerRecord {
            id: timer.id,
            clock: timer.clock,
            maker: NsPid(held.found.ns_pid),
            notify: timer.notify,
            target: NsPid(target.filter(|_| is_alone).map_or(0, |thread| thread.ns_tid)),
            signal: timer.signal,
            value: timer.value,
            interval,
            expiry,
            overrun: batch.result(self.overrun).max(0) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::expiration;

    #[test]
    fn a_timer_is_known_by_when_it_expires() {
        let armed = [17, 1_000_000, 5_000_000_000];
        assert_eq!(expiration(&armed, 999_990, 1_000_010, 0), Some(1_000_000));
        assert_eq!(expiration(&armed, 999_980, 999_990, 0), None);
        // It has fired since, and again.
        assert_eq!(expiration(&armed, 1_049_990, 1_050_010, 5_000), Some(1_050_000));
        assert_eq!(expiration(&armed, 1_049_980, 1_049_990, 5_000), None);
    }
}
