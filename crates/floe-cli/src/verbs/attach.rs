//! `floe attach`.

use super::foreground;
use crate::{Context, failure::Outcome};
use clap::Args;
use floe_sandbox::{Client, ConsoleState, Sandbox};

/// Take up the terminal or the streams of a sandbox. On a terminal ctrl-p ctrl-q lets go of it again.
///
/// Example: floe attach job
#[derive(Debug, Args)]
pub struct Attach {
    /// The sandbox.
    name: String,
}

impl Attach {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let sandbox = Sandbox::open(&context.state_dir, &self.name)?;
        let pid1 = foreground::handle(sandbox.pid1()?)?;
        let mut client = Client::connect(sandbox.folder())?;
        client.subscribe()?;
        let terminal = matches!(sandbox.console(), ConsoleState::Terminal(_));
        foreground::stay(client, pid1.as_ref(), terminal, &self.name)
    }
}
