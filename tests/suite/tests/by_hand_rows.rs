//! What a user of unshare(1), nsenter(1), lsns(1) and kill(1) does by hand, and by which line of floe's: each row as root and as
//! an ordinary user, before and after round trips.

use floe_suite::{Host, PID_METHODS, json, until};
use serde_json::Value;

/// A row is tried for each of them.
fn hosts() -> [Host; 2] {
    [Host::new(), Host::of_ordinary_user()]
}

/// Checks a sandbox at first and after each of two round trips.
fn before_and_after(host: &Host, name: &str, options: &[&str], check: impl Fn(&str)) {
    let image = host.path("row.floe").display().to_string();
    check("at first");
    for method in PID_METHODS {
        host.done(&["checkpoint", name, "-o", &image]);
        let line = ["restore", "-d", "--pid-method", method];
        host.done(&[&line[..], options, &[&image]].concat());
        check(method);
    }
}

fn tasks(host: &Host, name: &str) -> Vec<Value> {
    let tasks = json(&host.done(&["ps", name, "--json"]));
    tasks.as_array().expect("a list").clone()
}

/// `sudo unshare -fp /bin/bash`, and `unshare -Urpf --mount-proc` of an ordinary user.
#[test]
fn a_shell_is_pid_1_of_its_namespace() {
    for host in hosts() {
        let name = host.name("shell");
        host.done(&["run", "-d", "-t", "--name", &name, "--", "bash"]);
        before_and_after(&host, &name, &[], |when| {
            let line = "cat /proc/1/comm; readlink /proc/1/fd/0; id -u; cat /proc/sys/kernel/ns_last_pid > /dev/null";
            let told = host.done(&["exec", &name, "--", "sh", "-c", line]);
            assert_eq!(told, "bash\n/dev/pts/0\n0\n", "{when}");
            // `lsns | grep bash`
            let listed = host.done(&["ns", "-t", "pid", "-o", "COMMAND,NPROCS,PID"]);
            let ours = host.pid1(&name).to_string();
            let row = listed
                .lines()
                .find(|row| row.split_whitespace().any(|word| word == ours));
            assert!(row.is_some_and(|row| row.contains("bash")), "{when}: {listed}");
        });
    }
}

/// `grep NSpid /proc/N/status`, and `nsenter -t N -a`.
#[test]
fn pids_are_told_on_every_level() {
    for host in hosts() {
        let name = host.name("levels");
        let script = "sleep 1001 & wait";
        host.done(&[
            "run",
            "-d",
            "--name",
            &name,
            "--pid-depth",
            "5",
            "--",
            "bash",
            "-c",
            script,
        ]);
        let sleep = || tasks(&host, &name).into_iter().find(|task| task["comm"] == "sleep");
        until("its child", || sleep().is_some());
        before_and_after(&host, &name, &[], |when| {
            let found = sleep().expect("it");
            let all: Vec<i64> = found["nspid"]
                .as_array()
                .expect("levels")
                .iter()
                .filter_map(Value::as_i64)
                .collect();
            assert_eq!(all[all.len() - 5..], [6, 5, 4, 3, 2], "{when}");
            let outside = std::fs::read_to_string(format!("/proc/{}/status", all[0])).expect("its status");
            let line = outside
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))
                .expect("a line");
            let told: Vec<i64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            assert_eq!(told, all, "{when}");
            let there = host.done(&[
                "exec",
                "--pid",
                &all[0].to_string(),
                "--",
                "sh",
                "-c",
                "cat /proc/2/comm",
            ]);
            assert_eq!(there, "sleep\n", "{when}");
            let translated = host.done(&["pid", &all[0].to_string()]);
            assert!(
                translated.contains('6') && translated.contains('2'),
                "{when}: {translated}"
            );
        });
    }
}

/// What a workload makes itself: five levels, each with three tasks.
#[test]
fn levels_that_a_workload_makes_come_back() {
    let script = r#"
level=$1
sleep 1000 &
sleep 1000 &
if [ "$level" -gt 1 ]; then
    unshare --fork --pid --mount-proc bash -c "$0" "$0" $((level - 1)) &
fi
wait
"#;
    for host in hosts() {
        let name = host.name("nested");
        host.done(&["run", "-d", "--name", &name, "--", "bash", "-c", script, script, "5"]);
        let levels = || -> Vec<Vec<i64>> {
            let ids = |task: &Value| {
                let all = task["nspid"].as_array().expect("levels").iter();
                all.filter_map(Value::as_i64).skip(1).collect()
            };
            let mut found: Vec<Vec<i64>> = tasks(&host, &name).iter().map(ids).collect();
            found.sort();
            found
        };
        // A shell and two sleeps on each level, and the four that start the one below.
        until("all levels", || levels().len() == 19);
        let first = levels();
        assert_eq!(
            first
                .iter()
                .map(Vec::len)
                .max()
                .zip(first.iter().map(Vec::len).min())
                .map(|(a, b)| a - b),
            Some(4)
        );
        before_and_after(&host, &name, &[], |when| assert_eq!(levels(), first, "{when}"));
    }
}

/// `kill` of who is above, of PID 1 from inside and from outside.
#[test]
fn signals_stay_in_their_namespace() {
    for host in hosts() {
        let name = host.name("signals");
        let script = "trap 'echo told' USR1; while :; do sleep 0.05; done";
        host.done(&["run", "-d", "--name", &name, "--", "bash", "-c", script]);
        let ancestor = std::process::id().to_string();
        let inside = |line: &str| host.floe(&["exec", &name, "--", "sh", "-c", line]);
        before_and_after(&host, &name, &[], |when| {
            let error = inside(&format!("kill -0 {ancestor}")).expect_failed();
            assert!(error.contains("No such process"), "{when}: {error}");
            // PID 1 has no handler for it, and the kernel holds back even what always ends others.
            for signal in ["TERM", "INT", "KILL"] {
                let _ = inside(&format!("kill -{signal} 1")).expect_done();
            }
            assert_eq!(host.state(&name), "running", "{when}");
        });
        host.done(&["kill", "-s", "USR1", &name]);
        until("it is told", || host.done(&["logs", &name]).contains("told"));
        host.done(&["kill", "-s", "KILL", &name]);
        assert_eq!(host.done(&["wait", &name]).trim(), "137");
    }
}

/// `--init`: what it hands on, and whom it takes in.
#[test]
fn an_init_reaps_and_hands_signals_on() {
    for host in hosts() {
        let name = host.name("init");
        let script = "trap 'exit 7' TERM; (sleep 0.2 &) ; (sleep 0.3 &) ; while :; do sleep 0.05; done";
        host.done(&["run", "-d", "--init", "--name", &name, "--", "bash", "-c", script]);
        before_and_after(&host, &name, &[], |when| {
            let orphans = || tasks(&host, &name).iter().any(|task| task["state"] == "Z");
            until(&format!("all are reaped {when}"), || !orphans());
            let comm = host.done(&["exec", &name, "--", "cat", "/proc/1/comm"]);
            assert_eq!(comm, "floe-init\n", "{when}");
        });
        host.done(&["kill", "-s", "TERM", &name]);
        assert_eq!(host.done(&["wait", &name]).trim(), "7");
    }
}

/// `unshare -Ur --map-user`: who one is in there.
#[test]
fn an_ordinary_user_is_whom_they_say() {
    let host = Host::of_ordinary_user();
    for (options, user) in [(&[][..], "0"), (&["--map-user", "1234:5"], "1234")] {
        let name = host.name(&format!("user{user}"));
        let line = [&["run", "-d", "--name", &name], options, &["--", "sleep", "1000"]].concat();
        host.done(&line);
        before_and_after(&host, &name, options, |when| {
            let told = host.done(&["exec", &name, "--", "id", "-u"]);
            assert_eq!(told.trim(), user, "{when}");
        });
    }
}
