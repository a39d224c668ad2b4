//! `floe freeze` and `floe thaw`.

use crate::{Context, failure::Outcome};
use clap::Args;
use floe_checkpoint::checkpoint::{freeze_without_traces, thaw_without_traces};
use floe_sandbox::Sandbox;

/// Freeze all tasks of a sandbox by its cgroup.
///
/// Example: floe freeze job
#[derive(Debug, Args)]
pub struct Freeze {
    /// The sandbox.
    name: String,
}

/// Let a frozen sandbox run on. Calls such as epoll_wait, which a plain thaw would end with EINTR, go on.
///
/// Example: floe thaw job
#[derive(Debug, Args)]
pub struct Thaw {
    /// The sandbox.
    name: String,
}

impl Freeze {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let cgroup = Sandbox::open(&context.state_dir, &self.name)?.freezer()?;
        let _lock = cgroup.lock()?;
        freeze_without_traces(&cgroup)?;
        Ok(0)
    }
}

impl Thaw {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let sandbox = Sandbox::open(&context.state_dir, &self.name)?;
        sandbox.refuse_held()?;
        let cgroup = sandbox.freezer()?;
        let _lock = cgroup.lock()?;
        thaw_without_traces(&cgroup)?;
        Ok(0)
    }
}
