//! The verbs that keep sandboxes, as a user meets them: what they do, print and end with.

use floe_suite::{Host, Outcome, PID_METHODS, Traces, Victim, json, run, signal, spawn, times, until, wait};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Runs a shell script in the foreground.
fn sh(host: &Host, script: &str) -> Outcome {
    host.floe(&["run", "--", "sh", "-c", script])
}

fn monitor(host: &Host, name: &str) -> i32 {
    let text = fs::read_to_string(host.path("state").join(name).join("state.json")).expect("its state");
    json(&text)["monitor"].as_i64().expect("a PID") as i32
}

fn missing(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn exit_statuses_of_run() {
    let host = Host::new();
    let passwd: &[&str] = &["/etc/passwd"];
    for (line, status, said) in [
        (&["true"][..], 0, ""),
        (&["sh", "-c", "exit 3"], 3, ""),
        // Nothing that a signal did.
        (&["sh", "-c", "exit 143"], 143, ""),
        (
            &["no-such-program"],
            127,
            "floe: start the sandbox: execute no-such-program: ENOENT",
        ),
        (
            &["/no/such/program"],
            127,
            "floe: start the sandbox: execute /no/such/program: ENOENT",
        ),
        (passwd, 126, "floe: start the sandbox: execute /etc/passwd: EACCES"),
    ] {
        for init in [&[][..], &["--init"][..]] {
            let outcome = host.floe(&[&["run"], init, &["--"], line].concat());
            assert_eq!(outcome.status, status, "{line:?} {init:?}: {}", outcome.err);
            if said.is_empty() {
                assert_eq!(outcome.err, "", "{line:?} {init:?}");
            } else {
                assert!(outcome.err.starts_with(said), "{line:?} {init:?}: {}", outcome.err);
                assert_eq!(outcome.err.lines().count(), 1, "{}", outcome.err);
            }
        }
    }
    for arguments in [
        &["--name", "../up"][..],
        &["--name", ".hidden"],
        &["--name", ""],
        &["-w", "/no/such/folder"],
    ] {
        let outcome = host.floe(&[&["run"], arguments, &["--", "true"]].concat());
        assert_eq!(outcome.status, 125, "{arguments:?}: {}", outcome.err);
        assert!(outcome.err.starts_with("floe: "), "{}", outcome.err);
    }
    assert!(host.sandboxes().is_empty(), "{:?}", host.sandboxes());
}

#[test]
fn usage_errors_are_two() {
    let host = Host::new();
    for line in [
        &["run"][..],
        &["run", "--"],
        &["run", "--net", "moon", "--", "true"],
        &["run", "-e", "NAME", "--", "true"],
        &["run", "-e", "=value", "--", "true"],
        &["exec", "x"],
        &["exec", "-e", "NAME", "x", "--", "true"],
        &["kill", "-s", "NOPE", "x"],
        &["kill", "-s", "0", "x"],
        &["kill", "-s", "65", "x"],
        &["rm"],
        &["ps", "a", "b"],
        &["unknown"],
        &[],
    ] {
        let outcome = host.floe(line);
        assert_eq!(outcome.status, 2, "{line:?}: {}{}", outcome.out, outcome.err);
        assert!(outcome.err.contains("--help"), "{line:?}: {}", outcome.err);
    }
}

#[test]
fn every_verb_has_help_with_an_example() {
    let host = Host::new();
    for verb in [
        "run",
        "ps",
        "ns",
        "pid",
        "exec",
        "attach",
        "freeze",
        "thaw",
        "kill",
        "wait",
        "logs",
        "rm",
        "checkpoint",
        "restore",
        "inspect",
        "verify",
        "check",
        "demo",
    ] {
        let help = host.done(&[verb, "--help"]);
        assert!(help.contains(&format!("Example: floe {verb}")), "{verb}: {help}");
    }
}

#[test]
fn very_short_commands_lose_nothing() {
    let host = Host::new();
    for round in 0..times(200) {
        let init: &[&str] = if round % 2 == 0 { &[] } else { &["--init"] };
        let outcome = host.floe(&[&["run"], init, &["--", "sh", "-c", "echo out; echo err >&2; exit 3"]].concat());
        assert_eq!(
            (outcome.status, &*outcome.out, &*outcome.err),
            (3, "out\n", "err\n"),
            "round {round}"
        );
    }
    assert!(host.sandboxes().is_empty());
}

#[test]
fn very_short_commands_in_the_background_leave_status_and_log() {
    let host = Host::new();
    let name = host.name("short");
    for round in 0..times(100) {
        let init: &[&str] = if round % 2 == 0 { &[] } else { &["--init"] };
        let line = [
            &["run", "-d", "--name", &name],
            init,
            &["--", "sh", "-c", "echo out; exit 3"],
        ]
        .concat();
        assert_eq!(host.done(&line).trim(), name, "round {round}");
        assert_eq!(host.done(&["wait", &name]), "3\n", "round {round}");
        assert_eq!(host.done(&["logs", &name]), "out\n", "round {round}");
        assert_eq!(host.state(&name), "exited");
        host.done(&["rm", &name]);
    }
}

#[test]
fn init_reaps_orphans_and_hands_signals_on() {
    let host = Host::new();
    let name = host.name("init");
    let script = "trap 'exit 6' TERM; for i in 1 2 3; do (sleep 0.01 & ); done; echo up; while :; do sleep 0.01; done";
    host.done(&["run", "-d", "--init", "--name", &name, "--", "sh", "-c", script]);
    until("the shell", || host.done(&["logs", &name]) == "up\n");
    let tasks = || {
        json(&host.done(&["ps", "--json", &name]))
            .as_array()
            .expect("a list")
            .clone()
    };
    assert_eq!(
        (tasks()[0]["comm"].as_str(), tasks()[1]["comm"].as_str()),
        (Some("floe-init"), Some("sh"))
    );
    until("the orphans' end", || {
        tasks()
            .iter()
            .all(|task| task["state"] != "Z" && (task["ppid"] != 1 || task["comm"] == "sh"))
    });
    let outcome = host.floe(&["kill", "-s", "TERM", &name]);
    assert_eq!((outcome.status, &*outcome.err), (0, ""));
    assert_eq!(host.done(&["wait", &name]), "6\n");
    assert_eq!(
        host.floe(&["run", "--init", "--", "sh", "-c", "kill -TERM $$"]).status,
        128 + 15
    );
}

#[test]
fn the_end_of_pid_1_ends_all() {
    let host = Host::new();
    let outcome = sh(&host, "setsid sleep 1000 & setsid sleep 1000 & exit 4");
    assert_eq!((outcome.status, &*outcome.err), (4, ""));
    let name = host.name("parent");
    host.done(&[
        "run",
        "-d",
        "--name",
        &name,
        "--",
        "sh",
        "-c",
        "setsid sleep 1000 & sleep 1000",
    ]);
    let tasks = json(&host.done(&["ps", "--json", &name]));
    let pids: Vec<i32> = tasks
        .as_array()
        .expect("a list")
        .iter()
        .map(|task| task["nspid"][0].as_i64().expect("a PID") as i32)
        .collect();
    host.done(&["kill", &name]);
    host.done(&["wait", &name]);
    assert!(pids.iter().all(|pid| missing(*pid)), "{pids:?}");
}

#[test]
fn a_sandbox_has_namespaces_of_its_own() {
    let host = Host::new();
    let own = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .expect("a link")
            .display()
            .to_string()
    };
    let names = ["pid", "mnt", "uts", "ipc", "cgroup", "net", "user"];
    let out = sh(
        &host,
        "for n in pid mnt uts ipc cgroup net user; do readlink /proc/self/ns/$n; done",
    )
    .expect_done();
    for (name, inside) in names.iter().zip(out.lines()) {
        let shared = matches!(*name, "net" | "user");
        assert_eq!(own(name) == inside, shared, "{name}: {inside}");
    }
    assert_eq!(
        sh(&host, "echo $$; ls -d /proc/[0-9]* | head -1; cat /proc/1/comm").expect_done(),
        "1\n/proc/1\nsh\n"
    );
    let cgroup = sh(&host, "cat /proc/self/cgroup").expect_done();
    assert!(cgroup.lines().any(|line| line.ends_with(":/")), "{cgroup}");
    let loopback = host.done(&[
        "run",
        "--net",
        "none",
        "--",
        "sh",
        "-c",
        "cat /proc/net/dev | tail -n +3 | cut -d: -f1",
    ]);
    assert_eq!(loopback.trim(), "lo");
    let long = "x".repeat(100_000);
    let long = [&["run", "--", "sh", "-c", "echo ${#0}"][..], &[&long]].concat();
    assert_eq!(host.done(&long), "100000\n");
    assert_eq!(host.done(&["run", "--hostname", "berg", "--", "uname", "-n"]), "berg\n");
    let name = host.name("host");
    assert_eq!(
        host.done(&["run", "--name", &name, "--", "uname", "-n"]),
        format!("{name}\n")
    );
    let mut with = host.command(&[
        "run",
        "-w",
        "/usr",
        "-e",
        "A=b=c",
        "-e",
        "B=",
        "--",
        "sh",
        "-c",
        "pwd; echo $A,$B,$C",
    ]);
    let outcome = run(with.env("A", "old").env("C", "from here"));
    assert_eq!(outcome.expect_done(), "/usr\nb=c,,from here\n");
}

#[test]
fn what_ps_tells() {
    let host = Host::new();
    assert_eq!(host.done(&["ps", "--json"]).trim(), "[]");
    assert_eq!(host.done(&["ps"]), "NAME  STATE  PID  COMMAND\n");
    let name = host.name("job");
    host.done(&["run", "-d", "--name", &name, "--", "sh", "-c", "sleep 1000 & wait"]);
    until("the child", || {
        json(&host.done(&["ps", "--json", &name]))
            .as_array()
            .is_some_and(|tasks| tasks.len() == 2)
    });
    let pid = host.pid1(&name);
    let list = json(&host.done(&["ps", "--json"]));
    let entry = &list[0];
    assert_eq!(entry["name"], *name);
    assert_eq!(entry["state"], "running");
    assert_eq!(entry["command"], json(r#"["sh", "-c", "sleep 1000 & wait"]"#));
    assert!(entry["status"].is_null());
    assert!(
        Path::new(entry["cgroup"].as_str().expect("a path"))
            .join("cgroup.procs")
            .exists()
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a time")
        .as_secs();
    let created = entry["created"].as_u64().expect("seconds");
    assert!((now - 60..=now).contains(&created), "{created}");

    let tasks = json(&host.done(&["ps", "--json", &name]));
    let second = &tasks[1];
    let host_pid = second["nspid"][0].as_i64().expect("a PID");
    let comm = fs::read_to_string(format!("/proc/{host_pid}/comm")).expect("the host's PID");
    assert_eq!(comm, "sleep\n");
    assert_eq!(tasks[0]["nspid"], json(&format!("[{pid}, 1]")));
    let shape = |task: &Value| {
        let keys = ["ppid", "pgid", "sid", "comm", "threads"];
        keys.map(|key| task[key].to_string()).join(" ")
    };
    assert_eq!(shape(&tasks[0]), r#"0 1 1 "sh" 1"#);
    assert_eq!(shape(second), r#"1 1 1 "sleep" 1"#);
    let table = host.done(&["ps", &name]);
    let second_row = format!("2    {host_pid} → 2 ");
    assert!(
        table.starts_with("PID  HOST → INNERMOST  PPID  PGID  SID  S  THREADS  COMMAND\n1 "),
        "{table}"
    );
    assert!(
        table.contains(&second_row) && table.ends_with("1          sleep\n"),
        "{table}"
    );

    host.done(&["freeze", &name]);
    assert_eq!(host.state(&name), "frozen");
    let outcome = host.floe(&["exec", &name, "--", "true"]);
    assert_eq!(outcome.status, 125);
    assert_eq!(
        outcome.err,
        format!("floe: sandbox {name} is frozen; thaw it first (floe thaw {name})\n")
    );
    host.done(&["thaw", &name]);
    assert_eq!(host.done(&["exec", &name, "--", "echo", "again"]), "again\n");
    host.done(&["kill", &name]);
    host.done(&["wait", &name]);
    let list = json(&host.done(&["ps", "--json"]));
    assert_eq!(
        (&list[0]["state"], &list[0]["status"]),
        (&json("\"exited\""), &json("137"))
    );
    assert!(host.done(&["ps"]).contains("exited (137)"));
    assert_eq!(
        host.floe(&["ps", &name]).expect_failed(),
        format!("floe: sandbox {name} is not running\n")
    );
}

#[test]
fn what_lies_in_the_state_directory_besides_does_not_matter() {
    let host = Host::new();
    let name = host.sleeper("job");
    fs::write(host.path("state/a-file"), "").expect("write");
    fs::create_dir(host.path("state/.hidden")).expect("a folder");
    fs::create_dir(host.path("state/with a space")).expect("a folder");
    assert_eq!(host.sandboxes(), [name]);
    fs::remove_file(host.path("state/a-file")).expect("remove");
    fs::remove_dir(host.path("state/.hidden")).expect("remove");
    fs::remove_dir(host.path("state/with a space")).expect("remove");
}

#[test]
fn exec_enters_everything() {
    let host = Host::new();
    let name = host.name("job");
    host.done(&["run", "-d", "--name", &name, "--net", "none", "--", "sleep", "1000"]);
    exec_is_inside(&host, &name);
    let image = host.path("job.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", &name, "-o", image]);
    host.done(&["restore", "-d", image]);
    exec_is_inside(&host, &name);
    for (line, status, said) in [
        (&["sh", "-c", "exit 9"][..], 9, String::new()),
        (&["sh", "-c", "kill -TERM $$"], 143, String::new()),
        (
            &["nosuch"],
            127,
            format!("floe: execute nosuch in sandbox {name}: ENOENT"),
        ),
        (
            &["/etc/passwd"],
            126,
            format!("floe: execute /etc/passwd in sandbox {name}: EACCES"),
        ),
    ] {
        let outcome = host.floe(&[&["exec", &name, "--"], line].concat());
        assert_eq!(outcome.status, status, "{}", outcome.err);
        assert!(outcome.err.starts_with(&said), "{}", outcome.err);
        assert_eq!(outcome.err.is_empty(), said.is_empty(), "{}", outcome.err);
    }
    let outcome = host.floe(&["exec", "-w", "/nowhere", &name, "--", "true"]);
    assert_eq!(outcome.status, 125);
    assert!(
        outcome.err.contains("enter the working directory /nowhere in sandbox"),
        "{}",
        outcome.err
    );
    let outcome = host.floe(&["exec", "no-such-sandbox", "--", "true"]);
    assert_eq!(outcome.status, 125, "{}", outcome.err);
    assert_eq!(
        host.done(&[
            "exec",
            "-w",
            "/usr",
            "-e",
            "A=b",
            &name,
            "--",
            "sh",
            "-c",
            "pwd; echo $A"
        ]),
        "/usr\nb\n"
    );
    // A command that is in there when PID 1 ends is ended with it.
    let child = spawn(&mut host.command(&["exec", &name, "--", "sleep", "1000"]));
    until("the command", || host.done(&["ps", &name]).lines().count() == 3);
    host.done(&["kill", &name]);
    assert_eq!(wait(child), 137);
}

fn exec_is_inside(host: &Host, name: &str) {
    let list = "for n in pid mnt uts ipc cgroup net; do readlink /proc/self/ns/$n /proc/1/ns/$n; done; cat /proc/self/cgroup /proc/1/cgroup";
    let out = host.done(&["exec", name, "--", "sh", "-c", list]);
    let lines: Vec<&str> = out.lines().collect();
    for pair in lines[..12].chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
    let (own, first) = lines[12..].split_at((lines.len() - 12) / 2);
    let ours = |lines: &[&str]| lines.iter().any(|line| line.ends_with(":/"));
    assert!(ours(own) && ours(first), "{out}");
}

#[test]
fn exec_enters_where_the_first_thread_has_ended() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "leader-ended", &[], &[]);
    for into in ["leader-ended", "restored"] {
        if into != victim.sandbox {
            victim.round_trip(into, PID_METHODS[0]);
        }
        let inside = host.done(&["exec", into, "--", "cat", "/proc/1/comm"]);
        assert_eq!(inside, "leader-ended\n");
    }
    victim.check("after it was entered");
}

#[test]
fn names_are_taken_once() {
    let host = Host::new();
    let name = host.sleeper("job");
    let outcome = host.floe(&["run", "-d", "--name", &name, "--", "true"]);
    assert_eq!(outcome.status, 125);
    assert_eq!(
        outcome.err,
        format!("floe: a sandbox named {name} exists already; choose another --name, or remove it (floe rm {name})\n")
    );
    assert_eq!(
        host.floe(&["rm", &name]).expect_failed(),
        format!("floe: sandbox {name} is running; end it first (floe kill {name}), or use --force\n")
    );
    assert_eq!(host.state(&name), "running");
    host.done(&["rm", "-f", &name]);
    let unknown = format!("floe: there is no sandbox named {name} (floe ps lists them)\n");
    for verb in ["ps", "attach", "freeze", "thaw", "kill", "wait", "logs", "rm"] {
        assert_eq!(host.floe(&[verb, &name]).expect_failed(), unknown, "{verb}");
    }
}

#[test]
fn fifty_at_once() {
    let host = Host::new();
    let mut names: Vec<String> = (10..60).map(|n| host.name(&format!("many{n}"))).collect();
    for name in &names {
        host.done(&["run", "-d", "--name", name, "--", "sleep", "1000"]);
    }
    names.sort();
    assert_eq!(host.sandboxes(), names);
    assert_eq!(host.done(&["ps"]).lines().count(), 51);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    host.done(&[&["rm", "-f"], &all[..]].concat());
    assert!(host.sandboxes().is_empty());
    for name in names {
        Traces::look(&host, &[&name], &[]).expect_none_of(&name);
    }
}

#[test]
fn the_state_directory_can_be_elsewhere() {
    let host = Host::new();
    let other = host.path("other/deep");
    let name = host.name("elsewhere");
    let floe = host.command(&[]).get_program().to_owned();
    let with_variable = |arguments: &[&str]| {
        let mut command = Command::new(&floe);
        run(command
            .env("FLOE_STATE_DIR", &other)
            .args(arguments)
            .stdin(Stdio::null()))
    };
    let _ = with_variable(&["run", "-d", "--name", &name, "--", "sleep", "1000"]).expect_done();
    assert!(other.join(&name).join("state.json").exists());
    assert!(host.sandboxes().is_empty());
    let place = other.to_str().expect("a plain path");
    let list = json(&run(Command::new(&floe).args(["ps", "--json", "--state-dir", place])).expect_done());
    assert_eq!(list[0]["name"], *name);
    let _ = with_variable(&["rm", "-f", &name]).expect_done();

    let outcome = run(Command::new(&floe).args(["--state-dir", "/proc/nowhere", "run", "--", "true"]));
    assert_eq!(outcome.status, 125);
    assert!(
        outcome
            .err
            .starts_with("floe: start the sandbox: make /proc/nowhere: ENOENT"),
        "{}",
        outcome.err
    );
    let file = host.path("plain");
    fs::write(&file, "").expect("write");
    let file = file.to_str().expect("a plain path");
    for verb in [&["run", "--", "true"][..], &["ps"]] {
        let outcome = run(Command::new(&floe).args([&["--state-dir", file], verb].concat()));
        assert_ne!(outcome.status, 0, "{verb:?}");
        assert!(outcome.err.contains(file), "{}", outcome.err);
    }
}

#[test]
fn a_sandbox_whose_monitor_was_killed_is_lost_and_can_be_removed() {
    let host = Host::new();
    for frozen in [false, true] {
        let name = host.name(&format!("lost-{frozen}"));
        host.done(&[
            "run",
            "-d",
            "--name",
            &name,
            "--",
            "sh",
            "-c",
            "setsid sleep 1000 & sleep 1000",
        ]);
        if frozen {
            host.done(&["freeze", &name]);
        }
        let (first, watcher) = (host.pid1(&name), monitor(&host, &name));
        signal(watcher, libc::SIGKILL);
        until("the end of the monitor", || missing(watcher));
        assert_eq!(host.state(&name), "lost");
        let gone = format!(
            "floe: the monitor of sandbox {name} is gone, and with it its streams and its exit status; remove it (floe rm -f {name})\n"
        );
        assert_eq!(host.floe(&["wait", &name]).expect_failed(), gone);
        assert!(host.floe(&["rm", &name]).expect_failed().contains("is running"));
        host.done(&["rm", "-f", &name]);
        until("the end of PID 1", || missing(first));
        assert_eq!(host.state(&name), "none");
        Traces::look(&host, &[&name], &[]).expect_none_of(&name);
    }
}

fn stranger() -> Child {
    Command::new("sleep").arg("1000").spawn().expect("start sleep")
}

fn start_time(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    stat.split(' ').nth(21).expect("its start").to_owned()
}

#[test]
fn another_process_with_the_number_of_pid_1_is_left_alone() {
    let host = Host::new();
    let name = host.sleeper("old");
    // Start times are counted in hundredths of a second, and so fast no number comes round again.
    let then = start_time(host.pid1(&name));
    let mut stranger = stranger();
    while start_time(stranger.id() as i32) == then {
        stranger.kill().expect("kill sleep");
        stranger.wait().expect("reap it");
        stranger = self::stranger();
    }
    let watcher = monitor(&host, &name);
    signal(watcher, libc::SIGKILL);
    signal(host.pid1(&name), libc::SIGKILL);
    until("the end of both", || missing(watcher) && missing(host.pid1(&name)));
    // As if the machine had come round to the number again.
    let path = host.path("state").join(&name).join("state.json");
    let mut value = json(&fs::read_to_string(&path).expect("its state"));
    value["pid1"] = stranger.id().into();
    fs::write(&path, value.to_string()).expect("write");
    assert_eq!(host.state(&name), "lost");
    for line in [
        &["kill", &name][..],
        &["exec", &name, "--", "true"],
        &["freeze", &name],
        &["ps", &name],
    ] {
        let outcome = host.floe(line);
        assert_ne!(outcome.status, 0, "{line:?}");
        assert_eq!(
            outcome.err,
            format!("floe: sandbox {name} is not running\n"),
            "{line:?}"
        );
    }
    host.done(&["rm", "-f", &name]);
    assert!(stranger.try_wait().expect("look").is_none(), "a stranger was killed");
    stranger.kill().expect("kill sleep");
    stranger.wait().expect("reap it");
}

/// The monitor may still be writing how it ended when the next command comes.
#[test]
fn a_sandbox_can_be_removed_right_after_its_end() {
    let host = Host::new();
    for round in 0..times(40) {
        let name = host.name(&format!("short{round}"));
        host.done(&["run", "-d", "--name", &name, "--", "sleep", "1000"]);
        host.done(&["kill", "-s", "KILL", &name]);
        host.done(&["rm", "-f", &name]);
        assert!(host.floe(&["rm", &name]).expect_failed().contains("no sandbox named"));
    }
}
