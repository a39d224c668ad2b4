//! Reads timers: what they are from /proc, where they stand by calls in the held process.

use super::{
    super::dump::{DumpError, HeldProcess},
    clock::{Clock, REALTIME},
    restore::timer_of,
};
use crate::refusal::Refusals;
use floe_image::record::{NsPid, PosixTimerRecord, TimerExpiry};
use floe_sys::{
    procfs::{self, PosixTimer, Status},
    ptrace::Queue,
};
use floe_tracee::{Batch, CallHost, CallId};
use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

const SECOND: u64 = 1_000_000_000;
const TIMER_ABSTIME: u64 = 1;
/// So many timers are asked about in one batch.
const AT_ONCE: usize = 40;
/// A thread that makes so many calls between two looks has used its processor.
const WORK: usize = 5;
/// Further away than any processor time that a thread can have used, in seconds.
const FAR: u64 = 1 << 32;

/// The timers of a process, in the order of their ids.
pub(in crate::task) fn dump(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    refusals: &mut Refusals,
) -> Result<Vec<PosixTimerRecord>, DumpError> {
    let listed = PosixTimer::all(held.found.pid)?;
    if listed.is_empty() {
        return Ok(Vec::new());
    }
    let on_realtime = OnceCell::new();
    let mut records = Vec::with_capacity(listed.len());
    for timers in listed.chunks(AT_ONCE) {
        let mut batch = host.batch();
        let asked: Vec<Standing> = timers.iter().map(|timer| Standing::ask(&mut batch, timer)).collect();
        run(host, held, 0, &mut batch)?;
        for (timer, asked) in timers.iter().zip(asked) {
            let is_absolute = |from: u64, to: u64| {
                let armed: &Vec<u64> = on_realtime.get_or_init(procfs::armed_on_realtime);
                armed.iter().copied().find(|time| (from..=to).contains(time))
            };
            records.push(asked.record(&batch, timer, held, is_absolute));
        }
    }
    find_makers(host, held, &mut records, refusals)?;
    Ok(records)
}

fn run(host: &CallHost<'_>, held: &HeldProcess<'_>, thread: usize, batch: &mut Batch) -> Result<(), DumpError> {
    let (task, found) = (held.threads[thread], held.found);
    let status = Status::read(&format!("/proc/{}/task/{}", found.pid, task.tid()))?;
    Ok(host.run(task, found.threads[thread].ns_tid, &status, batch)?)
}

fn nanoseconds(batch: &Batch, address: u64) -> u64 {
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
        time(batch, clock, after);
        time(batch, libc::CLOCK_MONOTONIC, monotonic);
        Self {
            before,
            setting,
            after,
            monotonic,
            overrun,
        }
    }

    /// `find` tells when exactly an armed timer of CLOCK_REALTIME expires that follows that clock, if one does between two
    /// times.
    fn record(
        &self,
        batch: &Batch,
        timer: &PosixTimer,
        held: &HeldProcess<'_>,
        find: impl FnOnce(u64, u64) -> Option<u64>,
    ) -> PosixTimerRecord {
        let left = nanoseconds(batch, self.setting + 16);
        // Rather a moment late than early.
        let from = |clock| nanoseconds(batch, clock).saturating_add(left);
        let expiry = match Clock::of(timer.clock) {
            _ if left == 0 => TimerExpiry::Never,
            Some(Clock::World(_)) if timer.clock == REALTIME => match find(from(self.before), from(self.after)) {
                Some(time) => TimerExpiry::At(time),
                None => TimerExpiry::Unset(from(self.monotonic)),
            },
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
            interval: nanoseconds(batch, self.setting),
            expiry,
            overrun: batch.result(self.overrun).max(0) as u32,
        }
    }
}

/// Finds out which thread made each timer that measures its maker, which the kernel does not tell: while that thread works
/// and all others stand still, what is left of the timer becomes less.
fn find_makers(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    records: &mut [PosixTimerRecord],
    refusals: &mut Refusals,
) -> Result<(), DumpError> {
    let mut wanted: HashMap<i32, &mut PosixTimerRecord> = records
        .iter_mut()
        .filter(|record| Clock::of(record.clock) == Some(Clock::OfMaker))
        .map(|record| (record.id, record))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let fired = fired(held)?;
    // One that is not armed has nothing left. To arm it would take its signal back that is pending.
    let is_in_doubt = |record: &PosixTimerRecord| record.expiry == TimerExpiry::Never && fired.contains(&record.id);
    if held.threads.len() == 1 {
        wanted.retain(|_, record| !is_in_doubt(record));
    }
    for (index, found) in held.found.threads.iter().enumerate() {
        let sure = wanted.values().filter(|record| !is_in_doubt(record));
        let mut ids: Vec<i32> = sure.map(|record| record.id).collect();
        ids.sort_unstable();
        for ids in ids.chunks(AT_ONCE / 2) {
            let mut batch = host.batch();
            let looks: Vec<Look> = ids.iter().map(|id| Look::take(&mut batch, wanted[id])).collect();
            run(host, held, index, &mut batch)?;
            for (id, look) in ids.iter().zip(looks) {
                if look.differs(&batch)
                    && let Some(record) = wanted.remove(id)
                {
                    record.maker = NsPid(found.ns_tid);
                }
            }
        }
    }
    for id in wanted.into_keys() {
        refusals.add(
            Some(&held.found.subject()),
            format!("POSIX timer {id} (timer_create)"),
            "the thread whose processor time it measures has ended, or can't be told",
            "delete it",
        );
    }
    Ok(())
}

/// The timers of a process whose signals are pending.
fn fired(held: &HeldProcess<'_>) -> Result<HashSet<i32>, DumpError> {
    let mut pending = held.threads[0].pending(Queue::Process)?;
    for thread in &held.threads {
        pending.extend(thread.pending(Queue::Thread)?);
    }
    Ok(pending.iter().filter_map(|info| timer_of(info.as_ref())).collect())
}

/// Two looks at a timer, and work between them.
struct Look {
    first: u64,
    second: u64,
}

impl Look {
    fn take(batch: &mut Batch, record: &PosixTimerRecord) -> Self {
        let id = record.id as u64;
        let set = |batch: &mut Batch, seconds: u64| {
            let words = [0, 0, seconds, 0].map(u64::to_ne_bytes).concat();
            let place = batch.data(&words);
            batch.attempt("set a timer", libc::SYS_timer_settime, &[id, TIMER_ABSTIME, place, 0]);
        };
        // One that is not armed is for as long as the batch takes, which runs to its end also if floe dies.
        let is_armed = record.expiry != TimerExpiry::Never;
        if !is_armed {
            set(batch, FAR);
        }
        let (first, second) = (batch.room(32), batch.room(32));
        batch.call("read a timer", libc::SYS_timer_gettime, &[id, first]);
        for _ in 0..WORK {
            batch.call("use the processor", libc::SYS_getpid, &[]);
        }
        batch.call("read a timer", libc::SYS_timer_gettime, &[id, second]);
        if !is_armed {
            set(batch, 0);
        }
        Self { first, second }
    }

    fn differs(&self, batch: &Batch) -> bool {
        nanoseconds(batch, self.first + 16) != nanoseconds(batch, self.second + 16)
    }
}
