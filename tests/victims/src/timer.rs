//! POSIX timers by raw system calls, so that ids are the kernel's; clocks in nanoseconds.

use crate::call::raw;
use std::io;

/// A second.
pub const SECOND: u64 = 1_000_000_000;

/// What a clock shows.
#[must_use]
pub fn now(clock: i32) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

/// Uses the processor for so many nanoseconds of the thread's own time.
pub fn work(time: u64) {
    let start = now(libc::CLOCK_THREAD_CPUTIME_ID);
    while now(libc::CLOCK_THREAD_CPUTIME_ID) < start + time {
        std::hint::spin_loop();
    }
}

/// A timer of this process, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer(pub i32);

impl Timer {
    /// Makes one; `target` is a thread for SIGEV_THREAD_ID.
    ///
    /// # Errors
    /// errno.
    pub fn make(clock: i32, notify: i32, signal: i32, value: u64, target: i32) -> io::Result<Self> {
        let mut event = [0_u32; 16];
        (event[0], event[1]) = (value as u32, (value >> 32) as u32);
        (event[2], event[3], event[4]) = (signal as u32, notify as u32, target as u32);
        let mut id = -1;
        let arguments = [clock as usize, event.as_ptr() as usize, &raw mut id as usize];
        // SAFETY: a struct sigevent of 64 bytes, and room for the id.
        unsafe { raw(libc::SYS_timer_create, &arguments)? };
        Ok(Self(id))
    }

    /// One that sends a signal with a value.
    #[must_use]
    pub fn signalling(clock: i32, signal: i32, value: u64) -> Self {
        Self::make(clock, libc::SIGEV_SIGNAL, signal, value, 0).expect("a timer")
    }

    /// Sets it, for a time from now on or to a time.
    pub fn set(self, is_absolute: bool, value: u64, interval: u64) {
        let words = [interval / SECOND, interval % SECOND, value / SECOND, value % SECOND];
        let arguments = [self.0 as usize, usize::from(is_absolute), words.as_ptr() as usize, 0];
        // SAFETY: a struct itimerspec.
        unsafe { raw(libc::SYS_timer_settime, &arguments) }.expect("set a timer");
    }

    /// What is left, and the interval.
    #[must_use]
    pub fn get(self) -> (u64, u64) {
        let mut words = [0_u64; 4];
        // SAFETY: room for a struct itimerspec.
        unsafe { raw(libc::SYS_timer_gettime, &[self.0 as usize, words.as_mut_ptr() as usize]) }.expect("read a timer");
        (words[2] * SECOND + words[3], words[0] * SECOND + words[1])
    }

    /// When a clock will show that it expires: not before the first, not behind the second of these times.
    #[must_use]
    pub fn expiry(self, clock: i32) -> (u64, u64) {
        let before = now(clock);
        let (left, _) = self.get();
        (before + left, now(clock) + left)
    }

    /// timer_getoverrun.
    #[must_use]
    pub fn overrun(self) -> i64 {
        // SAFETY: a number.
        unsafe { raw(libc::SYS_timer_getoverrun, &[self.0 as usize]) }.expect("read overruns")
    }

    /// Deletes it.
    pub fn delete(self) {
        // SAFETY: a number.
        unsafe { raw(libc::SYS_timer_delete, &[self.0 as usize]) }.expect("delete a timer");
    }
}

/// A pending signal that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// si_code.
    pub code: i32,
    /// si_timerid.
    pub timer: i32,
    /// si_overrun.
    pub overrun: i32,
    /// si_value.
    pub value: u64,
}

/// Blocks a signal for the calling thread and those it makes.
pub fn block(signal: i32) {
    let set = bit(signal);
    // SAFETY: a set of 8 bytes.
    unsafe {
        raw(
            libc::SYS_rt_sigprocmask,
            &[libc::SIG_BLOCK as usize, &raw const set as usize, 0, 8],
        )
    }
    .expect("block");
}

/// Takes a blocked signal that comes within some nanoseconds.
#[must_use]
pub fn take(signal: i32, within: u64) -> Option<Taken> {
    let set = bit(signal);
    let time = [within / SECOND, within % SECOND];
    let mut info = [0_i32; 32];
    let arguments = [
        &raw const set as usize,
        info.as_mut_ptr() as usize,
        time.as_ptr() as usize,
        8,
    ];
    // SAFETY: a set, room for a siginfo_t, a time.
    unsafe { raw(libc::SYS_rt_sigtimedwait, &arguments) }.ok()?;
    Some(Taken {
        code: info[2],
        timer: info[4],
        overrun: info[5],
        value: u64::from(info[6] as u32) | u64::from(info[7] as u32) << 32,
    })
}

/// Whether a signal is pending for the calling thread or its process.
#[must_use]
pub fn is_pending(signal: i32) -> bool {
    let mut set = 0_u64;
    // SAFETY: room for a set of 8 bytes.
    unsafe { raw(libc::SYS_rt_sigpending, &[&raw mut set as usize, 8]) }.expect("pending signals");
    set & bit(signal) != 0
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}
