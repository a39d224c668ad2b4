//! Signals noted in flags, for programs that look at them between steps.
//!
//! A signal handler can reach nothing but static memory, so the flags are static; each program uses one set.

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LAST_SIGNAL: AtomicI32 = AtomicI32::new(0);
static RESIZED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(number: i32) {
    if number == libc::SIGWINCH {
        RESIZED.store(true, Ordering::Relaxed);
    } else {
        INTERRUPTED.store(true, Ordering::Relaxed);
        LAST_SIGNAL.store(number, Ordering::Relaxed);
    }
}

/// The flags.
#[derive(Debug, Clone, Copy)]
pub struct Flags {
    /// Whether one of the signals came.
    pub interrupted: &'static AtomicBool,
    /// The last of them, or 0.
    pub last: &'static AtomicI32,
    /// Whether SIGWINCH came.
    pub resized: &'static AtomicBool,
}

/// Notes these signals from now on instead of acting on them. Blocking calls end with EINTR.
///
/// # Errors
/// EINVAL for SIGKILL and SIGSTOP.
pub fn note_signals(signals: &[Signal]) -> Result<Flags, Errno> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler only stores to atomics, which is safe in a signal handler.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(Flags {
        interrupted: &INTERRUPTED,
        last: &LAST_SIGNAL,
        resized: &RESIZED,
    })
}
