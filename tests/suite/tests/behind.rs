//! `floe migrate --lazy` of more memory than goes over in an instant: the tree runs at the target before all of it is there; whatever
//! breaks or is killed meanwhile, none of it is lost.

use crate::{
    migrate::{Victims, breaks_at_each},
    rootless::Delegated,
};
use floe_suite::{
    Host, PID_METHODS, Program, TwoNetworks, Victim, has, json,
    migration::{Point, Receiver, Way, children, expect_one, kill_all, pin_each_other, pretend_ssh},
    run, skip, until,
};
use std::{fs, path::Path};

const VICTIM: &str = "memory-comes";
/// Pages of each of its five fields.
const PAGES: &str = "1024";
/// So that it takes a while.
const SLOW: u64 = 24 << 20;

fn hosts() -> [Host; 2] {
    [Host::new(), Host::new()]
}

/// Moves a sandbox by a slow way, and what becomes of it; no file is left here.
fn migrate(from: &Host, name: &str, to: &str, options: &[&str]) -> serde_json::Value {
    let rests = from.path("rests");
    fs::create_dir_all(&rests).expect("a folder");
    let slow = SLOW.to_string();
    let slow = if options.contains(&"--bandwidth") {
        vec![]
    } else {
        vec!["--bandwidth", &slow]
    };
    let line = [&["migrate", name, to, "--json", "--lazy"][..], &slow].concat();
    let outcome = run(from.command(&[&line[..], options].concat()).env("TMPDIR", &rests));
    let summary = json(&outcome.expect_done());
    let left: Vec<_> = fs::read_dir(&rests).expect("its folder").flatten().collect();
    assert!(left.is_empty(), "{left:?} is left");
    summary
}

fn number(summary: &serde_json::Value, key: &str) -> f64 {
    summary[key].as_f64().unwrap_or_else(|| panic!("no {key} in {summary}"))
}

#[test]
fn it_runs_before_all_of_its_memory_has_gone_over() {
    let [here, there] = hosts();
    let mut victim = Victim::start(&here, VICTIM, &[], &[PAGES]);
    for (method, streams) in PID_METHODS.into_iter().zip(["1", "3"]) {
        for (from, to) in [(&here, &there), (&there, &here)] {
            let socket = format!("unix:{}", to.path(&format!("{method}.sock")).display());
            let receiver = Receiver::start_with(to, &socket, &["--pid-method", method], |_| {});
            let summary = migrate(
                from,
                VICTIM,
                receiver.address(),
                &["--rounds", "0", "--streams", streams],
            );
            assert_eq!(summary["runs_there"], true, "{summary}");
            let behind = number(&summary, "behind_bytes");
            assert!(behind > number(&summary, "last_bytes"), "{summary}");
            let on_the_way = behind / SLOW as f64 * 1000.0;
            assert!(number(&summary, "total_ms") > on_the_way - 100.0, "{summary}");
            assert!(
                number(&summary, "total_ms") - number(&summary, "frozen_ms") > on_the_way / 2.0,
                "{summary}"
            );
            expect_one([from, to], VICTIM, "moved");
            victim.check_anywhere("moved");
        }
    }
}

/// Writes 16 MiB over and over, and says of each MiB whether it is what was written last.
const WRITER: &str = "import random,signal\nr=lambda k:random.Random(k).randbytes(1<<20)\nb=bytearray(16<<20);s=[0]*16;asked=[]\n\
    signal.signal(signal.SIGUSR1,lambda *_:asked.append(1))\nk=0\nwhile True:\n i=k%16;b[i<<20:i+1<<20]=r(k);s[i]=k;k+=1\n \
    if k==16: open('held','w').close()\n if asked and k>16:\n  asked.clear();w=[i for i in range(16) if b[i<<20:i+1<<20]!=r(s[i])]\n  \
    f=open('wrong','w');f.write(repr(w)+'.');f.close()\n";

/// Rounds, and behind them what is written faster than it goes over.
#[test]
fn what_is_written_all_the_time_is_of_one_instant() {
    let [here, there] = hosts();
    let (name, folder) = (here.name("writer"), here.folder("writer"));
    let place = folder.display().to_string();
    here.done(&[
        "run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", WRITER,
    ]);
    until("its memory", || folder.join("held").exists());
    for (from, to) in [(&here, &there), (&there, &here)] {
        let receiver = Receiver::start(to);
        let summary = migrate(from, &name, receiver.address(), &["--rounds", "2"]);
        assert!(number(&summary, "rounds") >= 2.0, "{summary}");
        assert!(number(&summary, "behind_bytes") > 0.0, "{summary}");
        expect_one([from, to], &name, "moved");
        to.done(&["kill", "-s", "USR1", &name]);
        let wrong = || fs::read_to_string(folder.join("wrong")).unwrap_or_default();
        until("its answer", || wrong().ends_with('.'));
        assert_eq!(wrong(), "[].");
        fs::remove_file(folder.join("wrong")).expect("there is one");
    }
}

/// All its keys are what they were, and no count is lost, though it is asked while they go over.
#[test]
fn redis_under_load_goes_there_and_back() {
    if !has("redis-server") {
        return;
    }
    let [here, there] = hosts();
    let folder = here.folder("keys");
    fs::copy(floe_suite::source("keys.sh"), folder.join("keys.sh")).expect("the script");
    let program = Program::start_with(&here, "keys", &["--net", "none"], &["bash", "keys.sh"]);
    program.await_file("ready");
    for (from, to, rounds) in [(&here, &there, "0"), (&there, &here, "1")] {
        let receiver = Receiver::start(to);
        let options = ["--rounds", rounds, "--level", "-7", "--bandwidth", "3m"];
        let summary = migrate(from, &program.name, receiver.address(), &options);
        assert!(rounds != "0" || number(&summary, "behind_bytes") > 0.0, "{summary}");
        expect_one([from, to], &program.name, "moved");
    }
    program.finish();
    assert_eq!(program.result(), "the same\nended 0\n");
}

/// By an encrypted way, over which pieces may have come that no look at the socket tells of.
#[test]
fn over_tls_between_two_networks() {
    let networks = TwoNetworks::new();
    let hosts = networks.hosts();
    let [here, there] = &hosts;
    let [own, other] = pin_each_other([here, there]);
    let mut victim = Victim::start(here, VICTIM, &["--net", "none"], &[PAGES]);
    for (at, streams) in [(0, "1"), (1, "4")] {
        let (from, to) = (&hosts[at], &hosts[1 - at]);
        let folders = [(&own, &other), (&other, &own)][at];
        let receiver = Receiver::start_with(to, &format!("10.9.0.{}:0", 2 - at), &["--keys", folders.1], |_| {});
        let options = ["--rounds", "0", "--keys", folders.0, "--streams", streams];
        let summary = migrate(from, VICTIM, receiver.address(), &options);
        assert!(number(&summary, "behind_bytes") > 0.0, "{summary}");
        expect_one([from, to], VICTIM, "moved");
        victim.check_anywhere("moved");
    }
}

/// Who is at the other end of a pipe serves it until all is there.
#[test]
fn ssh_carries_it() {
    let [here, there] = hosts();
    let mut victim = Victim::start(&here, VICTIM, &[], &[PAGES]);
    let path = pretend_ssh(&here, &there, "-T -e none -- oak");
    let line = [
        "migrate",
        VICTIM,
        "ssh://oak",
        "--lazy",
        "--rounds",
        "0",
        "--json",
        "--bandwidth",
        "24m",
    ];
    let summary = json(&run(here.command(&line).env("PATH", &path)).expect_done());
    assert!(number(&summary, "behind_bytes") > 8e6, "{summary}");
    expect_one([&here, &there], VICTIM, "moved by ssh");
    victim.check_anywhere("moved by ssh");
}

/// From what is told of the rest to the last word of it. The rest has more than a hundred pieces.
const FRAMES: [(&str, usize); 10] = [
    ("image", 1),
    ("missing", 1),
    ("piece", 1),
    ("prepared", 1),
    ("decided", 1),
    ("done", 1),
    ("fetch", 1),
    ("piece", 40),
    ("piece", 70),
    ("whole", 1),
];

fn at_each_frame(who: Victims) {
    let hosts = hosts();
    let mut victim = Victim::start(&hosts[0], VICTIM, &[], &[PAGES]);
    let options = ["--rounds", "0", "--lazy"];
    breaks_at_each(&hosts, (VICTIM, who), (&FRAMES, &options), &mut |when| {
        victim.check_anywhere(when);
    });
}

#[test]
fn the_connection_breaks_at_each_frame() {
    at_each_frame(Victims::Nobody);
}

#[test]
fn the_source_is_killed_at_each_frame() {
    at_each_frame(Victims::Source);
}

#[test]
fn the_receiver_is_killed_at_each_frame() {
    at_each_frame(Victims::Receiver);
}

/// It serves who brings memory until all is there, and nobody else.
#[test]
fn the_receiver_is_told_to_stop_at_each_frame() {
    at_each_frame(Victims::ReceiverStops);
}

#[test]
fn both_are_killed_at_each_frame() {
    at_each_frame(Victims::Both);
}

/// Nobody reads zeros where the process that takes the rest is killed: the sandbox ends, as where the process is killed that brings
/// its memory, and the source hears that.
#[test]
fn the_process_that_takes_the_rest_is_killed() {
    let [here, there] = hosts();
    let victim = Victim::start(&here, VICTIM, &[], &[PAGES]);
    let receiver = Receiver::start(&there);
    let socket = receiver.address().strip_prefix("unix:").expect("a socket").to_owned();
    let pid = receiver.pid();
    let point = Point {
        frame: "piece",
        number: 70,
        passes: true,
    };
    let way = Way::watch(
        here.path("way.sock"),
        Path::new(&socket),
        point,
        Box::new(move || kill_all(&children(pid))),
    );
    let summary = migrate(&here, VICTIM, &way.address(), &["--rounds", "0"]);
    assert_eq!(summary["runs_there"], false, "{summary}");
    drop(victim);
    until("it has ended", || there.state(VICTIM) != "running");
    assert_eq!(here.state(VICTIM), "none");
    let log = there.floe(&["logs", VICTIM]);
    assert!(
        log.out.contains("who brings what is still to come has ended"),
        "{log:?}"
    );
    for host in [&here, &there] {
        assert!(!host.path("state").join(".migrations").exists(), "a record is left");
    }
}

/// A source that is told to stop says what has not gone over; it goes when it is settled.
#[test]
fn the_rest_can_be_sent_later() {
    let [here, there] = hosts();
    let mut victim = Victim::start(&here, VICTIM, &[], &[PAGES]);
    let receiver = Receiver::start(&there);
    let line = [
        "migrate",
        VICTIM,
        receiver.address(),
        "--lazy",
        "--rounds",
        "0",
        "--bandwidth",
        "2m",
    ];
    let rests = here.folder("rests");
    let child = floe_suite::spawn(here.command(&line).env("TMPDIR", &rests));
    until("it runs there", || there.state(VICTIM) == "running");
    floe_suite::signal(child.id() as i32, libc::SIGINT);
    let output = child.wait_with_output().expect("its end");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("has not gone over"),
        "{error}"
    );
    assert_eq!(here.state(VICTIM), "none");
    // What can't be read, it waits for.
    let mut left = fs::read_dir(&rests).expect("its folder");
    let rest = left.next().expect("a file").expect("a file").path();
    let kept = here.path("kept");
    fs::copy(&rest, &kept).expect("copy");
    for damage in [
        |rest: &Path| fs::write(rest, [0; 4096]),
        |rest: &Path| fs::remove_file(rest),
    ] {
        damage(&rest).expect("damage it");
        let error = here.floe(&["migrate", "--settle"]).expect_failed();
        assert!(error.contains(&rest.display().to_string()), "{error}");
        assert_eq!(there.state(VICTIM), "running");
    }
    fs::copy(&kept, &rest).expect("copy");
    here.done(&["migrate", "--settle"]);
    assert!(!rest.exists(), "the file is left");
    expect_one([&here, &there], VICTIM, "settled");
    victim.check_anywhere("settled");
}

/// Where memory can't be brought to a tree that runs, all of it comes before it does, whatever the source would send later.
#[test]
fn an_ordinary_users_memory_comes_at_once() {
    let Some((_delegated, here, there)) = Delegated::with_hosts() else {
        skip("no cgroup version 2 is mounted");
        return;
    };
    let mut victim = Victim::start(&here, VICTIM, &[], &[PAGES]);
    let receiver = Receiver::start(&there);
    let line = [
        "migrate",
        VICTIM,
        receiver.address(),
        "--lazy",
        "--rounds",
        "0",
        "--json",
    ];
    let summary = json(&here.done(&line));
    assert_eq!(number(&summary, "behind_bytes"), 0.0, "{summary}");
    assert!(number(&summary, "last_bytes") > 8e6, "{summary}");
    expect_one([&here, &there], VICTIM, "moved");
    victim.check_anywhere("moved");
}
