//! Clocks and POSIX timers.

use super::NsPid;
use serde::{Deserialize, Serialize};

/// What the clocks of a time namespace showed the tree when it was saved, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClocksRecord {
    /// CLOCK_MONOTONIC.
    pub monotonic: u64,
    /// CLOCK_BOOTTIME.
    pub boottime: u64,
}

/// A timer of a process, timer_create(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimerRecord {
    /// What timer_create(2) returned.
    pub id: i32,
    /// The clock that it was made for, as the kernel names it: CLOCK_*, or below 0 one of a task's processor time.
    pub clock: i32,
    /// The thread that has to make it: the one whose processor time it measures where the clock is that of its maker, else
    /// the leader.
    pub maker: NsPid,
    /// SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD or SIGEV_THREAD_ID.
    pub notify: i32,
    /// The thread that gets the signal, where it is one thread alone (SIGEV_THREAD_ID); else 0.
    pub target: NsPid,
    /// The signal; without a meaning for SIGEV_NONE.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Nanoseconds from one expiration to the next; 0 for a single one.
    pub interval: u64,
    /// The next expiration.
    pub expiry: TimerExpiry,
    /// timer_getoverrun(2).
    pub overrun: u32,
}

/// When a timer expires next, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimerExpiry {
    /// It is not armed.
    Never,
    /// When its clock shows this.
    At(u64),
    /// When CLOCK_MONOTONIC shows this: one of CLOCK_REALTIME that was set for a time from then on, which does not end
    /// earlier or later when that clock is set.
    Unset(u64),
    /// When its clock, which counts time of processors, has gone on by this.
    After(u64),
}
