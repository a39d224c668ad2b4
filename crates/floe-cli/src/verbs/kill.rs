//! `floe kill`.

use crate::{Context, failure::Outcome};
use anyhow::Context as _;
use clap::Args;
use floe_sandbox::Sandbox;
use nix::sys::signal::Signal;

/// Send a signal to PID 1 of a sandbox. Its end ends every other task of the namespace.
///
/// Example: floe kill -s TERM job
#[derive(Debug, Args)]
pub struct Kill {
    /// Name (with or without SIG) or number of the signal.
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// The sandbox.
    name: String,
}

fn parse(text: &str) -> anyhow::Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        anyhow::ensure!((1..=64).contains(&number), "there is no signal {number}");
        return Ok(number);
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    let signal: Signal = name
        .parse()
        .ok()
        .with_context(|| format!("there is no signal {text}"))?;
    Ok(signal as i32)
}

impl Kill {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let signal = parse(&self.signal)?;
        Sandbox::open(&context.state_dir, &self.name)?.signal(signal)?;
        Ok(0)
    }
}
