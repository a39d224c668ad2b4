//! How devices queue what they send: disciplines of tc(8) with classes and filters, on a pair of devices and on the loopback, where
//! more than a burst is not sent at once.

use std::{
    net::UdpSocket,
    process::Command,
    time::{Duration, Instant},
};
use victims::{Findings, play};

const LINES: &str = "ip link set lo up
ip link add name t0 type veth peer name t1
ip link set t0 up
ip link set t1 up
tc qdisc add dev t0 root handle 1: htb default 20 r2q 50
tc class add dev t0 parent 1: classid 1:1 htb rate 100mbit burst 15k
tc class add dev t0 parent 1:1 classid 1:20 htb rate 10mbit ceil 100mbit
tc class add dev t0 parent 1:1 classid 1:10 htb rate 60mbit ceil 90mbit prio 1
tc qdisc add dev t0 parent 1:10 handle 10: bfifo limit 30000
tc qdisc add dev t0 parent 1:20 handle 20: tbf rate 1gbit burst 1514 latency 70ms
tc filter add dev t0 parent 1: protocol ip prio 7 u32 match ip dport 80 0xffff flowid 1:10
tc filter add dev t0 parent 1: protocol ip prio 2 u32 match ip src 1.2.3.4 flowid 1:20
tc qdisc add dev t1 clsact
tc filter add dev t1 egress protocol all prio 5 u32 match u32 0 0 classid 1:3
tc qdisc add dev lo root handle 7: tbf rate 80kbit burst 4000 limit 30000";

fn main() {
    play(|_| {
        LINES.lines().for_each(run);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let place = socket.local_addr().expect("an address");
        socket.connect(place).expect("connect");
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        let before = listed();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                run("tc class change dev t0 parent 1:1 classid 1:10 htb rate 61mbit ceil 90mbit prio 1");
            }
            findings.same("disciplines, classes and filters", &before, &listed());
            // Seven thousand bytes, of which three thousand are no part of a burst: three tenths of a second.
            let began = Instant::now();
            for _ in 0..7 {
                findings.take("send", socket.send(&[7; 972]));
            }
            for _ in 0..7 {
                findings.take("receive", socket.recv(&mut [0; 1000]));
            }
            findings.that(began.elapsed() > Duration::from_millis(200), "they come at once");
        }
    })
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let done = Command::new(words.next().unwrap_or_default()).args(words).status();
    assert!(done.expect("start").success(), "{line}");
}

/// As tc tells them.
fn listed() -> Vec<String> {
    let lines = [
        "qdisc show",
        "class show dev t0",
        "filter show dev t0",
        "filter show dev t1 egress",
    ];
    let told = |line: &str| {
        let output = Command::new("tc").args(line.split(' ')).output().expect("tc");
        let text = String::from_utf8(output.stdout).expect("text");
        let mut lines: Vec<String> = text.lines().map(counted).collect();
        if !line.starts_with("filter") {
            lines.sort();
        }
        lines
    };
    lines.into_iter().flat_map(told).collect()
}

/// Without how many packets went by, and how often something is used.
fn counted(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let is_number = |place: usize| {
        let before = place.checked_sub(1).and_then(|before| words.get(before));
        before.is_some_and(|word| ["direct_packets_stat", "refcnt"].contains(word))
    };
    let kept = words.iter().enumerate().filter(|(place, _)| !is_number(*place));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}
