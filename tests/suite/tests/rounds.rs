//! `floe migrate` sends memory in rounds while the tree runs: what arrives is what was there in the instant at which it stopped
//! for good; and what fails in a round, or behind one, leaves the tree as it was.

use floe_suite::{
    Host, PID_METHODS, Program, TwoNetworks, Victim, has, is_followed, json,
    migration::{Point, Receiver, Way, expect_one, pin_each_other},
    run,
};
use std::path::Path;

fn hosts() -> [Host; 2] {
    [Host::new(), Host::new()]
}

fn hosts_of_ordinary_user() -> [Host; 2] {
    [Host::of_ordinary_user(), Host::of_ordinary_user()]
}

/// Moves a sandbox; the summary.
fn migrate(from: &Host, name: &str, to: &str, options: &[&str]) -> serde_json::Value {
    let mut line = vec!["migrate", name, to, "--json"];
    line.extend(options);
    json(&from.done(&line))
}

fn is_of_one_instant([here, there]: [Host; 2], options: &[&str]) {
    let name = "memory-in-motion";
    let mut victim = Victim::start(&here, name, &[], &[]);
    for method in PID_METHODS {
        for (from, to) in [(&here, &there), (&there, &here)] {
            let socket = format!("unix:{}", to.path(&format!("{method}.sock")).display());
            let receiver = Receiver::start_with(to, &socket, &["--pid-method", method], |_| {});
            let summary = migrate(from, name, receiver.address(), options);
            assert!(summary["rounds"].as_u64() >= Some(2), "{summary}");
            expect_one([from, to], name, "moved");
        }
        victim.check("after it went there and back");
    }
}

#[test]
fn memory_that_is_written_all_the_time_is_of_one_instant() {
    is_of_one_instant(hosts(), &[]);
}

#[test]
fn memory_that_comes_later_is_of_one_instant() {
    is_of_one_instant(hosts(), &["--lazy"]);
}

#[test]
fn memory_that_changes_in_all_ways_between_rounds_goes_over() {
    let name = "memory-changes";
    for options in [&["--rounds", "4"][..], &["--rounds", "4", "--lazy"]] {
        let [here, there] = hosts();
        let mut victim = Victim::start(&here, name, &[], &[]);
        for (from, to) in [(&here, &there), (&there, &here)] {
            let receiver = Receiver::start(to);
            let socket = receiver.address().strip_prefix("unix:").expect("a socket");
            // It changes while the first round is under way, when that has gone over, and behind the second one.
            let points = [("data", 3), ("end", 2), ("end", 3)];
            let mut ways: Vec<Way> = Vec::new();
            for (at, (frame, number)) in points.into_iter().enumerate() {
                let next = ways.last().map_or(socket.to_owned(), |way| {
                    way.address().strip_prefix("unix:").expect("a socket").to_owned()
                });
                let point = Point {
                    frame,
                    number,
                    passes: true,
                };
                let path = from.path(&format!("way-{at}.sock"));
                // Its answer may have to wait until the tree runs on, which what is on the way may be needed for.
                let ask = victim.ask_later();
                ways.push(Way::watch(path, Path::new(&next), point, Box::new(ask)));
            }
            let first = ways.last().expect("one of three").address();
            let summary = migrate(from, name, &first, options);
            assert!(summary["rounds"].as_u64() >= Some(3), "{summary}");
            expect_one([from, to], name, "moved");
            victim.expect_answers("asked while it went over");
        }
        victim.check("after it went there and back");
    }
}

/// What a round takes may be what an ordinary user has not.
#[test]
fn an_ordinary_users_memory_goes_over_in_rounds() {
    let [here, there] = hosts_of_ordinary_user();
    let name = "memory-in-motion";
    let mut victim = Victim::start(&here, name, &[], &[]);
    let receiver = Receiver::start(&there);
    let line = ["migrate", name, receiver.address(), "--rounds", "3"];
    let outcome = here.floe(&line);
    if outcome.status == 0 {
        expect_one([&here, &there], name, "moved");
    } else {
        // Without a cgroup of its own a copy can't be held.
        assert!(outcome.err.contains("cgroup freezer"), "{}", outcome.err);
        victim.check("refused");
    }
}

const HOLDER: &str = "import os,signal\nb=os.urandom(24<<20)\nopen('held','w').close()\nwhile True: signal.pause()";

fn holder(host: &Host) -> String {
    holder_of(host, HOLDER)
}

fn holder_of(host: &Host, program: &str) -> String {
    let name = host.name("holder");
    let folder = host.folder("holder");
    let place = folder.display().to_string();
    host.done(&[
        "run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", program,
    ]);
    floe_suite::until("its memory", || folder.join("held").exists());
    name
}

#[test]
fn what_did_not_change_goes_over_once() {
    let [here, there] = hosts();
    let name = holder(&here);
    let receiver = Receiver::start(&there);
    let summary = migrate(&here, &name, receiver.address(), &[]);
    let number = |key: &str| summary[key].as_u64().expect("a number");
    assert!(number("rounds") >= 2, "{summary}");
    assert!(number("bytes") < 30 << 20, "{summary}");
    assert!(number("last_bytes") < 4 << 20, "{summary}");
    assert!(summary["paused_ms"].as_f64() > Some(0.0), "{summary}");
    expect_one([&here, &there], &name, "moved");
    assert!(!is_followed(there.pid1(&name)), "it is followed there");
}

#[test]
fn without_rounds_all_of_it_goes_over_while_it_stands_still() {
    let [here, there] = hosts();
    let name = holder(&here);
    let receiver = Receiver::start(&there);
    let summary = migrate(&here, &name, receiver.address(), &["--rounds", "0"]);
    assert_eq!(summary["rounds"], 1, "{summary}");
    assert_eq!(summary["bytes"], summary["last_bytes"], "{summary}");
    expect_one([&here, &there], &name, "moved");
}

/// A round that fails is no reason not to move; and it is not followed any more.
#[test]
fn a_round_that_fails_is_left_out() {
    for stage in ["copy", "follow", "let-go"] {
        for how in ["", ":panic"] {
            let [here, there] = hosts();
            let name = holder(&here);
            let receiver = Receiver::start(&there);
            let line = ["migrate", &name, receiver.address(), "--json"];
            let outcome = run(here.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
            if how.is_empty() {
                assert_eq!(outcome.status, 0, "{stage}: {}", outcome.err);
                assert_eq!(json(&outcome.out)["rounds"], 1, "{stage}");
                expect_one([&here, &there], &name, "moved");
            } else {
                assert_ne!(outcome.status, 0, "{stage}{how}");
                assert_eq!(here.state(&name), "running");
                assert!(!is_followed(here.pid1(&name)), "it is followed after {stage}{how}");
            }
        }
    }
}

#[test]
fn a_target_that_fails_behind_the_rounds_leaves_nobody_following() {
    let [here, there] = hosts();
    let name = holder(&here);
    for stage in ["open", "tree", "verify"] {
        let socket = format!("unix:{}", there.path("failing.sock").display());
        let receiver = Receiver::start_with(&there, &socket, &[], |command| {
            command.env("FLOE_FAIL_AT", stage);
        });
        let error = here.floe(&["migrate", &name, receiver.address()]).expect_failed();
        assert!(error.contains("runs on here"), "{stage}: {error}");
        assert_eq!(
            (here.state(&name), there.state(&name)),
            ("running".into(), "none".into())
        );
        assert!(!is_followed(here.pid1(&name)), "it is followed after {stage}");
    }
}

/// Shared memory is saved while the tree stands still, which is not for as long as the way to the other host takes.
#[test]
fn the_tree_does_not_stand_still_for_a_slow_way() {
    const SHARED: &str = "import mmap,os,signal\nb=mmap.mmap(-1,16<<20)\nb.write(os.urandom(16<<20))\nopen('held','w').close()\n\
        while True: signal.pause()";
    let [here, there] = hosts();
    let name = holder_of(&here, SHARED);
    let receiver = Receiver::start(&there);
    let summary = migrate(&here, &name, receiver.address(), &["--bandwidth", "4m"]);
    let on_the_way = summary["bytes"].as_f64().expect("bytes") / f64::from(4 << 20) * 1000.0;
    let paused = summary["paused_ms"].as_f64().expect("a time");
    assert!(paused < on_the_way / 2.0, "{summary}");
    assert!(summary["last_bytes"].as_u64() < Some(4 << 20), "{summary}");
    expect_one([&here, &there], &name, "moved");
}

#[test]
fn without_room_for_a_round_it_goes_over_at_once() {
    let [here, there] = hosts();
    let name = holder(&here);
    let receiver = Receiver::start(&there);
    let line = ["migrate", &name, receiver.address(), "--json"];
    let outcome = run(here.command(&line).env("TMPDIR", "/proc/self/nowhere"));
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    assert_eq!(json(&outcome.out)["rounds"], 1, "{}", outcome.out);
    expect_one([&here, &there], &name, "moved");
}

#[test]
fn no_more_is_sent_in_a_second_than_is_allowed() {
    let [here, there] = hosts();
    let name = holder(&here);
    let receiver = Receiver::start(&there);
    let summary = migrate(&here, &name, receiver.address(), &["--bandwidth", "16m"]);
    let least = summary["bytes"].as_f64().expect("bytes") / f64::from(16 << 20) - 0.2;
    let total = summary["total_ms"].as_f64().expect("a time") / 1000.0;
    assert!(total >= least, "{total} s instead of {least} s: {summary}");
    expect_one([&here, &there], &name, "moved");
}

#[test]
fn redis_under_load_goes_there_and_back() {
    if !has("redis-server") {
        return;
    }
    let [here, there] = hosts();
    let folder = here.folder("redis");
    // Without the socket on a disk that both hosts see: its name is the source's until that has ended.
    let script = std::fs::read_to_string(floe_suite::source("redis.sh")).expect("the script");
    let script = script
        .replace("--unixsocket \"$PWD/socket\" ", "")
        .replace("count -s \"$PWD/socket\" &\n", "");
    std::fs::write(folder.join("redis.sh"), script).expect("write");
    let program = Program::start_with(&here, "redis", &["--net", "none"], &["bash", "redis.sh"]);
    program.await_file("ready");
    for (from, to, options) in [
        (&here, &there, &["--rounds", "4"][..]),
        (&there, &here, &["--rounds", "4", "--lazy"]),
        (
            &here,
            &there,
            &["--rounds", "0", "--lazy", "--level", "-7", "--bandwidth", "4m"],
        ),
        (
            &there,
            &here,
            &["--rounds", "1", "--lazy", "--level", "-7", "--bandwidth", "4m"],
        ),
    ] {
        let receiver = Receiver::start(to);
        let summary = migrate(from, &program.name, receiver.address(), options);
        let rounds: u64 = options[1].parse().expect("a number");
        assert!(summary["rounds"].as_u64() >= Some(1 + rounds.min(1)), "{summary}");
        expect_one([from, to], &program.name, "moved");
    }
    program.finish();
    assert_eq!(program.result(), "counted\nended 0\n");
}

/// Memory that shrinks to a quarter by some work, and to two thirds by little: lines of a log.
const WORDS: &str = "import hashlib,os,random,signal\nr=random.Random(1).randrange\n\
    lines='\\n'.join('%08d 2024-05-%02d host-%d GET /path/%d/item?id=%d 200 %d'\n\
    %(n,n%28,n%37,r(5000),r(10**9),r(90000)) for n in range(60000)).encode()\nb=bytearray(lines*((80<<20)//len(lines)+1))\n\
    def check(*_): open('sum','w').write(hashlib.sha256(b).hexdigest())\n\
    signal.signal(signal.SIGUSR1,check); check(); open('held','w').close()\nwhile True: signal.pause()";

/// What a program of [`WORDS`] says of its memory.
fn sum(host: &Host, name: &str, folder: &Path) -> String {
    let file = folder.join("sum");
    drop(std::fs::remove_file(&file));
    host.done(&["kill", "-s", "USR1", name]);
    floe_suite::until("its sum", || std::fs::read(&file).is_ok_and(|sum| sum.len() == 64));
    std::fs::read_to_string(&file).expect("its sum")
}

/// More work goes into memory that goes over a slow way, whether somebody says that it is slow or it is found out.
#[test]
fn less_goes_over_a_slow_way_than_over_a_fast_one() {
    let networks = TwoNetworks::new();
    let hosts = networks.hosts();
    let [here, there] = &hosts;
    let [own, other] = pin_each_other([here, there]);
    let (name, folder) = (here.name("holder"), here.folder("holder"));
    let place = folder.display().to_string();
    here.done(&[
        "run", "-d", "--net", "none", "--name", &name, "-w", &place, "--", "python3", "-c", WORDS,
    ]);
    floe_suite::until("its memory", || folder.join("held").exists());
    let before = sum(here, &name, &folder);
    let mut bytes = Vec::new();
    for (limit, options) in [
        ("", &[][..]),
        ("", &["--bandwidth", "6m"]),
        (
            "tc qdisc add dev eth0 root tbf rate 60mbit burst 64kb latency 400ms",
            &[],
        ),
        ("tc qdisc del dev eth0 root", &["--level", "3"]),
    ] {
        let at = bytes.len() % 2;
        let (from, to) = (&hosts[at], &hosts[1 - at]);
        let folders = [(&own, &other), (&other, &own)][at];
        networks.shell(0, limit);
        let address = format!("10.9.0.{}:0", 2 - at);
        let receiver = Receiver::start_with(to, &address, &["--keys", folders.1], |_| {});
        let summary = migrate(
            from,
            &name,
            receiver.address(),
            &[options, &["--keys", folders.0]].concat(),
        );
        assert_eq!(sum(to, &name, &folder), before, "{summary}");
        if options.contains(&"--level") {
            assert_eq!(
                (&summary["level"], &summary["levels"]),
                (&json("3"), &json("{}")),
                "{summary}"
            );
        } else {
            assert_eq!(summary["level"], "auto", "{summary}");
            let all = summary["levels"].as_object().expect("an object").values();
            let made: u64 = all.map(|bytes| bytes.as_u64().expect("a number")).sum();
            assert!(made >= 80 << 20, "{summary}");
        }
        bytes.push(summary["bytes"].as_u64().expect("bytes"));
        expect_one([from, to], &name, "moved");
    }
    let [fast, told, found_out, _] = bytes[..] else {
        panic!("four times: {bytes:?}")
    };
    assert!(told < fast && found_out < fast, "{bytes:?}");
}
