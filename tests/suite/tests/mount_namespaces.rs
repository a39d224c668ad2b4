//! Trees with several mount namespaces, as unshare(1), nsenter(1) and bubblewrap make them inside of a sandbox.

use floe_suite::{Host, Mounting, PID_METHODS, Traces, Victim, WAIT, json, until};
use std::{fs, path::Path};

/// Counts, and tells who is in /proc.
const COUNT: &str = "n=0; while :; do n=$((n + 1)); echo $n $$ $(cat /proc/[1-9]*/comm) > $0/here.new; \
    mv $0/here.new $0/here; sleep 0.02; done";

/// How far a counting script is, what it calls itself, and the names of all in /proc.
fn told(folder: &Path) -> Option<(u64, String)> {
    let text = fs::read_to_string(folder.join("here")).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (number, own) = (words.next()?.parse().ok()?, words.next()?);
    let mut names: Vec<&str> = words.collect();
    names.sort_unstable();
    Some((number, format!("{own} {}", names.join(" "))))
}

/// What it tells when it has counted on.
fn goes_on(folder: &Path) -> String {
    let before = told(folder).map_or(0, |(number, _)| number);
    until("it counts on", || told(folder).is_some_and(|(now, _)| now > before + 2));
    told(folder).expect("it counts").1
}

/// Each shows its own processes and those below, whoever looks.
#[test]
fn pid_namespaces_below_each_other_have_their_own_proc() {
    nested(&Host::new(), "unshare --fork --pid --mount-proc");
}

/// Each in a user namespace below the other's, whose all else is.
#[test]
fn user_namespaces_below_each_other_have_theirs() {
    nested(
        &Host::new(),
        "unshare --user --map-root-user --fork --pid --mount-proc --uts --ipc --net",
    );
}

#[test]
fn those_of_an_ordinary_user_have_theirs_too() {
    nested(
        &Host::of_ordinary_user(),
        "unshare --user --map-root-user --fork --pid --mount-proc",
    );
}

#[test]
fn those_of_an_ordinary_user_have_it_too() {
    nested(&Host::of_ordinary_user(), "unshare --fork --pid --mount-proc");
}

fn nested(host: &Host, nested: &str) {
    let script = format!("cd /; {nested} {nested} {nested} bash -c '{COUNT}' $0 & {WAIT}");
    let mounting = Mounting::start(host, &script);
    let innermost = "1 bash cat";
    assert_eq!(goes_on(&mounting.folder), innermost);
    for method in PID_METHODS.iter().cycle().take(4) {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, &image]);
        assert_eq!(goes_on(&mounting.folder), innermost);
        let tasks = json(&host.done(&["ps", &mounting.name, "--json"]));
        let levels = tasks.as_array().expect("a list").iter().map(|task| {
            let ids = task["nspid"].as_array().expect("a list");
            // That of the host is among them.
            ids.len() - 1
        });
        assert_eq!(levels.max(), Some(4), "{tasks}");
    }
}

/// It had all capabilities, also those that floe itself lacks, in a user namespace that it is not seen in any more.
#[test]
fn who_has_ended_in_a_user_namespace_below_waits_to_be_reaped() {
    let host = Host::new();
    // Behind the shell's end nobody reaps it.
    let ends = "until [[ $(< /proc/$$/comm) = sleep ]]; do :; done & exec sleep 1001";
    let script = format!("cd /; unshare --user --map-root-user bash -c '{ends}' & {WAIT}");
    let mounting = Mounting::start(&host, &script);
    // Who has ended is in no cgroup, by which tasks are listed; its parent is.
    let zombies = || {
        let tasks = json(&host.done(&["ps", &mounting.name, "--json"]));
        let pids = tasks
            .as_array()
            .expect("a list")
            .iter()
            .map(|task| task["nspid"][0].to_string());
        let children = pids.flat_map(|pid| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")));
        let all = children.collect::<Vec<_>>().join(" ");
        let has_ended = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| stat.contains(") Z "))
        };
        all.split_ascii_whitespace().filter(has_ended).count()
    };
    until("it ends", || zombies() == 1);
    for method in PID_METHODS.iter().cycle().take(4) {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, &image]);
        assert_eq!(zombies(), 1);
    }
}

/// What it has open is in mounts of a namespace that nobody is in any more.
#[test]
fn the_terminal_of_a_namespace_that_all_have_left_is_kept() {
    let host = Host::new();
    let (name, folder) = (host.name("terminal"), host.folder("folder"));
    let script = "cd /; while :; do tty > $0/here.new; mv $0/here.new $0/here; sleep 0.02; done";
    let place = folder.to_str().expect("a plain path");
    let command = ["unshare", "-m", "bash", "-c", script, place];
    host.done(&[&["run", "-d", "-t", "--name", &name, "--"][..], &command].concat());
    let image = host.path("image.floe").display().to_string();
    let tells = || {
        let here = folder.join("here");
        // It may not be there yet.
        let _ = fs::remove_file(&here);
        until("it tells", || here.exists());
        fs::read_to_string(&here).expect("read")
    };
    let before = tells();
    assert!(before.starts_with("/dev/pts/"), "{before}");
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", &image]);
        host.done(&["restore", "-d", "--pid-method", method, &image]);
        assert_eq!(tells(), before);
    }
}

/// A service with a private /tmp, and a shell that entered its namespace.
#[test]
fn a_namespace_is_entered_by_others() {
    let host = Host::new();
    let script = "cd /; unshare -m bash -c 'mount -t tmpfs none /mnt; echo private > /mnt/file; exec sleep 1000' & \
        until [ -e /proc/$!/root/mnt/file ]; do sleep 0.01; done; \
        nsenter -t $! -m bash -c 'cd /mnt; exec 5< file; touch $0/ready; exec sleep 1001' $0 & sleep 1000";
    let mounting = Mounting::start(&host, script);
    let look = || {
        let tasks = json(&host.done(&["ps", &mounting.name, "--json"]));
        let of = |pid: i64| {
            let task = tasks.as_array()?.iter().find(|task| task["pid"] == pid)?.clone();
            task["nspid"][0].as_i64()
        };
        let all = tasks.as_array().expect("a list").iter();
        let mut all: Vec<(i64, String)> = all
            .filter_map(|task| {
                let pid = task["pid"].as_i64()?;
                let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", of(pid)?)).ok();
                let file = link("fd/5").unwrap_or_default();
                let private = fs::read_to_string(format!("/proc/{}/root/mnt/file", of(pid)?)).unwrap_or_default();
                Some((pid, format!("{:?} {} {private}", link("cwd"), file.display())))
            })
            .collect();
        all.sort();
        all
    };
    let before = look();
    assert!(
        before
            .iter()
            .any(|(_, what)| what.contains("/mnt\") /mnt/file private")),
        "{before:?}"
    );
    for method in PID_METHODS {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, &image]);
        assert_eq!(look(), before);
    }
}

#[test]
fn a_restore_that_fails_leaves_no_namespace() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "namespaces-mount", &[], &[]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "namespaces-mount", "-o", &image]);
    let traces = Traces::look(&host, &["namespaces-mount"], &[]);
    for stage in ["mounts", "contents", "tree", "files", "state", "verify", "thaw"] {
        let mut command = host.command(&["restore", "-d", &image]);
        let error = floe_suite::run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        traces.expect_again(&host, &["namespaces-mount"], &[], stage);
    }
    host.done(&["restore", "-d", &image]);
    victim.check("restored at last");
}

#[test]
fn a_proc_of_nobody_is_refused() {
    let host = Host::new();
    let script = format!("mkdir $0/p; unshare --fork --pid mount -t proc none $0/p; {WAIT}");
    let mounting = Mounting::start(&host, &script);
    let found = mounting.findings();
    let told = format!("mount {} (proc)", mounting.folder.join("p").display());
    assert!(
        found.contains(&told) && found.contains("in which nobody is left"),
        "{found}"
    );
}

/// As it shows mounts to those inside, in a root of its own.
#[test]
fn bubblewrap_is_carried() {
    let host = Host::new();
    let script = format!(
        "cd /; bwrap --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 \
        --dev /dev --proc /proc --tmpfs /tmp --bind $0 $0 --unshare-pid bash -c '{COUNT}' $0 & {WAIT}"
    );
    let mounting = Mounting::start(&host, &script);
    let inside = goes_on(&mounting.folder);
    for method in PID_METHODS {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, &image]);
        assert_eq!(goes_on(&mounting.folder), inside);
    }
}
