//! Calls in flight: stopping a tree in any way shows in none of them, and a signal that comes meanwhile ends them as it
//! would have.

use floe_suite::{Host, PID_METHODS, Victim, times};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const CALLS: &str = "interrupted-calls";
const SIGNALLED: &str = "interrupted-by-signal";

#[test]
fn freezing_and_thawing_shows_in_no_call() {
    let host = Host::new();
    let mut victim = Victim::start(&host, CALLS, &[], &[]);
    for round in 0..times(20) {
        host.done(&["freeze", CALLS]);
        host.done(&["thaw", CALLS]);
        victim.check(&format!("after freeze and thaw {round}"));
    }
}

#[test]
fn freezing_and_thawing_loses_no_event_of_asynchronous_requests() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "aio-rings", &[], &[]);
    for round in 0..times(20) {
        host.done(&["freeze", "aio-rings"]);
        host.done(&["thaw", "aio-rings"]);
        victim.check(&format!("after freeze and thaw {round}"));
    }
}

#[test]
fn freezing_twenty_times_in_a_row_shows_in_no_call() {
    let host = Host::new();
    let mut victim = Victim::start(&host, CALLS, &[], &[]);
    for _ in 0..20 {
        host.done(&["freeze", CALLS]);
        host.done(&["thaw", CALLS]);
    }
    victim.check("at the end");
}

#[test]
fn checkpoints_that_let_it_run_on_show_in_no_call() {
    let host = Host::new();
    let mut victim = Victim::start(&host, CALLS, &[], &[]);
    let image = host.path("running.floe");
    for round in 0..times(10) {
        let path = image.to_str().expect("a plain path");
        host.done(&["checkpoint", CALLS, "--leave-running", "-o", path]);
        if round % 2 == 1 {
            victim.check(&format!("after checkpoint {round}"));
        }
    }
}

#[test]
fn sleeps_end_when_they_would_have() {
    let host = Host::new();
    let image = host.path("running.floe");
    let mut restored = Victim::start(&host, "sleeps", &[], &[]);
    restored.round_trip_unseen("restored", PID_METHODS[0]);
    let mut stopped = Victim::start(&host, "sleeps", &[], &[]);
    for _ in 0..3 {
        host.done(&["freeze", "sleeps"]);
        host.done(&["thaw", "sleeps"]);
        let path = image.to_str().expect("a plain path");
        host.done(&["checkpoint", "sleeps", "--leave-running", "-o", path]);
    }
    restored.check("after a round trip");
    stopped.check("after it was stopped again and again");
}

#[test]
fn sleeps_that_start_anew_are_noticed() {
    let host = Host::new();
    let verdict = Victim::start(&host, "sleeps", &[], &["--sabotage"]).verdict();
    assert!(verdict.starts_with("FAIL"), "{verdict}");
}

/// Sends SIGUSR1 to every process of the sandbox but PID 1.
fn signal_all(host: &Host, sandbox: &str) {
    let tasks: serde_json::Value = serde_json::from_str(&host.done(&["ps", "--json", sandbox])).expect("JSON");
    let tasks = tasks.as_array().expect("a list");
    assert!(tasks.len() > 10, "{tasks:?}");
    for task in tasks {
        let ids = task["nspid"].as_array().expect("a list");
        let (outer, inner) = (ids.first(), ids.last().and_then(serde_json::Value::as_i64));
        if inner != Some(1) {
            let pid = outer.and_then(serde_json::Value::as_i64).expect("a PID");
            kill(Pid::from_raw(pid as i32), Signal::SIGUSR1).expect("kill");
        }
    }
}

#[test]
fn signals_that_come_while_it_is_frozen_end_the_calls() {
    let host = Host::new();
    let mut victim = Victim::start(&host, SIGNALLED, &[], &["outside"]);
    host.done(&["freeze", SIGNALLED]);
    signal_all(&host, SIGNALLED);
    host.done(&["thaw", SIGNALLED]);
    victim.check("after freeze, signals, thaw");
    for method in PID_METHODS {
        host.done(&["freeze", SIGNALLED]);
        signal_all(&host, SIGNALLED);
        victim.round_trip_unseen(SIGNALLED, method);
        victim.check("after freeze, signals, checkpoint, restore");
    }
    let image = host.path("running.floe");
    host.done(&["freeze", SIGNALLED]);
    signal_all(&host, SIGNALLED);
    let path = image.to_str().expect("a plain path");
    host.done(&["checkpoint", SIGNALLED, "--leave-running", "-o", path]);
    host.done(&["thaw", SIGNALLED]);
    victim.check("after freeze, signals, checkpoint, thaw");
}
