//! Limits of memory, processors and tasks hold in a sandbox, in the hierarchies of either version; where they can't be had
//! nothing is made; and no cgroup stays.

use floe_suite::{Host, Traces, cgroup_file, json, run, signal, skip, spawn, times, until, wait};
use std::process::Stdio;

/// Whether this host has what a limit takes.
fn has(host: &Host, limit: &str) -> bool {
    let features = json(&run(&mut host.command(&["check", "--json"])).out);
    let all = features["features"].as_array().expect("a list");
    let found = all.iter().find(|feature| feature["name"] == limit).expect(limit);
    if found["here"] == "yes" {
        return true;
    }
    skip(&format!("{limit}: {found}"));
    false
}

fn limits(host: &Host) -> serde_json::Value {
    json(&host.done(&["ps", "--json"]))[0]["limits"].clone()
}

#[test]
fn a_fork_too_many_fails_with_eagain() {
    let host = Host::new();
    if !has(&host, "task limit") {
        return;
    }
    // The command, the shell's child that counts is none.
    let count = "import os\nn = 0\ntry:\n  while True:\n    if os.fork() == 0:\n      import signal; signal.pause()\n    n += 1\nexcept OSError as e:\n  print(n, e.errno)";
    let job = host.name("job");
    let line = ["run", "--name", &job, "--pids", "7", "--", "python3", "-c", count];
    assert_eq!(host.done(&line).trim(), "6 11");
    Traces::look(&host, &[&job], &[]).expect_none_of(&job);
}

#[test]
fn who_takes_too_much_memory_is_ended() {
    let host = Host::new();
    if !has(&host, "memory limit") {
        return;
    }
    let take = "python3 -c 'a = bytearray(200 << 20); print(len(a))'; echo $?";
    let line = |memory| {
        [
            "run",
            "--memory",
            memory,
            "--memory-swap",
            memory,
            "--",
            "sh",
            "-c",
            take,
        ]
    };
    assert_eq!(host.done(&line("64m")).trim(), "137");
    assert_eq!(host.done(&line("1g")).trim(), format!("{}\n0", 200 << 20));
}

#[test]
fn processors_are_a_quota() {
    let host = Host::new();
    if !has(&host, "processor limit") {
        return;
    }
    let job = host.name("job");
    host.done(&[
        "run",
        "-d",
        "--name",
        &job,
        "--cpus",
        "0.1",
        "--",
        "sh",
        "-c",
        "while :; do :; done",
    ]);
    assert_eq!(limits(&host)["cpus"], 0.1);
    until("the loop is held back", || {
        let text = cgroup_file(host.pid1(&job), &["cpu.stat"]);
        let held = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        held.is_some_and(|number| number != "0")
    });
}

#[test]
fn all_are_told_and_hold_for_what_comes_later() {
    let host = Host::new();
    if !["memory limit", "processor limit", "task limit"]
        .iter()
        .all(|limit| has(&host, limit))
    {
        return;
    }
    let job = host.name("job");
    let mut line = vec![
        "run",
        "-d",
        "--name",
        &job,
        "-m",
        "96m",
        "--cpus",
        "1.5",
        "--pids-limit",
        "9",
    ];
    line.extend(["--", "sleep", "1000"]);
    host.done(&line);
    let told = limits(&host);
    assert_eq!(told["memory"], 96 << 20);
    assert_eq!(told["cpus"], 1.5);
    assert_eq!(told["pids"], 9);
    let forks = "import os\nfor n in range(9):\n  try:\n    if os.fork() == 0:\n      import signal; signal.pause()\n  except OSError as e:\n    print(n, e.errno)\n    os.kill(0, 9)";
    let said = host.floe(&["exec", &job, "--", "setsid", "-w", "python3", "-c", forks]);
    assert_eq!((said.out.trim(), said.status), ("7 11", 137), "{}", said.err);
    host.done(&["rm", "-f", &job]);
    Traces::look(&host, &[&job], &[]).expect_none_of(&job);
}

#[test]
fn what_can_not_be_had_is_told_before_anything_is_made() {
    let script = "set -e; findmnt -rn -t cgroup,cgroup2 -o TARGET | while read -r point; do umount -l \"$point\"; done; exec \"$@\"";
    let host = Host::behind(&["unshare", "--mount", "sh", "-c", script, "sh"]);
    let ordinary = Host::of_ordinary_user();
    let tried = [
        ("--memory", "64m", "no memory controller"),
        ("--cpus", "1", "no cpu controller"),
        ("--pids", "9", "no pids controller"),
    ];
    for (option, value, why) in tried {
        for host in [&host, &ordinary] {
            let outcome = host.floe(&["run", option, value, "--", "true"]);
            assert_eq!(outcome.status, 125, "{}", outcome.err);
            assert!(outcome.err.contains(why), "{}", outcome.err);
            assert!(host.sandboxes().is_empty());
        }
        let said = ordinary.floe(&["run", option, value, "--", "true"]).err;
        assert!(said.contains("an ordinary user needs"), "{said}");
    }
    let found = json(&run(&mut host.command(&["check", "--json"])).out);
    let limits = found["features"].as_array().expect("a list").iter();
    let limits: Vec<_> = limits
        .filter(|feature| feature["name"].as_str().is_some_and(|name| name.ends_with(" limit")))
        .collect();
    assert_eq!(limits.len(), 3);
    assert!(limits.iter().all(|feature| feature["here"] == "no"), "{limits:?}");
}

#[test]
fn wrong_limits_are_refused() {
    let host = Host::new();
    let wrong = [
        ["--memory", "64x"],
        ["--memory", "12"],
        ["--cpus", "0"],
        ["--cpus", "many"],
        ["--pids", "0"],
        ["--memory-swap", "64m"],
    ];
    for [option, value] in wrong {
        let outcome = host.floe(&["run", option, value, "--", "true"]);
        assert_ne!(outcome.status, 0, "{option} {value}");
        assert!(
            outcome.err.contains("--memory") || outcome.err.contains(option),
            "{}",
            outcome.err
        );
    }
    let outcome = host.floe(&["run", "--memory", "64m", "--memory-swap", "32m", "--", "true"]);
    assert!(outcome.err.contains("must not be less"), "{}", outcome.err);
    assert!(host.sandboxes().is_empty());
}

/// Whether floe or its monitor is killed, at any moment.
#[test]
fn no_cgroup_stays_whoever_is_killed() {
    let host = Host::new();
    let options: &[&str] = if has(&host, "task limit") {
        &["--pids", "50"]
    } else {
        &[]
    };
    let job = host.name("job");
    for round in 0..times(12) {
        let mut line = vec!["run", "-d", "--name", &job];
        line.extend(options);
        line.extend(["--", "sleep", "1000"]);
        let mut command = host.command(&line);
        let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(std::time::Duration::from_micros(1000 * round));
        if round % 2 == 0 {
            signal(child.id() as i32, libc::SIGKILL);
        } else if let Some(monitor) = child_of(child.id()) {
            signal(monitor, libc::SIGKILL);
        }
        let _ = wait(child);
        until("the rest is gone, or a sandbox that can be removed", || {
            match host.sandboxes().is_empty() {
                true => true,
                false => host.floe(&["rm", "-f", &job]).status == 0,
            }
        });
        until("no cgroup is left", || {
            std::panic::catch_unwind(|| Traces::look(&host, &[&job], &[]).expect_none_of(&job)).is_ok()
        });
    }
}

fn child_of(pid: u32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[test]
fn cgroups_that_a_workload_left_in_its_own_go_with_it() {
    let host = Host::new();
    let job = host.name("job");
    host.done(&["run", "-d", "--name", &job, "--", "sleep", "1000"]);
    let list = json(&host.done(&["ps", "--json"]));
    let own = std::path::PathBuf::from(list[0]["cgroup"].as_str().expect("a path"));
    std::fs::create_dir_all(own.join("one/below")).expect("make cgroups");
    std::fs::create_dir_all(own.join("two")).expect("make a cgroup");
    let pid = host.pid1(&job).to_string();
    std::fs::write(own.join("one/below/cgroup.procs"), &pid).expect("move PID 1");
    host.done(&["freeze", &job]);
    assert_eq!(host.state(&job), "frozen");
    host.done(&["thaw", &job]);
    host.done(&["exec", &job, "--", "true"]);
    host.done(&["kill", &job]);
    host.done(&["wait", &job]);
    until("its cgroups are gone", || !own.exists());
}
