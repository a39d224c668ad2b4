//! `floe logs`.

use crate::{Context, failure::Outcome};
use anyhow::Context as _;
use clap::Args;
use floe_sandbox::{Attached, Client, Sandbox};
use floe_sys::interrupt;
use std::{fs::File, io};

/// Print what a sandbox has written to its standard output and error.
///
/// Example: floe logs -f job
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on printing until it ends.
    #[arg(short, long)]
    follow: bool,
    /// The sandbox.
    name: String,
}

impl Logs {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let sandbox = Sandbox::open(&context.state_dir, &self.name)?;
        let path = sandbox.folder().join("log");
        let log = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        if !self.follow || !sandbox.is_running() {
            copy(log)?;
            return Ok(0);
        }
        // What comes between the two is in the log already and would come twice; so only as much of the log is copied
        // as it held before the subscription.
        let held = log.metadata()?.len();
        let mut client = Client::connect(sandbox.folder())?;
        copy(io::Read::take(&log, held))?;
        client.subscribe()?;
        let flags = interrupt::note_signals(&[])?;
        match client.attach(false, false, flags.resized, flags.last, |_| {})? {
            Attached::Ended(_) | Attached::Detached | Attached::Lost => Ok(0),
        }
    }
}

fn copy(mut from: impl io::Read) -> io::Result<()> {
    match io::copy(&mut from, &mut io::stdout().lock()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map(drop),
    }
}
