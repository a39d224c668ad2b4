//! Cgroups through a round trip: what was set by hand, in whichever hierarchy; what can't be carried or made again is told
//! in one list; and whoever is killed, none stays and a frozen one is frozen.

use floe_suite::{Host, Traces, cgroup_file, cgroups_of, json, run, signal, spawn, times, until, wait};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A sandbox with a cgroup in some hierarchies besides, and its own directories.
fn limited<'a>(host: &'a Host, job: &str) -> Tree<'a> {
    let mut line = vec!["run", "-d", "--name", job];
    let found = json(&run(&mut host.command(&["check", "--json"])).out);
    let features = found["features"].as_array().expect("a list");
    for (limit, option, value) in [
        ("task limit", "--pids", "40"),
        ("memory limit", "--memory", "64m"),
        ("processor limit", "--cpus", "0.75"),
    ] {
        if features
            .iter()
            .any(|feature| feature["name"] == limit && feature["here"] == "yes")
        {
            line.extend([option, value]);
        }
    }
    line.extend(["--", "sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    host.done(&line);
    let tree = Tree {
        host,
        job: job.to_owned(),
    };
    until("its children are there", || tree.processes().len() == 3);
    tree
}

struct Tree<'a> {
    host: &'a Host,
    job: String,
}

impl Tree<'_> {
    fn image(&self) -> String {
        self.host.path("job.floe").display().to_string()
    }

    /// The directories of its own cgroups.
    fn own(&self) -> Vec<PathBuf> {
        let all = cgroups_of(self.host.pid1(&self.job));
        all.into_iter()
            .filter(|path| path.to_string_lossy().contains(&self.job))
            .collect()
    }

    /// The directory of the one that freezes it.
    fn freezer(&self) -> PathBuf {
        let list = json(&self.host.done(&["ps", "--json"]));
        PathBuf::from(list[0]["cgroup"].as_str().expect("a path"))
    }

    /// Host ids, PID 1 first.
    fn processes(&self) -> Vec<i64> {
        let list = json(&self.host.done(&["ps", &self.job, "--json"]));
        let all = list.as_array().expect("a list").iter();
        all.map(|task| task["nspid"][0].as_i64().expect("a number")).collect()
    }

    fn round_trip(&self, method: &str) {
        self.host.done(&["checkpoint", &self.job, "-o", &self.image()]);
        self.host
            .done(&["restore", "-d", "--pid-method", method, &self.image()]);
    }
}

fn write(path: &Path, value: &str) {
    fs::write(path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Files that can be set without harm in a cgroup of whichever hierarchy, and to what.
const SETTINGS: [(&str, &str); 19] = [
    ("blkio.bfq.weight", "200"),
    ("cgroup.max.depth", "9"),
    ("cgroup.max.descendants", "12"),
    ("cpu.cfs_burst_us", "1000"),
    ("cpu.idle", "1"),
    ("cpu.max", "60000 80000"),
    ("cpu.shares", "700"),
    ("cpu.weight", "70"),
    ("hugetlb.2MB.limit_in_bytes", "4194304"),
    ("hugetlb.2MB.max", "4194304"),
    ("memory.high", "50331648"),
    ("memory.low", "4096"),
    ("memory.oom.group", "1"),
    ("memory.soft_limit_in_bytes", "33554432"),
    ("memory.swappiness", "20"),
    ("notify_on_release", "1"),
    ("pids.max", "33"),
    ("cpuset.cpus.partition", "member"),
    ("cgroup.pressure", "0"),
];

#[test]
fn what_was_set_by_hand_survives() {
    let host = Host::new();
    let job = host.name("job");
    let tree = limited(&host, &job);
    // A controller of version 2 that a hybrid host has there, too.
    let freezer = tree.freezer();
    let parents = [freezer.parent().and_then(Path::parent), freezer.parent()];
    for parent in parents.into_iter().flatten() {
        // Where version 2 has it not, nothing of it is tested.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+hugetlb");
    }
    let mut set = 0;
    for (name, value) in SETTINGS {
        for own in tree.own() {
            let path = own.join(name);
            if path.exists() && (name != "cpu.shares" || fs::read_to_string(own.join("cpu.idle")).is_ok()) {
                set += usize::from(fs::write(&path, value).is_ok());
            }
        }
    }
    assert!(set > 1, "nothing can be set in {:?}", tree.own());
    let look = || -> Vec<String> {
        let pid = host.pid1(&job);
        let has = |name: &&str| cgroups_of(pid).iter().any(|own| own.join(name).exists());
        let names = SETTINGS.iter().map(|(name, _)| *name);
        let besides = [
            "memory.limit_in_bytes",
            "memory.max",
            "memory.memsw.limit_in_bytes",
            "cpu.cfs_quota_us",
        ];
        let names = names.chain(besides).filter(has);
        names
            .map(|name| format!("{name} {}", cgroup_file(pid, &[name])))
            .collect()
    };
    let before = look();
    let limits = json(&host.done(&["ps", "--json"]))[0]["limits"].clone();
    for method in floe_suite::PID_METHODS {
        tree.round_trip(method);
        assert_eq!(look(), before);
        assert_eq!(json(&host.done(&["ps", "--json"]))[0]["limits"], limits);
    }
    let own = tree.own();
    host.done(&["rm", "-f", &job]);
    assert!(own.iter().all(|path| !path.exists()), "{own:?}");
}

/// Limits that let nothing more be made, and protections of everything.
#[test]
fn limits_of_nothing_survive() {
    let host = Host::new();
    let job = host.name("job");
    let tree = limited(&host, &job);
    let extremes = [
        ("cgroup.max.depth", "0"),
        ("cgroup.max.descendants", "0"),
        ("memory.min", "max"),
        ("memory.swap.max", "0"),
        ("pids.max", "0"),
    ];
    let there = || -> Vec<PathBuf> {
        let all = tree.own().into_iter();
        let files = all.flat_map(|own| extremes.map(|(name, _)| own.join(name)));
        files.filter(|path| path.exists()).collect()
    };
    let look = || -> Vec<String> {
        let read = |path: &PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy();
            format!("{name} {}", fs::read_to_string(path).expect("read"))
        };
        there().iter().map(read).collect()
    };
    for path in there() {
        let named = extremes.iter().find(|(name, _)| path.ends_with(name));
        write(&path, named.expect("one of them").1);
    }
    let before = look();
    assert!(!before.is_empty(), "nothing can be set in {:?}", tree.own());
    for method in floe_suite::PID_METHODS {
        tree.round_trip(method);
        assert_eq!(look(), before);
    }
}

/// Rules of devices, in a cgroup and in one below it, which were made by hand.
#[test]
fn rules_of_devices_survive() {
    let hierarchy = Path::new("/sys/fs/cgroup/devices");
    if !hierarchy.join("devices.list").exists() {
        floe_suite::skip("the version 1 hierarchy of devices is not mounted");
        return;
    }
    let host = Host::new();
    let job = host.name("job");
    let image = host.path("job.floe").display().to_string();
    let own = ByHand(hierarchy.join(format!("{job}-devices")));
    let rules = [(own.0.clone(), "c 1:3 rwm\nc *:* m"), (own.0.join("below"), "c 1:3 r")];
    for (path, list) in &rules {
        fs::create_dir(path).expect("make a cgroup");
        write(&path.join("devices.deny"), "a");
        list.lines().for_each(|line| write(&path.join("devices.allow"), line));
    }
    // A sandbox's own cgroup namespace would begin elsewhere.
    let script = "echo $$ > \"$0/cgroup.procs\"; sleep 1000 & echo $! > \"$0/below/cgroup.procs\"; echo > \"$1\"; wait";
    let ready = host.path("ready");
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&own.0).arg(&ready);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: what it calls is safe between fork and exec.
    unsafe { command.pre_exec(floe_suite::leave) };
    let mut child = command.spawn().expect("start it");
    until("it is in its places", || ready.exists());
    host.done(&["checkpoint", "--pid", &child.id().to_string(), "-o", &image]);
    child.wait().expect("it has ended");
    for method in floe_suite::PID_METHODS {
        host.done(&["restore", "-d", "--name", &job, "--pid-method", method, &image]);
        let all = cgroups_of(host.pid1(&job));
        let new = all
            .iter()
            .find(|path| path.starts_with(hierarchy))
            .expect("one of devices");
        let read = |path: PathBuf| fs::read_to_string(path.join("devices.list")).expect("read");
        assert_eq!(read(new.clone()).trim_end(), rules[0].1);
        assert_eq!(read(new.join("below")).trim_end(), rules[1].1);
        host.done(&["rm", "-f", &job]);
    }
}

/// A cgroup with one below, which end with the test and who is in them.
struct ByHand(PathBuf);

impl Drop for ByHand {
    fn drop(&mut self) {
        for path in [self.0.join("below"), self.0.clone()] {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in text.lines().filter_map(|line| line.parse().ok()) {
                signal(pid, libc::SIGKILL);
            }
            // One that was never made can't be removed.
            until("it is removed", || fs::remove_dir(&path).is_ok() || !path.exists());
        }
    }
}

/// Makes a calm cgroup and a frozen one below the tree's own, with a process in each.
fn divide(tree: &Tree<'_>) {
    let own = tree.freezer();
    let processes = tree.processes();
    for (name, pid) in ["calm", "still"].iter().zip(&processes[1..]) {
        fs::create_dir(own.join(name)).expect("make a cgroup");
        write(&own.join(name).join("cgroup.procs"), &pid.to_string());
    }
    let (file, value) = freeze_file(&own);
    write(&own.join("still").join(file), value);
    until("it is frozen", || is_frozen(&own.join("still")));
}

fn freeze_file(own: &Path) -> (&'static str, &'static str) {
    if own.join("cgroup.freeze").exists() {
        ("cgroup.freeze", "1")
    } else {
        ("freezer.state", "FROZEN")
    }
}

fn is_frozen(cgroup: &Path) -> bool {
    let says = |name: &str, what: &str| fs::read_to_string(cgroup.join(name)).is_ok_and(|text| text.contains(what));
    says("cgroup.events", "frozen 1") || says("freezer.state", "FROZEN")
}

#[test]
fn a_frozen_cgroup_below_is_frozen_whatever_floe_does() {
    frozen_below(&Host::new());
}

#[test]
fn a_frozen_cgroup_below_is_frozen_by_version_1_too() {
    let script = "set -e; findmnt -rn -t cgroup2 -o TARGET | while read -r point; do umount -l \"$point\"; done; \
        grep -q ' - cgroup .*freezer' /proc/self/mountinfo || mount -t cgroup -o freezer none /mnt; exec \"$@\"";
    // Where the freezer is mounted for this host's floe alone, its files can't be looked at from here.
    if !Path::new("/sys/fs/cgroup/freezer").exists() {
        floe_suite::skip("the version 1 freezer is not mounted");
        return;
    }
    frozen_below(&Host::behind(&["unshare", "--mount", "sh", "-c", script, "sh"]));
}

fn frozen_below(host: &Host) {
    let job = host.name("job");
    let tree = limited(host, &job);
    divide(&tree);
    let own = tree.freezer();
    let stands = |when: &str| {
        until(&format!("the frozen one is frozen {when}"), || {
            is_frozen(&own.join("still"))
        });
        until(&format!("the others run {when}"), || {
            !is_frozen(&own) && !is_frozen(&own.join("calm"))
        });
    };
    host.done(&["freeze", &job]);
    assert_eq!(host.state(&job), "frozen");
    host.done(&["thaw", &job]);
    stands("after a thaw");
    host.done(&["checkpoint", &job, "--leave-running", "-o", &tree.image()]);
    stands("after a checkpoint that let it run on");
    for round in 0..times(20) {
        let mut command = host.command(&["checkpoint", &job, "--leave-running", "-o", &tree.image()]);
        let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(std::time::Duration::from_micros(1500 * round));
        signal(child.id() as i32, libc::SIGKILL);
        let _ = wait(child);
        stands(&format!("after kill {round}"));
    }
    let first = tree.processes();
    for method in floe_suite::PID_METHODS {
        tree.round_trip(method);
        let own = tree.freezer();
        until("the frozen one is frozen again", || is_frozen(&own.join("still")));
        assert!(!is_frozen(&own) && !is_frozen(&own.join("calm")));
        let there: Vec<_> = tree.processes();
        assert_eq!(there.len(), first.len());
        for (name, pid) in ["calm", "still"].iter().zip(&there[1..]) {
            let text = fs::read_to_string(own.join(name).join("cgroup.procs")).expect("read");
            assert_eq!(text.trim(), pid.to_string(), "{name}");
        }
    }
    let own = tree.freezer();
    host.done(&["rm", "-f", &job]);
    until("its cgroups are gone", || !own.exists());
}

#[test]
fn a_restore_that_fails_or_is_killed_leaves_no_cgroup() {
    let host = Host::new();
    let job = host.name("job");
    let tree = limited(&host, &job);
    divide(&tree);
    host.done(&["checkpoint", &job, "-o", &tree.image()]);
    let before = Traces::look(&host, &[&job, "rehearsal"], &[]);
    let stages = host.done(&["restore", "--stages"]);
    for stage in stages.lines() {
        let outcome = run(host
            .command(&["restore", "-d", &tree.image()])
            .env("FLOE_FAIL_AT", stage));
        assert_eq!(outcome.status, 1, "{stage}: {}", outcome.err);
        before.expect_again(&host, &[&job, "rehearsal"], &[], &format!("after a failure at {stage}"));
    }
    for round in 0..times(24) {
        let mut command = host.command(&["restore", "-d", &tree.image()]);
        let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(std::time::Duration::from_micros(3300 * round));
        signal(child.id() as i32, libc::SIGKILL);
        let _ = wait(child);
        // Killed behind its last step it has done its work.
        until("it is gone, or removed", || {
            host.sandboxes().is_empty() || host.floe(&["rm", "-f", &job]).status == 0
        });
        before.expect_again(&host, &[&job, "rehearsal"], &[], &format!("after kill {round}"));
    }
    host.done(&["restore", "-d", &tree.image()]);
}

/// Each thing that this host lacks is named, and nothing is made.
#[test]
fn what_is_not_here_stands_in_the_way() {
    let host = Host::new();
    let job = host.name("job");
    let tree = limited(&host, &job);
    divide(&tree);
    host.done(&["checkpoint", &job, "-o", &tree.image()]);
    let script = "set -e; findmnt -rn -t cgroup,cgroup2 -o TARGET | while read -r point; do umount -l \"$point\"; done; exec \"$@\"";
    let before = Traces::look(&host, &[&job, "rehearsal"], &[]);
    for verb in [&["restore", "-d"][..], &["restore", "--dry-run"], &["check", "--image"]] {
        let image = tree.image();
        let line = [verb, &[image.as_str()]].concat();
        let floe = host.command(&line);
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(floe.get_program())
            .args(floe.get_args());
        command.envs(floe.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let outcome = run(&mut command);
        let said = outcome.out + &outcome.err;
        assert_eq!(outcome.status, 1, "{said}");
        assert!(
            said.contains("not mounted here") || said.contains("no such hierarchy"),
            "{said}"
        );
        before.expect_again(&host, &[&job, "rehearsal"], &[], "after a restore that was refused");
    }
}
