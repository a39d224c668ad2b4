//! Clocks, and the timers of processes.

use super::ensure;
use crate::{
    Image,
    record::{ClocksRecord, NsPid, PosixTimerRecord, ProcessRecord, ProcessState},
};

/// The kernel takes no offset that brings a clock beyond this: 146 years.
const LATEST: u64 = i64::MAX as u64 / 2;
/// SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID.
const SIGNAL: i32 = 0;
const NONE: i32 = 1;
const THREAD: i32 = 2;
const THREAD_ID: i32 = 4;

/// Clocks and timers that can't have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeFault {
    /// A clock that the kernel could not be made to show.
    #[error("a clock shows {0} ns")]
    Clock(u64),
    /// Ids that do not ascend, or below 0.
    #[error("the timer ids of process {0} do not ascend")]
    Order(i32),
    /// A thread that is none of the process's.
    #[error("timer {id} of process {pid} belongs to thread {tid}, which is missing")]
    Thread {
        /// Whose.
        pid: i32,
        /// Which.
        id: i32,
        /// The thread.
        tid: i32,
    },
    /// A way of telling that does not exist or does not fit, or a signal that does not exist.
    #[error("timer {id} of process {pid} tells nobody of its end in a possible way")]
    Notify {
        /// Whose.
        pid: i32,
        /// Which.
        id: i32,
    },
}

pub(super) fn check(image: &Image) -> Result<(), TimeFault> {
    let clocks = image.sandbox().clocks;
    ensure(possible(clocks), || {
        TimeFault::Clock(clocks.monotonic.max(clocks.boottime))
    })?;
    let processes = image.processes().iter();
    let mut living = processes.filter(|process| !matches!(process.state, ProcessState::Zombie { .. }));
    living.try_for_each(timers)
}

/// Whether the kernel can be made to show them.
pub(super) fn possible(clocks: ClocksRecord) -> bool {
    clocks.monotonic <= LATEST && clocks.boottime <= LATEST
}

fn timers(process: &ProcessRecord) -> Result<(), TimeFault> {
    let pid = process.pid.0;
    let mut last = -1;
    for timer in &process.posix_timers {
        ensure(timer.id > last, || TimeFault::Order(pid))?;
        last = timer.id;
        notified(timer, process)?;
        ensure(has_thread(process, timer.maker), || TimeFault::Thread {
            pid,
            id: timer.id,
            tid: timer.maker.0,
        })?;
    }
    Ok(())
}

fn notified(timer: &PosixTimerRecord, process: &ProcessRecord) -> Result<(), TimeFault> {
    let (pid, id) = (process.pid.0, timer.id);
    let fits = match timer.notify {
        NONE => timer.target == NsPid(0),
        SIGNAL | THREAD => timer.target == NsPid(0) && (1..=64).contains(&timer.signal),
        THREAD_ID => (1..=64).contains(&timer.signal),
        _ => false,
    };
    ensure(fits, || TimeFault::Notify { pid, id })?;
    let is_there = timer.notify != THREAD_ID || has_thread(process, timer.target);
    ensure(is_there, || TimeFault::Thread {
        pid,
        id,
        tid: timer.target.0,
    })
}

fn has_thread(process: &ProcessRecord, tid: NsPid) -> bool {
    process.threads.iter().any(|thread| thread.tid == tid)
}
