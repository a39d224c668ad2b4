//! `floe exec --pid`: a command where any process is.

use floe_suite::{Host, ORDINARY, Outcome, json, run, skip, until};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{gettid, sethostname},
};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
};

const NAMES: [&str; 8] = ["mnt", "net", "ipc", "user", "pid", "uts", "cgroup", "time"];

/// A command with what it starts, in a process group that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).process_group(0).spawn().expect("start it"))
    }

    /// `sleep` below it, or itself turned into that.
    fn sleeper(&self) -> i32 {
        let mut found = None;
        until("the sleeper", || {
            let own = self.0.id() as i32;
            found = [Some(own), child_of(own)]
                .into_iter()
                .flatten()
                .find(|pid| is_sleep(*pid));
            found.is_some()
        });
        found.expect("it is there")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: plain numbers; the group is the child's own.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        self.0.wait().expect("reap it");
    }
}

fn child_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn is_sleep(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

fn link(pid: i32, name: &str) -> String {
    let target = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
    target.to_string_lossy().into_owned()
}

fn exec(host: &Host, pid: i32, line: &[&str]) -> Outcome {
    host.floe(&[&["exec", "--pid", &pid.to_string(), "--"], line].concat())
}

fn shell(words: &str) -> Running {
    let mut command = Command::new("sh");
    Running::start(command.args(["-c", words]))
}

#[test]
fn all_namespaces_are_entered() {
    let host = Host::new();
    let all = "--user --map-root-user --pid --net --uts --ipc --mount --cgroup --time --fork --mount-proc";
    let target = shell(&format!("exec unshare {all} sleep 1000"));
    let pid = target.sleeper();
    let script = format!("id -u; id -g; cd /proc/self/ns; readlink {}", NAMES.join(" "));
    let told = exec(&host, pid, &["sh", "-c", &script]).expect_done();
    let wanted: Vec<String> = NAMES.iter().map(|name| link(pid, name)).collect();
    assert_eq!(told, format!("0\n0\n{}\n", wanted.join("\n")));
    // Those that are ours too are not in the way.
    let target = shell("exec unshare --uts sleep 1000");
    let pid = target.sleeper();
    let told = exec(&host, pid, &["readlink", "/proc/self/ns/uts", "/proc/self/ns/user"]).expect_done();
    assert_eq!(told, format!("{}\n{}\n", link(pid, "uts"), link(pid, "user")));
    let told = exec(&host, std::process::id() as i32, &["readlink", "/proc/self/ns/uts"]).expect_done();
    assert_eq!(told, format!("{}\n", link(std::process::id() as i32, "uts")));
}

#[test]
fn exit_statuses_are_those_of_exec() {
    let host = Host::new();
    let target = shell("exec unshare --uts --pid --fork sleep 1000");
    let pid = target.sleeper();
    for (line, status, said) in [
        (&["true"][..], 0, String::new()),
        (&["sh", "-c", "exit 7"], 7, String::new()),
        (&["sh", "-c", "kill -TERM $$"], 143, String::new()),
        (
            &["no-such-program"],
            127,
            format!("floe: execute no-such-program in process {pid}: ENOENT: No such file or directory\n"),
        ),
        (
            &["/etc/passwd"],
            126,
            format!("floe: execute /etc/passwd in process {pid}: EACCES: Permission denied\n"),
        ),
    ] {
        let outcome = exec(&host, pid, line);
        assert_eq!((outcome.status, outcome.err), (status, said), "{line:?}");
    }
    let outcome = exec(&host, 4_194_305, &["true"]);
    let said = "floe: open a handle of process 4194305: ESRCH: No such process\n";
    assert_eq!((outcome.status, &*outcome.err), (125, said));
    for line in [
        &["exec", "--", "true"][..],
        &["exec", "--pid", "1", "job", "--", "true"],
        &["exec", "--pid", "x", "--", "true"],
    ] {
        assert_eq!(host.floe(line).status, 2, "{line:?}");
    }
}

#[test]
fn its_directories_are_the_commands() {
    let host = Host::new();
    let root = host.path("root");
    fs::create_dir(&root).expect("a folder");
    // Not recursive: of what is mounted below, there is nothing.
    let script = format!(
        "mount --make-rprivate / && mount --bind / {0} && exec chroot {0} sh -c 'cd /usr && exec sleep 1000'",
        root.display()
    );
    let target = shell(&format!("exec unshare --mount sh -c \"{script}\""));
    let pid = target.sleeper();
    let look = "pwd; test -e /proc/self || echo bare; test -d /usr && echo whole";
    assert_eq!(
        exec(&host, pid, &["sh", "-c", look]).expect_done(),
        "/usr\nbare\nwhole\n"
    );
    let line = ["exec", "--pid", &pid.to_string(), "-w", "/etc", "--", "pwd"];
    assert_eq!(host.done(&line), "/etc\n");
    let line = [
        "exec",
        "--pid",
        &pid.to_string(),
        "-w",
        "bin",
        "-e",
        "NAME=value",
        "--",
        "sh",
        "-c",
        "pwd; echo $NAME",
    ];
    assert_eq!(host.done(&line), "/usr/bin\nvalue\n");
    let line = ["exec", "--pid", &pid.to_string(), "-w", "/no/such/folder", "--", "pwd"];
    assert_eq!(host.floe(&line).status, 125);
}

#[test]
fn only_a_sandboxs_cgroup_is_entered() {
    let host = Host::new();
    let name = host.name("entered");
    host.done(&["run", "-d", "--name", &name, "--", "unshare", "-fp", "sleep", "1000"]);
    let mut inner = None;
    until("the sleeper", || {
        inner = child_of(host.pid1(&name)).filter(|pid| is_sleep(*pid));
        inner.is_some()
    });
    let inner = inner.expect("it is there");
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    let outside = shell("exec unshare --uts sleep 1000");
    // In one below the sandbox's own, which a workload may make.
    let list = json(&host.done(&["ps", "--json"]));
    let own = list
        .as_array()
        .expect("a list")
        .iter()
        .find(|entry| entry["name"] == *name);
    let own = Path::new(own.expect("it is there")["cgroup"].as_str().expect("a path")).to_owned();
    let below = own.join("below");
    fs::create_dir(&below).expect("a cgroup");
    fs::write(below.join("cgroup.procs"), inner.to_string()).expect("move there");
    // The command shows both its namespace and its place among the sandbox's tasks.
    let mut command = host.command(&["exec", "--pid", &inner.to_string(), "--", "sleep", "999"]);
    let inside = Running::start(&mut command);
    let entered = inside.sleeper();
    assert_eq!(
        (link(entered, "pid"), cgroups(entered)),
        (link(inner, "pid"), cgroups(inner))
    );
    let tasks = json(&host.done(&["ps", "--json", &name]));
    let known = tasks
        .as_array()
        .expect("a list")
        .iter()
        .any(|task| task["nspid"][0] == entered);
    assert!(known, "{tasks}");
    let mut command = host.command(&["exec", "--pid", &outside.sleeper().to_string(), "--", "sleep", "999"]);
    let beside = Running::start(&mut command);
    assert_eq!(cgroups(beside.sleeper()), cgroups(std::process::id() as i32));
    // It would be frozen as soon as it came.
    host.done(&["freeze", &name]);
    let outcome = exec(&host, inner, &["true"]);
    let said = format!("floe: sandbox {name} is frozen; thaw it first (floe thaw {name})\n");
    assert_eq!((outcome.status, outcome.err), (125, said));
    host.done(&["thaw", &name]);
    assert_eq!(exec(&host, inner, &["true"]).status, 0);
    drop(inside);
    fs::write(own.join("cgroup.procs"), inner.to_string()).expect("move back");
    until("the end of the cgroup", || fs::remove_dir(&below).is_ok());
}

#[test]
fn a_thread_may_be_elsewhere_than_its_process() {
    let host = Host::new();
    let (say, hear) = mpsc::channel();
    let (end, wait) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWUTS).expect("a namespace");
        sethostname("floe-thread").expect("a name");
        say.send(gettid().as_raw()).expect("tell");
        wait.recv().unwrap_or_default();
    });
    let tid = hear.recv().expect("hear");
    assert_eq!(exec(&host, tid, &["uname", "-n"]).expect_done(), "floe-thread\n");
    let own = std::process::id() as i32;
    assert_ne!(exec(&host, own, &["uname", "-n"]).expect_done(), "floe-thread\n");
    drop(end);
    thread.join().expect("its end");
}

#[test]
fn an_ordinary_user_enters_what_is_theirs() {
    let host = Host::of_ordinary_user();
    let theirs = |line: &[&str]| {
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).uid(ORDINARY).gid(ORDINARY).current_dir("/");
        command
    };
    let may = run(&mut theirs(&["unshare", "-U", "true"]));
    if may.status != 0 {
        skip(&format!(
            "ordinary users may not make user namespaces here: {}",
            may.err.trim()
        ));
        return;
    }
    let mapped = Running::start(&mut theirs(&[
        "unshare",
        "-U",
        "-r",
        "--mount-proc",
        "-fp",
        "sleep",
        "1000",
    ]));
    let pid = mapped.sleeper();
    let told = exec(&host, pid, &["sh", "-c", "id -u; readlink /proc/self/ns/pid"]).expect_done();
    assert_eq!(told, format!("0\n{}\n", link(pid, "pid")));
    // Where 0 is nobody's number, they stay who they are: unknown too.
    let unmapped = Running::start(&mut theirs(&["unshare", "-U", "sleep", "1000"]));
    let pid = unmapped.sleeper();
    let told = exec(&host, pid, &["sh", "-c", "id -u; readlink /proc/self/ns/user"]).expect_done();
    assert_eq!(told, format!("65534\n{}\n", link(pid, "user")));
    // With a process of theirs that is nowhere else they are where they were.
    let plain = Running::start(&mut theirs(&["sleep", "1000"]));
    assert_eq!(
        exec(&host, plain.sleeper(), &["id", "-u"]).expect_done(),
        format!("{ORDINARY}\n")
    );
    let others = shell("exec unshare --uts sleep 1000");
    let pid = others.sleeper();
    let outcome = exec(&host, pid, &["true"]);
    let said = format!("floe: open the root directory of process {pid}: EACCES: Permission denied\n");
    assert_eq!((outcome.status, outcome.err), (125, said));
}
