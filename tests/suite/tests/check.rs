//! `floe check`: what a host offers, and what stands in the way.

use floe_suite::{Host, Outcome, json};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json as value};
use std::{fs, path::Path};

fn features(printed: &str) -> Vec<Value> {
    json(printed)["features"].as_array().expect("a list").clone()
}

fn feature(all: &[Value], name: &str) -> Value {
    let found = all.iter().find(|feature| feature["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is missing in {all:#?}")).clone()
}

fn here(all: &[Value], name: &str) -> String {
    feature(all, name)["here"].as_str().expect("a word").to_owned()
}

/// The lines of `floe check` that end with the reasons it failed for.
fn findings(outcome: &Outcome) -> Vec<&str> {
    outcome
        .err
        .lines()
        .filter_map(|line| line.strip_prefix("  - "))
        .collect()
}

#[test]
fn everything_floe_needs_is_there_for_root() {
    let host = Host::new();
    let all = features(&host.done(&["check", "--json"]));
    for name in [
        "machine",
        "tracing",
        "/proc/PID/mem",
        "kcmp",
        "seccomp filters",
        "chosen PIDs",
        "PR_SET_MM_MAP",
        "cgroup freezer",
        "namespaces",
        "time namespaces",
        "private /proc",
        "private terminals",
        "nested PID namespaces",
        "PAGEMAP_SCAN",
        "map_files",
        "kernel memory",
        "socket diagnostics",
        "TCP_REPAIR",
        "userfaultfd events",
    ] {
        assert_eq!(here(&all, name), "yes", "{}", feature(&all, name));
    }
    // The rest of the suite needs these verbs.
    for verb in ["run", "checkpoint", "restore"] {
        let printed = host.done(&["check", verb, "--json"]);
        let shown = features(&printed);
        assert!(!shown.is_empty() && shown.len() < all.len(), "{verb}");
        for feature in shown {
            let used_by = feature["used_by"].as_array().expect("a list");
            assert!(used_by.iter().any(|used| used == verb), "{verb}: {feature}");
            let needed_by = feature["needed_by"].as_array().expect("a list");
            assert!(needed_by.iter().all(|needed| used_by.contains(needed)), "{feature}");
        }
    }
}

#[test]
fn each_feature_has_its_line() {
    let host = Host::new();
    let all = features(&host.done(&["check", "--json"]));
    let text = host.done(&["check"]);
    let mut lines = text.lines();
    let header = lines.next().expect("a header");
    let starts = ["FEATURE", "HERE", "FOUND", "NEEDED FOR", "WHAT TO DO"].map(|name| header.find(name).expect(name));
    let lines: Vec<Vec<char>> = lines.map(|line| line.chars().collect()).collect();
    assert_eq!(lines.len(), all.len());
    let cell = |line: &[char], from: usize, to: usize| -> String {
        line.iter()
            .skip(from)
            .take(to.saturating_sub(from))
            .collect::<String>()
            .trim()
            .to_owned()
    };
    for (feature, line) in all.iter().zip(&lines) {
        let [name, here, found, needed_for, what] = starts;
        let told = [
            cell(line, name, here),
            cell(line, here, found),
            cell(line, found, needed_for),
            cell(line, needed_for, what),
            cell(line, what, usize::MAX),
        ];
        let wanted =
            ["name", "here", "found", "needed_for", "what_to_do"].map(|key| feature[key].as_str().unwrap_or(""));
        assert_eq!(told, wanted);
        // Who is told no is told what to do.
        assert_eq!(feature["here"] == "yes", feature["what_to_do"].is_null(), "{feature}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let host = Host::new();
    // Others mount what they like elsewhere.
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("mounts of one's own");
    let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
    let before = mounts();
    let cgroups = |mounts: &str| -> Vec<String> {
        let points = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let points = points.filter_map(|line| line.split(' ').nth(4));
        let folders = points.flat_map(|point| fs::read_dir(Path::new(point).join("floe")).into_iter().flatten());
        let names = folders.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        names.collect()
    };
    let child = floe_suite::spawn(&mut host.command(&["check"]));
    let own = format!("check-{}", child.id());
    assert_eq!(floe_suite::wait(child), 0);
    assert_eq!(mounts(), before);
    assert!(!cgroups(&before).contains(&own), "{own} is left");
}

#[test]
fn what_is_missing_is_found_by_trying() {
    // A host without any cgroup hierarchy.
    let without = "mount --make-rprivate /; umount -R /sys/fs/cgroup 2>/dev/null; \
        grep -q ' - cgroup' /proc/self/mountinfo && umount -a -t cgroup,cgroup2; exec \"$@\"";
    let host = Host::behind(&["unshare", "-m", "sh", "-c", without, "sh"]);
    let all = features(&host.done(&["check", "--json"]));
    assert_eq!(here(&all, "cgroup freezer"), "no");
    let found = feature(&all, "cgroup freezer")["found"].clone();
    assert_eq!(found, "neither cgroup v2 nor the v1 freezer is mounted");
    // Sandboxes do without.
    for verb in ["run", "checkpoint", "restore"] {
        assert_eq!(host.floe(&["check", verb]).status, 0, "{verb}");
    }
    // A limit, in a user namespace that has it for itself.
    let limited =
        "echo 0 > /proc/sys/user/max_net_namespaces && echo 3 > /proc/sys/user/max_pid_namespaces && exec \"$@\"";
    let host = Host::behind(&["unshare", "-U", "-r", "sh", "-c", limited, "sh"]);
    let all = features(&host.done(&["check", "--json"]));
    let namespaces = feature(&all, "namespaces");
    assert_eq!(namespaces["here"], "partly", "{namespaces}");
    let found = namespaces["found"].as_str().expect("words");
    assert_eq!(found, "mnt ipc pid uts cgroup; net: ENOSPC: No space left on device");
    let capabilities = feature(&all, "capabilities");
    assert_eq!(capabilities["here"], "partly", "{capabilities}");
    // It is not the probes before that have reached the limit.
    let users = feature(&all, "user namespaces");
    assert_eq!(users["here"], "yes", "{users}");
    // A /proc that is not all there is not to be had anew.
    let masked = "mount --make-rprivate / && mount --bind /dev/null /proc/meminfo && exec unshare -U -r \"$@\"";
    let host = Host::behind(&["unshare", "-m", "sh", "-c", masked, "sh"]);
    let all = features(&host.done(&["check", "--json"]));
    let proc = feature(&all, "private /proc");
    assert_eq!(
        (&proc["here"], &proc["found"]),
        (&value!("no"), &value!("EPERM: Operation not permitted"))
    );
    assert_eq!(here(&all, "namespaces"), "yes");
    for verb in ["run", "restore"] {
        let outcome = host.floe(&["check", verb]);
        assert_eq!(outcome.status, 1, "{verb}: {}", outcome.out);
        let first = outcome.err.lines().next();
        let wanted = format!("floe: 1 thing stands in the way of floe {verb} here");
        assert_eq!(first, Some(&*wanted));
        assert!(
            findings(&outcome)[0].starts_with("private /proc: EPERM: Operation not permitted; "),
            "{}",
            outcome.err
        );
    }
    // It does, indeed; a tree that is there is saved without.
    let outcome = host.floe(&["run", "--", "true"]);
    assert_eq!(outcome.status, 125, "{}", outcome.err);
    assert_eq!(host.floe(&["check", "checkpoint"]).status, 0);
    // Two levels further down there are two less.
    let levels = |host: &Host| {
        let found = feature(&features(&host.done(&["check", "--json"])), "nested PID namespaces");
        let words = found["found"].as_str().expect("words").to_owned();
        let number: i32 = words
            .split(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .expect("a number");
        assert_eq!(words, format!("{number} more levels below this one"));
        number
    };
    let below = Host::behind(&["unshare", "-fp", "--mount-proc", "unshare", "-fp", "--mount-proc"]);
    assert_eq!(levels(&below), levels(&Host::new()) - 2);
}

#[test]
fn an_ordinary_user_is_told_what_differs() {
    let host = Host::of_ordinary_user();
    let all = features(&host.done(&["check", "--json"]));
    for (name, wanted) in [
        ("capabilities", "no"),
        ("seccomp filters", "no"),
        ("map_files", "no"),
        ("kernel memory", "no"),
        ("tracing", "yes"),
        ("PAGEMAP_SCAN", "yes"),
        ("PR_SET_MM_MAP", "yes"),
    ] {
        assert_eq!(here(&all, name), wanted, "{}", feature(&all, name));
    }
    if here(&all, "user namespaces") == "yes" {
        for name in ["namespaces", "time namespaces", "chosen PIDs", "nested PID namespaces"] {
            let found = feature(&all, name);
            let words = found["found"].as_str().expect("words");
            assert!(
                found["here"] == "yes" && words.ends_with(", in a user namespace of your own"),
                "{found}"
            );
        }
        assert_eq!(here(&all, "TCP_REPAIR"), "partly");
    } else {
        assert_eq!(here(&all, "namespaces"), "no");
    }
    // That is what they meet.
    let (told, met) = (host.floe(&["check", "run"]), host.floe(&["run", "--", "true"]));
    assert_eq!((told.status == 0), (met.status == 0), "{}{}", told.err, met.err);
}

#[test]
fn an_image_is_held_against_this_host() {
    let host = Host::new();
    let folder = host.path("work");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("data"), "text").expect("a file");
    let (name, image) = (host.name("held"), host.path("image"));
    let (place, image) = (folder.display().to_string(), image.display().to_string());
    host.done(&[
        "run",
        "-d",
        "--name",
        &name,
        "-w",
        &place,
        "--",
        "sh",
        "-c",
        "exec 3<data; echo up; sleep 1000 & wait",
    ]);
    floe_suite::until("the shell", || host.done(&["logs", &name]) == "up\n");
    host.done(&["checkpoint", &name, "-o", &image]);
    let good = host.done(&["check", "--image", &image]);
    assert!(good.contains("chosen PIDs"), "{good}");
    let told = json(&host.done(&["check", "restore", "--image", &image, "--json"]));
    assert_eq!(told["obstacles"], Value::Array(Vec::new()));
    fs::remove_file(folder.join("data")).expect("remove it");
    let outcome = host.floe(&["check", "--image", &image]);
    let dry = host.floe(&["restore", "--dry-run", &image]);
    assert_eq!((outcome.status, dry.status), (1, 1));
    assert_eq!(findings(&outcome), findings(&dry));
    assert_eq!(
        outcome.err.lines().next(),
        Some("floe: 1 thing stands in the way of floe restore here")
    );
    let outcome = host.floe(&["check", "--image", &image, "--json"]);
    let told = json(&outcome.out);
    let obstacle = &told["obstacles"][0];
    let line = format!(
        "{}: {}",
        obstacle["object"].as_str().expect("words"),
        obstacle["reason"].as_str().expect("words")
    );
    assert_eq!(findings(&dry), [&*line]);
    // What is no image, and what is not about one.
    let outcome = host.floe(&["check", "--image", "/etc/passwd"]);
    assert_eq!((outcome.status, findings(&outcome).len()), (1, 0), "{}", outcome.err);
    assert_eq!(outcome.err.lines().count(), 1, "{}", outcome.err);
    assert_eq!(host.floe(&["check", "run", "--image", &image]).status, 1);
    assert_eq!(host.floe(&["check", "moon"]).status, 2);
}
