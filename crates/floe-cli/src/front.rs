//! The front: a process that stands before the one that does the work, and is what the user sees, signals and kills.
//!
//! A task whose seccomp filter would end it for a call that floe runs in it is safe only as long as its tracer lives
//! (docs/adr/0010). So where there are such tasks the tracer is a child, to which a `kill -9` of the front is no more
//! than a SIGTERM: it lets the tree go as after any interruption.

use crate::{LogFormat, failure::Outcome};
use floe_sys::fork;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

/// What the front hands on.
const SIGNALS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Does the work in a child, which gets a SIGTERM when this process ends, and ends as it does. No thread may have been
/// started.
pub fn stand(format: LogFormat, work: impl FnOnce() -> Outcome) -> Outcome {
    let mut awaited: SigSet = SIGNALS.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    let before = awaited.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let front = getpid();
    let worker = fork::child(|| {
        let begun = fork::signal_at_parents_end(Signal::SIGTERM, front).and_then(|()| before.thread_set_mask());
        match begun.map_err(Into::into).and_then(|()| work()) {
            Ok(status) => status,
            Err(failure) => {
                failure.report(format);
                failure.status.into()
            }
        }
    })?;
    loop {
        if let Some(status) = ended(worker)? {
            return Ok(status);
        }
        let signal = awaited.wait()?;
        if signal != Signal::SIGCHLD {
            // It may have come to its end meanwhile.
            match kill(worker, Signal::SIGTERM) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The worker's exit status, 128 and the signal where one ended it; `None` as long as it works.
fn ended(worker: Pid) -> Result<Option<i32>, Errno> {
    Ok(match waitpid(worker, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::Exited(_, status) => Some(status),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    })
}
