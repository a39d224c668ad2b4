//! Calls that stopping interrupted, and the pending signals that decide what becomes of them.

use floe_sys::procfs::{ProcError, Status};
use floe_tracee::{Registers, RestartCode, Stopped, TraceError, restart_code};

/// Why an interrupted call could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
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

/// The registers that another thread can go on with: what the kernel remembers of a call in the old thread (-516) does
/// not exist in the new one, so the call is issued again; with a handler about to run it ends in EINTR as it would have.
///
/// # Errors
/// [`ProcError`].
pub(super) fn portable(thread: &Stopped, mut registers: Registers) -> Result<Registers, ProcError> {
    if let (Some(RestartCode::Block), Some(call)) = (restart_code(&registers), registers.call()) {
        if handled_signal_pending(thread)? {
            registers.set_result(-i64::from(libc::EINTR));
            registers.leave_call();
        } else {
            registers.reissue(call);
        }
    }
    Ok(registers)
}
