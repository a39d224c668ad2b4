//! Sandboxes in which a script mounts something.

use crate::{Host, until};
use std::path::PathBuf;

/// How such a script ends.
pub const WAIT: &str = "touch $0/ready; sleep 1000";

/// A sandbox in which a script has mounted something; it says so by a file `ready` in its folder, which is `$0`.
pub struct Mounting<'a> {
    host: &'a Host,
    /// Its name.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
}

impl<'a> Mounting<'a> {
    /// Runs a script until it is ready.
    #[must_use]
    pub fn start(host: &'a Host, script: &str) -> Self {
        let name = host.name("mounting");
        let folder = host.folder("folder");
        let script = format!("set -e; {script}");
        let place = folder.to_str().expect("a plain path");
        host.done(&["run", "-d", "--name", &name, "--", "bash", "-c", &script, place]);
        until("the mounts", || folder.join("ready").exists());
        Self { host, name, folder }
    }

    /// What stands in the way of a checkpoint.
    #[must_use]
    pub fn findings(&self) -> String {
        self.host.floe(&["checkpoint", "--dry-run", &self.name]).expect_failed()
    }

    /// Saves it; the path of the image.
    #[must_use]
    pub fn save(&self) -> String {
        let image = self.host.path("image.floe").display().to_string();
        self.host.done(&["checkpoint", &self.name, "-o", &image]);
        image
    }
}
