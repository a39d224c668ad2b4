//! `floe rm`.

use crate::{Context, failure::Outcome};
use clap::Args;
use floe_sandbox::Sandbox;

/// Remove a sandbox that has ended: its log and its state.
///
/// Example: floe rm -f job
#[derive(Debug, Args)]
pub struct Rm {
    /// End it first if it runs.
    #[arg(short, long)]
    force: bool,
    /// The sandboxes.
    #[arg(required = true)]
    names: Vec<String>,
}

impl Rm {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        for name in &self.names {
            Sandbox::open(&context.state_dir, name)?.remove(self.force)?;
        }
        Ok(0)
    }
}
