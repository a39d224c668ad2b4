//! Calls that stopping interrupted, made fit for another thread.

use floe_sys::procfs::ProcError;
use floe_tracee::{Registers, RestartCode, Stopped, restart_code};

/// The registers that another thread can go on with: what the kernel remembers of a call in the old thread (-516) does
/// not exist in the new one, so the call is issued again; with a handler about to run it ends in EINTR as it would have.
///
/// # Errors
/// [`ProcError`].
pub(super) fn portable(thread: &Stopped, mut registers: Registers) -> Result<Registers, ProcError> {
    if let (Some(RestartCode::Block), Some(call)) = (restart_code(&registers), registers.call()) {
        if thread.has_handled_signal_pending()? {
            registers.set_result(-i64::from(libc::EINTR));
            registers.leave_call();
        } else {
            registers.reissue(call);
        }
    }
    Ok(registers)
}
