//! Puts open files at their numbers in the tasks.
//!
//! Received files land on the lowest free numbers, in ascending order. The wanted numbers of a wave, in ascending order,
//! are free too, so the i-th file lands at or below the i-th wanted number: moving them up from the highest on never
//! hits one that has not been moved yet. No order of waves is needed.

use crate::channel::{Channel, ChannelError};
use floe_tracee::{Puppet, PuppetError, Script};
use std::os::fd::{BorrowedFd, RawFd};

/// Files that could not be put into a task.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Handing them over.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Moving them.
    #[error(transparent)]
    Puppet(#[from] PuppetError),
}

/// What one task gets in a wave.
#[derive(Debug, Default)]
pub struct TablePlan<'a> {
    /// Wanted number, file, close-on-exec; ascending numbers.
    pub entries: Vec<(RawFd, BorrowedFd<'a>, bool)>,
}

/// Places the files of one wave in one task.
///
/// # Errors
/// [`PlaceError`].
pub fn place_wave(puppet: &Puppet, channel: &Channel, plan: &TablePlan<'_>) -> Result<(), PlaceError> {
    let files: Vec<BorrowedFd<'_>> = plan.entries.iter().map(|(_, file, _)| *file).collect();
    let mut script = Script::new(puppet);
    for (entries, files) in plan.entries.chunks(200).zip(files.chunks(200)) {
        let landed = channel.give(&mut script, files)?;
        for (wanted, now, close_on_exec) in moves(entries, &landed) {
            let cloexec = if close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
            if wanted != now {
                script.call(
                    "place a descriptor",
                    libc::SYS_dup3,
                    &[now as u64, wanted as u64, cloexec],
                )?;
                script.call("close a descriptor", libc::SYS_close, &[now as u64])?;
            } else if close_on_exec {
                let arguments = [now as u64, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
                script.call("set close-on-exec", libc::SYS_fcntl, &arguments)?;
            }
            let asks = [wanted as u64, libc::F_GETFD as u64];
            let answer = if close_on_exec { i64::from(libc::FD_CLOEXEC) } else { 0 };
            let batch = script.reserve(1, 0)?;
            batch.expect("close-on-exec of a descriptor", libc::SYS_fcntl, &asks, answer);
        }
    }
    script.run()?;
    Ok(())
}

fn moves(entries: &[(RawFd, BorrowedFd<'_>, bool)], landed: &[RawFd]) -> Vec<(RawFd, RawFd, bool)> {
    entries
        .iter()
        .zip(landed)
        .rev()
        .map(|((wanted, _, cloexec), now)| (*wanted, *now, *cloexec))
        .collect()
}
