//! Stops and starts of running tasks that show in none of their calls.

use super::seize::{FrozenTree, SeizeError};
use floe_cgroup::Cgroup;
use floe_resources::task::is_in_vfork;
use floe_sys::{Pid, procfs};
use floe_tracee::{Options, Seized, Stopped, TraceError, give_events_back};
use nix::errno::Errno;
use std::collections::HashSet;

/// Freezes a cgroup for good; where that fails, nothing shows that it was tried.
///
/// # Errors
/// [`SeizeError`].
pub fn freeze_without_traces(cgroup: &Cgroup) -> Result<(), SeizeError> {
    FrozenTree::freeze(cgroup)?.keep();
    Ok(())
}

/// Thaws a frozen cgroup so that no call in it answers EINTR because of the freezing: its tasks are stopped once more,
/// and such calls set up to be issued again.
///
/// # Errors
/// [`SeizeError`].
pub fn thaw_without_traces(cgroup: &Cgroup) -> Result<(), SeizeError> {
    let mut seized = Vec::new();
    // Those that stay frozen, by themselves.
    let mut still = HashSet::new();
    for below in cgroup.frozen_below()? {
        still.extend(below.processes()?);
    }
    for pid in cgroup.processes()?.into_iter().filter(|pid| !still.contains(pid)) {
        seized.push(SeizedProcess::seize(pid)?);
    }
    cgroup.thaw()?;
    // All stand still before events go back: memory may be shared by processes.
    let stopped: Vec<StoppedProcess> = seized.into_iter().map(SeizedProcess::stop).collect::<Result<_, _>>()?;
    give_events_back(
        stopped
            .iter()
            .filter(|process| process.is_whole)
            .flat_map(|process| &process.threads),
    )?;
    stopped.into_iter().try_for_each(StoppedProcess::release)
}

/// Threads of one process that are about to stop.
struct SeizedProcess {
    /// Whether these are all.
    is_whole: bool,
    threads: Vec<Seized>,
}

impl SeizedProcess {
    /// None where it is gone.
    fn seize(pid: Pid) -> Result<Self, SeizeError> {
        let mut process = Self {
            is_whole: true,
            threads: Vec::new(),
        };
        let tids = match procfs::threads(pid) {
            Ok(tids) => tids,
            Err(error) if error.is_gone() => return Ok(process),
            Err(error) => return Err(error.into()),
        };
        for tid in tids {
            // It can't stop before its child has gone on, which may be stopped first; and the freezing does not show in
            // a call that nothing interrupts.
            if is_in_vfork(pid, tid) {
                process.is_whole = false;
                continue;
            }
            match Seized::new(tid, Options::Observe) {
                Ok(task) => process.threads.push(task),
                Err(error) if error.source == Errno::ESRCH => {}
                // Traced by a debugger, whose stops are its own business.
                Err(error) if error.source == Errno::EPERM => process.is_whole = false,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(process)
    }

    fn stop(self) -> Result<StoppedProcess, SeizeError> {
        let mut threads = Vec::new();
        for thread in self.threads {
            match thread.stop() {
                Ok(thread) => threads.push(thread),
                Err(TraceError::Ended { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(StoppedProcess {
            is_whole: self.is_whole,
            threads,
        })
    }
}

/// A running process that was stopped by ptrace for a moment.
pub(super) struct StoppedProcess {
    is_whole: bool,
    /// Those of its threads that could be stopped; none where it is gone.
    pub threads: Vec<Stopped>,
}

impl StoppedProcess {
    /// Stops a process that runs.
    ///
    /// # Errors
    /// [`SeizeError`].
    pub fn stop(pid: Pid) -> Result<Self, SeizeError> {
        let process = SeizedProcess::seize(pid)?.stop()?;
        for thread in &process.threads {
            thread.undo_interruption()?;
            thread.abort_critical_section()?;
        }
        if process.is_whole {
            give_events_back(&process.threads)?;
        }
        Ok(process)
    }

    /// Lets it run on.
    ///
    /// # Errors
    /// [`SeizeError`].
    pub fn release(self) -> Result<(), SeizeError> {
        for thread in self.threads {
            thread.detach()?;
        }
        Ok(())
    }
}
