//! System calls that stopping a thread interrupted. Most the kernel restarts by itself when the thread runs on
//! (signal(7)); some answer EINTR although no signal came, and those are to be issued again.

use crate::{
    Stopped, TraceError,
    arch::{CALL_ENTRY, Registers},
};
use floe_sys::{
    procfs::{self, ProcError, Status},
    ptrace::Wait,
};
use std::time::{Duration, Instant};

/// The kernel's internal results of an interrupted call, include/linux/errno.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCode {
    /// -512, -513, -514: the call is issued again unless a handler runs.
    Again,
    /// -516: the kernel remembers what is left of it in the thread, where no other thread can be given it.
    Block,
    /// -EINTR of a call that knows no restart.
    Interrupted,
}

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// How the call that a stopped thread is in was interrupted, if it was.
///
/// `connect` and `close` act even where they answer EINTR, so those are never issued again.
#[must_use]
pub fn restart_code(registers: &Registers) -> Option<RestartCode> {
    let call = registers.call()?;
    match registers.result() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Some(RestartCode::Again),
        ERESTART_RESTARTBLOCK => Some(RestartCode::Block),
        EINTR if ![libc::SYS_connect as u64, libc::SYS_close as u64].contains(&call) => Some(RestartCode::Interrupted),
        _ => None,
    }
}

/// How long a thread may take to come to the sleep of the call it was in.
const DEADLINE: Duration = Duration::from_secs(1);

/// Whether the thread is in restart_syscall(2), which goes on with a call whose number the registers don't tell any more.
#[must_use]
pub fn is_restarted(registers: &Registers) -> bool {
    restart_code(registers) == Some(RestartCode::Block) && registers.call() == Some(libc::SYS_restart_syscall as u64)
}

/// Why an interrupted call could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InterruptionError {
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
}

/// Whether a signal is pending whose handler will run as soon as the thread runs on.
#[must_use]
pub const fn has_handled_signal_pending(status: &Status) -> bool {
    (status.pending | status.shared_pending) & !status.blocked & status.caught != 0
}

impl Stopped {
    /// Sets the thread up to issue again a call that answered EINTR only because it was frozen or stopped (epoll_wait,
    /// sigtimedwait, semop and their like, which the kernel does not restart by itself); and a sleep that its seccomp
    /// filters don't let the kernel go on with.
    ///
    /// # Errors
    /// [`InterruptionError`].
    pub fn undo_interruption(&self) -> Result<(), InterruptionError> {
        let mut registers = self.registers()?;
        let is_stuck = match restart_code(&registers) {
            Some(RestartCode::Interrupted) => true,
            Some(RestartCode::Block) => self.may_not_sleep_on(&registers)?,
            Some(RestartCode::Again) | None => false,
        };
        if let (true, Some(call)) = (is_stuck, registers.call())
            && !has_handled_signal_pending(&Status::read(&format!("/proc/{}", self.tid()))?)
        {
            registers.reissue(call);
            self.set_registers(&registers)?;
        }
        Ok(())
    }

    /// Finds out which call a thread goes on with that [`is_restarted`], and sets the number in its registers: lets it
    /// sleep in the call for a moment, asks the kernel where it sleeps, and stops it again. None of its own code runs; if
    /// the call ends meanwhile, the registers hold its result.
    ///
    /// No unblocked signal may be pending. One that comes meanwhile is delivered.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn name_restarted_call(&self) -> Result<(), TraceError> {
        self.resume_to_call(0)?;
        if !self.comes_to_call()? {
            return Ok(());
        }
        self.resume_to_call(0)?;
        let end = Instant::now() + DEADLINE;
        let mut found = None;
        while found.is_none() && Instant::now() < end {
            if let Some(wait) = self.peek()? {
                return self.settle(wait);
            }
            let place = procfs::read_text(&format!("/proc/{}/wchan", self.tid())).unwrap_or_default();
            found = sleeps_in(&place);
        }
        self.interrupt()?;
        let wait = self.wait()?;
        self.settle(wait)?;
        let mut registers = self.registers()?;
        if let (Some(sleep), true) = (found, is_restarted(&registers)) {
            registers.set_call(sleep.call(registers.arguments()[0]) as u64);
            self.set_registers(&registers)?;
        }
        Ok(())
    }

    /// Lets the call that its registers are prepared for begin, and interrupts it at once; returns its result.
    pub(crate) fn begin_call(&self) -> Result<i64, TraceError> {
        self.resume_to_call(0)?;
        if !self.comes_to_call()? {
            return Err(TraceError::Unexpected {
                tid: self.tid(),
                wait: Wait::Signal(0),
            });
        }
        // The interruption waits for it in the call; its exit need not be seen.
        self.interrupt()?;
        self.resume(0)?;
        match self.wait()? {
            Wait::Event(libc::PTRACE_EVENT_STOP, _) => {}
            wait => self.settle(wait)?,
        }
        Ok(self.registers()?.result())
    }

    /// Waits for the entry of the call; false where a signal came first and was delivered.
    fn comes_to_call(&self) -> Result<bool, TraceError> {
        loop {
            match self.wait()? {
                Wait::Call => return Ok(true),
                // A job-control stop in force reports itself again.
                Wait::Event(libc::PTRACE_EVENT_STOP, _) => self.resume_to_call(0)?,
                wait => {
                    self.settle(wait)?;
                    return Ok(false);
                }
            }
        }
    }

    /// From any stop to one outside of the call, before any code of the thread's own.
    fn settle(&self, mut wait: Wait) -> Result<(), TraceError> {
        loop {
            let signal = match wait {
                Wait::Event(libc::PTRACE_EVENT_STOP, _) => return Ok(()),
                Wait::Signal(signal) => signal,
                Wait::Call => 0,
                wait => return Err(TraceError::Unexpected { tid: self.tid(), wait }),
            };
            self.interrupt()?;
            self.resume_to_call(signal)?;
            wait = self.wait()?;
        }
    }
}

/// The kinds of sleep that restart_syscall(2) goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    Time,
    Poll,
    Futex,
}

impl Sleep {
    fn call(self, first_argument: u64) -> i64 {
        // clock_nanosleep begins with the number of a clock, small or negative; nanosleep with an address.
        let is_clock = (-4096 * 4096..4096).contains(&(first_argument as i64));
        match self {
            Self::Time if is_clock => libc::SYS_clock_nanosleep,
            Self::Time => libc::SYS_nanosleep,
            Self::Poll => libc::SYS_poll,
            Self::Futex => libc::SYS_futex,
        }
    }
}

/// What sleep a function of the kernel belongs to, as /proc/PID/wchan names it.
fn sleeps_in(place: &str) -> Option<Sleep> {
    let names = [
        ("nanosleep", Sleep::Time),
        ("nsleep", Sleep::Time),
        ("poll", Sleep::Poll),
        ("futex", Sleep::Futex),
        // What continues nanosleep counts as the scheduler itself, so the function that called it is named.
        (CALL_ENTRY, Sleep::Time),
    ];
    names
        .iter()
        .find(|(name, _)| place.contains(name))
        .map(|(_, sleep)| *sleep)
}

#[cfg(test)]
mod tests {
    use super::{Sleep, sleeps_in};

    #[test]
    fn the_sleep_tells_the_call() {
        let call = |place, argument| sleeps_in(place).map(|sleep| sleep.call(argument));
        assert_eq!(call("hrtimer_nanosleep", 0x7ffd_0000_1000), Some(libc::SYS_nanosleep));
        assert_eq!(call("do_syscall_64", 0x7ffd_0000_1000), Some(libc::SYS_nanosleep));
        assert_eq!(call("hrtimer_nanosleep", 1), Some(libc::SYS_clock_nanosleep));
        assert_eq!(call("do_cpu_nanosleep", -6_i64 as u64), Some(libc::SYS_clock_nanosleep));
        assert_eq!(call("alarmtimer_do_nsleep", 8), Some(libc::SYS_clock_nanosleep));
        assert_eq!(call("poll_schedule_timeout.constprop.0", 0), Some(libc::SYS_poll));
        assert_eq!(call("futex_do_wait", 0x5555_0000_1000), Some(libc::SYS_futex));
        assert_eq!(sleeps_in("0"), None);
        assert_eq!(sleeps_in("do_wait"), None);
        assert_eq!(sleeps_in("futex_wait_queue"), Some(Sleep::Futex));
    }
}
