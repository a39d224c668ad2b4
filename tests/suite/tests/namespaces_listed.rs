//! Namespaces and the PIDs in them, as `floe ns`, `floe pid` and `floe ps` tell of them.

use floe_suite::{Host, ORDINARY, enter_own_network, has, json, program, run, skip, times, until};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
};

const ALL: &str = "NS,TYPE,PATH,NPROCS,PID,PPID,COMMAND,UID,USER,NETNSID,NSFS,PNS,ONS";
const NAMES: [&str; 8] = ["mnt", "net", "ipc", "user", "pid", "uts", "cgroup", "time"];

/// A child that ends with the test.
struct Running(Child);

impl Running {
    /// Starts a command, and waits until something is so.
    fn start(command: &mut Command, what: &str, holds: impl FnMut() -> bool) -> Self {
        let child = Self(command.stdin(Stdio::null()).process_group(0).spawn().expect("start it"));
        until(what, holds);
        child
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: plain numbers; the group is the child's own.
        unsafe { libc::kill(-self.pid(), libc::SIGKILL) };
        self.0.wait().expect("reap it");
    }
}

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).expect("a namespace").ino()
}

/// The namespaces that the listing has, by inode number.
fn listed(outcome: &str) -> Vec<Value> {
    json(outcome)["namespaces"].as_array().expect("a list").clone()
}

fn find(all: &[Value], number: u64) -> Value {
    let found = all.iter().find(|namespace| namespace["ns"] == number);
    found
        .unwrap_or_else(|| panic!("{number} is missing in {all:#?}"))
        .clone()
}

/// The only child of a process.
fn child_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.trim().parse().ok()
}

fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// `unshare` with a `sleep` below it, in namespaces of all kinds; and the PID of that.
fn in_all_kinds() -> (Running, i32) {
    let mut command = Command::new("unshare");
    command.args("--user --map-root-user --pid --net --uts --ipc --mount --cgroup --time --fork sleep 1000".split(' '));
    let mut sleeper = None;
    let child = command.stdin(Stdio::null()).process_group(0).spawn().expect("start it");
    let running = Running(child);
    until("the sleeper", || {
        sleeper = child_of(running.pid()).filter(|pid| name_of(*pid) == "sleep");
        sleeper.is_some()
    });
    (running, sleeper.expect("it is there"))
}

#[test]
fn what_is_listed_is_what_lsns_lists() {
    if !has("lsns") {
        skip("lsns is not installed");
        return;
    }
    let host = Host::new();
    // Devices that lead from one network into another give it a number there.
    enter_own_network();
    let (_unshare, sleeper) = in_all_kinds();
    let pid = sleeper.to_string();
    let pair = "link add near type veth peer name far netns";
    let linked = has("ip") && run(Command::new("ip").args(pair.split(' ')).arg(&pid)).status == 0;
    let theirs = run(Command::new("lsns").args(["--list", "--json", "--output", ALL, "--task", &pid])).expect_done();
    let ours = host.done(&["ns", "--json", "-o", ALL, "-p", &pid]);
    // Who is in the namespaces that others are in too changes all the time.
    let own = |all: Vec<Value>| -> Vec<Value> {
        let shared = NAMES.map(|name| inode(format!("/proc/self/ns/{name}")));
        let mut own: Vec<Value> = all
            .into_iter()
            .filter(|namespace| !shared.contains(&namespace["ns"].as_u64().expect("a number")))
            .collect();
        own.sort_by_key(|namespace| namespace["ns"].as_u64());
        own
    };
    let (theirs, ours) = (own(listed(&theirs)), own(listed(&ours)));
    assert_eq!(ours.len(), NAMES.len(), "{ours:#?}");
    assert_eq!(ours, theirs);
    let number = &find(&ours, inode(format!("/proc/{pid}/ns/net")))["netnsid"];
    if linked {
        assert_eq!(number, "0");
    } else {
        skip("there is no ip(8), or no veth: numbers of networks are not compared");
        assert_eq!(number, "unassigned");
    }
    // By itself there is one more.
    let mut each = own(listed(&host.done(&["ns", "--json", "-p", &pid])));
    for namespace in &mut each {
        let sandbox = namespace.as_object_mut().and_then(|columns| columns.remove("sandbox"));
        assert_eq!(sandbox, Some(Value::Null));
    }
    assert_eq!(each, ours, "all columns");
}

/// What lsns prints of one namespace, and in the shapes that it has for programs and for eyes.
#[test]
fn options_of_lsns_do_what_they_do_there() {
    if !has("lsns") {
        skip("lsns is not installed");
        return;
    }
    let host = Host::new();
    let script = "sleep 1000 & sh -c 'sleep 1001 & wait' & wait";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c", script]);
    let mut above = None;
    let all_are_there = |first: i32| {
        let below = |pid: i32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = below(first);
        let grandchildren = children
            .split_whitespace()
            .map(|pid| below(pid.parse().expect("a PID")));
        let grandchildren = grandchildren.collect::<String>();
        let sleeps = |text: &str| {
            let pids = text.split_whitespace().map(|pid| pid.parse().expect("a PID"));
            pids.filter(|pid| name_of(*pid) == "sleep").count()
        };
        (sleeps(&children), sleeps(&grandchildren)) == (1, 1)
    };
    let unshare = Running(command.stdin(Stdio::null()).process_group(0).spawn().expect("start it"));
    until("the processes", || {
        above = child_of(unshare.pid()).filter(|pid| all_are_there(*pid));
        above.is_some()
    });
    let first = above.expect("it is there");
    let inode = inode(format!("/proc/{first}/ns/pid")).to_string();
    let lsns = |arguments: &[&str]| run(Command::new("lsns").args(arguments)).expect_done();
    let floe = |arguments: &[&str]| host.done(&[&["ns"], arguments].concat());
    // Columns have other widths there.
    let words = |text: String| -> Vec<Vec<String>> {
        let lines = text.lines();
        lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect()
    };
    for options in [
        &[&inode[..]][..],
        &["-n", &inode],
        &["-l", &inode],
        &["-luW", "-o", "PID,COMMAND,NS,TYPE,UID", &inode],
    ] {
        assert_eq!(words(floe(options)), words(lsns(options)), "{options:?}");
    }
    assert_eq!(words(floe(&[&inode])).len(), 5, "a heading and four processes");
    assert_eq!(json(&floe(&["-J", &inode])), json(&lsns(&["-J", &inode])));
    let pid = first.to_string();
    for options in [
        &["-r", "-o", "PID,COMMAND,NS", &inode][..],
        &["-r", "-t", "pid", "--task", &pid],
        &["-rn", "-t", "pid", "-p", &pid, "-o", "+PATH,PPID,NETNSID,NSFS,PNS,ONS"],
    ] {
        // Of cells without anything lsns leaves blanks at the end, or not.
        let plain = |text: String| -> Vec<String> { text.lines().map(|line| line.trim_end().to_owned()).collect() };
        assert_eq!(plain(floe(options)), plain(lsns(options)), "{options:?}");
    }
    assert!(floe(&["-r", "-o", "COMMAND", &inode]).contains("sleep\\x201001"));
    let heading = floe(&["--output-all", "-t", "pid"]);
    let heading: Vec<&str> = heading.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading.join(","), format!("{ALL},SANDBOX"));
    // A tree, with what it is of.
    for tree in ["-Tparent", "--tree=parent", "-T"] {
        let drawn = floe(&[tree, "-t", "pid", "-n", "-o", "NS,TYPE"]);
        let own = drawn.lines().find(|line| line.contains(&inode)).expect("the namespace");
        assert!(own.starts_with('├') || own.starts_with('└'), "{tree}: {drawn}");
    }
    for (wrong, why) in [
        (&["1"][..], "there is no namespace 1"),
        (&["-r", "-J"], "cannot be used with"),
        (&["-r", "-T"], "cannot be used with"),
        (&["-t", "pid", &inode], "cannot be used with"),
    ] {
        let outcome = host.floe(&[&["ns"], wrong].concat());
        assert!(outcome.status != 0 && outcome.err.contains(why), "{}", outcome.err);
    }
}

#[test]
fn the_listing_is_what_the_kernel_tells() {
    let host = Host::new();
    let (unshare, sleeper) = in_all_kinds();
    let all = listed(&host.done(&["ns", "--json"]));
    let of = |pid: i32, name: &str| inode(format!("/proc/{pid}/ns/{name}"));
    let user = of(sleeper, "user");
    for name in NAMES {
        let found = find(&all, of(sleeper, name));
        // unshare itself is in all but those that only its children are in.
        let (first, count) = if matches!(name, "pid" | "time") {
            (sleeper, 1)
        } else {
            (unshare.pid(), 2)
        };
        assert_eq!(
            (&found["pid"], &found["nprocs"]),
            (&json!(first), &json!(count)),
            "{name}"
        );
        assert_eq!(found["type"], name);
        assert_eq!(found["path"], format!("/proc/{first}/ns/{name}"));
        let above = |kind| inode(format!("/proc/self/ns/{kind}"));
        let owner = if name == "user" { above("user") } else { user };
        let parent = if matches!(name, "user" | "pid") { above(name) } else { 0 };
        assert_eq!(
            (&found["ons"], &found["pns"]),
            (&json!(owner), &json!(parent)),
            "{name}"
        );
    }
    let found = find(&all, of(sleeper, "pid"));
    assert_eq!(found["command"], "sleep 1000");
    assert_eq!(
        (&found["ppid"], &found["uid"], &found["user"]),
        (&json!(unshare.pid()), &json!(0), &json!("root"))
    );
    // As text.
    let text = host.done(&[
        "ns",
        "-t",
        "uts",
        "-t",
        "pid",
        "-p",
        &sleeper.to_string(),
        "--noheadings",
    ]);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let mut kinds: Vec<&str> = lines.iter().map(|line| line[1]).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["pid", "uts"], "{text}");
    let text = host.done(&["ns", "-t", "net", "-o", "+pns,ONS"]);
    assert_eq!(
        text.lines()
            .next()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .as_deref(),
        Some("NS TYPE NPROCS PID USER NETNSID NSFS COMMAND PNS ONS")
    );
}

#[test]
fn namespaces_without_processes_are_listed() {
    let host = Host::new();
    let alone = |all: &[Value], number: u64, path: &str| {
        let found = find(all, number);
        let told = (&found["nprocs"], &found["pid"], &found["command"], &found["path"]);
        assert_eq!(told, (&json!(0), &Value::Null, &Value::Null, &json!(path)), "{found}");
        found
    };
    // Held by a thread, which holds by a descriptor one more.
    let (say, hear) = mpsc::channel();
    let (end, wait) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWUTS).expect("a namespace");
        let held = fs::File::open("/proc/thread-self/ns/uts").expect("open it");
        unshare(CloneFlags::CLONE_NEWUTS).expect("another one");
        say.send((nix::unistd::gettid().as_raw(), held)).expect("tell");
        wait.recv().unwrap_or_default();
    });
    let (tid, held) = hear.recv().expect("hear");
    let own = std::process::id();
    let all = listed(&host.done(&["ns", "--json"]));
    let place = format!("/proc/{own}/task/{tid}/ns/uts");
    alone(&all, inode(&place), &place);
    let number = std::os::fd::AsRawFd::as_raw_fd(&held);
    let in_table = held.metadata().expect("a file").ino();
    alone(&all, in_table, &format!("/proc/{own}/fd/{number}"));
    drop(end);
    thread.join().expect("its end");

    // Mounted where floe sees it, and where only another process does.
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let mount = |file: &PathBuf, script: &str| {
        fs::write(file, "").expect("a file");
        let text = format!(
            "mount --make-rprivate /; unshare --net={} true; {script}",
            file.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &text]);
        command
    };
    let near = host.path("near");
    assert_eq!(run(&mut mount(&near, "true")).status, 0);
    let all = listed(&host.done(&["ns", "-t", "net", "--json"]));
    let found = alone(&all, inode(&near), &near.to_string_lossy());
    assert_eq!(
        (&found["nsfs"], &found["netnsid"]),
        (&json!(near), &json!("unassigned"))
    );
    // Those alone: what only a descriptor keeps is none of them.
    let persistent = listed(&host.done(&["ns", "--persistent", "--json"]));
    assert_eq!(find(&persistent, inode(&near))["nprocs"], 0);
    let is_kept = |one: &Value| one["nprocs"] == 0 && !one["nsfs"].is_null();
    assert!(persistent.iter().all(is_kept), "{persistent:#?}");
    let far = host.path("far");
    let mut command = Command::new("unshare");
    let script = mount(&far, "echo up > $0; exec sleep 1000");
    command.arg("-m").arg("sh").args(script.get_args()).arg(host.path("up"));
    let other = Running::start(&mut command, "the mount", || host.path("up").exists());
    let all = listed(&host.done(&["ns", "-t", "net", "--json"]));
    let place = format!("/proc/{}/root{}", other.pid(), far.display());
    let found = alone(&all, inode(&place), &place);
    assert_eq!(found["nsfs"], place);
    // The first one is mounted there too, but known by the caller's path.
    assert_eq!(find(&all, inode(&near))["nsfs"], json!(near));
    // So that the folder can go.
    drop(other);
    nix::mount::umount(&near).expect("unmount it");
}

/// A sandbox in which there are five more PID namespaces, each in the one before; and the inode numbers of all six.
fn nested(host: &Host, base: &str, innermost: &[&str]) -> (String, Vec<u64>) {
    let name = host.name(base);
    let mut line = vec!["run", "-d", "--name", &name, "--"];
    for _ in 0..5 {
        line.extend(["unshare", "-fp", "--mount-proc"]);
    }
    line.extend(innermost);
    host.done(&line);
    let mut pids = vec![host.pid1(&name)];
    until("the innermost", || {
        while let Some(child) = child_of(*pids.last().expect("one at least")) {
            pids.push(child);
        }
        pids.len() == 6 && name_of(pids[5]) != "unshare"
    });
    let inodes = pids.iter().map(|pid| inode(format!("/proc/{pid}/ns/pid"))).collect();
    (name, inodes)
}

#[test]
fn trees_show_what_is_nested() {
    let host = Host::new();
    let (name, inodes) = nested(&host, "tree", &["sleep", "1000"]);
    let forest = json(&host.done(&["ns", "-t", "pid", "--tree", "--json"]));
    let below = |node: &Value, number: u64| find(node["children"].as_array().expect("children"), number);
    let mut node = find(
        forest["namespaces"].as_array().expect("a list"),
        inode("/proc/self/ns/pid"),
    );
    for (index, number) in inodes.iter().enumerate() {
        node = below(&node, *number);
        assert_eq!(node["nprocs"], 1, "{index}: {node}");
    }
    assert_eq!(
        (&node["command"], &node["children"]),
        (&json!("sleep 1000"), &Value::Null)
    );
    // By who started whom it is the same, and by owners all are in one user namespace.
    let by_process = json(&host.done(&["ns", "-t", "pid", "--tree=process", "--json"]));
    let mut node = find(
        by_process["namespaces"].as_array().expect("a list"),
        inode("/proc/self/ns/pid"),
    );
    for number in &inodes {
        node = below(&node, *number);
    }
    let by_owner = json(&host.done(&["ns", "--tree=owner", "--json"]));
    let user = find(
        by_owner["namespaces"].as_array().expect("a list"),
        inode("/proc/self/ns/user"),
    );
    for number in &inodes {
        below(&user, *number);
    }
    // The first is the sandbox's, as others are that it has.
    let all = listed(&host.done(&["ns", "--json"]));
    let theirs = all.iter().filter(|namespace| namespace["sandbox"] == *name);
    let mut theirs: Vec<&str> = theirs
        .map(|namespace| namespace["type"].as_str().expect("a kind"))
        .collect();
    theirs.sort_unstable();
    assert_eq!(theirs, ["cgroup", "ipc", "mnt", "pid", "uts"]);
    assert_eq!(find(&all, inodes[0])["sandbox"], json!(name));
    let drawn = host.done(&["ns", "-t", "pid", "--tree", "-o", "NS", "-n"]);
    let place = |number: &u64| {
        let line = drawn.lines().find(|line| line.ends_with(&number.to_string()));
        line.expect("its line")
            .chars()
            .position(|c| c.is_ascii_digit())
            .expect("a number")
    };
    let indented: Vec<usize> = inodes.iter().map(place).collect();
    assert_eq!(indented, [2, 4, 6, 8, 10, 12], "{drawn}");
    host.done(&["rm", "-f", &name]);
}

#[test]
fn pids_are_told_on_every_level() {
    let host = Host::new();
    let folder = host.path("victim");
    fs::create_dir(&folder).expect("a folder");
    let (victim, folder) = (program("threads"), folder.display().to_string());
    let (name, inodes) = nested(&host, "levels", &[&victim.to_string_lossy(), &folder]);
    until("the threads", || Path::new(&folder).join("ready").exists());
    let tasks = json(&host.done(&["ps", "--json", &name]));
    let tasks = tasks.as_array().expect("a list");
    assert_eq!(tasks.len(), 6, "{tasks:#?}");
    for (index, task) in tasks.iter().enumerate() {
        // One level more each; on the sandbox's own, they count up.
        let levels = task["nspid"].as_array().expect("a list");
        assert_eq!(levels.len(), index + 2, "{task}");
        assert_eq!((&levels[index + 1], &task["pid"]), (&json!(1), &json!(index + 1)));
        assert_eq!(
            (&task["ppid"], &task["pgid"], &task["sid"]),
            (&json!(index), &json!(1), &json!(1))
        );
        let text = host.done(&["pid", "--json", &levels[0].to_string()]);
        check(&json(&text), levels, &name, &inodes);
        for (level, number) in levels.iter().enumerate().skip(1) {
            let space = inodes[level - 1].to_string();
            let back = host.done(&["pid", "--ns", &space, &number.to_string()]);
            assert_eq!(back.trim(), levels[0].to_string());
        }
        let back = host.done(&["pid", "--in", &name, &task["pid"].to_string()]);
        assert_eq!(back.trim(), levels[0].to_string());
    }
    // The tree is drawn whole.
    let text = host.done(&["ps", &name]);
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(
        text.lines()
            .last()
            .is_some_and(|line| line.contains(&format!("{}t ", " ".repeat(12)))),
        "{text}"
    );
    threads_are_tasks_too(&host, &name, tasks[5]["nspid"][0].as_i64().expect("a number"));
}

/// A translation tells these IDs in these namespaces, of which the first is the sandbox's.
fn check(translation: &Value, ids: &[Value], sandbox: &str, inodes: &[u64]) {
    let levels = translation["levels"].as_array().expect("levels");
    let told: Vec<&Value> = levels.iter().map(|level| &level["pid"]).collect();
    assert_eq!(told, ids.iter().collect::<Vec<_>>());
    let spaces: Vec<u64> = levels
        .iter()
        .map(|level| level["namespace"].as_u64().expect("it is known"))
        .collect();
    assert_eq!(spaces[0], inode("/proc/self/ns/pid"));
    assert_eq!(spaces[1..], inodes[..ids.len() - 1]);
    let sandboxes: Vec<&Value> = levels.iter().map(|level| &level["sandbox"]).collect();
    for (level, told) in sandboxes.into_iter().enumerate() {
        let wanted = if level == 1 { json!(sandbox) } else { Value::Null };
        assert_eq!(*told, wanted, "level {level}");
    }
}

fn threads_are_tasks_too(host: &Host, name: &str, process: i64) {
    let entries = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let tids: Vec<i64> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .parse()
                .expect("a TID")
        })
        .collect();
    assert!(tids.len() > 1, "{tids:?}");
    // There are hundreds.
    for tid in tids.into_iter().step_by(20) {
        let told = json(&host.done(&["pid", "--json", &tid.to_string()]));
        let levels = told["levels"].as_array().expect("levels");
        assert_eq!(
            (levels.len(), &levels[0]["pid"], &levels[0]["process"]),
            (7, &json!(tid), &json!(process))
        );
        // The innermost process is PID 1 there.
        assert_eq!(levels[6]["process"], 1);
        let back = host.done(&["pid", "--in", name, &levels[1]["pid"].to_string()]);
        assert_eq!(back.trim(), tid.to_string());
        let text = host.done(&["pid", &tid.to_string()]);
        assert_eq!(text.contains("OF PROCESS"), tid != process, "{text}");
    }
}

#[test]
fn what_is_above_has_no_number_below() {
    let host = Host::new();
    let name = host.sleeper("above");
    // Its own PID 1, by the number that it has here; the test itself.
    for pid in [host.pid1(&name), std::process::id() as i32] {
        let line = format!("kill -0 {pid}");
        let outcome = host.floe(&["exec", &name, "--", "sh", "-c", &line]);
        assert!(
            outcome.status != 0 && outcome.err.contains("No such process"),
            "{outcome:?}"
        );
        let said = host.floe(&["pid", "--in", &name, &pid.to_string()]).expect_failed();
        assert_eq!(
            said,
            format!("floe: there is no process or thread {pid} in sandbox {name}\n")
        );
    }
    assert_eq!(
        host.done(&["exec", &name, "--", "sh", "-c", "kill -0 1 && echo there"]),
        "there\n"
    );
}

#[test]
fn what_is_not_there_is_said() {
    let host = Host::new();
    let name = host.sleeper("missing");
    for (line, said) in [
        (
            vec!["pid", "--in", &name, "77"],
            format!("floe: there is no process or thread 77 in sandbox {name}\n"),
        ),
        (
            vec!["pid", "--in", "nobody", "1"],
            "floe: there is no sandbox named nobody (floe ps lists them)\n".to_owned(),
        ),
        (
            vec!["pid", "--ns", "7", "1"],
            "floe: there is no PID namespace 7 with a process that you may see (floe ns -t pid lists them)\n"
                .to_owned(),
        ),
        (
            vec!["pid", "4194305"],
            "floe: there is no process or thread 4194305 in this PID namespace\n".to_owned(),
        ),
        (
            vec!["ns", "-p", "4194305"],
            "floe: there is no process 4194305\n".to_owned(),
        ),
    ] {
        assert_eq!(host.floe(&line).expect_failed(), said, "{line:?}");
    }
    for line in [
        &["ns", "-t", "moon"][..],
        &["ns", "-o", "NS,MOON"],
        &["ns", "--tree=moon"],
        &["pid", "--in", "a", "--ns", "1", "1"],
        &["pid"],
    ] {
        assert_eq!(host.floe(line).status, 2, "{line:?}");
    }
}

#[test]
fn an_ordinary_user_sees_their_own() {
    let host = Host::of_ordinary_user();
    let mut command = Command::new("unshare");
    command
        .args(["-U", "-r", "-fp", "sleep", "1000"])
        .uid(ORDINARY)
        .gid(ORDINARY);
    let unshare = Running(command.stdin(Stdio::null()).process_group(0).spawn().expect("start it"));
    let mut sleeper = 0;
    until("the sleeper, if they may have namespaces", || {
        sleeper = child_of(unshare.pid())
            .filter(|pid| name_of(*pid) == "sleep")
            .unwrap_or(0);
        sleeper != 0 || name_of(unshare.pid()).is_empty()
    });
    let all = listed(&host.done(&["ns", "--json"]));
    // Other tests' sandboxes of the same user may have users of a range that was given to it.
    assert!(all.iter().all(|namespace| namespace["uid"] != 0), "{all:#?}");
    let user = inode(format!("/proc/{sleeper}/ns/user"));
    let found = find(&all, inode(format!("/proc/{sleeper}/ns/pid")));
    assert_eq!((&found["ons"], &found["command"]), (&json!(user), &json!("sleep 1000")));
    let levels = json(&host.done(&["pid", "--json", &sleeper.to_string()]));
    assert_eq!(
        (&levels["levels"][0]["pid"], &levels["levels"][1]["pid"]),
        (&json!(sleeper), &json!(1))
    );
    let space = found["ns"].to_string();
    let back = host.done(&["pid", "--ns", &space, "1"]);
    assert_eq!(back.trim(), sleeper.to_string());
    // Of others they learn the numbers, but not the namespaces.
    let others = Host::new();
    let pid1 = others.pid1(&others.sleeper("other"));
    let levels = json(&host.done(&["pid", "--json", &pid1.to_string()]));
    let last = &levels["levels"][1];
    assert_eq!((&last["pid"], &last["namespace"]), (&json!(1), &Value::Null));
    let said = host.floe(&["ns", "-p", &pid1.to_string()]).expect_failed();
    assert_eq!(
        said,
        format!("floe: the namespaces of process {pid1} are told only to who may trace it (ptrace(2))\n")
    );
    // A sandbox of theirs is one as any other.
    let name = host.sleeper("theirs");
    let (own, pid1) = (host.done(&["pid", "--in", &name, "1"]), host.pid1(&name));
    assert_eq!(own.trim(), pid1.to_string());
    let all = listed(&host.done(&["ns", "--json"]));
    for kind in ["pid", "user", "mnt"] {
        let found = find(&all, inode(format!("/proc/{pid1}/ns/{kind}")));
        assert_eq!(found["sandbox"], json!(name), "{found}");
    }
}

#[test]
fn a_process_that_ends_while_it_is_looked_at_is_no_error() {
    let host = Host::new();
    let mut forks = Command::new("sh");
    forks.args(["-c", "while :; do unshare -u true; done"]);
    let _forks = Running(forks.stdin(Stdio::null()).process_group(0).spawn().expect("start it"));
    let own = inode("/proc/self/ns/pid").to_string();
    let mut seen = BTreeSet::new();
    for _ in 0..times(30) {
        for namespace in listed(&host.done(&["ns", "--json"])) {
            seen.insert(namespace["ns"].as_u64());
        }
        let outcome = host.floe(&["pid", "--ns", &own, "4194305"]);
        assert_eq!(outcome.status, 1, "{}", outcome.err);
        assert!(
            outcome.err.contains("there is no process or thread 4194305"),
            "{}",
            outcome.err
        );
    }
    assert!(!seen.is_empty());
}
