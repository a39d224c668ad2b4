//! Tasks in cgroups that are not below the tree's own one, or beside the one that its root shares with others: cgroups that hold
//! nobody but the tree come back with it, below the new sandbox's; others' are refused by name.

use floe_suite::{Counting, Host, PID_METHODS, cgroups_of, json, leave, run, until};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A cgroup that a test makes. It goes with the test, and who is in it.
struct Apart(PathBuf);

impl Apart {
    fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    fn set(&self, file: &str, value: &str) {
        let path = self.0.join(file);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn take(&self, pid: i32) {
        self.set("cgroup.procs", &pid.to_string());
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        until("the cgroup is empty", || {
            for pid in fs::read_to_string(self.0.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                // Whoever has ended meanwhile has no number any more.
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

/// The directory of the cgroup that a process is in: of version 2, or in the hierarchy of version 1 with a controller.
fn cgroup_of(pid: i32, controller: Option<&str>) -> Option<PathBuf> {
    let fits = |path: &PathBuf| match controller {
        None => path.join("cgroup.subtree_control").exists(),
        Some(controller) => path.components().any(|part| part.as_os_str() == controller),
    };
    cgroups_of(pid).into_iter().find(fits)
}

/// A shell that has a child, both counting; started by hand in the cgroups of the test.
struct Pair {
    root: Child,
    folder: PathBuf,
}

const SCRIPT: &str = r#"
count() { n=0; while :; do n=$((n + 1)); echo $n > $1.new; mv $1.new $1; sleep 0.02; done; }
count child &
count root
"#;

impl Pair {
    fn start(host: &Host) -> Self {
        let folder = host.folder("pair");
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT]).current_dir(&folder).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: what it calls is safe between fork and exec.
        unsafe { command.pre_exec(leave) };
        let root = command.spawn().expect("start it");
        let pair = Self { root, folder };
        until("both count", || pair.numbers().iter().all(|number| *number > 0));
        pair
    }

    fn pid(&self) -> i32 {
        self.root.id() as i32
    }

    /// The child that counts.
    fn child(&self) -> i32 {
        let is_shell = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "bash\n");
        let mut found = None;
        until("the child", || {
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap_or_default();
            let mut pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
            found = pids.find(is_shell);
            found.is_some()
        });
        found.expect("it is there")
    }

    fn numbers(&self) -> [u64; 2] {
        ["root", "child"].map(|name| {
            let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        })
    }

    fn goes_on(&self, when: &str) {
        let before = self.numbers();
        until(&format!("both count on {when}"), || {
            self.numbers().iter().zip(before).all(|(now, before)| *now > before + 1)
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = Command::new("pkill")
            .args(["-KILL", "-s", &self.root.id().to_string()])
            .status();
        let _ = self.root.wait();
    }
}

fn image(host: &Host) -> String {
    host.path("image.floe").display().to_string()
}

/// Saves a pair with a child in a cgroup of its own, and restores it with both methods; `check` looks at the cgroups of root and
/// child, of one hierarchy.
fn comes_back(controller: Option<&str>, setting: Option<(&str, &str)>, check: impl Fn(&Path, &Path)) {
    let host = Host::new();
    let mut pair = Pair::start(&host);
    let Some(shared) = cgroup_of(pair.pid(), controller) else {
        floe_suite::skip("this host has no such hierarchy");
        return;
    };
    let name = host.name("apart");
    let apart = Apart::new(shared.join(&name));
    if let Some((file, value)) = setting {
        if !apart.0.join(file).exists() {
            floe_suite::skip(&format!("a new cgroup has no {file}"));
            return;
        }
        apart.set(file, value);
    }
    let child = pair.child();
    apart.take(child);
    pair.goes_on("in two cgroups");
    host.done(&[
        "checkpoint",
        "--pid",
        &pair.pid().to_string(),
        "--leave-running",
        "-o",
        &image(&host),
    ]);
    pair.goes_on("behind a checkpoint");
    host.done(&["checkpoint", "--pid", &pair.pid().to_string(), "-o", &image(&host)]);
    pair.root.wait().expect("it has ended");
    let sandbox = host.name("pair");
    for method in PID_METHODS.iter().cycle().take(3) {
        host.done(&[
            "restore",
            "-d",
            "--name",
            &sandbox,
            "--pid-method",
            method,
            &image(&host),
        ]);
        pair.goes_on("restored");
        let tasks = json(&host.done(&["ps", &sandbox, "--json"]));
        let on_host = |own: i32| {
            let mut tasks = tasks.as_array().expect("a list").iter();
            let task = tasks.find(|task| task["pid"] == own).expect("the task");
            cgroup_of(task["nspid"][0].as_i64().expect("a number") as i32, controller).expect("its cgroup")
        };
        let (root, child) = (on_host(pair.pid()), on_host(child));
        assert!(child.ends_with(&name), "{child:?}");
        check(&root, &child);
        if let Some((file, value)) = setting {
            let text = fs::read_to_string(child.join(file)).expect("the setting");
            assert_eq!(text.trim(), value, "{child:?}");
        }
        host.done(&["freeze", &sandbox]);
        let still = pair.numbers();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(pair.numbers(), still, "a frozen tree counts on");
        host.done(&["thaw", &sandbox]);
        pair.goes_on("thawed");
        host.done(&["checkpoint", &sandbox, "-o", &image(&host)]);
    }
    until("nothing of it stays", || {
        !apart.0.with_file_name("floe").join(&sandbox).exists()
    });
}

#[test]
fn a_cgroup_of_a_child_alone() {
    comes_back(None, None, |root, child| assert_eq!(child.parent(), Some(root)));
}

#[test]
fn a_cgroup_of_a_child_alone_by_version_1() {
    comes_back(Some("freezer"), None, |root, child| {
        assert_eq!(child.parent(), Some(root));
    });
}

#[test]
fn a_limit_of_version_1_of_a_child_alone() {
    comes_back(Some("pids"), Some(("pids.max", "77")), |root, child| {
        assert_eq!(child.parent(), Some(root));
    });
}

/// Who has tasks hands no controller on, so the root is one below.
#[test]
fn a_limit_of_version_2_of_a_child_alone() {
    let setting = Some(("hugetlb.2MB.max", "4194304"));
    comes_back(None, setting, |root, child| assert_eq!(child.parent(), root.parent()));
}

#[test]
fn a_cgroup_that_others_are_in() {
    let host = Host::new();
    let pair = Pair::start(&host);
    let Some(shared) = cgroup_of(pair.pid(), None) else {
        return;
    };
    let apart = Apart::new(shared.join(host.name("others")));
    let elsewhere = Host::new();
    let other = Pair::start(&elsewhere);
    apart.take(other.pid());
    apart.take(pair.child());
    let line = ["checkpoint", "--pid", &pair.pid().to_string(), "-o", &image(&host)];
    let error = host.floe(&line).expect_failed();
    assert!(error.contains("and has tasks of others"), "{error}");
    pair.goes_on("in the end");
}

/// A task of a sandbox in a cgroup beside: the freezer does not reach it, so all are stopped by ptrace.
#[test]
fn a_task_that_left_its_sandboxs_cgroup() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let own_of = || {
        let list = json(&host.done(&["ps", "--json"]));
        PathBuf::from(list[0]["cgroup"].as_str().expect("a path"))
    };
    let apart = Apart::new(own_of().with_file_name(format!("{job}-apart")));
    let python = || {
        let tasks = json(&host.done(&["ps", &job, "--json"]));
        let mut all = tasks.as_array().expect("a list").clone().into_iter();
        let found = all.find(|task| task["comm"] == "python3").expect("python");
        found["nspid"][0].as_i64().expect("a number") as i32
    };
    let program = python();
    apart.take(program);
    tree.expect_alive("with a task elsewhere");
    let stages = host.done(&["checkpoint", "--stages"]);
    for stage in stages.lines() {
        let mut command = host.command(&["checkpoint", &job, "-o", &image(&host)]);
        let error = run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        tree.expect_alive(&format!("after a failure at {stage}"));
    }
    // What is frozen can't be stopped so.
    host.done(&["freeze", &job]);
    let error = host.floe(&["checkpoint", &job, "-o", &image(&host)]).expect_failed();
    assert!(error.contains("which is frozen; thaw the sandbox first"), "{error}");
    host.done(&["thaw", &job]);
    for method in PID_METHODS {
        host.done(&["checkpoint", &job, "-o", &image(&host)]);
        host.done(&["restore", "-d", "--pid-method", method, &image(&host)]);
        tree.expect_alive(method);
        let places = cgroups_of(python());
        let below = own_of().join(apart.0.file_name().expect("a name"));
        assert!(places.contains(&below), "{places:?}");
    }
    host.done(&["freeze", &job]);
    let still = tree.numbers();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(tree.numbers(), still, "a frozen tree counts on");
    host.done(&["thaw", &job]);
    tree.expect_alive("thawed");
}
