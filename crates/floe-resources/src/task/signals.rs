//! Calls that stopping interrupted, and the pending signals that decide what becomes of them.

use floe_sys::{
    Pid,
    procfs::{ProcError, Status},
};
use floe_tracee::{Registers, RestartCode, Stopped, TraceError, is_restarted, restart_code};

/// Why an interrupted call could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The thread is in a call whose number the kernel does not tell.
    #[error("task {0} goes on with an interrupted call that floe can't name (restart_syscall); try again")]
    Nameless(Pid),
}

/// Whether a signal is pending whose handler will run as soon as the thread runs on.
///
/// # Errors
/// [`ProcError`].
pub fn handled_signal_pending(thread: &Stopped) -> Result<bool, ProcError> {
    let status = Status::read(&format!("/proc/{}", thread.tid()))?;
    Ok((status.pending | status.shared_pending) & !status.blocked & status.caught != 0)
}

/// Sets a thread up to issue again a call that answered EINTR only because floe stopped it (epoll_wait, sigtimedwait,
/// semop and their like, which the kernel does not restart by itself).
///
/// # Errors
/// [`SignalError`].
pub fn fix_interrupted_calls(thread: &Stopped) -> Result<(), SignalError> {
    let mut registers = thread.registers()?;
    if let (Some(RestartCode::Interrupted), Some(call)) = (restart_code(&registers), registers.call())
        && !handled_signal_pending(thread)?
    {
        registers.reissue(call);
        thread.set_registers(&registers)?;
    }
    Ok(())
}

/// Finds out which call a thread in restart_syscall(2) is in, as long as the kernel remembers: it was stopped in a sleep
/// before, went on, and is stopped in it again. Must come before any call is run in it.
///
/// # Errors
/// [`SignalError`].
pub(super) fn name_restarted_call(thread: &Stopped) -> Result<(), SignalError> {
    if is_restarted(&thread.registers()?) {
        let status = Status::read(&format!("/proc/{}", thread.tid()))?;
        if (status.pending | status.shared_pending) & !status.blocked == 0 {
            thread.name_restarted_call()?;
        }
    }
    Ok(())
}

/// The registers that another thread can go on with: where the kernel remembers what is left of a call (-516) and a
/// handler is about to run, the call ends in EINTR as it would have.
///
/// # Errors
/// [`SignalError`].
pub(super) fn portable(thread: &Stopped, mut registers: Registers) -> Result<Registers, SignalError> {
    if restart_code(&registers) == Some(RestartCode::Block) {
        if handled_signal_pending(thread)? {
            registers.set_result(-i64::from(libc::EINTR));
            registers.leave_call();
        } else if is_restarted(&registers) {
            return Err(SignalError::Nameless(thread.tid()));
        }
    }
    Ok(registers)
}
