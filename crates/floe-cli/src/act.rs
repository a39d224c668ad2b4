//! What checkpoint and restore share: signals that ask for giving up, a failure that a test wants, progress.

use crate::progress::Bar;
use floe_checkpoint::stage::{Control, Injection};
use floe_sys::interrupt;
use nix::{errno::Errno, sys::signal::Signal};

/// Runs one of them so that it can be watched and interrupted.
///
/// FLOE_FAIL_AT makes it fail at a stage: `STAGE` with an error, `STAGE:panic` with a panic.
///
/// # Errors
/// Errno where signals can't be noted.
pub fn perform<T>(act: impl FnOnce(&Control<'_>) -> T) -> Result<T, Errno> {
    let interrupted = interrupt::note_signals(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT])?;
    let fail_at: Option<Injection> = std::env::var("FLOE_FAIL_AT").ok().and_then(|text| text.parse().ok());
    // A tree's deleted files and pipes are all open at once while it is made. Tasks get the limits of the image.
    floe_sys::descriptor::allow_most()?;
    let bar = Bar::new();
    Ok(act(&Control {
        interrupted,
        fail_at: fail_at.as_ref(),
        observer: &bar,
    }))
}
