//! Several cgroup namespaces in a tree, and mounts that show a part of its cgroups: on hosts with each version of cgroups, made
//! by shells as containers do; one that begins outside of the tree's cgroups is refused.

use floe_suite::{
    Host, PID_METHODS, Traces, Victim, cgroups_of, host_of_version_1, host_of_version_2, json, run, skip, until,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const VICTIM: &str = "cgroups-namespaces";

fn survives(host: &Host, options: &[&str]) {
    let mut victim = Victim::start(host, VICTIM, options, &[]);
    victim.round_trip(VICTIM, PID_METHODS[0]);
    victim.round_trip("another", PID_METHODS[1]);
    victim.check("after two round trips");
}

#[test]
fn on_a_host_of_version_1() {
    survives(&host_of_version_1(), &[]);
}

#[test]
fn on_a_host_of_version_2() {
    survives(&host_of_version_2(), &[]);
}

/// In each hierarchy that has a controller the sandbox has a cgroup of its own.
#[test]
fn in_several_hierarchies() {
    survives(&Host::new(), &["--memory", "200m", "--pids", "60"]);
}

/// The cgroups of the sandbox that freeze it, and its processes by command.
fn processes(host: &Host, name: &str) -> Vec<(String, i32)> {
    let tasks = json(&host.done(&["ps", name, "--json"]));
    let tasks = tasks.as_array().expect("a list").iter();
    let one = |task: &serde_json::Value| {
        let pid = task["nspid"][0].as_i64()? as i32;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((
            String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned(),
            pid,
        ))
    };
    tasks.filter_map(one).collect()
}

fn pid_of(host: &Host, name: &str, command: &str) -> Option<i32> {
    let found = processes(host, name).into_iter();
    found.filter(|(own, _)| own == command).map(|(_, pid)| pid).next()
}

fn own_v2(host: &Host, name: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let point = line.split(' ').nth(4)?;
    cgroups_of(host.pid1(name))
        .into_iter()
        .find(|path| path.starts_with(point))
}

/// What a process in another's cgroup namespace is told of that one, and what is at a place in its mounts.
fn told(pid: i32, place: &str) -> String {
    let inside = |namespace: &str, command: &[&str]| {
        let mut all = Command::new("nsenter");
        all.args(["-t", &pid.to_string(), namespace, "--"]).args(command);
        run(&mut all).expect_done()
    };
    let cgroups = inside("-C", &["cat", &format!("/proc/{pid}/cgroup")]);
    let mounts = inside("-C", &["cat", &format!("/proc/{pid}/mountinfo")]);
    let mounts = mounts.lines().filter(|line| line.contains(place));
    let without_numbers = |line: &str| line.split(' ').skip(3).collect::<Vec<_>>().join(" ");
    let mounts: Vec<String> = mounts.map(without_numbers).collect();
    let files = inside("-m", &["ls", place]);
    format!("{cgroups}{}\n{files}", mounts.join("\n"))
}

/// A tree whose root has gone to a cgroup below and made its namespace there, and a container in that.
#[test]
fn where_the_root_itself_has_left() {
    let host = Host::new();
    let name = host.name("left");
    let places = ["view", "other"].map(|folder| host.folder(folder).display().to_string());
    let [place, other] = &places;
    let container = format!(
        "mkdir {place}/box && echo 0 > {place}/box/cgroup.procs && \
         exec unshare --cgroup --mount sh -c 'mount -t cgroup2 box {other} && exec sleep 1002'"
    );
    let script = format!(
        "mount -t cgroup2 own {place}; mkdir {place}/root; echo 0 > {place}/root/cgroup.procs; umount {place}; \
         exec unshare --cgroup --mount sh -c 'mount -t cgroup2 root {place}; sh -c \"$0\" & exec sleep 1001' \"$1\""
    );
    host.done(&[
        "run", "-d", "--name", &name, "--", "sh", "-c", &script, "sh", &container,
    ]);
    if own_v2(&host, &name).is_none() {
        return skip("version 2 is not mounted");
    }
    let sleeper = |seconds: &str| pid_of(&host, &name, &format!("sleep {seconds}"));
    until("its sleepers", || {
        sleeper("1001").is_some() && sleeper("1002").is_some()
    });
    let both = || [("1001", place), ("1002", other)];
    let look = || both().map(|(seconds, place)| told(sleeper(seconds).expect("it lives"), place));
    let before = look();
    for (found, (_, place)) in before.iter().zip(both()) {
        assert!(found.lines().any(|line| line == "0::/"), "{found}");
        assert!(found.contains(&format!("/ {place} ")), "{found}");
    }
    let image = host.path("left.floe");
    let image = image.to_str().expect("a plain path");
    for method in PID_METHODS.iter().cycle().take(3) {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        assert_eq!(look(), before, "after a restore by {method}");
    }
    host.done(&["rm", "-f", &name]);
    Traces::look(&host, &[&name], &[]).expect_none_of(&name);
}

#[test]
fn one_that_begins_elsewhere_is_refused() {
    let host = Host::new();
    let name = host.name("outside");
    let go = host.path("go");
    let script = format!(
        "sh -c 'while ! test -e {}; do sleep 0.01; done; exec unshare --cgroup sleep 1001' & exec sleep 1000",
        go.display()
    );
    host.done(&["run", "-d", "--name", &name, "--", "sh", "-c", &script]);
    let Some(own) = own_v2(&host, &name) else {
        return skip("version 2 is not mounted");
    };
    let waits = || {
        let mut all = processes(&host, &name).into_iter();
        all.find(|(command, _)| command.contains("while !"))
    };
    until("it waits", || {
        waits().is_some() && pid_of(&host, &name, "sleep 1000").is_some()
    });
    let number = waits().expect("it waits").1;
    let elsewhere = own.parent().expect("a parent").join(format!("{name}-elsewhere"));
    fs::create_dir(&elsewhere).expect("make a cgroup");
    let move_to = |place: &Path| fs::write(place.join("cgroup.procs"), number.to_string()).expect("move it");
    move_to(&elsewhere);
    fs::write(&go, "").expect("tell it");
    let command = || fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
    until("its namespace", || command() == b"sleep\x001001\0");
    move_to(&own);
    let refused = || {
        let dry = ["checkpoint", &name, "--dry-run", "-o", "/dev/null"];
        let text = host.floe(&dry).expect_failed();
        let wanted = "it begins at a cgroup that is not the tree's, or that is gone";
        assert!(text.contains(wanted), "{text}");
    };
    refused();
    fs::remove_dir(&elsewhere).expect("remove a cgroup");
    refused();
}
