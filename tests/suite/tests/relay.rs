//! The streams and signals of a sandbox, as they are handed through to whoever is attached.

use floe_suite::{Host, run, signal, spawn, times, until, wait};
use std::{
    fs,
    io::{Read, Write},
    process::Stdio,
};

#[test]
fn streams_are_handed_through_whole() {
    let host = Host::new();
    let bytes: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let file = host.path("input");
    fs::write(&file, &bytes).expect("write");
    // The second one reads nothing before it has written more than all buffers between hold.
    for (script, prefix) in [("cat", 0), ("head -c 8388608 /dev/zero; cat", 8 << 20)] {
        let mut child = host
            .command(&["run", "--", "sh", "-c", script])
            .stdin(fs::File::open(&file).expect("open"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("start floe");
        let mut out = Vec::new();
        child
            .stdout
            .take()
            .expect("a pipe")
            .read_to_end(&mut out)
            .expect("read");
        assert_eq!(wait(child), 0, "{script}");
        assert_eq!(out.len(), prefix + bytes.len(), "{script}");
        assert!(out[prefix..] == bytes[..], "{script}");
    }
    // Nothing comes back that could wake whoever waits for room.
    let mut quiet = host.command(&["run", "--", "sh", "-c", "sleep 0.3; wc -c"]);
    let outcome = run(quiet.stdin(fs::File::open(&file).expect("open")));
    assert_eq!((outcome.status, outcome.out.trim()), (0, "1048576"), "{}", outcome.err);
}

#[test]
fn a_reader_that_goes_is_noticed_by_the_workload() {
    let host = Host::new();
    let mut child = spawn(&mut host.command(&["run", "--", "sh", "-c", "while echo line; do :; done; exit 7"]));
    let mut first = [0; 5];
    let mut out = child.stdout.take().expect("a pipe");
    out.read_exact(&mut first).expect("a line");
    drop(out);
    assert_eq!(&first, b"line\n");
    assert_eq!(wait(child), 7);

    // One that only looks on goes by itself, and the sandbox runs on.
    let name = host.name("talker");
    host.done(&[
        "run",
        "-d",
        "--name",
        &name,
        "--",
        "sh",
        "-c",
        "while :; do echo line; sleep 0.01; done",
    ]);
    for verb in [&["logs", "-f"][..], &["attach"]] {
        let mut child = spawn(&mut host.command(&[verb, &[&name]].concat()));
        let mut out = child.stdout.take().expect("a pipe");
        out.read_exact(&mut first).expect("a line");
        drop(out);
        assert_eq!(wait(child), 0, "{verb:?}");
    }
    assert_eq!(host.state(&name), "running");
}

#[test]
fn signals_in_the_foreground_are_handed_on() {
    let host = Host::new();
    let script = "trap 'echo int' INT; trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    for _ in 0..times(20) {
        let mut child = spawn(&mut host.command(&["run", "--", "sh", "-c", script]));
        let pid = child.id() as i32;
        let mut out = child.stdout.take().expect("a pipe");
        let mut expect = |word: &str| {
            let mut got = vec![0; word.len()];
            out.read_exact(&mut got).expect("a word");
            assert_eq!(String::from_utf8_lossy(&got), word);
        };
        expect("ready\n");
        // Both, though they come at the same time; in which order the shell runs its traps is its own affair.
        signal(pid, libc::SIGINT);
        expect("int\n");
        signal(pid, libc::SIGHUP);
        expect("hup\n");
        signal(pid, libc::SIGTERM);
        expect("term\n");
        assert_eq!(wait(child), 5);
    }
}

#[test]
fn a_signal_without_a_handler_is_said_to_be_dropped() {
    let host = Host::new();
    let name = host.sleeper("deaf");
    let said = format!(
        "floe: PID 1 of {name} has no handler for signal 15, so the kernel drops it (-s KILL ends it in any case)\n"
    );
    let outcome = host.floe(&["kill", "-s", "term", &name]);
    assert_eq!((outcome.status, &outcome.err), (0, &said));
    assert_eq!(host.state(&name), "running");
    for (given, dropped) in [("15", true), ("SIGTERM", true), ("KILL", false)] {
        let outcome = host.floe(&["kill", "-s", given, &name]);
        assert_eq!(outcome.status, 0, "{}", outcome.err);
        assert_eq!(outcome.err == said, dropped, "{given}: {}", outcome.err);
    }
    assert_eq!(host.done(&["wait", &name]), "137\n");

    // In the foreground too.
    let name = host.name("deaf-too");
    let mut child = spawn(&mut host.command(&["run", "--name", &name, "--", "sleep", "1000"]));
    until("the sandbox", || host.state(&name) == "running");
    signal(child.id() as i32, libc::SIGTERM);
    let mut err = child.stderr.take();
    let mut line = vec![0; format!("floe: PID 1 of {name} has no handler").len()];
    err.as_mut().expect("a pipe").read_exact(&mut line).expect("a line");
    assert_eq!(
        String::from_utf8_lossy(&line),
        format!("floe: PID 1 of {name} has no handler")
    );
    host.done(&["kill", &name]);
    let mut rest = String::new();
    err.expect("a pipe").read_to_string(&mut rest).expect("the rest");
    assert!(
        rest.ends_with(&format!(
            "floe: PID 1 of {name} ended by signal 9, and with it every task of its PID namespace\n"
        )),
        "{rest}"
    );
    assert_eq!(wait(child), 137);
}

#[test]
fn logs_follow_without_a_gap() {
    let host = Host::new();
    for round in 0..times(10) {
        let name = host.name(&format!("log{round}"));
        let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done; echo err >&2; exit 2";
        host.done(&["run", "-d", "--name", &name, "--", "sh", "-c", script]);
        let followed = host.done(&["logs", "-f", &name]);
        let wanted: String = (1..=3000)
            .map(|n| format!("{n}\n"))
            .chain(["err\n".to_owned()])
            .collect();
        assert!(
            followed == wanted,
            "round {round}: {} bytes of {}",
            followed.len(),
            wanted.len()
        );
        assert_eq!(host.done(&["wait", &name]), "2\n");
        assert!(host.done(&["logs", &name]) == wanted);
        assert!(host.done(&["logs", "-f", &name]) == wanted);
        host.done(&["rm", &name]);
    }
}

#[test]
fn attach_takes_up_the_streams_again() {
    let host = Host::new();
    let name = host.name("adder");
    let mut first = host
        .command(&[
            "run",
            "--name",
            &name,
            "--",
            "sh",
            "-c",
            "while read n; do echo got $n; done; exit 8",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start floe");
    let mut input = first.stdin.take().expect("a pipe");
    input.write_all(b"1\n").expect("write");
    let mut got = [0; 6];
    first
        .stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut got)
        .expect("an answer");
    assert_eq!(&got, b"got 1\n");
    first.kill().expect("kill floe run");
    assert_eq!(wait(first), 137);
    assert_eq!(host.state(&name), "running");
    let mut second = host
        .command(&["attach", &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start floe");
    second.stdin.take().expect("a pipe").write_all(b"2\n").expect("write");
    let mut out = String::new();
    second
        .stdout
        .take()
        .expect("a pipe")
        .read_to_string(&mut out)
        .expect("read");
    assert_eq!((wait(second), &*out), (8, "got 2\n"));
    until("the end", || host.state(&name) == "none");
}
