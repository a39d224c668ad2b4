//! Checkpoint and restore as a user meets them: their options, what they print, and what they leave when they fail.

use floe_suite::{Counting, Host, Outcome, PID_METHODS, Traces, json, run, signal, spawn, until, wait};
use std::{
    fs::{self, File},
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

/// Runs a command line of `floe` in a mount namespace of its own, in which `script` has been run first.
fn elsewhere(host: &Host, script: &str, arguments: &[&str]) -> Outcome {
    let floe = host.command(arguments);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("set -e; {script}; exec \"$@\""), "sh"]);
    run(command
        .arg(floe.get_program())
        .args(floe.get_args())
        .stdin(Stdio::null()))
}

#[test]
fn usage_errors_are_two() {
    let host = Host::new();
    for line in [
        &["checkpoint"][..],
        &["checkpoint", "job"],
        &["checkpoint", "job", "--pid", "1", "-o", "x"],
        &["checkpoint", "job", "--level", "23", "-o", "x"],
        &["checkpoint", "job", "--level", "-8", "-o", "x"],
        &["checkpoint", "job", "--level", "high", "-o", "x"],
        &["checkpoint", "--pid", "one", "-o", "x"],
        &["restore"],
        &["restore", "--pid-method", "luck", "x"],
        &["inspect"],
        &["inspect", "x", "everything"],
        &["verify"],
    ] {
        let outcome = host.floe(line);
        assert_eq!(outcome.status, 2, "{line:?}: {}{}", outcome.out, outcome.err);
    }
    assert!(!Path::new("x").exists());
}

#[test]
fn an_image_goes_through_a_pipe() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    for method in PID_METHODS {
        let mut save = spawn(&mut host.command(&["checkpoint", &job, "-o", "-"]));
        let image = save.stdout.take().expect("a pipe");
        let mut restore = host.command(&["restore", "-d", "--pid-method", method, "-"]);
        let outcome = run(restore.stdin(image));
        assert_eq!(wait(save), 0);
        assert_eq!(outcome.expect_done().trim(), job);
        tree.expect_alive(method);
    }
    // One that nobody reads fails, and the tree runs on.
    let mut save = spawn(&mut host.command(&["checkpoint", &job, "-o", "-"]));
    drop(save.stdout.take());
    assert_eq!(wait(save), 1);
    tree.expect_alive("after a checkpoint that nobody read");
}

#[test]
fn a_checkpoint_that_waits_for_its_reader_can_be_interrupted() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let image = text(&host.path("job.floe"));
    host.done(&["checkpoint", &job, "--leave-running", "-o", &image]);
    let before = Traces::look(&host, &[&job], &[]);
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Nobody reads what is more than a pipe holds, so it is somewhere within when the signal comes.
        let mut save = spawn(&mut host.command(&["checkpoint", &job, "-o", "-"]));
        let mut out = save.stdout.take().expect("a pipe");
        out.read_exact(&mut [0; 1]).expect("the image begins");
        signal(save.id() as i32, number);
        let mut err = String::new();
        save.stderr
            .take()
            .expect("a pipe")
            .read_to_string(&mut err)
            .expect("read");
        assert_eq!(wait(save), 1, "{err}");
        assert!(err.starts_with("floe: interrupted"), "{err}");
        drop(out);
        before.expect_again(&host, &[&job], &[], "after an interrupted checkpoint");
        tree.expect_alive("after an interrupted checkpoint");
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let before = Traces::look(&host, &[&job], &[]);
    let outcome = host.floe(&["checkpoint", &job, "--dry-run"]);
    assert_eq!((outcome.status, &*outcome.out), (0, ""));
    assert!(
        outcome.err.starts_with("nothing stands in the way: "),
        "{}",
        outcome.err
    );
    before.expect_again(&host, &[&job], &[], "after a dry run");
    tree.expect_alive("after a dry run of a checkpoint");

    let image = text(&host.path("job.floe"));
    host.done(&["checkpoint", &job, "-o", &image]);
    let before = Traces::look(&host, &[&job], &[]);
    let steps = host.done(&["restore", "--dry-run", &image]);
    for wanted in ["1 gets its memory", "1 forks 2"] {
        assert!(steps.contains(wanted), "{wanted}: {steps}");
    }
    before.expect_again(&host, &[&job], &[], "after a dry run");
    assert!(host.sandboxes().is_empty());
    host.done(&["restore", "-d", &image]);
    tree.expect_alive("restored");
}

/// A sandbox that runs a copy of sleep(1) in a folder of its own, saved.
fn saved_copy(host: &Host) -> (String, String) {
    let (folder, program) = (text(&host.path("folder")), text(&host.path("copy")));
    fs::create_dir(&folder).expect("a folder");
    fs::copy("/bin/sleep", &program).expect("copy");
    let job = host.name("copy");
    host.done(&["run", "-d", "--name", &job, "-w", &folder, "--", &program, "1000"]);
    let image = text(&host.path("copy.floe"));
    host.done(&["checkpoint", &job, "-o", &image]);
    (job, image)
}

#[test]
fn obstacles_are_told_all_at_once() {
    let host = Host::new();
    let (job, image) = saved_copy(&host);
    let (folder, program) = (host.path("folder"), host.path("copy"));
    let good = fs::read(&program).expect("read");
    let expect = |wanted: &[String]| {
        for line in [&["restore", "--dry-run", &image][..], &["restore", "-d", &image]] {
            let err = host.floe(line).expect_failed();
            let things = if wanted.len() == 1 {
                "1 thing stands"
            } else {
                "2 things stand"
            };
            assert!(
                err.starts_with(&format!("floe: {things} in the way of this restore\n")),
                "{err}"
            );
            assert_eq!(err.lines().count(), 1 + wanted.len(), "{err}");
            for finding in wanted {
                assert!(err.contains(finding), "{finding}: {err}");
            }
            let mut json_line = vec!["--log-format", "json"];
            json_line.extend(line);
            let value = json(host.floe(&json_line).expect_failed().trim());
            assert_eq!(value["level"], "ERROR");
            assert_eq!(value["findings"].as_array().map(Vec::len), Some(wanted.len()));
            assert!(
                value["message"].as_str().is_some_and(|text| text.contains(things)),
                "{value}"
            );
        }
        assert!(host.sandboxes().is_empty());
    };
    let missing_folder = format!("  - working directory {}: it does not exist here\n", folder.display());
    let missing_file = format!("  - mapped file {}: it can't be opened here", program.display());
    let changed = format!("  - mapped file {}: ", program.display());
    fs::remove_dir(&folder).expect("remove");
    expect(std::slice::from_ref(&missing_folder));
    fs::remove_file(&program).expect("remove");
    expect(&[missing_folder, missing_file]);
    fs::create_dir(&folder).expect("a folder");
    for other in [&good[..good.len() - 1], &[&good[..], b"more"].concat()] {
        write_program(&program, other);
        expect(std::slice::from_ref(&changed));
    }
    write_program(&program, &good);
    assert_eq!(host.done(&["restore", "-d", &image]).trim(), job);
}

/// Two floes that freeze and thaw the same tasks would undo each other's work.
#[test]
fn one_act_at_a_time() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let list = json(&host.done(&["ps", "--json"]));
    let directory = File::open(list[0]["cgroup"].as_str().expect("a path")).expect("open the cgroup");
    directory.lock().expect("lock it");
    for line in [
        &["freeze", &job][..],
        &["thaw", &job],
        &["checkpoint", &job, "--dry-run"],
    ] {
        let err = host.floe(line).expect_failed();
        assert!(err.contains("another floe is freezing, thawing or saving"), "{err}");
    }
    drop(directory);
    host.done(&["freeze", &job]);
    host.done(&["thaw", &job]);
    tree.expect_alive("thawed");
}

/// The tree of a floe that is called from inside: it would never thaw it again.
#[test]
fn floe_does_not_stop_itself() {
    let host = Host::new();
    let job = host.sleeper("job");
    let list = json(&host.done(&["ps", "--json"]));
    let inner = host.name("inner");
    let beside = Path::new(list[0]["cgroup"].as_str().expect("a path"));
    let pattern = text(&beside.with_file_name(format!("{inner}*")));
    let script = format!("exec \"$0\" \"$@\" --cgroup {pattern}");
    let act = host.command(&["checkpoint", "--dry-run"]);
    let words = std::iter::once(act.get_program()).chain(act.get_args());
    let mut line = vec!["run", "--name", &inner, "--", "sh", "-c", &script];
    line.extend(words.map(|word| word.to_str().expect("plain words")));
    let err = host.floe(&line).expect_failed();
    assert!(err.contains("floe itself is part of that tree"), "{err}");
    assert_eq!(host.state(&job), "running");
}

/// A restore that may do less than what was saved could do.
#[test]
fn what_floe_may_not_give_is_an_obstacle() {
    let host = Host::new();
    let (_, image) = saved_copy(&host);
    for (prefix, wanted) in [
        (
            &[
                "setpriv",
                "--bounding-set",
                "-sys_resource",
                "prlimit",
                "--nofile=256:512",
            ][..],
            "floe may not set more than 512 (CAP_SYS_RESOURCE)",
        ),
        (
            &["setpriv", "--bounding-set", "-net_raw"],
            "floe lacks capabilities that it has (0x2000)",
        ),
    ] {
        let less = Host::behind(prefix);
        for line in [&["restore", "--dry-run", &image][..], &["restore", "-d", &image]] {
            let err = less.floe(line).expect_failed();
            assert!(err.starts_with("floe: 1 thing stands in the way"), "{err}");
            assert!(err.contains("  - process 1: ") && err.contains(wanted), "{err}");
        }
        assert!(less.sandboxes().is_empty());
    }
}

/// Names of the UTS namespace, the second of which only a process inside can set.
#[test]
fn names_of_the_host_come_along() {
    let host = Host::new();
    let job = host.name("names");
    let (ready, read) = (text(&host.path("ready")), text(&host.path("read")));
    let script = "echo fjord >/proc/sys/kernel/domainname; : >\"$0\"; sleep 1000 & wait $!; \
        cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname >\"$1\"";
    host.done(&[
        "run",
        "-d",
        "--name",
        &job,
        "--hostname",
        "berg",
        "--",
        "sh",
        "-c",
        script,
        &ready,
        &read,
    ]);
    until("the name is set", || Path::new(&ready).exists());
    let image = text(&host.path("names.floe"));
    host.done(&["checkpoint", &job, "-o", &image]);
    host.done(&["restore", "-d", &image]);
    // PID 1 may end, and pkill with it, before that has.
    let ended = host.floe(&["exec", &job, "--", "pkill", "-x", "sleep"]).status;
    assert!([0, 137].contains(&ended), "pkill: {ended}");
    host.done(&["wait", &job]);
    assert_eq!(fs::read_to_string(&read).expect("the names"), "berg\nfjord\n");
}

fn write_program(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, bytes).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

#[test]
fn the_output_that_cannot_be_written() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let folder = host.path("images");
    fs::create_dir(&folder).expect("a folder");
    let image = text(&folder.join("job.floe"));
    let before = Traces::look(&host, &[&job], &[]);
    let place = folder.display();
    for (script, reason) in [
        (
            format!("mount -t tmpfs -o size=64k none {place}"),
            "No space left on device",
        ),
        (
            format!("mount -t tmpfs none {place}; mount -o remount,ro {place}"),
            "Read-only file system",
        ),
        (
            format!("mount -t tmpfs none {place}; mkdir {image}"),
            "is no regular file",
        ),
        (
            format!("mount -t tmpfs none {place}; mknod {image} c 1 3"),
            "is no regular file",
        ),
        ("true".to_owned(), "No such file or directory"),
    ] {
        let target = if script == "true" {
            "/no/such/folder/job.floe"
        } else {
            &image
        };
        let err = elsewhere(&host, &script, &["checkpoint", &job, "-o", target]).expect_failed();
        assert!(err.starts_with("floe: ") && err.contains(reason), "{script}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        before.expect_again(&host, &[&job], &[], &script);
        tree.expect_alive(&script);
    }
    assert_eq!(fs::read_dir(&folder).expect("list").count(), 0);
}

#[test]
fn an_image_replaces_another_whole() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let image = host.path("job.floe");
    fs::write(&image, "older").expect("write");
    let older = File::open(&image).expect("open");
    host.done(&["checkpoint", &job, "--leave-running", "-o", &text(&image)]);
    let mut still = String::new();
    (&older).read_to_string(&mut still).expect("read");
    assert_eq!(still, "older", "the file that was there was written over");
    host.done(&["verify", &text(&image)]);
    tree.expect_alive("afterwards");
}

#[test]
fn a_second_one_runs_beside_the_first() {
    let host = Host::new();
    let (first, second) = (host.name("first"), host.name("second"));
    let tree = Counting::start(&host, &first, &[]);
    let image = text(&host.path("job.floe"));
    for method in PID_METHODS {
        host.done(&["checkpoint", &first, "--leave-running", "-o", &image]);
        let taken = host.floe(&["restore", "-d", &image]).expect_failed();
        assert!(
            taken.contains(&format!("a sandbox named {first} exists already")),
            "{taken}"
        );
        let printed = host.done(&["restore", "-d", "--name", &second, "--pid-method", method, &image]);
        assert_eq!(printed.trim(), second);
        let ids = |name: &str| {
            let tasks = tree.lasting(name).into_iter();
            tasks
                .map(|task| format!("{} {}", task["nspid"][1], task["comm"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&first), ids(&second));
        let both = || (host.state(&first), host.state(&second));
        assert_eq!(both(), ("running".to_owned(), "running".to_owned()));
        tree.expect_alive("both");
        host.done(&["kill", &first]);
        tree.expect_alive("the second alone");
        host.done(&["rm", "-f", &first]);
        host.done(&["checkpoint", &second, "-o", &image]);
        host.done(&["restore", "-d", "--name", &first, &image]);
    }
}

#[test]
fn every_level_gives_an_image_that_is_whole() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let mut sizes = Vec::new();
    for level in ["-7", "-1", "0", "1", "9", "22"] {
        let image = text(&host.path(&format!("{level}.floe")));
        host.done(&["checkpoint", &job, "--leave-running", "--level", level, "-o", &image]);
        assert!(host.done(&["verify", &image]).starts_with("whole: "));
        sizes.push(fs::metadata(&image).expect("the image").len());
    }
    assert!(sizes[0] > sizes[5], "{sizes:?}");
    tree.expect_alive("afterwards");
}

fn hand_no_descriptors_on() -> std::io::Result<()> {
    // SAFETY: plain numbers; the flag closes nothing before the exec.
    unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    Ok(())
}

/// A tree that floe knows nothing of; ended with the test.
struct Stray(Child);

impl Stray {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // SAFETY: plain numbers; the leader is not reaped yet, so its group is its own.
        unsafe { libc::kill(-self.pid(), libc::SIGKILL) };
        // Nobody else reaps it.
        let _ = self.0.wait();
    }
}

/// Starts a tree that floe knows nothing of, as the leader of a session of its own.
fn stray_tree(folder: &Path) -> Stray {
    fs::create_dir(folder).expect("a folder");
    let script = "python3 -c '
import threading, time
def count(name):
    n = 0
    while True:
        n += 1
        with open(name, \"w\") as file: file.write(str(n))
        time.sleep(0.01)
for name in (\"a\", \"b\"): threading.Thread(target=count, args=(name,)).start()
' & sh -c 'trap : TERM; while :; do sleep 0.01; done' & wait; wait";
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", script]).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // What the test's own caller has left open in it would be held outside of the tree.
    // SAFETY: the function makes one system call, which is safe between fork and exec.
    unsafe { command.pre_exec(hand_no_descriptors_on) };
    let child = Stray(command.spawn().expect("start setsid"));
    until("the tree", || ["a", "b"].iter().all(|name| counter(folder, name) > 3));
    child
}

fn counter(folder: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn counts_on(folder: &Path) {
    for name in ["a", "b"] {
        let now = counter(folder, name);
        until("the next number", || counter(folder, name) > now);
    }
}

/// PIDs of a process and those below it, but for short-lived ones.
fn below(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim() == "sleep" {
        return Vec::new();
    }
    let children = children.split_whitespace().filter_map(|word| word.parse().ok());
    [pid].into_iter().chain(children.flat_map(below)).collect()
}

#[test]
fn a_tree_that_floe_did_not_start() {
    let host = Host::new();
    for method in PID_METHODS {
        let folder = host.path(method);
        let mut root = stray_tree(&folder);
        let pid = root.pid();
        // Between its fork and its exec, a sleep(1) is one shell more.
        let mut pids = Vec::new();
        until("the tree", || {
            pids = below(pid);
            pids.len() == 3
        });
        let image = text(&host.path("stray.floe"));
        host.done(&["checkpoint", "--pid", &pid.to_string(), "--leave-running", "-o", &image]);
        counts_on(&folder);
        host.done(&["checkpoint", "--pid", &pid.to_string(), "-o", &image]);
        assert!(root.0.wait().is_ok_and(|status| !status.success()), "it goes on");
        let name = host.name("stray");
        let line = ["restore", "-d", "--name", &name, "--pid-method", method, &image];
        assert_eq!(host.done(&line).trim(), name);
        counts_on(&folder);
        // The tree, and the init above it.
        until("the whole tree", || below(host.pid1(&name)).len() == 4);
        host.done(&["freeze", &name]);
        let tasks = json(&host.done(&["ps", "--json", &name]));
        host.done(&["thaw", &name]);
        let inner = tasks
            .as_array()
            .expect("a list")
            .iter()
            .filter(|task| task["comm"] != "sleep");
        let inner: Vec<i64> = inner.map(|task| task["nspid"][1].as_i64().expect("a PID")).collect();
        let wanted: Vec<i64> = [1].into_iter().chain(pids.iter().map(|pid| i64::from(*pid))).collect();
        assert!(
            wanted.iter().all(|pid| inner.contains(pid)),
            "{inner:?} lacks some of {wanted:?}"
        );
        assert_eq!(tasks[1]["sid"], i64::from(pid));
        // And what came of it is a sandbox like any other.
        host.done(&["checkpoint", &name, "-o", &image]);
        host.done(&["restore", "-d", &image]);
        counts_on(&folder);
        host.done(&["rm", "-f", &name]);
    }
    let err = host
        .floe(&["checkpoint", "--pid", "999999999", "-o", "-"])
        .expect_failed();
    assert_eq!(err, "floe: there is no process 999999999\n");
}

/// A cgroup of a test's own. Dropped, it goes as soon as it is empty.
struct OwnCgroup(PathBuf);

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.0.exists() && fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn all_of_a_cgroup() {
    let host = Host::new();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let list = json(&host.done(&["ps", "--json"]));
    let cgroup = list[0]["cgroup"].as_str().expect("a path");
    let image = text(&host.path("job.floe"));
    // Its streams lead to a monitor that such a checkpoint knows nothing of.
    let err = host
        .floe(&["checkpoint", "--cgroup", cgroup, "--leave-running", "-o", &image])
        .expect_failed();
    assert!(err.contains("held outside of the tree"), "{err}");
    tree.expect_alive("after a refusal");

    let folder = host.path("stray");
    let own = Path::new(cgroup).parent().expect("a parent").join(host.name("own"));
    fs::create_dir(&own).expect("a cgroup");
    // Made before the tree, so that it goes behind it, also where the test fails.
    let own = OwnCgroup(own);
    let mut root = stray_tree(&folder);
    for pid in below(root.pid()) {
        match fs::write(own.0.join("cgroup.procs"), pid.to_string()) {
            // A sleep(1) that has ended since the tree was read.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved.expect("move it there"),
        }
    }
    // A sleep(1) may still stand where it was born.
    until("one tree", || {
        let outcome = host.floe(&["checkpoint", "--cgroup", &text(&own.0), "--leave-running", "-o", &image]);
        outcome.status == 0
    });
    counts_on(&folder);
    host.done(&["checkpoint", "--cgroup", &text(&own.0), "-o", &image]);
    root.0.wait().expect("reap it");
    fs::remove_dir(&own.0).expect("an empty cgroup");
    let name = host.name("stray");
    host.done(&["restore", "-d", "--name", &name, &image]);
    counts_on(&folder);
    for (path, reason) in [("/", "in no cgroup hierarchy"), ("/no/such", "in no cgroup hierarchy")] {
        let err = host
            .floe(&["checkpoint", "--cgroup", path, "-o", &image])
            .expect_failed();
        assert!(err.contains(reason), "{path}: {err}");
    }
}

#[test]
fn diagnostics_for_people_and_for_programs() {
    let host = Host::new();
    let job = host.name("job");
    let _tree = Counting::start(&host, &job, &[]);
    let image = text(&host.path("job.floe"));
    let line = ["checkpoint", &job, "--leave-running", "-o", &image];
    let quiet = host.floe(&line);
    assert_eq!((&*quiet.out, quiet.err.lines().count()), ("", 1), "{}", quiet.err);
    let verbose = host.floe(&[&["-v"], &line[..]].concat());
    assert_eq!(verbose.out, "");
    assert!(!verbose.err.contains('\u{1b}'), "colours in a file: {}", verbose.err);
    for stage in host.done(&["checkpoint", "--stages"]).lines() {
        assert!(
            verbose.err.contains(&format!("begin stage=\"{stage}\"")),
            "{stage}: {}",
            verbose.err
        );
    }
    let programs = host.floe(&[&["-v", "--log-format", "json"], &line[..]].concat());
    for object in programs.err.lines() {
        assert!(json(object)["level"].is_string(), "{object}");
    }
    let failed = host
        .floe(&["--log-format", "json", "ps", "no-such-one"])
        .expect_failed();
    let wanted = r#"{"level": "ERROR", "message": "there is no sandbox named no-such-one (floe ps lists them)", "findings": []}"#;
    assert_eq!(json(&failed), json(wanted));
}

#[test]
fn what_inspect_and_verify_tell() {
    let host = Host::new();
    let job = host.name("job");
    let _tree = Counting::start(&host, &job, &[]);
    let image = text(&host.path("job.floe"));
    host.done(&["checkpoint", &job, "-o", &image]);
    let told = host.done(&["inspect", &image]);
    let first: Vec<&str> = told.lines().take(2).collect();
    assert!(first[0].starts_with(&format!("{job}: bash -c ")), "{told}");
    let date = told
        .split(" at 2")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .expect("a date");
    assert_eq!(date.len(), "026-11-25 01:51:31 +00:00".len(), "{date}");
    assert!(told.contains(" to 1), "), "{told}");
    let whole = json(&host.done(&["inspect", "--json", &image]));
    assert!(
        whole["header"]["created"]
            .as_u64()
            .is_some_and(|seconds| seconds > 1_700_000_000)
    );
    for section in ["ps", "memory", "files", "networks", "sizes"] {
        assert_eq!(
            json(&host.done(&["inspect", "--json", &image, section])),
            whole[section],
            "{section}"
        );
        assert!(!host.done(&["inspect", &image, section]).is_empty());
    }
    for task in whole["ps"].as_array().expect("a list") {
        for key in ["pid", "ppid", "pgid", "sid", "comm", "state", "threads", "pages"] {
            assert!(!task[key].is_null(), "{key}: {task}");
        }
    }
    // A stream has the same to say.
    let piped = run(host
        .command(&["inspect", "--json", "-"])
        .stdin(File::open(&image).expect("open")));
    assert_eq!(json(&piped.expect_done())["ps"], whole["ps"]);
    let verified = run(host.command(&["verify", "-"]).stdin(File::open(&image).expect("open"))).expect_done();
    assert_eq!(verified, host.done(&["verify", &image]));
}

/// A pseudo-terminal: the end that looks on, and the one that is a terminal.
fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers are written by the call, which takes null for name, settings and size.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            none,
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "openpty");
    for end in [master, slave] {
        // SAFETY: plain numbers. Children of other tests must not hold these ends.
        unsafe { libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: the call just made it, and nobody else owns it.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: likewise.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    (master, slave)
}

#[test]
fn a_bar_on_a_terminal_and_nothing_in_a_pipe() {
    let host = Host::new();
    let job = host.name("big");
    let program = "import os, time\ndata = os.urandom(48 << 20)\nopen('ready', 'w').close()\ntime.sleep(1000)";
    let folder = text(&host.path(""));
    host.done(&[
        "run", "-d", "--name", &job, "-w", &folder, "--", "python3", "-c", program,
    ]);
    until("the program", || host.path("ready").exists());
    let image = text(&host.path("big.floe"));
    // At this level it takes longer than a person waits without a sign of life.
    let line = ["checkpoint", &job, "--leave-running", "--level", "19", "-o", &image];
    let (mut master, slave) = terminal();
    let mut command = host.command(&line);
    let child = command.stdout(Stdio::null()).stderr(slave).spawn().expect("start floe");
    drop(command);
    let reader = std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        // EIO: nobody has the terminal open any more.
        while let Ok(got @ 1..) = master.read(&mut buffer) {
            all.extend_from_slice(&buffer[..got]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    assert_eq!(wait(child), 0);
    let shown = reader.join().expect("what was shown");
    assert!(
        shown.contains("pages") && shown.contains("ETA") && shown.contains("MiB"),
        "{shown:?}"
    );
    let outcome = host.floe(&line);
    assert_eq!((outcome.status, outcome.err.lines().count()), (0, 1), "{}", outcome.err);
    assert!(!outcome.err.contains("ETA"), "{}", outcome.err);
}
