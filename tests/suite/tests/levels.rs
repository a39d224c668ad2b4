//! PID namespaces in each other (`floe run --pid-depth`): who is called what on which level, before and after round trips, and
//! what passes from level to level.

use floe_suite::{Host, PID_METHODS, Victim, json, until};

/// The IDs of all tasks of a sandbox on its own levels, outermost first.
fn levels(host: &Host, name: &str) -> Vec<(String, Vec<i64>)> {
    let tasks = json(&host.done(&["ps", name, "--json"]));
    let tasks = tasks.as_array().expect("a list");
    let levels = |task: &serde_json::Value| {
        let all = task["nspid"].as_array().expect("a list").iter();
        all.filter_map(serde_json::Value::as_i64).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = tasks
        .iter()
        .map(|task| (task["comm"].as_str().unwrap_or_default().to_owned(), levels(task)))
        .collect();
    // What the host calls them is another number each time.
    let above = found.iter().map(|(_, ids)| ids.len()).min().unwrap_or(0) - 1;
    for (_, ids) in &mut found {
        ids.drain(..above);
    }
    found.sort();
    found
}

const SCRIPT: &str = "sleep 1001 & sleep 1002 & wait";

fn come_back(host: &Host) {
    let name = host.name("deep");
    host.done(&[
        "run",
        "-d",
        "--name",
        &name,
        "--pid-depth",
        "5",
        "--",
        "sh",
        "-c",
        SCRIPT,
    ]);
    let sleep = |all: Vec<(String, Vec<i64>)>| all.iter().filter(|(comm, _)| comm == "sleep").count();
    until("its children", || sleep(levels(host, &name)) == 2);
    let before = levels(host, &name);
    // Inits are PID 1 of their level and PID 2 of the one above; so is the command.
    let shell = before.iter().find(|(comm, _)| comm == "sh").expect("the command");
    assert_eq!(shell.1, [5, 4, 3, 2, 1], "{before:?}");
    let inits = before.iter().filter(|(comm, _)| comm == "floe-init");
    let inits: Vec<_> = inits.map(|(_, ids)| ids.clone()).collect();
    assert_eq!(inits, [vec![1], vec![2, 1], vec![3, 2, 1], vec![4, 3, 2, 1]]);
    let seen = |when: &str| {
        let shown = host.done(&[
            "exec",
            &name,
            "--",
            "sh",
            "-c",
            "cat /proc/1/comm; echo $$; cat /proc/$$/comm",
        ]);
        let words: Vec<&str> = shown.split_ascii_whitespace().collect();
        assert_eq!((words[0], words[2]), ("sh", "sh"), "what /proc shows {when}");
    };
    seen("at first");
    let image = host.path("deep.floe");
    let image = image.to_str().expect("a plain path");
    for method in PID_METHODS.iter().cycle().take(3) {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        assert_eq!(levels(host, &name), before, "after a restore by {method}");
        seen(method);
    }
    // What is above goes with what is below.
    let inner = json(&host.done(&["ps", &name, "--json"]));
    let tasks = inner.as_array().expect("a list");
    let shell = tasks.iter().find(|task| task["comm"] == "sh").expect("the command");
    host.done(&["kill", "-s", "KILL", &name]);
    assert_eq!(host.done(&["wait", &name]).trim(), "137");
    let ended = format!("/proc/{}", shell["nspid"][0]);
    until("the innermost has ended", || !std::path::Path::new(&ended).exists());
}

#[test]
fn five_levels_come_back() {
    come_back(&Host::new());
}

#[test]
fn five_levels_of_an_ordinary_user_come_back() {
    come_back(&Host::of_ordinary_user());
}

#[test]
fn what_is_nested_below_comes_back() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "pids-nested", &["--pid-depth", "3"], &[]);
    for method in PID_METHODS {
        victim.round_trip("pids-nested", method);
    }
    victim.check("below two levels, after two round trips");
}

#[test]
fn signals_and_ends_pass_through_all_levels() {
    let host = Host::new();
    let script = "trap 'exit 7' TERM; touch $0; while :; do sleep 0.02; done";
    for options in [&["--pid-depth", "4"][..], &["--pid-depth", "3", "--init"]] {
        let name = host.name("signal");
        let there = host.path("there");
        let mut line = vec!["run", "-d", "--name", &name];
        line.extend(options);
        line.extend(["--", "sh", "-c", script, there.to_str().expect("a plain path")]);
        host.done(&line);
        until("the command", || there.exists());
        host.done(&["kill", "-s", "TERM", &name]);
        assert_eq!(host.done(&["wait", &name]).trim(), "7", "{options:?}");
        host.done(&["rm", &name]);
        std::fs::remove_file(&there).expect("for the next one");
    }
    let status = |command: &str| {
        host.floe(&["run", "--pid-depth", "3", "--", "sh", "-c", command])
            .status
    };
    assert_eq!(status("exit 3"), 3);
    assert_eq!(
        status("kill -KILL $$; exit 4"),
        4,
        "PID 1 is not killed from its own namespace"
    );
    let missing = host.floe(&["run", "--pid-depth", "3", "--", "/no/such"]);
    assert_eq!(missing.status, 127, "{}", missing.err);
    assert!(missing.err.contains("execute /no/such"), "{}", missing.err);
    assert!(host.sandboxes().is_empty());
}

#[test]
fn deeper_than_the_kernel_nests_is_said() {
    let host = Host::new();
    for wrong in ["0", "33", "x"] {
        assert_eq!(host.floe(&["run", "--pid-depth", wrong, "--", "true"]).status, 2);
    }
    let floe = host.program("floe").display().to_string();
    let state = host.path("inner").display().to_string();
    let inner = [
        floe.as_str(),
        "--state-dir",
        &state,
        "run",
        "--pid-depth",
        "20",
        "--",
        "true",
    ];
    let mut line = vec!["run", "--pid-depth", "20", "--"];
    line.extend(inner);
    let outcome = host.floe(&line);
    assert_eq!(outcome.status, 125, "{}", outcome.err);
    assert!(
        outcome.err.contains("of 20 (the kernel nests 32 at most"),
        "{}",
        outcome.err
    );
    assert!(host.sandboxes().is_empty());
}

/// The innermost level's processes are what /proc shows in another root directory, too.
#[test]
fn levels_in_another_root_directory() {
    for host in [Host::new(), Host::of_ordinary_user()] {
        let root = host.folder("root");
        floe_suite::make_rootfs(&root);
        let (name, image) = (host.name("deep"), host.path("deep.floe").display().to_string());
        let script = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done";
        let options = ["--pid-depth", "3", "--rootfs", &root.display().to_string()].map(str::to_owned);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        host.done(
            &[
                &["run", "-d", "--name", &name],
                &options[..],
                &["--", "bash", "-c", script],
            ]
            .concat(),
        );
        let count = || host.done(&["logs", &name]).lines().count();
        let shown = || {
            host.done(&[
                "exec",
                &name,
                "--",
                "bash",
                "-c",
                "cat /proc/1/comm; echo $(</proc/1/cmdline)",
            ])
        };
        for method in PID_METHODS {
            let before = count();
            until("it counts", || count() > before + 2);
            assert!(shown().starts_with("bash\n"), "{}", shown());
            let all = levels(&host, &name);
            assert!(all.contains(&("bash".to_owned(), vec![3, 2, 1])), "{all:?}");
            host.done(&["checkpoint", &name, "-o", &image]);
            host.done(&["restore", "-d", "--pid-method", method, &image]);
        }
        let before = count();
        until("it counts on", || count() > before + 2);
        assert!(shown().starts_with("bash\n"), "{}", shown());
    }
}
