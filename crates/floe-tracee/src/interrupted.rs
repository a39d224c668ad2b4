//! System calls that stopping a thread interrupted. Most the kernel restarts by itself when the thread runs on
//! (signal(7)); some answer EINTR although no signal came, and those are to be issued again.

use crate::{Stopped, TraceError, arch::Registers};
use floe_sys::procfs::{ProcError, Status};

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

impl Stopped {
    /// Whether a signal is pending whose handler will run as soon as the thread runs on.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn has_handled_signal_pending(&self) -> Result<bool, ProcError> {
        let status = Status::read(&format!("/proc/{}", self.tid()))?;
        Ok((status.pending | status.shared_pending) & !status.blocked & status.caught != 0)
    }

    /// Sets the thread up to issue again a call that answered EINTR only because it was frozen or stopped (epoll_wait,
    /// sigtimedwait, semop and their like, which the kernel does not restart by itself).
    ///
    /// # Errors
    /// [`InterruptionError`].
    pub fn undo_interruption(&self) -> Result<(), InterruptionError> {
        let mut registers = self.registers()?;
        if let (Some(RestartCode::Interrupted), Some(call)) = (restart_code(&registers), registers.call())
            && !self.has_handled_signal_pending()?
        {
            registers.reissue(call);
            self.set_registers(&registers)?;
        }
        Ok(())
    }
}
