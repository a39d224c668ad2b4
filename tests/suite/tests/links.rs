//! Sockets with addresses that mean something only together with a network device: devices are found by their names, and one
//! that is not there stands in the way.

use floe_suite::{Host, PID_METHODS, Victim, enter_own_network, has, run, until};
use std::{fs, process::Command};

const NAME: &str = "sockets-link-local";
const HERE: [&str; 2] = ["--net", "host"];

fn ip(line: &str) {
    let _ = run(Command::new("ip").args(line.split(' '))).expect_done();
}

/// A network of the test's own with a pair of devices, whose addresses are there at once; `None` where there is none.
fn pair() -> Option<()> {
    if !has("ip") {
        return None;
    }
    enter_own_network();
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").expect("set");
    make_pair();
    Some(())
}

fn make_pair() {
    ip("link add link0 address 02:00:00:00:07:01 type veth peer name link1 address 02:00:00:00:07:02");
    ip("link set link0 up");
    ip("link set link1 up");
    let have_addresses = || {
        let list = fs::read_to_string("/proc/thread-self/net/if_inet6").expect("a list");
        list.lines().filter(|line| line.starts_with("fe80")).count() == 2
    };
    until("addresses of the devices", have_addresses);
}

#[test]
fn addresses_of_a_device_survive() {
    let Some(()) = pair() else { return };
    let host = Host::new();
    let mut victim = Victim::start(&host, NAME, &HERE, &[]);
    victim.round_trip(NAME, PID_METHODS[0]);
    victim.round_trip("another", PID_METHODS[1]);
    victim.check("after two round trips without a check between");
    let image = host.path("running.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", "another", "--leave-running", "-o", image]);
    victim.check("after a checkpoint that let it run on");
}

#[test]
fn a_victim_of_them_notices() {
    let Some(()) = pair() else { return };
    let verdict = Victim::start(&Host::new(), NAME, &HERE, &["--sabotage"]).verdict();
    assert!(verdict.starts_with("FAIL"), "{verdict}");
}

#[test]
fn a_device_is_found_by_its_name() {
    let Some(()) = pair() else { return };
    let host = Host::new();
    let mut victim = Victim::start(&host, NAME, &HERE, &[]);
    let image = host.path("image.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", NAME, "-o", image]);
    ip("link del link0");
    let error = host.floe(&["restore", "-d", image]).expect_failed();
    for name in ["link0", "link1"] {
        let reason = format!("there is no network device {name} here");
        assert!(error.contains(&reason), "{error}");
    }
    assert!(error.contains("stand in the way of this restore"), "{error}");
    // They have other numbers now.
    make_pair();
    host.done(&["restore", "-d", image]);
    victim.check("where the devices have other numbers");
}
