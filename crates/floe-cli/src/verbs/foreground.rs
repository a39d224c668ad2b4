//! A verb that stays with a sandbox until it ends.

use crate::{Context, failure::Failure};
use floe_sandbox::{Attached, Client, Ending, Signals, Wishes};
use floe_sys::descriptor;
use std::os::fd::{AsFd, OwnedFd};

/// A sandbox whose streams and signals are to be relayed.
#[derive(Debug)]
pub struct Stay<'a> {
    /// A connection that has subscribed.
    pub client: Client,
    /// What signals are taken with; taken before the workload runs, so that none is lost.
    pub signals: Signals,
    /// PID 1; `None` where it has ended already.
    pub pid1: Option<OwnedFd>,
    /// Whether the workload has a terminal.
    pub terminal: bool,
    /// Whether the sandbox is this command's own.
    pub owner: bool,
    /// Its name.
    pub name: &'a str,
}

impl Stay<'_> {
    /// Relays the caller's streams and signals until the end; returns the exit status.
    pub fn until_end(self, context: &Context) -> Result<i32, Failure> {
        let name = self.name;
        let forward = |signal| {
            if let Some(pidfd) = &self.pid1 {
                hand_on(context, pidfd, signal, name);
            }
        };
        let wishes = Wishes {
            merged: false,
            input: true,
            terminal: self.terminal,
            owner: self.owner,
            signals: Some(&self.signals),
        };
        match self.client.attach(&wishes, forward)? {
            Attached::Ended(Ending::Exited(status)) => Ok(status),
            Attached::Ended(Ending::Killed(status)) => {
                let signal = status - 128;
                context.tell(&format!(
                    "floe: PID 1 of {name} ended by signal {signal}, and with it every task of its PID namespace"
                ));
                Ok(status)
            }
            Attached::Ended(Ending::Checkpointed) => {
                context.tell(&format!("floe: {name} was checkpointed"));
                Ok(0)
            }
            Attached::Detached => {
                context.tell(&format!("floe: detached; floe attach {name} takes it up again"));
                Ok(0)
            }
            Attached::Unread => Ok(0),
            Attached::Lost => Err(Failure::with_status(
                anyhow::anyhow!("the monitor of {name} hung up"),
                125,
            )),
        }
    }
}

fn hand_on(context: &Context, pid1: &OwnedFd, signal: i32, name: &str) {
    let heeded = super::kill::is_heeded(pid1, signal);
    match descriptor::pidfd_signal(pid1.as_fd(), signal) {
        Ok(()) if !heeded => super::kill::tell_dropped(context, name, signal),
        Ok(()) => {}
        Err(error) => tracing::debug!(%error, "PID 1 has ended"),
    }
}
