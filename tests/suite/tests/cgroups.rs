//! The three ways in which a host may have its cgroups: version 2 beside version 1, version 1 alone, version 2 alone. Each
//! is made in a mount namespace of its own, which every `floe` of the test enters anew.

use floe_suite::{
    Counting, Host, PID_METHODS, Traces, Victim, host_of_version_1, host_of_version_2, host_without_cgroups, times,
    wait,
};
use std::{process::Stdio, time::Duration};

#[test]
fn as_the_host_has_them() {
    all_works(&Host::new(), &["/unified/", "/fs/cgroup/floe/", "/freezer/"]);
}

#[test]
fn version_1_alone() {
    all_works(&host_of_version_1(), &["/freezer/", "/mnt/"]);
}

#[test]
fn version_2_alone() {
    all_works(&host_of_version_2(), &["/sys/fs/cgroup/floe/"]);
}

fn all_works(host: &Host, places: &[&str]) {
    let job = host.name("job");
    let tree = Counting::start(host, &job, &[]);
    let list: serde_json::Value = serde_json::from_str(&host.done(&["ps", "--json"])).expect("JSON");
    let cgroup = list[0]["cgroup"].as_str().expect("a path").to_owned();
    assert!(places.iter().any(|place| cgroup.contains(place)), "{cgroup}");

    host.done(&["freeze", &job]);
    assert_eq!(state(host), "frozen");
    let still = tree.numbers();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(tree.numbers(), still, "a frozen tree counts on");
    let image = host.path("image.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", &job, "--leave-running", "-o", image]);
    assert_eq!(
        state(host),
        "frozen",
        "a tree that was frozen before a checkpoint is frozen behind it"
    );
    assert_eq!(tree.numbers(), still, "a frozen tree counted on during a checkpoint");
    host.done(&["thaw", &job]);
    assert_eq!(state(host), "running");
    tree.expect_alive("after a thaw");

    killed_checkpoints_thaw(host, &job, image, &tree);
    for method in PID_METHODS {
        host.done(&["checkpoint", &job, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        tree.expect_alive("after a restore");
    }
    host.done(&["freeze", &job]);
    host.done(&["kill", &job]);
    assert_eq!(
        host.done(&["wait", &job]).trim(),
        "137",
        "SIGKILL ends a frozen sandbox"
    );
    host.done(&["rm", &job]);
    Traces::look(host, &[&job], &[]).expect_none_of(&job);
    waiting_for_vfork(host);
}

/// A thread that waits for its vfork child, which a freezer takes for frozen or overlooks, each in its way.
fn waiting_for_vfork(host: &Host) {
    let name = "refused-tasks";
    let mut victim = Victim::start(host, name, &[], &["vfork"]);
    for round in 0..5 {
        host.done(&["freeze", name]);
        host.done(&["thaw", name]);
        let text = host.floe(&["checkpoint", name, "--dry-run"]).expect_failed();
        assert!(text.contains("vfork in flight"), "round {round}: {text}");
    }
    victim.check("after it was frozen and refused");
}

fn killed_checkpoints_thaw(host: &Host, job: &str, image: &str, tree: &Counting<'_>) {
    for round in 0..times(20) {
        let child = host
            .command(&["checkpoint", job, "--leave-running", "-o", image])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start floe");
        std::thread::sleep(Duration::from_millis(3 * round));
        // SAFETY: plain numbers; the child is not reaped yet, so its number is its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGKILL) };
        let _ = wait(child);
        tree.expect_alive(&format!("after kill {round}"));
    }
}

fn state(host: &Host) -> String {
    let list: serde_json::Value = serde_json::from_str(&host.done(&["ps", "--json"])).expect("JSON");
    list[0]["state"].as_str().expect("a word").to_owned()
}

#[test]
fn without_any_all_works_but_freezing() {
    let host = host_without_cgroups();
    let job = host.name("job");
    let tree = Counting::start(&host, &job, &[]);
    let image = host.path("job.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", &job, "--leave-running", "-o", image]);
    tree.expect_alive("after a checkpoint that let it run on");
    killed_checkpoints_thaw(&host, &job, image, &tree);
    for method in PID_METHODS {
        host.done(&["checkpoint", &job, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        tree.expect_alive("after a round trip");
    }
    let tasks: serde_json::Value = serde_json::from_str(&host.done(&["ps", &job, "--json"])).expect("JSON");
    assert!(tasks.as_array().expect("a list").len() > 3, "{tasks}");
    let said = host.floe(&["freeze", &job]).expect_failed();
    assert!(said.contains("has no cgroup, which it takes to freeze it"), "{said}");
    host.done(&["exec", &job, "--", "true"]);
    host.done(&["rm", "-f", &job]);
    assert!(host.sandboxes().is_empty());
}
