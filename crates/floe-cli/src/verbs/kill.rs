//! `floe kill`.

use crate::{Context, failure::Outcome, output};
use anyhow::Context as _;
use clap::Args;
use floe_sandbox::Sandbox;
use floe_sys::procfs::Status;
use nix::sys::signal::Signal;

/// Send a signal to PID 1 of a sandbox. Its end ends every other task of the namespace.
///
/// The kernel hands PID 1 only signals that it handles, and from outside SIGKILL and SIGSTOP. A signal that it has no
/// handler for is lost, which floe says; a command under floe run --init gets every signal.
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

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
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
        let sandbox = Sandbox::open(&context.state_dir, &self.name)?;
        let status = Status::read(&format!("/proc/{}", sandbox.pid1()?))?;
        // What is blocked may be waited for.
        let heeded = status.caught | status.blocked | bit(libc::SIGKILL) | bit(libc::SIGSTOP);
        sandbox.signal(signal)?;
        if heeded & bit(signal) == 0 {
            let name = &self.name;
            output::error(&format!(
                "floe: PID 1 of {name} has no handler for signal {signal}, so the kernel drops it (-s KILL ends it in any case)"
            ));
        }
        Ok(0)
    }
}
