//! Limits in cgroups below the victim's own: of tasks, in either version; and of whatever else the host lets it set.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
};
use victims::{
    Findings,
    cgroup::{make, members, own_below, set, text, version_1, version_2},
    play,
};

/// Settings of version 1, where the victim has a cgroup of its own in their hierarchies.
const SETTINGS: [(&str, &str); 7] = [
    ("cpu.shares", "512"),
    ("cpu.cfs_quota_us", "90000"),
    ("memory.limit_in_bytes", "67108864"),
    ("memory.soft_limit_in_bytes", "33554432"),
    ("memory.swappiness", "10"),
    ("pids.max", "3"),
    ("cgroup.clone_children", "1"),
];

fn main() {
    play(|_| {
        let places: Vec<PathBuf> = version_1().into_iter().chain(version_2()).collect();
        let own: Vec<PathBuf> = places.iter().filter_map(|place| own_below(place)).collect();
        let limited = own
            .iter()
            .find(|own| own.join("pids.max").exists())
            .expect("a limit of tasks (floe run --pids)");
        let small: Vec<PathBuf> = own
            .iter()
            .filter(|own| own.file_name() == limited.file_name())
            .map(|own| split(own))
            .collect();
        let is_v2 = limited.join("cgroup.controllers").exists();
        let few = limited.join("few");
        if is_v2 {
            set(&few, "pids.max", 3);
        }
        let mut child = crowd(&few);
        let before = look(&small);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                set(&now(&places, "pids.max"), "pids.max", 4);
            }
            let small: Vec<PathBuf> = small.iter().map(|path| again(path, &places)).collect();
            findings.same("settings", &before, &look(&small));
            let ended = findings.take("look at a child", child.try_wait());
            findings.same("its end", &Some(None), &ended);
            let few = now(&places, "pids.max");
            findings.same("processes there", &vec![child.id() as i32], &members(&few));
            // The child's own, and two more, but no third one.
            set(&few, "pids.max", 2);
            let more = Command::new("sh").args(["-c", &fork_in(&few)]).output();
            let said = findings
                .take("start a shell", more)
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            findings.same("forks in a full cgroup", &Some("in\n".to_owned()), &said);
            set(&few, "pids.max", 3);
        }
    })
}

/// A script that goes where two tasks may be, one of which is there, and forks.
fn fork_in(place: &Path) -> String {
    format!(
        "echo $$ > '{}' && echo in; (echo room)",
        place.join("cgroup.procs").display()
    )
}

fn crowd(place: &Path) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().expect("start a child");
    set(place, "cgroup.procs", child.id());
    child
}

/// Makes a cgroup below its own, limited as far as may be.
fn split(own: &Path) -> PathBuf {
    let few = make(own.join("few"));
    if own.join("cgroup.controllers").exists() {
        if text(own, "cgroup.controllers").contains("pids") {
            set(&make(own.join("rest")), "cgroup.procs", std::process::id());
            set(own, "cgroup.subtree_control", "+pids");
        }
        return few;
    }
    for (name, value) in SETTINGS {
        if few.join(name).exists() {
            set(&few, name, value);
        }
    }
    few
}

/// Where a cgroup is now.
fn again(path: &Path, places: &[PathBuf]) -> PathBuf {
    let place = places
        .iter()
        .find(|place| path.starts_with(place))
        .expect("a hierarchy");
    beside(&own_below(place).expect("a cgroup that has this process"))
}

/// The small cgroup below an own one, or beside the one into which the victim went.
fn beside(own: &Path) -> PathBuf {
    let above = if own.ends_with("rest") {
        own.parent().expect("a cgroup above")
    } else {
        own
    };
    above.join("few")
}

fn now(places: &[PathBuf], file: &str) -> PathBuf {
    let all = places
        .iter()
        .filter_map(|place| own_below(place))
        .map(|own| beside(&own));
    all.into_iter()
        .find(|few| few.join(file).exists())
        .expect("a small cgroup")
}

fn look(small: &[PathBuf]) -> Vec<String> {
    let names = SETTINGS.iter().map(|(name, _)| name);
    let names = names.chain(&["notify_on_release", "cgroup.subtree_control"]);
    names
        .flat_map(|name| small.iter().map(move |few| format!("{name}: {}", text(few, name))))
        .collect()
}
