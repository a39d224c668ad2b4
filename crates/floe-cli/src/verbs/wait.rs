//! `floe wait`.

use crate::{Context, failure::Outcome, output};
use clap::Args;
use floe_sandbox::Sandbox;

/// Wait until a sandbox ends and print the exit status of its PID 1 (128 + N for signal N; 0 where it went into an image).
///
/// Example: floe wait job
#[derive(Debug, Args)]
pub struct Wait {
    /// The sandbox.
    name: String,
}

impl Wait {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let status = Sandbox::open(&context.state_dir, &self.name)?.wait()?;
        output::line(&status.to_string());
        Ok(0)
    }
}
