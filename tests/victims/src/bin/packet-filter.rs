//! The packet filter of a network namespace: rules of nft and iptables-nft with sets, maps, counters, quotas and timeouts, their
//! handles and order; and a connection that passes only because it is tracked.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};
use victims::{Findings, play};

const RULES: &str = "
table inet filt {
    counter hits { packets 3 bytes 400; }
    quota most { over 25 mbytes used 5 mbytes; }
    limit often { rate 10/second burst 7 packets; }
    set places { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.1.5-192.168.1.9 }; }
    set seen { type ipv4_addr; size 100; flags dynamic,timeout; timeout 1h; counter; elements = { 1.2.3.4 counter packets 5 bytes 7 timeout 2h expires 90m }; }
    set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90, 1.2.3.4 . 443 }; }
    map ways { type inet_service : verdict; elements = { 22 : jump known, 80 : accept }; }
    map counts { type ipv4_addr : counter; elements = { 5.5.5.5 : \"hits\" }; }
    chain known { ip saddr @places counter packets 7 bytes 90 accept; }
    chain in {
        type filter hook input priority filter - 5; policy drop;
        tcp dport vmap @ways
        tcp dport { 1000, 2000-3000 } counter accept
        ip saddr vmap { 1.1.1.1 : jump known, 2.2.2.2 : drop }
        counter name hits
        quota name \"most\" drop
        limit name \"often\" accept
        ip saddr . tcp dport @pairs accept
        udp dport 53 jump {
            counter packets 1 bytes 2 accept
        }
        add @seen { ip daddr timeout 30m counter }
        ct state established accept
        ct state new tcp dport 7001 ct mark set 7 accept
    }
}
table ip way {
    chain out { type nat hook output priority -100; tcp dport 7000 dnat to 127.0.0.3:7001; }
    chain post { type nat hook postrouting priority 100; ip daddr 127.0.0.3 tcp dport 7001 snat to 127.0.0.9:4000-5000; }
}
table ip gone { }
table netdev early {
    chain first { type filter hook ingress device \"lo\" priority 0; policy accept; counter; }
}
table arp a {
    chain i { type filter hook input priority 0; counter; }
}
table inet asleep {
    flags dormant;
    chain x { type filter hook input priority 0; drop; }
}
";

fn main() {
    play(|_| {
        // A rule stands on a line of its own.
        let rules = RULES
            .replace("; }", ";\n}")
            .replace("{ type", "{\ntype")
            .replace("accept; }", "accept;\n}");
        nft(&["-f", "-"], &rules);
        for change in [
            "insert rule inet filt in counter",
            "delete rule inet filt in handle 16",
            "add rule inet filt in position 14 counter",
            "delete table ip gone",
            "add table ip last",
        ] {
            nft(&["-f", "-"], change);
        }
        let multiport = "-A INPUT -p tcp -m multiport --dports 5,6 -m conntrack --ctstate NEW -j ACCEPT";
        let done = Command::new("iptables-nft").args(multiport.split(' ')).status();
        assert!(done.expect("start iptables-nft").success(), "iptables-nft");
        let listener = TcpListener::bind("0.0.0.0:7001").expect("bind");
        let mut one = TcpStream::connect("127.0.0.1:7001").expect("connect");
        let (mut other, _) = listener.accept().expect("accept");
        for end in [&one, &other] {
            end.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        }
        let mut before = listed();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                nft(&["-f", "-"], "delete element inet filt ways { 80 }");
            }
            findings.same("rules", &before, &listed());
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
            // What it has counted meanwhile.
            before = listed();
        }
    })
}

fn nft(line: &[&str], input: &str) {
    let child = Command::new("nft").args(line).stdin(Stdio::piped()).spawn();
    let mut child = child.expect("start nft");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("write");
    drop(pipe);
    assert!(child.wait().expect("wait").success(), "nft: {input}");
}

/// As nft tells it, without when elements expire, elements in order.
fn listed() -> String {
    let list = Command::new("nft").args(["-a", "list", "ruleset"]).output();
    let text = String::from_utf8(list.expect("nft").stdout).expect("text");
    let mut parts = text.split("elements = {");
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (elements, behind) = part.split_once('}').expect("an end");
        let mut plain: Vec<&str> = elements
            .split(',')
            .map(|one| one.split(" expires ").next().unwrap_or(one).trim())
            .collect();
        plain.sort_unstable();
        told += &(plain.join(", ") + behind);
    }
    told
}
