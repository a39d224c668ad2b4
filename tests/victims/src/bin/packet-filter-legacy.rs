//! What filters packets besides nf_tables: rules of iptables-legacy and ip6tables-legacy with what they have counted, sets of ipset
//! that these and rules of iptables-nft look into by their numbers, and which they fill; and a connection that passes only because
//! it is tracked.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};
use victims::{Findings, play};

/// Of the set `gone` the number stays free.
const SETS: &str = "
create wide hash:net family inet hashsize 64 maxelem 1000 counters comment
add wide 127.0.2.0/24 comment \"two and more\" packets 5 bytes 600
add wide 127.0.2.9 nomatch
create gone hash:ip
create other hash:ip
add other 127.0.4.4
create ports bitmap:port range 7000-7100
add ports 7001
create timed hash:ip,port timeout 100900 skbinfo
add timed 127.0.0.5,tcp:80 timeout 200900 skbmark 0x1/0xff
add timed 127.0.0.6,udp:81 timeout 0
create seen hash:ip timeout 100900
create six hash:ip,port,net family inet6
add six fe80::1,tcp:9,fd00::/8
create all list:set size 16
add all wide
add all other before wide
destroy gone
";

const RULES: &[&str] = &[
    "iptables-legacy -N known",
    "iptables-legacy -A known -m comment --comment known -c 7 900 -j ACCEPT",
    "iptables-legacy -A INPUT -m set --match-set all src -j DROP",
    "iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j known",
    "iptables-legacy -A INPUT -p tcp -m multiport --dports 7001,7002 -m set --match-set ports dst -j SET --add-set seen src",
    "iptables-legacy -A INPUT -p tcp -m set --match-set ports dst -m limit --limit 100/sec -j ACCEPT",
    "iptables-legacy -A INPUT -p udp --dport 7002 -j ACCEPT",
    "iptables-legacy -A INPUT -m recent --name unseen --rcheck -j DROP",
    "iptables-legacy -P INPUT DROP",
    "iptables-legacy -t nat -A OUTPUT -p tcp --dport 7000 -j DNAT --to-destination 127.0.0.3:7001",
    "iptables-legacy -t nat -A POSTROUTING -d 127.0.0.3 -p tcp --dport 7001 -m set ! --match-set wide src -j SNAT --to-source 127.0.0.9",
    "iptables-legacy -t mangle -A PREROUTING -j MARK --set-xmark 3/7",
    "ip6tables-legacy -A INPUT -p tcp --dport 7001 -m set --match-set six src,src,dst -j REJECT",
    "iptables-nft -A OUTPUT -m set --match-set timed dst,dst -m comment --comment timed -j DROP",
    "iptables-nft -A OUTPUT -d 127.0.0.7 -j SET --add-set seen dst --exist",
];

fn main() {
    play(|_| {
        piped("ipset", &["restore"], SETS);
        for rule in RULES {
            let mut words = rule.split(' ');
            let done = Command::new(words.next().unwrap_or_default()).args(words).status();
            assert!(done.expect("start").success(), "{rule}");
        }
        let listener = TcpListener::bind("0.0.0.0:7001").expect("bind");
        let mut one = TcpStream::connect("127.0.0.1:7001").expect("connect");
        let (mut other, _) = listener.accept().expect("accept");
        for end in [&one, &other] {
            end.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        }
        let datagrams = UdpSocket::bind("127.0.0.1:7002").expect("bind");
        datagrams.set_nonblocking(true).expect("to wait for nothing");
        let mut before = listed();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                piped("ipset", &["restore"], "del six fe80::1,tcp:9,fd00::/8\n");
            }
            findings.same("rules and sets", &before, &listed());
            let mut exchange = |from: &mut TcpStream, to: &mut TcpStream| {
                findings.take("write", from.write_all(b"x"));
                findings.take("read", to.read_exact(&mut [0]));
            };
            exchange(&mut one, &mut other);
            exchange(&mut other, &mut one);
            let again = findings.take("connect", TcpStream::connect("127.0.0.1:7000"));
            let accepted = again.and_then(|_| findings.take("accept", listener.accept()));
            let from = accepted.map(|(_, from)| from.ip().to_string());
            findings.same("where it comes from", &Some("127.0.0.9".to_owned()), &from);
            // By names that lead to numbers: of a set of sets, with what is not in them.
            for (source, comes) in [("127.0.2.5", false), ("127.0.2.9", true)] {
                let came = findings.take("send", passes(source, &datagrams));
                findings.same(source, &Some(comes), &came);
            }
            let sent = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
                let timed = socket.send_to(b"x", "127.0.0.6:81");
                Ok((timed.is_err(), socket.send_to(b"x", "127.0.0.7:82")?))
            });
            let dropped = findings.take("send", sent).map(|(dropped, _)| dropped);
            findings.same("whether it is dropped", &Some(true), &dropped);
            let seen = listed().iter().any(|line| line.starts_with("add seen 127.0.0.7 "));
            findings.that(seen, "a rule fills no set any more");
            // What they have counted meanwhile.
            before = listed();
        }
    })
}

/// Whether what somebody with this address sends comes; on the loopback it is there at once.
fn passes(from: &str, to: &UdpSocket) -> io::Result<bool> {
    UdpSocket::bind((from, 0))?.send_to(b"x", to.local_addr()?)?;
    match to.recv_from(&mut [0]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn piped(program: &str, line: &[&str], input: &str) {
    let child = Command::new(program).args(line).stdin(Stdio::piped()).spawn();
    let mut child = child.expect("start");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("write");
    drop(pipe);
    assert!(child.wait().expect("wait").success(), "{program}: {input}");
}

/// As the programs tell them: elements in order, and without the digits of times that run.
fn listed() -> Vec<String> {
    let told = |program: &str, line: &[&str]| {
        let output = Command::new(program).args(line).output().expect(program);
        String::from_utf8(output.stdout).expect("text")
    };
    let word = |word: &str| match word.parse::<u32>() {
        Ok(time) if time > 99_000 => (time / 1000 * 1000).to_string(),
        _ => word.to_owned(),
    };
    let sets = told("ipset", &["save"]);
    let sets = sets
        .lines()
        .map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" "));
    let mut listed: Vec<String> = sets.collect();
    listed.sort();
    for (program, line) in [
        ("iptables-legacy-save", &["-c"][..]),
        ("ip6tables-legacy-save", &["-c"]),
        ("nft", &["-a", "list", "ruleset"]),
        ("ipset", &["list", "-n"]),
    ] {
        let text = told(program, line);
        listed.extend(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned));
    }
    listed
}
