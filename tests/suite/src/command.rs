//! Runs `floe` as a person would, with a limit on time.

use std::{
    ffi::OsString,
    fs::{File, Permissions},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// No command of a test needs longer, by far; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A state directory of its own, and the sandboxes in it.
#[derive(Debug)]
pub struct Host {
    folder: TempDir,
    prefix: Vec<String>,
    /// Whether it is an ordinary user's, who may not come where programs are built.
    is_ordinary: bool,
    /// Whether root saves and restores the user's trees.
    is_roots: bool,
}

/// An ordinary user whom nobody knows by name.
pub const ORDINARY: u32 = 54_321;

/// What a command left.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status; 128+N where signal N ended it.
    pub status: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Outcome {
    /// The standard output of a command that succeeded.
    ///
    /// # Panics
    /// Where it did not.
    #[must_use]
    pub fn expect_done(self) -> String {
        assert_eq!(self.status, 0, "floe failed: {}{}", self.out, self.err);
        self.out
    }

    /// The standard error of a command that failed with exit status 1.
    ///
    /// # Panics
    /// Where it ended otherwise.
    #[must_use]
    pub fn expect_failed(self) -> String {
        assert_eq!(self.status, 1, "floe was to fail: {}{}", self.out, self.err);
        self.err
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// An empty one.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn new() -> Self {
        Self::make(std::env::temp_dir(), &[])
    }

    /// An empty one, with its folder in another one: on a filesystem of choice.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn in_folder(place: impl AsRef<Path>) -> Self {
        Self::make(place, &[])
    }

    /// One whose `floe` is started by way of another command, e.g. `unshare -m …`.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn behind(prefix: &[&str]) -> Self {
        Self::make(std::env::temp_dir(), prefix)
    }

    fn make(place: impl AsRef<Path>, prefix: &[&str]) -> Self {
        // Victims that are other users come through here to their own folder.
        let folder = tempfile::Builder::new()
            .prefix("floe-suite.")
            .permissions(Permissions::from_mode(0o711))
            .tempdir_in(place)
            .expect("a folder");
        std::fs::create_dir(folder.path().join("state")).expect("a folder");
        let prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        Self {
            folder,
            prefix,
            is_ordinary: false,
            is_roots: false,
        }
    }

    /// One of an ordinary user, who has no rights of root's and no groups.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn of_ordinary_user() -> Self {
        Self::ordinary_behind(&[])
    }

    /// One of an ordinary user, whose trees root saves and restores; all else that user does.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn of_root_for_a_user() -> Self {
        let mut host = Self::of_ordinary_user();
        host.is_roots = true;
        host
    }

    /// The same, started by way of another command of root's.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn ordinary_behind(prefix: &[&str]) -> Self {
        let user = ORDINARY.to_string();
        let become_user = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
        let mut host = Self::make(std::env::temp_dir(), &[prefix, &become_user].concat());
        host.is_ordinary = true;
        for folder in [host.folder.path(), &host.path("state")] {
            std::os::unix::fs::chown(folder, Some(ORDINARY), Some(ORDINARY)).expect("give it away");
        }
        host
    }

    /// A program of this workspace, where whoever uses this host finds it.
    ///
    /// # Panics
    /// Where it is not built.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let program = if name == "floe" { binary() } else { built(name) };
        if !self.is_ordinary {
            return program;
        }
        let copy = self.path(name);
        if !copy.exists() {
            std::fs::copy(program, &copy).expect("copy a program");
        }
        copy
    }

    /// A name for a sandbox that no other test has: cgroups are named after sandboxes, and all tests share those.
    #[must_use]
    pub fn name(&self, base: &str) -> String {
        let unique = self.folder.path().extension().unwrap_or_default();
        format!("{base}-{}", unique.to_string_lossy())
    }

    /// The folder for the test's files.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new folder among the test's files, in which whoever uses this host may write.
    ///
    /// # Panics
    /// Where it is there already.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir(&folder).expect("a folder");
        if self.is_ordinary {
            std::os::unix::fs::chown(&folder, Some(ORDINARY), Some(ORDINARY)).expect("give it away");
        }
        folder
    }

    /// A `floe` command line, not started yet.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        match arguments.first() {
            Some(&"checkpoint") if self.is_roots => return self.command_of_root(arguments),
            Some(&"restore") if self.is_roots => {
                let owner = format!("--owner={ORDINARY}:{ORDINARY}");
                return self.command_of_root(&[&["restore", &owner], &arguments[1..]].concat());
            }
            _ => {}
        }
        let mut words = self
            .prefix
            .iter()
            .map(OsString::from)
            .chain([self.program("floe").into()]);
        let mut command = Command::new(words.next().expect("floe at least"));
        command
            .args(words)
            .arg("--state-dir")
            .arg(self.path("state"))
            .args(arguments)
            .stdin(Stdio::null());
        if self.is_ordinary {
            // Where the tests are built is root's, and may be closed to others.
            command.current_dir(self.folder.path());
        }
        command
    }

    /// The same of root's, with the sandboxes of whoever uses this host.
    #[must_use]
    pub fn command_of_root(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--state-dir").arg(self.path("state")).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// Where it takes longer than a minute, or can't be started.
    #[must_use]
    pub fn floe(&self, arguments: &[&str]) -> Outcome {
        run(&mut self.command(arguments))
    }

    /// Runs a command that must succeed.
    ///
    /// # Panics
    /// Where it fails.
    pub fn done(&self, arguments: &[&str]) -> String {
        self.floe(arguments).expect_done()
    }

    /// PID 1 of a sandbox, as the host counts.
    ///
    /// # Panics
    /// Where there is no such sandbox.
    #[must_use]
    pub fn pid1(&self, sandbox: &str) -> i32 {
        let list: serde_json::Value = serde_json::from_str(&self.done(&["ps", "--json"])).expect("JSON");
        let entries = list.as_array().expect("a list");
        let entry = entries
            .iter()
            .find(|entry| entry["name"] == sandbox)
            .expect("the sandbox");
        entry["pid"].as_i64().expect("its PID") as i32
    }

    /// The state word of a sandbox, or `none`.
    ///
    /// # Panics
    /// Where floe can't list them.
    #[must_use]
    pub fn state(&self, sandbox: &str) -> String {
        let list = json(&self.done(&["ps", "--json"]));
        let entry = list
            .as_array()
            .expect("a list")
            .iter()
            .find(|entry| entry["name"] == sandbox);
        entry
            .map_or("none", |entry| entry["state"].as_str().expect("a word"))
            .to_owned()
    }

    /// Starts a sandbox that only sleeps; its name.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn sleeper(&self, base: &str) -> String {
        let name = self.name(base);
        assert_eq!(
            self.done(&["run", "-d", "--name", &name, "--", "sleep", "1000"]).trim(),
            name
        );
        name
    }

    /// Names of the sandboxes there are.
    ///
    /// # Panics
    /// Where floe can't list them.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<String> {
        let list: serde_json::Value = serde_json::from_str(&self.done(&["ps", "--json"])).expect("JSON");
        let names = list.as_array().expect("a list").iter();
        names
            .map(|entry| entry["name"].as_str().expect("a name").to_owned())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir(self.path("state")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            // What floe keeps besides sandboxes.
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let outcome = run(&mut self.command(&["rm", "-f", &name.to_string_lossy()]));
            // A second panic would abort the test that reports the first one; the leak check at the end still finds it.
            assert!(
                outcome.status == 0 || std::thread::panicking(),
                "floe rm -f {}: {}",
                name.to_string_lossy(),
                outcome.err
            );
        }
    }
}

/// What a command printed as JSON.
///
/// # Panics
/// Where it is none.
#[must_use]
pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

/// Waits until something holds.
///
/// # Panics
/// Where it does not within a minute.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How often something is to be done again in this run, that in a thorough one (`tools/test --full`) is done `all` times.
#[must_use]
pub fn times<N: TryFrom<usize> + TryInto<usize>>(all: N) -> N {
    let all = all.try_into().unwrap_or(usize::MAX);
    let is_thorough = std::env::var_os("FLOE_THOROUGH").is_some();
    let count = if is_thorough { all } else { all.div_ceil(3) };
    N::try_from(count).unwrap_or_else(|_| unreachable!("no more than it was"))
}

/// Starts a command with pipes for its output and errors.
///
/// # Panics
/// Where it can't be started.
#[must_use]
pub fn spawn(command: &mut Command) -> Child {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().expect("start floe")
}

/// For a program before its exec: gives it a session of its own, and no file of whoever runs the tests.
///
/// # Errors
/// Those of setsid(2).
pub fn leave() -> std::io::Result<()> {
    // SAFETY: plain numbers.
    let closed = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    // SAFETY: no arguments.
    let session = unsafe { libc::setsid() };
    match closed == 0 && session > 0 {
        true => Ok(()),
        false => Err(std::io::Error::last_os_error()),
    }
}

/// Sends a signal to a process that the test knows to be there.
///
/// # Panics
/// Where it is not.
pub fn signal(process: i32, number: i32) {
    assert!(process > 0, "{process} stands for a group of processes");
    // SAFETY: plain numbers; the process is the test's own, or of a sandbox of the test.
    assert_eq!(unsafe { libc::kill(process, number) }, 0, "signal {process}");
}

/// Runs a command to its end, its streams taken up in files so that nothing it leaves running can hold them open.
///
/// # Panics
/// Where it takes longer than a minute, or can't be started.
#[must_use]
pub fn run(command: &mut Command) -> Outcome {
    let (out, err) = (
        tempfile::tempfile().expect("a file"),
        tempfile::tempfile().expect("a file"),
    );
    let child = command
        .stdout(out.try_clone().expect("duplicate"))
        .stderr(err.try_clone().expect("duplicate"))
        .spawn()
        .expect("start floe");
    let status = wait(child);
    Outcome {
        status,
        out: text(out),
        err: text(err),
    }
}

fn text(mut file: File) -> String {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .expect("read back");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a command's end.
///
/// # Panics
/// Where it takes longer than a minute.
#[must_use]
pub fn wait(mut child: Child) -> i32 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait for floe") {
            return number(status);
        }
        if Instant::now() > end {
            let stands = where_they_stand(child.id());
            child.kill().expect("kill a floe that hangs");
            child.wait().expect("reap it");
            panic!("floe hung for {PATIENCE:?}\n{stands}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// In what a process and those below it wait in the kernel.
fn where_they_stand(process: u32) -> String {
    let read =
        |name| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_else(|error| error.to_string());
    let mut all = format!("{process} {}{}{}\n", read("comm"), read("syscall"), read("stack"));
    for child in read(&format!("task/{process}/children")).split_ascii_whitespace() {
        all += &child.parse().map(where_they_stand).unwrap_or_default();
    }
    all
}

fn number(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The `floe` program under test: FLOE_BIN, or the one built beside the tests.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("FLOE_BIN").map_or_else(|| built("floe"), PathBuf::from)
}

/// A program of this workspace, built beside the tests.
pub(crate) fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the test's own path");
    let folder = own.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace",
        path.display()
    );
    path
}
