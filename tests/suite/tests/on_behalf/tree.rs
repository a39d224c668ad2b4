//! A tree in an ordinary user's user namespace, and where root keeps images of it.

use floe_suite::{Host, ORDINARY, leave, until};
use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Counts, and says who it is, whom its user namespace knows, and who is PID 1; ends where that is not what it was.
const SCRIPT: &str = r#"
told() { echo $$ $(id -u) $(cat /proc/self/setgroups /proc/1/comm /proc/self/uid_map /proc/self/gid_map); }
first=$(told) n=0
while [ "$(told)" = "$first" ]; do
    n=$((n + 1))
    echo "$n $first" > here.new
    mv here.new here
    sleep 0.02
done
told > other
"#;

/// A tree of an ordinary user's that was started by hand. It ends with the test.
pub struct Tree {
    pub root: Child,
    pub folder: PathBuf,
}

impl Tree {
    pub fn start(host: &Host, prefix: &[&str], unshare: &[&str]) -> Self {
        let folder = host.folder("by-hand");
        let user = ORDINARY.to_string();
        let become_user = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
        let line = [prefix, &become_user, unshare, &["bash", "-c", SCRIPT]].concat();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).current_dir(&folder).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: what it calls is safe between fork and exec.
        unsafe { command.pre_exec(leave) };
        let root = command.spawn().expect("start it");
        let tree = Self { root, folder };
        until("it counts", || tree.told().is_some());
        tree
    }

    pub fn pid(&self) -> String {
        self.root.id().to_string()
    }

    /// How far it has counted, and what else it says.
    pub fn told(&self) -> Option<(u64, String)> {
        let text = fs::read_to_string(self.folder.join("here")).ok()?;
        let (count, rest) = text.trim().split_once(' ')?;
        Some((count.parse().ok()?, rest.to_owned()))
    }

    /// Waits until it has counted on; what else it says.
    pub fn goes_on(&self, when: &str) -> String {
        let (before, _) = self.told().expect("a number");
        until(&format!("it counts on {when}"), || {
            let other = fs::read_to_string(self.folder.join("other"));
            assert!(other.is_err(), "{when} it is {other:?}");
            self.told().is_some_and(|(now, _)| now > before + 2)
        });
        self.told().expect("a number").1
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // A checkpoint has ended it where all went well.
        let _ = Command::new("pkill").args(["-KILL", "-s", &self.pid()]).status();
        let _ = self.root.wait();
    }
}

/// A folder that root alone comes into.
pub fn roots_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("floe-suite.")
        .permissions(Permissions::from_mode(0o700))
        .tempdir();
    folder.expect("a folder")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

pub const UNSHARE: [&str; 3] = ["unshare", "-Urpf", "--mount-proc"];
