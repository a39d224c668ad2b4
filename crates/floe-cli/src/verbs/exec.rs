//! `floe exec`.

use super::run::{environment, variable};
use crate::{
    Context,
    failure::{Failure, Outcome},
};
use clap::Args;
use floe_sandbox::{EnterRequest, Sandbox, enter};
use std::ffi::OsString;

/// Run a command in all namespaces and the cgroup of a sandbox, with this terminal; its exit status is handed on (128 + N
/// for signal N; 125 floe failed, 126 not executable, 127 not found).
///
/// Example: floe exec job -- ps ax
#[derive(Debug, Args)]
pub struct Exec {
    /// Set an environment variable on top of this environment, all of which is handed on.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable())]
    env: Vec<OsString>,
    /// Working directory [default: /].
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// The sandbox.
    name: String,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Exec {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let failed = |error: floe_sandbox::SandboxError| Failure::with_status(error, 125);
        let sandbox = Sandbox::open(&context.state_dir, &self.name).map_err(failed)?;
        let frozen = sandbox.cgroup().map_err(failed)?.is_frozen();
        if frozen.map_err(|error| Failure::with_status(error, 125))? {
            let error = anyhow::anyhow!("sandbox {0} is frozen; thaw it first (floe thaw {0})", self.name);
            return Err(Failure::with_status(error, 125));
        }
        let request = EnterRequest {
            command: self.command,
            env: environment(&self.env),
            workdir: self.workdir,
        };
        enter(&sandbox, &request, |_| {}).map_err(|error| {
            let status = error.exit_status();
            Failure::with_status(error, status)
        })
    }
}
