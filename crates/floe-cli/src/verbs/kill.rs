//! `floe kill`.

use crate::{Context, failure::Outcome};
use anyhow::Context as _;
use clap::Args;
use floe_sandbox::Sandbox;
use floe_sys::{Pid, procfs::Status};
use nix::sys::signal::Signal;
use std::os::fd::{AsRawFd, OwnedFd};

/// Send a signal to PID 1 of a sandbox. Its end ends every other task of the namespace.
///
/// The kernel hands PID 1 only signals that it handles, and from outside SIGKILL and SIGSTOP. A signal that it has no
/// handler for is lost, which floe says; a command under floe run --init gets every signal.
///
/// Example: floe kill -s TERM job
#[derive(Debug, Args)]
pub struct Kill {
    /// Name (with or without SIG) or number of the signal.
    #[arg(short, long, default_value = "KILL", value_parser = parse)]
    signal: i32,
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

/// Whether a signal does something to this PID 1, as far as can be told; `true` where it has ended.
pub fn is_heeded(pid1: &OwnedFd, signal: i32) -> bool {
    let number = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pid1.as_raw_fd()))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("Pid:"))?
                .trim()
                .parse()
                .ok()
        });
    let Some(folder) = number.map(|pid| format!("/proc/{}", Pid::new(pid))) else {
        return true;
    };
    Status::read(&folder).map_or(true, |status| {
        // What is blocked may be waited for.
        let heeded = status.caught | status.blocked | bit(libc::SIGKILL) | bit(libc::SIGSTOP);
        heeded & bit(signal) != 0 || waits_for_signals(&folder)
    })
}

/// Whether a process is in sigtimedwait(2), during which its status shows what it waits for as not blocked.
fn waits_for_signals(folder: &str) -> bool {
    let call = std::fs::read_to_string(format!("{folder}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    number == Some(libc::SYS_rt_sigtimedwait)
}

/// Says that a signal was lost.
pub fn tell_dropped(context: &Context, name: &str, signal: i32) {
    context.tell(&format!(
        "floe: PID 1 of {name} has no handler for signal {signal}, so the kernel drops it (-s KILL ends it in any case)"
    ));
}

impl Kill {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let sandbox = Sandbox::open(&context.state_dir, &self.name)?;
        let heeded = is_heeded(&sandbox.handle()?, self.signal);
        sandbox.signal(self.signal)?;
        if !heeded {
            tell_dropped(context, &self.name, self.signal);
        }
        Ok(0)
    }
}
