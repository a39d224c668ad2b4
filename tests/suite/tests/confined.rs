//! A floe that has seccomp filters itself, as in a container: what it runs has them too, it may not lift them, and it
//! says so before anything is changed. And that looking for Landlock domains leaves no trace.

use floe_suite::{Host, PID_METHODS, Victim, program, run, spawn, until};
use std::process::Command;

/// Looks at all processes for a secret of floe's, as a user whose process is being saved.
const SPY: &str = r#"
import os, sys
found = 0
while not os.path.exists(sys.argv[1]):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                found += b"A_SECRET_OF_ROOTS" in file.read()
        except OSError:
            pass
print("found", found)
"#;

#[test]
fn a_process_that_is_looked_at_learns_nothing_of_floe() {
    let host = Host::new();
    let name = host.name("watched");
    host.done(&[
        "run",
        "-d",
        "--name",
        &name,
        "--",
        "setpriv",
        "--reuid",
        "54321",
        "--clear-groups",
        "sleep",
        "1000",
    ]);
    let (end, image) = (host.path("end"), host.path("watched.floe"));
    let mut spy = Command::new("setpriv");
    let as_user = ["--reuid", "54321", "--clear-groups", "env", "PATH=/usr/bin:/bin"];
    spy.args(as_user).args(["python3", "-c", SPY]).arg(&end);
    let spy = spawn(&mut spy);
    for _ in 0..10 {
        let line = [
            "checkpoint",
            &name,
            "--leave-running",
            "-o",
            image.to_str().expect("a plain path"),
        ];
        let outcome = run(host.command(&line).env("SECRET", "A_SECRET_OF_ROOTS"));
        assert_eq!(outcome.status, 0, "{}", outcome.err);
    }
    std::fs::write(&end, "").expect("tell it to end");
    let told = spy.wait_with_output().expect("what it found");
    let [out, err] = [told.stdout, told.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert_eq!(out.trim(), "found 0", "{err}");
}

#[test]
fn a_confined_floe_refuses_confined_tasks_and_carries_them_nowhere() {
    let prefix = program("confined");
    let host = Host::behind(&[prefix.to_str().expect("a plain path")]);
    let mut victim = Victim::start(&host, "heap", &[], &[]);
    let image = host.path("image.floe");
    let text = host
        .floe(&["checkpoint", "heap", "-o", image.to_str().expect("a plain path")])
        .expect_failed();
    assert!(
        text.contains("seccomp mode 2 of thread 1: only root, itself without filters, may read and suspend it"),
        "{text}"
    );
    assert!(!image.exists(), "an image of a refused tree");
    victim.check("after it was refused");
}

/// The kernel's own way of going on with a sleep is deadly to one of its children.
#[test]
fn confined_tasks_are_frozen_and_thawed() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "seccomp-strict", &[], &[]);
    for _ in 0..5 {
        host.done(&["freeze", "seccomp-strict"]);
        host.done(&["thaw", "seccomp-strict"]);
    }
    victim.check("thawed");
    host.done(&["freeze", "seccomp-strict"]);
    let image = host.path("image.floe");
    let line = ["checkpoint", "seccomp-strict", "--leave-running", "-o"];
    host.done(&[&line[..], &[image.to_str().expect("a plain path")]].concat());
    host.done(&["thaw", "seccomp-strict"]);
    victim.check("thawed after a checkpoint of the frozen tree");
}

/// To look for Landlock domains floe puts a process into the tree's PID namespace, whose number is given back.
#[test]
fn a_checkpoint_takes_no_number_of_the_tree() {
    let host = Host::new();
    let (job, script) = (
        host.name("numbers"),
        "sh -c 'echo $$' >$0/one; while ! [ -e $0/go ]; do :; done; sh -c 'echo $$' >$0/two; : >$0/done; sleep 1000",
    );
    let folder = host.path("numbers");
    std::fs::create_dir(&folder).expect("a folder");
    let place = folder.to_str().expect("a plain path");
    host.done(&["run", "-d", "--name", &job, "--", "sh", "-c", script, place]);
    let number = |name: &str| -> i32 {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    until("the first number", || number("one") > 0);
    for _ in 0..3 {
        let image = host.path("image.floe");
        host.done(&[
            "checkpoint",
            &job,
            "--leave-running",
            "-o",
            image.to_str().expect("a plain path"),
        ]);
    }
    std::fs::write(folder.join("go"), "").expect("let it go on");
    until("the second number", || folder.join("done").exists());
    assert_eq!(number("two"), number("one") + 1);
}

#[test]
fn a_confined_floe_can_not_rebuild_filters() {
    let free = Host::new();
    let mut victim = Victim::start(&free, "seccomp-filters", &[], &[]);
    victim.round_trip("again", PID_METHODS[0]);
    let image = free.path("image.floe");
    let prefix = program("confined");
    let host = Host::behind(&[prefix.to_str().expect("a plain path")]);
    let line = ["restore", "--dry-run", image.to_str().expect("a plain path")];
    let text = host.floe(&line).expect_failed();
    assert!(
        text.contains(
            "process 1: its calls are confined (seccomp), which floe can't rebuild where it has filters itself"
        ),
        "{text}"
    );
}
