//! `floe migrate` and `floe receive`: a tree goes to another host and back; whatever breaks or is killed on the way, at each
//! frame, one copy runs and nothing is left of another.

use floe_suite::{
    Counting, Host, PID_METHODS, Traces, Victim,
    migration::{Point, Receiver, Way, children, expect_one, kill_all, settle},
    run, spawn, until, wait,
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

fn hosts() -> [Host; 2] {
    [Host::new(), Host::new()]
}

#[test]
fn there_and_back() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let tasks = tree.lasting(&job).len();
    for method in PID_METHODS {
        for (from, to) in [(&here, &there), (&there, &here)] {
            let socket = format!("unix:{}", to.path(&format!("{method}.sock")).display());
            let receiver = Receiver::start_with(to, &socket, &["--pid-method", method], |_| {});
            let summary = floe_suite::json(&from.done(&["migrate", &job, receiver.address(), "--json"]));
            assert_eq!(summary["runs_there"], true, "{summary}");
            assert!(summary["frozen_ms"].as_f64() > Some(0.0), "{summary}");
            expect_one([from, to], &job, "moved");
            assert_eq!(to.state(&job), "running");
            tree.expect_alive("moved");
        }
    }
    assert_eq!(tree.lasting(&job).len(), tasks);
}

#[test]
fn a_victim_finds_itself_as_it_was() {
    for name in [
        "many-tasks",
        "memory-shared-anonymous",
        "descriptors-many",
        "clocks-go-on",
    ] {
        let [here, there] = hosts();
        let mut victim = Victim::start(&here, name, &[], &[]);
        for (from, to) in [(&here, &there), (&there, &here)] {
            let receiver = Receiver::start(to);
            from.done(&["migrate", name, receiver.address()]);
        }
        victim.check("after it went there and back");
    }
}

#[test]
fn a_dry_run_moves_nothing() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let receiver = Receiver::start(&there);
    let outcome = here.floe(&["migrate", &job, receiver.address(), "--dry-run"]);
    assert!(outcome.err.contains("nothing stands in the way"), "{}", outcome.err);
    assert_eq!(outcome.status, 0);
    assert_eq!(
        (here.state(&job).as_str(), there.state(&job).as_str()),
        ("running", "none")
    );
    tree.expect_alive("after a dry run");
}

#[test]
fn what_stands_in_the_way_there_is_told_here_before_anything_stops() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    there.done(&["run", "-d", "--name", &job, "--", "sleep", "1000"]);
    let receiver = Receiver::start(&there);
    let error = here.floe(&["migrate", &job, receiver.address()]).expect_failed();
    assert!(error.contains("there is one of this name already"), "{error}");
    tree.expect_alive("refused there");
    there.done(&["rm", "-f", &job]);
    expect_one([&here, &there], &job, "refused there");
}

#[test]
fn what_stands_in_the_way_here_is_told_in_one_list() {
    let [here, there] = hosts();
    let name = here.name("odd");
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = outside.local_addr().expect("an address").port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} 4<>/dev/tcp/127.0.0.1/{port}; exec sleep 1000");
    here.done(&["run", "-d", "--name", &name, "--", "bash", "-c", &script]);
    let _ends = [outside.accept().expect("a client"), outside.accept().expect("a client")];
    let receiver = Receiver::start(&there);
    let error = here.floe(&["migrate", &name, receiver.address()]).expect_failed();
    assert_eq!(error.matches("\n  - ").count(), 2, "no list of two: {error}");
    assert_eq!(
        (here.state(&name).as_str(), there.state(&name).as_str()),
        ("running", "none")
    );
}

/// The stages at which a side can fail, by the verb that has them.
fn stages(host: &Host, verb: &str) -> Vec<String> {
    host.done(&[verb, "--stages"]).lines().map(str::to_owned).collect()
}

#[test]
fn a_failure_at_any_stage_of_the_source_leaves_the_tree_running() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let receiver = Receiver::start(&there);
    let before = [&here, &there].map(|host| Traces::look(host, &[&job], &[]));
    for stage in stages(&here, "checkpoint") {
        for how in ["", ":panic"] {
            let line = ["migrate", &job, receiver.address()];
            let outcome = run(here.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
            let when = format!("after a failure at {stage}{how}");
            assert_ne!(outcome.status, 0, "{when}: {}", outcome.err);
            for (host, before) in [&here, &there].into_iter().zip(&before) {
                before.expect_again(host, &[&job], &[], &when);
            }
            tree.expect_alive(&when);
        }
    }
    here.done(&["migrate", &job, receiver.address()]);
    tree.expect_alive("moved at last");
}

#[test]
fn a_failure_at_any_stage_of_the_target_leaves_the_tree_running() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let before = [&here, &there].map(|host| Traces::look(host, &[&job], &[]));
    for stage in stages(&here, "restore") {
        for how in ["", ":panic"] {
            let socket = format!("unix:{}", there.path("failing.sock").display());
            let at = format!("{stage}{how}");
            let receiver = Receiver::start_with(&there, &socket, &[], |command| {
                command.env("FLOE_FAIL_AT", &at);
            });
            let error = here.floe(&["migrate", &job, receiver.address()]).expect_failed();
            drop(receiver);
            let when = format!("after a failure at {at}");
            assert!(error.contains("runs on here"), "{when}: {error}");
            for (host, before) in [&here, &there].into_iter().zip(&before) {
                before.expect_again(host, &[&job], &[], &when);
            }
            tree.expect_alive(&when);
        }
    }
    let receiver = Receiver::start(&there);
    here.done(&["migrate", &job, receiver.address()]);
    tree.expect_alive("moved at last");
}

/// Every message of a migration, and some data.
const FRAMES: [(&str, usize); 14] = [
    ("hello", 1),
    ("hello", 2),
    ("offer", 1),
    ("data", 1),
    ("end", 1),
    ("accepted", 1),
    ("image", 1),
    ("data", 2),
    ("data", 4),
    ("end", 2),
    ("stage", 8),
    ("prepared", 1),
    ("decided", 1),
    ("done", 1),
];

/// What ends besides the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victims {
    Nobody,
    Source,
    SourcesWorker,
    Receiver,
    Sessions,
    Both,
}

fn at_each_frame(who: Victims) {
    let hosts = hosts();
    let [here, there] = &hosts;
    let job = here.name("job");
    let tree = Counting::start(here, &job, &[]);
    let mut receivers = [Receiver::start(here), Receiver::start(there)];
    let mut at = 0;
    for (frame, number) in FRAMES {
        for passes in [false, true] {
            let point = Point { frame, number, passes };
            let when = format!("{who:?} at {point:?}");
            let (from, to) = (&hosts[at], 1 - at);
            let source = Arc::new(AtomicI32::new(0));
            let receiver = receivers[to].pid();
            let act = {
                let source = Arc::clone(&source);
                move || {
                    until("the source is known", || source.load(Ordering::SeqCst) != 0);
                    let source = source.load(Ordering::SeqCst);
                    let source_too = matches!(who, Victims::Source | Victims::Both);
                    let receiver_too = matches!(who, Victims::Receiver | Victims::Both);
                    match who {
                        Victims::SourcesWorker => kill_all(&children(source)),
                        Victims::Sessions => kill_all(&children(receiver)),
                        _ => {}
                    }
                    kill_all(if source_too { std::slice::from_ref(&source) } else { &[] });
                    kill_all(if receiver_too {
                        std::slice::from_ref(&receiver)
                    } else {
                        &[]
                    });
                }
            };
            let socket = receivers[to]
                .address()
                .strip_prefix("unix:")
                .expect("a socket")
                .to_owned();
            let way = Way::make(from.path("way.sock"), Path::new(&socket), point, Box::new(act));
            // It waits for its standard input, so that nothing happens before its PID is known.
            let child = spawn(&mut from.command(&["migrate", &job, &way.address(), "--timeout", "5"]));
            source.store(child.id() as i32, Ordering::SeqCst);
            let mut child = child;
            until(&format!("{when}: floe migrate has ended"), || {
                receivers[to].restart();
                child.try_wait().expect("wait for floe").is_some()
            });
            assert!(wait(child) < 256);
            receivers[to].restart();
            // A source that was killed has said nothing more; the tree that it held is let go by the kernel.
            let settled = settle(from);
            assert_eq!(settled.status, 0, "{when}: {}", settled.err);
            at = expect_one([here, there], &job, &when);
            tree.expect_alive(&when);
        }
    }
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
fn the_process_that_saves_is_killed_at_each_frame() {
    at_each_frame(Victims::SourcesWorker);
}

#[test]
fn the_receiver_is_killed_at_each_frame() {
    at_each_frame(Victims::Receiver);
}

#[test]
fn the_process_of_the_connection_is_killed_at_each_frame() {
    at_each_frame(Victims::Sessions);
}

#[test]
fn both_are_killed_at_each_frame() {
    at_each_frame(Victims::Both);
}
