//! All or nothing: whatever fails, interrupts or kills floe, a tree that was to be saved runs on, and of one that was to
//! be restored nothing is left.

use floe_suite::{Counting, Host, Traces, Victim, run, spawn, times, until, wait};
use std::{
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

/// Kills of each of the two acts.
const KILLS: u32 = 200;

fn stages(host: &Host, verb: &str) -> Vec<String> {
    host.done(&[verb, "--stages"]).lines().map(str::to_owned).collect()
}

fn output_folder(host: &Host) -> PathBuf {
    host.folder("images")
}

#[test]
fn a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running() {
    a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running_on(&Host::new());
}

#[test]
fn a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running_of_an_ordinary_user() {
    a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running_on(&Host::of_ordinary_user());
}

#[test]
fn a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running_of_a_user_that_root_saves() {
    a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running_on(&Host::of_root_for_a_user());
}

fn a_checkpoint_that_fails_at_any_stage_leaves_the_tree_running_on(host: &Host) {
    let folder = output_folder(host);
    let image = folder.join("job.floe");
    let job = host.name("job");
    let tree = Counting::start(host, &job, &[]);
    let before = Traces::look(host, &[&job], &[&folder]);
    let stages = stages(host, "checkpoint");
    assert!(stages.len() > 5, "{stages:?}");
    for stage in stages {
        for how in ["", ":panic"] {
            for arguments in [&[][..], &["--leave-running"][..]] {
                let mut line = vec!["checkpoint", &job, "-o", image.to_str().expect("a plain path")];
                line.extend(arguments);
                let outcome = run(host.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
                let when = format!("after a failure at {stage}{how}");
                assert_ne!(outcome.status, 0, "{when}: {}", outcome.err);
                assert!(outcome.err.contains(&stage), "{when}: {}", outcome.err);
                before.expect_again(host, &[&job], &[&folder], &when);
                tree.expect_alive(&when);
            }
        }
    }
}

#[test]
fn a_checkpoint_that_fails_keeps_the_image_that_was_there() {
    let host = Host::new();
    let folder = output_folder(&host);
    let image = folder.join("job.floe");
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    std::fs::write(&image, "an older image").expect("write");
    for stage in stages(&host, "checkpoint") {
        let line = ["checkpoint", &job, "-o", image.to_str().expect("a plain path")];
        let outcome = run(host.command(&line).env("FLOE_FAIL_AT", &stage));
        assert_eq!(outcome.status, 1, "{}", outcome.err);
        assert_eq!(
            std::fs::read_to_string(&image).expect("the older image"),
            "an older image",
            "{stage}"
        );
    }
    tree.expect_alive("at the end");
}

#[test]
fn a_restore_that_fails_at_any_stage_leaves_nothing() {
    a_restore_that_fails_at_any_stage_leaves_nothing_on(&Host::new());
}

#[test]
fn a_restore_that_fails_at_any_stage_leaves_nothing_of_an_ordinary_user() {
    a_restore_that_fails_at_any_stage_leaves_nothing_on(&Host::of_ordinary_user());
}

#[test]
fn a_restore_that_fails_at_any_stage_leaves_nothing_of_a_user_that_root_restores() {
    a_restore_that_fails_at_any_stage_leaves_nothing_on(&Host::of_root_for_a_user());
}

fn a_restore_that_fails_at_any_stage_leaves_nothing_on(host: &Host) {
    let folder = output_folder(host);
    let image = folder.join("job.floe");
    let job = host.name("job");
    let tree = Counting::start(host, &job, &[]);
    host.done(&["checkpoint", &job, "-o", image.to_str().expect("a plain path")]);
    let before = Traces::look(host, &[&job], &[&folder]);
    let counts = tree.numbers();
    let stages = stages(host, "restore");
    assert!(stages.len() > 8, "{stages:?}");
    for stage in stages {
        for how in ["", ":panic"] {
            let line = ["restore", "-d", image.to_str().expect("a plain path")];
            let outcome = run(host.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
            let when = format!("after a failure at {stage}{how}");
            assert_ne!(outcome.status, 0, "{when}: {}", outcome.err);
            assert!(outcome.err.contains(&stage), "{when}: {}", outcome.err);
            before.expect_again(host, &[&job], &[&folder], &when);
            assert_eq!(tree.numbers(), counts, "{when} it had run");
        }
    }
    host.done(&["restore", "-d", image.to_str().expect("a plain path")]);
    tree.expect_alive("restored at last");
}

/// A pseudo-random number from 0 up to `limit`; each test has its own sequence, the same each time.
fn random(state: &mut u64, limit: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % limit
}

fn signal_after(child: &Child, signal: i32, micros: u64) {
    std::thread::sleep(Duration::from_micros(micros));
    // SAFETY: plain numbers; the child is not reaped yet, so its number is its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// How long the command takes, in microseconds: the middle of five runs.
fn typical_micros(mut once: impl FnMut()) -> u64 {
    let mut times: Vec<u64> = (0..5)
        .map(|_| {
            let begin = std::time::Instant::now();
            once();
            begin.elapsed().as_micros() as u64
        })
        .collect();
    times.sort_unstable();
    times[2]
}

#[test]
fn checkpoints_killed_at_random_moments_leave_the_tree_unharmed() {
    checkpoints_killed_at_random_moments_leave_the_tree_unharmed_on(&Host::new(), times(KILLS));
}

#[test]
fn checkpoints_killed_at_random_moments_leave_the_tree_unharmed_of_an_ordinary_user() {
    checkpoints_killed_at_random_moments_leave_the_tree_unharmed_on(&Host::of_ordinary_user(), times(KILLS / 8));
}

fn checkpoints_killed_at_random_moments_leave_the_tree_unharmed_on(host: &Host, kills: u32) {
    let folder = output_folder(host);
    let image = folder.join("job.floe");
    let job = host.name("job");
    let line = [
        "checkpoint",
        &job,
        "--leave-running",
        "-o",
        image.to_str().expect("a plain path"),
    ];
    let tree = Counting::start(host, &job, &[]);
    let tasks = || tree.lasting(&job).iter().map(identity).collect::<Vec<_>>();
    let wanted = tasks();
    let usual = typical_micros(|| drop(host.done(&line)));
    let before = Traces::look(host, &[&job], &[&folder]);
    let mut state = 0x5eed_0001;
    for round in 0..kills {
        let child = host
            .command(&line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start floe");
        signal_after(&child, libc::SIGKILL, random(&mut state, usual * 5 / 4));
        let _ = wait(child);
        let when = format!("after kill {round}");
        tree.expect_alive(&when);
        // A decoy of floe's in the tree's PID namespace notices the end of floe a moment later.
        until(&format!("the tree as it was {when}"), || tasks() == wanted);
        before.expect_again(host, &[&job], &[&folder], &when);
    }
    // It is whole: another checkpoint goes through, and so does its restore.
    host.done(&["checkpoint", &job, "-o", image.to_str().expect("a plain path")]);
    host.done(&["restore", "-d", image.to_str().expect("a plain path")]);
    tree.expect_alive("restored after all the kills");
}

/// Calls that floe runs in them would end them: whoever is killed is not who traces them.
#[test]
fn killed_and_interrupted_checkpoints_do_not_harm_confined_tasks() {
    stopped_checkpoints_do_not_harm("seccomp-strict");
}

/// What lets floe's calls through is undone by the task itself.
#[test]
fn killed_and_interrupted_checkpoints_leave_dispatched_calls_dispatched() {
    stopped_checkpoints_do_not_harm("call-dispatch");
}

/// What waits in sockets is looked at, and not taken.
#[test]
fn killed_and_interrupted_checkpoints_leave_sockets_as_they_were() {
    stopped_checkpoints_do_not_harm("sockets-unix");
    stopped_checkpoints_do_not_harm("sockets-tcp");
}

fn stopped_checkpoints_do_not_harm(name: &str) {
    let host = Host::new();
    let folder = output_folder(&host);
    let image = folder.join("job.floe");
    let sandbox = host.name(name);
    let mut victim = Victim::start_as(&sandbox, &host, name, &[], &[]);
    let line = [
        "checkpoint",
        &sandbox,
        "--leave-running",
        "-o",
        image.to_str().expect("a plain path"),
    ];
    let usual = typical_micros(|| drop(host.done(&line)));
    let before = Traces::look(&host, &[&sandbox], &[&folder]);
    let (mut state, mut stopped) = (0x5eed_0004, 0);
    for round in 0..times(60) {
        let signal = [libc::SIGKILL, libc::SIGTERM, libc::SIGKILL][round % 3];
        let child = spawn(&mut host.command(&line));
        signal_after(&child, signal, random(&mut state, usual));
        stopped += u32::from(wait(child) != 0);
        before.expect_again(&host, &[&sandbox], &[&folder], &format!("after round {round}"));
    }
    assert!(stopped > times(60) / 4, "only {stopped} checkpoints were stopped");
    victim.check("after all of that");
    victim.round_trip("again", floe_suite::PID_METHODS[0]);
    victim.check("restored");
}

/// Ids of a task, outside and inside, and how many threads it has.
fn identity(task: &serde_json::Value) -> [i64; 3] {
    let number = |value: &serde_json::Value| value.as_i64().unwrap_or(-1);
    [
        number(&task["nspid"][0]),
        number(&task["nspid"][1]),
        number(&task["threads"]),
    ]
}

#[test]
fn interrupted_checkpoints_leave_the_tree_unharmed() {
    let host = Host::new();
    let folder = output_folder(&host);
    let image = folder.join("job.floe");
    let job = host.name("job");
    let line = [
        "checkpoint",
        &job,
        "--leave-running",
        "-o",
        image.to_str().expect("a plain path"),
    ];
    let tree = Counting::start(&host, &job, &[]);
    let usual = typical_micros(|| drop(host.done(&line)));
    std::fs::remove_file(&image).expect("remove the image");
    let before = Traces::look(&host, &[&job], &[&folder]);
    let (mut state, mut interrupted) = (0x5eed_0002, 0);
    for round in 0..times(40) {
        let signal = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP][round % 3];
        let child = host
            .command(&line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start floe");
        signal_after(&child, signal, random(&mut state, usual));
        let when = format!("after interruption {round}");
        if wait(child) == 0 {
            std::fs::remove_file(&image).expect("a checkpoint that succeeded has an image");
        } else {
            interrupted += 1;
        }
        before.expect_again(&host, &[&job], &[&folder], &when);
        tree.expect_alive(&when);
    }
    assert!(interrupted > 0, "no checkpoint was interrupted");
}

#[test]
fn restores_killed_at_random_moments_leave_nothing() {
    restores_killed_at_random_moments_leave_nothing_on(&Host::new(), times(KILLS));
}

#[test]
fn restores_killed_at_random_moments_leave_nothing_of_an_ordinary_user() {
    restores_killed_at_random_moments_leave_nothing_on(&Host::of_ordinary_user(), times(KILLS / 8));
}

fn restores_killed_at_random_moments_leave_nothing_on(host: &Host, kills: u32) {
    let folder = output_folder(host);
    let image = folder.join("job.floe");
    let image = image.to_str().expect("a plain path");
    let job = host.name("job");
    let tree = Counting::start(host, &job, &[]);
    host.done(&["checkpoint", &job, "-o", image]);
    let before = Traces::look(host, &[&job], &[&folder]);
    let line = ["restore", "-d", image];
    let usual = typical_micros(|| {
        host.done(&line);
        host.done(&["rm", "-f", &job]);
    });
    let (mut state, mut killed) = (0x5eed_0003, 0);
    for round in 0..kills {
        let child = host
            .command(&line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start floe");
        signal_after(&child, libc::SIGKILL, random(&mut state, usual));
        let when = format!("after kill {round}");
        if wait(child) == 0 {
            host.done(&["rm", "-f", &job]);
        } else {
            killed += 1;
            forget_if_committed(host, &job);
        }
        before.expect_again(host, &[&job], &[&folder], &when);
    }
    assert!(killed > kills / 4, "only {killed} restores were killed");
    host.done(&line);
    tree.expect_alive("restored after all the kills");
}

/// A floe killed behind its last step has done its work: the sandbox runs under its monitor.
fn forget_if_committed(host: &Host, job: &str) {
    let running = |host: &Host| {
        let list: serde_json::Value = serde_json::from_str(&host.done(&["ps", "--json"])).expect("JSON");
        list.as_array()
            .expect("a list")
            .iter()
            .any(|entry| entry["state"] == "running")
    };
    if running(host) {
        host.done(&["rm", "-f", job]);
    }
}
