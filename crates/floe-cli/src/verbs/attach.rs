//! `floe attach`.

use super::foreground::Stay;
use crate::{Context, failure::Outcome};
use clap::Args;
use floe_sandbox::{Client, ConsoleState, Sandbox, Signals};

/// Take up the terminal or the streams of a sandbox, until it ends; its exit status is handed on.
///
/// Signals that floe attach gets (INT, TERM, QUIT, HUP) are handed on to PID 1. On a terminal, ctrl-p ctrl-q or the
/// terminal's end lets go of the sandbox, which runs on.
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
        let pid1 = sandbox.handle()?;
        let mut client = Client::connect(sandbox.folder())?;
        client.subscribe()?;
        let stay = Stay {
            client,
            signals: Signals::take()?,
            pid1: Some(pid1),
            terminal: matches!(sandbox.console(), ConsoleState::Terminal(_)),
            owner: false,
            name: &self.name,
        };
        stay.until_end(context)
    }
}
