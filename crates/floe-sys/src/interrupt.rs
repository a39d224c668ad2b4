//! Signals noted in a flag, for programs that look at it between steps.
//!
//! A signal handler can reach nothing but static memory, so the flag is static; each program uses it once.

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Notes these signals from now on instead of acting on them; the flag tells whether one came. Blocking calls end with
/// EINTR.
///
/// # Errors
/// EINVAL for SIGKILL and SIGSTOP.
pub fn note_signals(signals: &[Signal]) -> Result<&'static AtomicBool, Errno> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler only stores to an atomic, which is safe in a signal handler.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(&INTERRUPTED)
}
