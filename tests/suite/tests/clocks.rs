//! A restored tree's clocks: the time that it was away does not show, wherever they stood.

use floe_suite::{Host, PID_METHODS, Victim};
use std::time::Duration;

const CLOCKS: &str = "clocks-go-on";
const AWAY: Duration = Duration::from_millis(2500);

/// A round trip with a pause in it.
fn trip(host: &Host, victim: &mut Victim<'_>, into: &str, method: &str) {
    let image = host.path("image.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", &victim.sandbox, "-o", image]);
    std::thread::sleep(AWAY);
    host.done(&["restore", "-d", "--name", into, "--pid-method", method, image]);
    into.clone_into(&mut victim.sandbox);
}

#[test]
fn time_away_does_not_show() {
    let host = Host::new();
    let mut victim = Victim::start(&host, CLOCKS, &[], &["away"]);
    trip(&host, &mut victim, "once", PID_METHODS[0]);
    trip(&host, &mut victim, "twice", PID_METHODS[1]);
    victim.check("after two round trips");
}

/// Sleeps of all kinds go on for what was left of them.
#[test]
fn sleeps_do_not_end_while_a_tree_is_away() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "sleeps", &[], &[]);
    trip(&host, &mut victim, "restored", PID_METHODS[0]);
    victim.check("after a round trip");
}

/// As on a host that was started long before the one that restores it, or long after.
#[test]
fn clocks_of_another_host_go_on() {
    let uptime = std::fs::read_to_string("/proc/uptime").expect("uptime");
    let uptime: f64 = uptime
        .split_whitespace()
        .next()
        .and_then(|text| text.parse().ok())
        .expect("seconds");
    let mut offsets = vec!["--monotonic=10000000"];
    if uptime > 200.0 {
        offsets.push("--monotonic=-100");
    } else {
        floe_suite::skip("this machine was started too short a time ago for clocks that are behind its own");
    }
    for offset in offsets {
        let host = Host::behind(&["unshare", "--time", offset, "--"]);
        let mut victim = Victim::start(&host, CLOCKS, &[], &[]);
        victim.round_trip("restored", PID_METHODS[0]);
        victim.check(offset);
    }
}

/// What is run in a restored sandbox sees the clocks of those that live there.
#[test]
fn commands_run_there_see_the_same_clocks() {
    let host = Host::new();
    let mut victim = Victim::start(&host, CLOCKS, &[], &["away"]);
    let link =
        |sandbox: &str, who: &str| host.done(&["exec", sandbox, "--", "readlink", &format!("/proc/{who}/ns/time")]);
    assert_eq!(link(CLOCKS, "1"), link(CLOCKS, "self"));
    let before = link(CLOCKS, "1");
    trip(&host, &mut victim, "restored", PID_METHODS[0]);
    assert_eq!(link("restored", "1"), link("restored", "self"));
    assert_ne!(link("restored", "1"), before);
}
