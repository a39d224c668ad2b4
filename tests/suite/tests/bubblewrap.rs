//! Trees that bubblewrap started, as root and as an ordinary user: their root is a tmpfs of its own with what is bound there, the
//! old one is gone. An ordinary user's is in the second of two user namespaces, and all else belongs to the first.

use floe_suite::{Host, ORDINARY, PID_METHODS, has, leave, until};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// What a sandboxed program needs.
const USUAL: [&str; 24] = [
    "--new-session",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--symlink",
    "usr/bin",
    "/bin",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--dir",
    "/made",
];

const COUNT: &str = "cd /made; exec 7<>/tmp/file; echo kept >&7; n=0; \
    while :; do n=$((n+1)); echo $n > /out/ticks.new; mv /out/ticks.new /out/ticks; sleep 0.1; done";

struct Wrapped {
    outer: Child,
    /// Where it counts.
    out: PathBuf,
}

impl Wrapped {
    fn start(host: &Host, user: Option<u32>, options: &[&str]) -> Self {
        let out = host.folder("out");
        let place = out.display().to_string();
        let mut command = Command::new("bwrap");
        command.args(USUAL).args(["--bind", &place, "/out"]).args(options);
        command.args(["--", "bash", "-c", COUNT]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Where the tests run others may not look.
        command.current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        // SAFETY: what it calls is safe between fork and exec.
        unsafe { command.pre_exec(leave) };
        let wrapped = Self {
            outer: command.spawn().expect("start bubblewrap"),
            out,
        };
        until("the script", || wrapped.ticks() > 0);
        wrapped
    }

    /// Its PID 1.
    fn pid(&self) -> String {
        let path = format!("/proc/{0}/task/{0}/children", self.outer.id());
        fs::read_to_string(path).expect("children").trim().to_owned()
    }

    fn ticks(&self) -> u64 {
        let text = fs::read_to_string(self.out.join("ticks")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        // PID 1 has been saved where all went well, and does not end with it unless it was told to.
        if let Ok(None) = self.outer.try_wait() {
            let path = format!("/proc/{0}/task/{0}/children", self.outer.id());
            let children = fs::read_to_string(path).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
                // SAFETY: plain numbers; who is not waited for keeps its number.
                unsafe { libc::kill(child, libc::SIGKILL) };
            }
        }
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

fn goes_on(options: &[&str]) {
    if !has("bwrap") {
        return;
    }
    let host = Host::new();
    let mut wrapped = Wrapped::start(&host, None, &[&["--die-with-parent"], options].concat());
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "--pid", &wrapped.pid(), "-o", &image]);
    wrapped.outer.wait().expect("bubblewrap ends with its tree");
    let name = host.name("wrapped");
    host.done(&["restore", "-d", "--name", &name, &image]);
    for method in PID_METHODS {
        let before = wrapped.ticks();
        until("the script", || wrapped.ticks() > before);
        host.done(&["checkpoint", &name, "-o", &image]);
        host.done(&["restore", "-d", "--pid-method", method, &image]);
    }
    let inside = |script: &str| host.done(&["exec", &name, "--", "bash", "-c", script]);
    assert_eq!(inside("cat /tmp/file; readlink /proc/2/cwd"), "kept\n/made\n");
    assert_eq!(inside("cd /; echo *"), "bin dev lib lib64 made out proc tmp usr\n");
    assert!(
        host.floe(&["exec", &name, "--", "touch", "/usr/new"])
            .err
            .contains("Read-only")
    );
    assert_eq!(inside("echo x > /dev/null && head -c 3 /dev/zero | wc -c"), "3\n");
    let elsewhere = host.path("elsewhere");
    host.done(&["checkpoint", &name, "-o", &image]);
    fs::rename(&wrapped.out, &elsewhere).expect("move it");
    let told = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(told.contains("mount /out: it shows"), "{told}");
    wrapped.out = elsewhere;
    let given = format!("/out={}", wrapped.out.display());
    host.done(&["restore", "-d", "--mount", &given, &image]);
    let before = wrapped.ticks();
    until("the script", || wrapped.ticks() > before);
}

/// Saved by its PID 1, or by bubblewrap's own process outside, which then waits in the new sandbox as it did.
fn goes_on_as_ordinary_user(options: &[&str], whole: bool) {
    if !has("bwrap") {
        return;
    }
    goes_on_for(&Host::of_ordinary_user(), options, whole);
}

fn goes_on_for(host: &Host, options: &[&str], whole: bool) {
    let mut wrapped = Wrapped::start(host, Some(ORDINARY), options);
    let image = host.path("image.floe").display().to_string();
    let root = if whole {
        wrapped.outer.id().to_string()
    } else {
        wrapped.pid()
    };
    host.done(&["checkpoint", "--pid", &root, "-o", &image]);
    wrapped.outer.wait().expect("bubblewrap ends with its tree");
    let name = host.name("wrapped");
    for method in PID_METHODS.iter().cycle().take(4) {
        host.done(&["restore", "-d", "--name", &name, "--pid-method", method, &image]);
        let before = wrapped.ticks();
        until("the script", || wrapped.ticks() > before);
        let tasks = host.done(&["ps", &name, "--json"]);
        let shell = floe_suite::json(&tasks);
        let shell = shell
            .as_array()
            .expect("a list")
            .iter()
            .find(|task| task["comm"] == "bash");
        let levels = shell.expect("the shell")["nspid"].as_array().expect("levels");
        assert_eq!(levels.last().and_then(serde_json::Value::as_i64), Some(2), "{tasks}");
        let pid = levels[0].to_string();
        let inside = |script: &str| host.done(&["exec", "--pid", &pid, "--", "bash", "-c", script]);
        assert_eq!(inside("cat /tmp/file; pwd"), "kept\n/made\n");
        assert_eq!(inside("cd /; echo *"), "bin dev lib lib64 made out proc tmp usr\n");
        let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("its map");
        let words: Vec<&str> = map.split_ascii_whitespace().collect();
        assert_eq!(words[0], ORDINARY.to_string(), "who it is in there");
        host.done(&["checkpoint", &name, "-o", &image]);
    }
}

#[test]
fn a_tree_of_an_ordinary_user_goes_on() {
    goes_on_as_ordinary_user(&["--unshare-all", "--die-with-parent"], false);
}

#[test]
fn a_tree_of_an_ordinary_user_goes_on_when_root_saves_and_restores_it() {
    if has("bwrap") {
        goes_on_for(
            &Host::of_root_for_a_user(),
            &["--unshare-all", "--die-with-parent"],
            false,
        );
    }
}

#[test]
fn a_tree_of_an_ordinary_user_goes_on_with_what_started_it() {
    goes_on_as_ordinary_user(&["--unshare-all"], true);
}

#[test]
fn a_tree_of_an_ordinary_user_in_the_hosts_network_goes_on() {
    goes_on_as_ordinary_user(&["--unshare-user", "--cap-add", "ALL"], true);
    goes_on_as_ordinary_user(&["--unshare-user"], false);
}

#[test]
fn a_tree_of_bubblewrap_goes_on() {
    goes_on(&[]);
}

#[test]
fn a_tree_of_bubblewrap_without_a_network_goes_on() {
    goes_on(&["--unshare-net"]);
}
