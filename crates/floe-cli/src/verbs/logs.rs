//! `floe logs`.

use crate::{Context, failure::Outcome};
use anyhow::Context as _;
use clap::Args;
use floe_sandbox::{Client, Sandbox, Wishes};
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
        // A monitor that does not answer has ended, and the log is complete.
        let following = self.follow.then(|| Client::connect(sandbox.folder()).ok()).flatten();
        let followed = following.and_then(|mut client| client.subscribe().ok().map(|held| (client, held)));
        let Some((client, held)) = followed else {
            copy(log)?;
            return Ok(0);
        };
        // What the log holds beyond that comes from the monitor.
        if copy(io::Read::take(&log, held))? {
            let wishes = Wishes {
                merged: true,
                input: false,
                terminal: false,
                owner: false,
                signals: None,
            };
            client.attach(&wishes, |_| {})?;
        }
        Ok(0)
    }
}

/// Copies to standard output; whether somebody reads it.
fn copy(mut from: impl io::Read) -> io::Result<bool> {
    match io::copy(&mut from, &mut io::stdout().lock()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|_| true),
    }
}
