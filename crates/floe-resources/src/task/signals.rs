//! Calls that stopping interrupted, made fit for another thread.

use floe_sys::{
    Pid,
    procfs::{ProcError, Status},
};
use floe_tracee::{
    Registers, RestartCode, Stopped, TraceError, has_handled_signal_pending, is_restarted, restart_code,
};

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
/// handler is about to run, the call ends in EINTR as it would have. `status` was read while the thread was stopped.
///
/// # Errors
/// [`SignalError`].
pub(super) fn portable(thread: &Stopped, status: &Status, mut registers: Registers) -> Result<Registers, SignalError> {
    if restart_code(&registers) == Some(RestartCode::Block) {
        if has_handled_signal_pending(status) {
            registers.set_result(-i64::from(libc::EINTR));
            registers.leave_call();
        } else if is_restarted(&registers) {
            return Err(SignalError::Nameless(thread.tid()));
        }
    }
    Ok(registers)
}
