//! `floe pid`.

use crate::{Context, failure::Outcome, output};
use clap::Args;
use floe_sandbox::{
    Sandbox,
    pids::{self, PidError, Translation},
};
use floe_sys::Pid;

/// Translate a PID, or a thread's ID, between PID namespaces: from here to the one of each level below, or from one of these
/// to here.
///
/// Without --in or --ns, it tells what a process or thread of this namespace is called on each level, down to the innermost.
/// With one of them, it prints what the one that has the number there is called here.
///
/// Example: floe pid --in job 7
#[derive(Debug, Args)]
pub struct Translate {
    /// The number.
    #[arg(value_name = "PID")]
    number: i32,
    /// It counts in the PID namespace of this sandbox.
    #[arg(long = "in", value_name = "SANDBOX", conflicts_with = "namespace")]
    sandbox: Option<String>,
    /// It counts in the PID namespace with this inode number (floe ns tells it).
    #[arg(long = "ns", value_name = "INODE")]
    namespace: Option<u64>,
    /// Print JSON: all levels, whichever way.
    #[arg(long)]
    json: bool,
}

impl Translate {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let here = self.here(context)?;
        if let (Some(found), false) = (here, self.json) {
            output::line(&found.to_string());
            return Ok(0);
        }
        let translation = Translation::of(here.unwrap_or(Pid::new(self.number)), &context.state_dir)?;
        if self.json {
            output::json(&translation)?;
        } else {
            print(&translation);
        }
        Ok(0)
    }

    /// What it is called here, where it counts elsewhere.
    fn here(&self, context: &Context) -> Result<Option<Pid>, PidError> {
        if let Some(name) = &self.sandbox {
            let sandbox = Sandbox::open(&context.state_dir, name)?;
            return pids::in_sandbox(&sandbox, self.number).map(Some);
        }
        let found = self
            .namespace
            .map(|namespace| pids::in_namespace(namespace, self.number));
        found.transpose()
    }
}

fn print(translation: &Translation) {
    let is_thread = translation.levels.iter().any(|level| level.pid != level.process);
    let mut header = vec!["LEVEL", "PID", "NAMESPACE", "SANDBOX"];
    if is_thread {
        header.insert(2, "OF PROCESS");
    }
    let rows = translation.levels.iter().enumerate().map(|(number, level)| {
        let mut row = vec![
            number.to_string(),
            level.pid.to_string(),
            level.namespace.map_or_else(String::new, |inode| inode.to_string()),
            level.sandbox.clone().unwrap_or_default(),
        ];
        if is_thread {
            row.insert(2, level.process.to_string());
        }
        row
    });
    output::table(&header, &rows.collect::<Vec<_>>());
}
