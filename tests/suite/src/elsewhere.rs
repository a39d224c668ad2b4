//! A second host's files: a folder that is another one there.

use crate::{Host, run, spawn, until};
use std::{
    fs,
    path::Path,
    process::{Child, Command},
};

/// A mount namespace in which a folder is empty. It is that of a process, and ends with it.
#[derive(Debug)]
pub struct Elsewhere(Child);

impl Elsewhere {
    /// One that hides a folder.
    ///
    /// # Panics
    /// Without the right to make it.
    #[must_use]
    pub fn new(hidden: &Path) -> Self {
        let ready = hidden.with_extension("ready");
        let script = "mount -t tmpfs -o mode=755 tmpfs \"$1\" && : > \"$2\" && exec sleep infinity";
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        let made = Self(spawn(command.arg(hidden).arg(&ready)));
        until("the folder is empty elsewhere", || ready.exists());
        fs::remove_file(ready).expect("it is there");
        made
    }

    /// The command that goes there.
    #[must_use]
    pub fn enter(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--mount=/proc/{}/ns/mnt", self.0.id())]
    }

    /// A host there.
    #[must_use]
    pub fn host(&self) -> Host {
        let enter = self.enter();
        Host::behind(&enter.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What a shell prints there.
    ///
    /// # Panics
    /// Where it fails.
    pub fn shell(&self, line: &str) -> String {
        let enter = self.enter();
        let outcome = run(Command::new(&enter[0]).args(&enter[1..]).args(["sh", "-ec", line]));
        assert_eq!(outcome.status, 0, "{line}: {}", outcome.err);
        outcome.out
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}
