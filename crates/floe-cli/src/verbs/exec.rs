//! `floe exec`.

use super::run::{environment, variable};
use crate::{
    Context,
    failure::{Failure, Outcome},
};
use clap::{ArgGroup, Args};
use floe_sandbox::{EnterError, EnterRequest, Place, Sandbox, enter};
use floe_sys::Pid;
use std::ffi::OsString;

/// Run a command in all namespaces and the cgroup of a sandbox, with this terminal; its exit status is handed on (128 + N
/// for signal N; 125 floe failed, 126 not executable, 127 not found).
///
/// With --pid it runs where any process is, as with nsenter -a: in all its namespaces that are not ours anyway, with its root
/// and working directory, and in a user namespace as the root of that, if it has one. It is in the process's cgroup only
/// where that is a sandbox's.
///
/// Example: floe exec job -- ps ax
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").required(true).args(["name", "pid"]))]
pub struct Exec {
    /// Set an environment variable on top of this environment, all of which is handed on.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable())]
    env: Vec<OsString>,
    /// Working directory [default: /, with --pid that of the process].
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// Where this process, or thread, is.
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
    /// The sandbox.
    name: Option<String>,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Exec {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let place = self.place(context)?;
        let request = EnterRequest {
            command: self.command,
            env: environment(&self.env),
            workdir: self.workdir,
        };
        enter(&place, &request, |_| {}).map_err(failed)
    }

    fn place(&self, context: &Context) -> Result<Place, Failure> {
        if let Some(pid) = self.pid {
            return Place::of_process(Pid::new(pid), &context.state_dir).map_err(failed);
        }
        let name = self.name.as_deref().unwrap_or_default();
        let sandbox = Sandbox::open(&context.state_dir, name).map_err(|error| failed(error.into()))?;
        Place::of_sandbox(&sandbox).map_err(failed)
    }
}

fn failed(error: EnterError) -> Failure {
    let status = error.exit_status();
    Failure::with_status(error, status)
}
