//! A verb that stays with a sandbox until it ends.

use crate::{failure::Failure, output};
use floe_sandbox::{Attached, Client, Ending};
use floe_sys::{Pid, descriptor, interrupt};
use nix::{errno::Errno, sys::signal::Signal};
use std::{
    io::IsTerminal,
    os::fd::{AsFd, OwnedFd},
};

/// What signals for PID 1 are sent through; `None` where it has ended already.
pub fn handle(pid1: Pid) -> Result<Option<OwnedFd>, Errno> {
    match descriptor::pidfd_open(pid1) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Relays the caller's streams and signals until the end; returns the exit status. `pid1` is what [`handle`] gave; `name`
/// is for what is said when the user detaches.
pub fn stay(client: Client, pid1: Option<&OwnedFd>, has_terminal: bool, name: &str) -> Result<i32, Failure> {
    let terminal = has_terminal && std::io::stdin().is_terminal();
    let signals: &[Signal] = if terminal {
        &[Signal::SIGWINCH]
    } else {
        &[
            Signal::SIGWINCH,
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ]
    };
    let flags = interrupt::note_signals(signals)?;
    let forward = |signal| {
        if let Some(pidfd) = pid1
            && let Err(error) = descriptor::pidfd_signal(pidfd.as_fd(), signal)
        {
            tracing::debug!(%error, "PID 1 has ended");
        }
    };
    match client.attach(true, terminal, flags.resized, flags.last, forward)? {
        Attached::Ended(Ending::Exited(status)) => {
            if status > 128 {
                output::error(&format!(
                    "floe: PID 1 of {name} ended by signal {}, and with it every task of its PID namespace",
                    status - 128
                ));
            }
            Ok(status)
        }
        Attached::Ended(Ending::Checkpointed) => {
            output::error(&format!("floe: {name} was checkpointed"));
            Ok(0)
        }
        Attached::Detached => {
            output::error(&format!("floe: detached; floe attach {name} takes it up again"));
            Ok(0)
        }
        Attached::Lost => Err(Failure::with_status(
            anyhow::anyhow!("the monitor of {name} hung up"),
            125,
        )),
    }
}
