//! What tc(8) makes, in a network namespace of each test's own.

use super::Traffic;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::process::Command;

const DEVICES: &str = "ip link add name t0 type veth peer name t1
ip link set t0 up
ip link set t1 up";

const RULES: &str = "qdisc add dev t0 root handle 1: htb default 20 r2q 5
class add dev t0 parent 1: classid 1:1 htb rate 100mbit burst 15k
class add dev t0 parent 1:1 classid 1:20 htb rate 10mbit ceil 100mbit quantum 1600
class add dev t0 parent 1:1 classid 1:10 htb rate 60mbit ceil 90mbit prio 1 quantum 1600
class add dev t0 parent 1:10 classid 1:5 htb rate 6mbit ceil 10gbit quantum 1600
qdisc add dev t0 parent 1:5 handle 10: bfifo limit 30000
qdisc add dev t0 parent 1:20 handle 20: tbf rate 1gbit burst 1514 latency 70ms peakrate 2gbit mtu 1600
qdisc add dev t0 parent 20:1 handle 30: pfifo limit 77
filter add dev t0 parent 1: protocol ip prio 7 u32 match ip dport 80 0xffff flowid 1:5
filter add dev t0 parent 1: protocol ip prio 2 u32 match ip src 1.2.3.4 match ip tos 0x10 0xff flowid 1:20
filter add dev t0 parent 1: prio 7 handle 2: protocol ip u32 divisor 256
filter add dev t0 parent 1: protocol ip prio 7 u32 ht 2:7: match ip src 10.0.0.7 flowid 1:5
filter add dev t0 parent 1: protocol ip prio 7 u32 ht 800:: match ip src 10.0.0.0/24 hashkey mask 0x000000ff at 12 link 2:
filter add dev t0 parent 1:10 protocol ipv6 prio 1 u32 match u32 0 0 flowid 1:5
qdisc add dev t1 clsact
filter add dev t1 egress protocol all prio 5 u32 match u32 0 0 classid 1:3
qdisc add dev lo root handle 3: tbf rate 1kbit burst 70 limit 5000";

fn run(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    Command::new(words[0])
        .args(&words[1..])
        .status()
        .is_ok_and(|status| status.success())
}

/// A network namespace with these devices, and rules.
fn with(rules: &str) -> Option<()> {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    if !DEVICES.lines().all(run) {
        crate::netfilter::skip("ip");
        return None;
    }
    for rule in rules.lines() {
        assert!(run(&format!("tc {rule}")), "{rule}");
    }
    Some(())
}

fn listed() -> String {
    let tc = |line: &str| {
        let output = Command::new("tc").args(line.split(' ')).output().expect("tc");
        let text = String::from_utf8(output.stdout).expect("text");
        // Packets of the kernel's own go by.
        let uncounted = |line| str::split(line, "direct_packets_stat").next().unwrap_or(line);
        let mut lines: Vec<&str> = text.lines().map(uncounted).collect();
        if !line.starts_with("filter") {
            lines.sort_unstable();
        }
        lines.join("\n")
    };
    [
        "qdisc show",
        "class show dev t0",
        "filter show dev t0",
        "filter show dev t0 parent 1:10",
        "filter show dev t1 egress",
    ]
    .map(tc)
    .join("\n\n")
}

#[test]
fn what_tells_all_is_made_again() {
    if with(RULES).is_none() {
        return;
    }
    let text = listed();
    let (traffic, strange) = Traffic::read().expect("read");
    assert_eq!(strange, []);
    assert_eq!(
        [traffic.disciplines.len(), traffic.classes.len(), traffic.filters.len()],
        [6, 4, 7]
    );
    with("").expect("devices");
    traffic.load().expect("load");
    let now = Traffic::read().expect("read").0;
    assert!(now.is_same(&traffic), "{now:#?} {traffic:#?}");
    assert_eq!(listed(), text);
    let mut less = traffic.clone();
    less.filters.pop();
    assert!(!less.is_same(&traffic));
}

#[test]
fn what_does_not_is_named() {
    let rules = "qdisc add dev t1 clsact
filter add dev t1 ingress protocol all prio 5 u32 match u32 0 0 action mirred egress redirect dev t0";
    if with(rules).is_none() {
        return;
    }
    let (_, strange) = Traffic::read().expect("read");
    let reasons: Vec<_> = strange.iter().map(|(_, _, reason)| *reason).collect();
    assert_eq!(reasons, ["filters with actions are not carried"]);
}

#[test]
fn what_is_nowhere_is_an_error() {
    if with(RULES).is_none() {
        return;
    }
    let (mut traffic, _) = Traffic::read().expect("read");
    with("").expect("devices");
    traffic.disciplines.retain(|one| one[12..16] != [255; 4]);
    assert_eq!(traffic.load().map_err(|(_, error)| error), Err(Errno::ELOOP));
    let mut other = traffic.disciplines[0].clone();
    // Its kind.
    other[24] = b'x';
    for unknown in [vec![0; 9], other] {
        traffic.disciplines = vec![unknown];
        let loaded = traffic.load().map_err(|(_, error)| error);
        assert!(matches!(loaded, Err(Errno::EINVAL | Errno::ELOOP)), "{loaded:?}");
    }
}
