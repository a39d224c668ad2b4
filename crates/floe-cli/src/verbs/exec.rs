//! `floe exec`.

use super::run::environment;
use crate::{
    Context,
    failure::{Failure, Outcome},
};
use clap::Args;
use floe_sandbox::{EnterRequest, Sandbox, enter};
use std::ffi::OsString;

/// Run a command in all namespaces and the cgroup of a sandbox, with this terminal; its exit status is handed on.
///
/// Example: floe exec job -- ps ax
#[derive(Debug, Args)]
pub struct Exec {
    /// Set an environment variable (NAME=VALUE).
    #[arg(short, long, value_name = "NAME=VALUE")]
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
        let sandbox = Sandbox::open(&context.state_dir, &self.name)?;
        if sandbox.cgroup()?.is_frozen()? {
            let error = anyhow::anyhow!("sandbox {0} is frozen; thaw it first (floe thaw {0})", self.name);
            return Err(Failure::with_status(error, 125));
        }
        let request = EnterRequest {
            command: self.command,
            env: environment(&self.env),
            workdir: self.workdir,
        };
        enter(&sandbox, &request, |_| {}).map_err(|error| Failure::with_status(error, 125))
    }
}
