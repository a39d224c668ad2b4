//! Whom a sandbox's command runs as: `floe run --user` of root, `--map-user` of an ordinary user.

use floe_suite::{Host, ORDINARY, PID_METHODS, until};

/// What the kernel tells of the users and groups of a sandbox's PID 1.
fn status(host: &Host, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", host.pid1(name))).expect("its status");
    let wanted = ["Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:", "CapBnd:"];
    let lines = text
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    lines.map(str::to_owned).collect()
}

/// Writes to its output by name, as the user that has it may.
const SCRIPT: &str = "while :; do echo tick > /dev/stdout || exit 9; sleep 0.02; done | \
                      while read word; do echo $word > /dev/stdout || exit 9; done";

fn ticks(host: &Host, name: &str) -> usize {
    host.done(&["logs", name])
        .lines()
        .filter(|line| *line == "tick")
        .count()
}

fn goes_on(host: &Host, name: &str, when: &str) {
    let before = ticks(host, name);
    until(&format!("it writes {when}"), || ticks(host, name) > before + 2);
}

fn comes_back(host: &Host, options: &[&str], again: &[&str]) {
    let name = host.name("user");
    let mut line = vec!["run", "-d", "--name", &name];
    line.extend(options);
    line.extend(["--", "sh", "-c", SCRIPT]);
    host.done(&line);
    goes_on(host, &name, "at first");
    let before = status(host, &name);
    let image = host.path("user.floe");
    let image = image.to_str().expect("a plain path");
    for method in PID_METHODS.iter().cycle().take(3) {
        host.done(&["checkpoint", &name, "-o", image]);
        let mut line = vec!["restore", "-d", "--pid-method", method];
        line.extend(again);
        line.push(image);
        host.done(&line);
        assert_eq!(status(host, &name), before, "{options:?}");
        goes_on(host, &name, "after a restore");
    }
    host.done(&["rm", "-f", &name]);
}

#[test]
fn another_user_comes_back() {
    let host = Host::new();
    for options in [
        &["--user", "nobody"][..],
        &["--user", "1234:7", "--pid-depth", "3"],
        &["--user", "daemon", "--init"],
    ] {
        comes_back(&host, options, &[]);
    }
}

#[test]
fn as_another_user() {
    let host = Host::new();
    let run = |user: &str, command: &str| host.floe(&["run", "--user", user, "--", "sh", "-c", command]);
    let nobody = run(
        "nobody",
        "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; grep CapEff /proc/self/status",
    );
    let nobody = nobody.expect_done();
    let words: Vec<&str> = nobody.split_ascii_whitespace().collect();
    let known = std::fs::read_to_string("/etc/passwd").expect("users");
    let line = known.lines().find(|line| line.starts_with("nobody:")).expect("nobody");
    let fields: Vec<&str> = line.split(':').collect();
    let expected = [
        fields[2],
        fields[3],
        fields[3],
        fields[5],
        "nobody",
        "nobody",
        "CapEff:",
        "0000000000000000",
    ];
    assert_eq!(words, expected);
    assert_eq!(run("4321:7", "id -u; id -g; id -G").expect_done(), "4321\n7\n7\n");
    assert_eq!(run("4321", "id -u; id -g").expect_done(), "4321\n0\n");
    // A terminal is the user's, too.
    let line = ["run", "-t", "--user", "nobody", "--", "sh", "-c", "echo here > $(tty)"];
    assert!(host.done(&line).contains("here"));
    let unknown = run("no-such-user", "true");
    assert_eq!(unknown.status, 125);
    assert!(
        unknown.err.contains("there is no user no-such-user in /etc/passwd"),
        "{}",
        unknown.err
    );
    let unknown = run("nobody:no-such-group", "true");
    assert!(
        unknown.err.contains("there is no group no-such-group"),
        "{}",
        unknown.err
    );
    assert_eq!(run("nobody:", "true").status, 2);
    assert_eq!(host.floe(&["run", "--map-user", "5", "--", "true"]).status, 125);
    assert!(host.sandboxes().is_empty());
}

#[test]
fn an_ordinary_user_appears_as_another_one() {
    let host = Host::of_ordinary_user();
    let shown = host.done(&[
        "run",
        "--map-user",
        "1000",
        "--",
        "sh",
        "-c",
        "id -u; id -g; cat /proc/self/uid_map",
    ]);
    let words: Vec<&str> = shown.split_ascii_whitespace().collect();
    assert_eq!(words, ["1000", "1000", "1000", &ORDINARY.to_string(), "1"]);
    let shown = host.done(&[
        "run",
        "--map-user",
        "1000:7",
        "--pid-depth",
        "3",
        "--",
        "sh",
        "-c",
        "id -u; id -g; echo $$",
    ]);
    assert_eq!(shown, "1000\n7\n1\n");
    for options in [&["-t"][..], &["--map-auto"], &["--user", "5"]] {
        let mut line = vec!["run", "--map-user", "1000"];
        line.extend(options);
        line.extend(["--", "true"]);
        assert_eq!(host.floe(&line).status, 2, "{options:?}");
    }
    let unknown = host.floe(&["run", "--user", "5", "--", "true"]);
    assert_eq!(unknown.status, 125);
    assert!(unknown.err.contains("become user 5 of group"), "{}", unknown.err);
    assert!(host.sandboxes().is_empty());
}

#[test]
fn who_appears_as_another_one_comes_back() {
    let host = Host::of_ordinary_user();
    comes_back(&host, &["--map-user", "1000"], &["--map-user", "1000"]);
    comes_back(
        &host,
        &["--map-user", "1000:7", "--pid-depth", "3"],
        &["--map-user", "1000:7"],
    );
}
