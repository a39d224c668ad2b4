//! Trees that were started by hand with unshare(1), as root and as an ordinary user, and that floe has never seen before: with
//! the PIDs that they have on each level.

use floe_suite::{Host, ORDINARY, PID_METHODS, json, leave, run, until};
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Counts, and says what it calls itself and who is PID 1 in /proc.
const SCRIPT: &str = r#"
n=0
while :; do
    n=$((n + 1))
    echo "$n $$ $(cat /proc/1/comm)" > here.new
    mv here.new here
    sleep 0.02
done
"#;

/// A tree that ends with the test.
struct Tree {
    root: Child,
    folder: PathBuf,
}

impl Tree {
    fn start(host: &Host, user: Option<u32>, unshare: &[&str]) -> Self {
        Self::of(host, user, &[unshare, &["bash", "-c", SCRIPT]].concat())
    }

    fn of(host: &Host, user: Option<u32>, line: &[&str]) -> Self {
        let folder = host.folder("by-hand");
        let mut command = Command::new(line[0]);
        command
            .args(&line[1..])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        // SAFETY: what it calls is safe between fork and exec.
        unsafe { command.pre_exec(leave) };
        let root = command.spawn().expect("start it");
        let tree = Self { root, folder };
        until("it counts", || count(&tree.folder).is_some());
        tree
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // A checkpoint has ended it where all went well.
        let _ = Command::new("pkill")
            .args(["-KILL", "-s", &self.root.id().to_string()])
            .status();
        let _ = self.root.wait();
    }
}

/// How far it has counted, what it calls itself, and who is PID 1 in /proc.
fn count(folder: &Path) -> Option<(u64, i32, String)> {
    let text = std::fs::read_to_string(folder.join("here")).ok()?;
    let mut words = text.split_ascii_whitespace();
    Some((
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        words.next()?.to_owned(),
    ))
}

/// Waits until it has counted on; who is PID 1 in its /proc.
fn goes_on(tree: &Tree, when: &str) -> String {
    let (before, own, _) = count(&tree.folder).expect("a number");
    assert_eq!(own, 1, "what it calls itself {when}");
    let mut first = String::new();
    until(&format!("it counts on {when}"), || {
        count(&tree.folder).is_some_and(|(now, _, who)| {
            first = who;
            now > before + 2
        })
    });
    first
}

fn survives(host: &Host, user: Option<u32>, unshare: &[&str]) {
    let mut tree = Tree::start(host, user, unshare);
    goes_on(&tree, "at first");
    let root = tree.root.id() as i32;
    let shell = shell_below(root);
    let (name, image) = (host.name("hand"), host.path("hand.floe"));
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", "--pid", &root.to_string(), "-o", image]);
    tree.root.wait().expect("it has ended");
    for (trip, method) in PID_METHODS.iter().cycle().take(4).enumerate() {
        host.done(&["restore", "-d", "--name", &name, "--pid-method", method, image]);
        let first = goes_on(&tree, &format!("after trip {trip}"));
        if unshare.contains(&"--mount-proc") {
            assert_eq!(first, "bash", "in /proc after trip {trip}");
        }
        let tasks = json(&host.done(&["ps", &name, "--json"]));
        let tasks = tasks.as_array().expect("a list");
        let levels = |pid: i32| -> Option<Vec<i64>> {
            let found = tasks.iter().find(|task| task["pid"] == pid)?;
            let all = found["nspid"].as_array()?.iter().filter_map(serde_json::Value::as_i64);
            // Behind those of the host.
            Some(all.skip_while(|id| *id != i64::from(pid)).collect())
        };
        assert_eq!(levels(root), Some(vec![i64::from(root)]), "{tasks:?}");
        assert_eq!(levels(shell), Some(vec![i64::from(shell), 1]), "{tasks:?}");
        if trip < 3 {
            host.done(&["checkpoint", &name, "-o", image]);
        }
    }
}

/// The one child of a process.
fn shell_below(pid: i32) -> i32 {
    let children = run(Command::new("pgrep").args(["-P", &pid.to_string()]));
    children.expect_done().trim().parse().expect("one child")
}

/// What a program of an ordinary user, as which floe may do nothing special, has made below itself.
#[test]
fn namespaces_below_an_ordinary_users_shell() {
    let host = Host::of_ordinary_user();
    let nested = "unshare --user --map-root-user --fork --pid --mount-proc --uts --ipc --net --cgroup";
    let line = format!("{nested} {nested} bash -c \"$0\"; exit");
    let mut tree = Tree::of(&host, Some(ORDINARY), &["bash", "-c", &line, SCRIPT]);
    goes_on(&tree, "at first");
    let root = tree.root.id();
    let (name, image) = (host.name("shell"), host.path("shell.floe"));
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", "--pid", &root.to_string(), "-o", image]);
    tree.root.wait().expect("it has ended");
    for method in PID_METHODS.iter().cycle().take(4) {
        host.done(&["restore", "-d", "--name", &name, "--pid-method", method, image]);
        assert_eq!(goes_on(&tree, "after a trip"), "bash");
        let user = ORDINARY.to_string();
        let whoami = host.done(&["exec", &name, "--", "id", "-u"]);
        assert_eq!(whoami.trim(), user, "all of it was one user");
        let tasks = json(&host.done(&["ps", &name, "--json"]));
        let levels = |task: &serde_json::Value| task["nspid"].as_array().map_or(0, Vec::len);
        let all = tasks.as_array().expect("a list");
        let most = all.iter().map(levels).max();
        // The shell, and none of the programs that it starts.
        let is_shell = |task: &&serde_json::Value| {
            Some(levels(task)) == most && task["nspid"].as_array().expect("levels").last() == Some(&1.into())
        };
        let pid = all.iter().find(is_shell).expect("the shell")["nspid"][0].to_string();
        let line = ["exec", "--pid", &pid, "--", "sh", "-c", "id -u; cat /proc/self/cgroup"];
        let inside = host.done(&line);
        let mut lines = inside.lines();
        assert_eq!(lines.next(), Some("0"), "{inside}");
        assert!(lines.all(|line| line.ends_with(":/")), "{inside}");
        host.done(&["checkpoint", &name, "-o", image]);
    }
}

#[test]
fn a_pid_namespace() {
    survives(&Host::new(), None, &["unshare", "--fork", "--pid"]);
}

#[test]
fn a_pid_namespace_with_its_own_proc() {
    survives(&Host::new(), None, &["unshare", "--fork", "--pid", "--mount-proc"]);
}

#[test]
fn pid_namespaces_below_each_other_with_their_own_proc() {
    let nested = ["unshare", "--fork", "--pid", "--mount-proc"];
    survives(&Host::new(), None, &[nested; 3].concat());
}

#[test]
fn the_same_of_an_ordinary_user() {
    let unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--fork",
        "--pid",
        "--mount-proc",
    ];
    survives(&Host::of_ordinary_user(), Some(ORDINARY), &unshare);
}

#[test]
fn the_same_of_an_ordinary_user_saved_and_restored_by_root() {
    let unshare = ["unshare", "-Urpf", "--mount-proc"];
    survives(&Host::of_root_for_a_user(), Some(ORDINARY), &unshare);
}

#[test]
fn namespaces_below_each_other_of_an_ordinary_user_saved_and_restored_by_root() {
    let unshare = ["unshare", "-Urpf", "--mount-proc"];
    survives(&Host::of_root_for_a_user(), Some(ORDINARY), &[unshare; 2].concat());
}

#[test]
fn a_pid_namespace_of_an_ordinary_user() {
    let unshare = ["unshare", "--user", "--map-root-user", "--fork", "--pid"];
    survives(&Host::of_ordinary_user(), Some(ORDINARY), &unshare);
}
