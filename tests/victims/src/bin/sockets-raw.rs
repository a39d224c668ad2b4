//! Raw sockets of the internet's, and sockets of ICMP echoes, in which answers wait.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};
use victims::{Findings, Peer, play, socket, socket::Received};

type Check = Box<dyn FnMut(&mut Findings)>;

const SOL_RAW: i32 = 255;
/// Nobody's: RFC 3692.
const EXPERIMENT: i32 = 253;
const ICMPV6_FILTER: i32 = 1;

fn main() {
    play(|_stage| {
        // Of the network namespace.
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("allow sockets of echoes");
        let mut checks: Vec<Check> = vec![
            Box::new(filtered()),
            Box::new(with_headers()),
            Box::new(connected()),
            Box::new(six()),
            Box::new(echoes(Ipv4Addr::LOCALHOST.into())),
            Box::new(echoes(Ipv6Addr::LOCALHOST.into())),
            Box::new(of_two_processes()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn raw(family: i32, protocol: i32) -> OwnedFd {
    socket::new(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol)
}

fn to(ip: std::net::IpAddr) -> Vec<u8> {
    socket::address(SocketAddr::new(ip, 0))
}

fn here() -> Vec<u8> {
    to(Ipv4Addr::LOCALHOST.into())
}

fn all(socket: RawFd) -> Vec<Received> {
    std::iter::from_fn(|| socket::receive(&socket, 0).expect("receive")).collect()
}

/// An ICMP message with its checksum.
fn echo(kind: u8, text: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0, 0, 7, 0, 1], text].concat();
    let words = bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

/// Takes what its filter lets pass: ICMP_FILTER, and one of instructions.
fn filtered() -> impl FnMut(&mut Findings) {
    let socket = raw(libc::AF_INET, libc::IPPROTO_ICMP);
    // All but echo replies.
    socket::try_set(socket.as_raw_fd(), SOL_RAW, 1, &(!1_u32).to_ne_bytes()).expect("ICMP_FILTER");
    // Of those what ends with an y: the last of 20 + 8 + 2 bytes.
    let program: [[u8; 8]; 4] = [
        [0x30, 0, 0, 0, 29, 0, 0, 0],
        [0x15, 0, 0, 1, b'y', 0, 0, 0],
        [6, 0, 0, 0, 255, 255, 255, 255],
        [6, 0, 0, 0, 0, 0, 0, 0],
    ];
    let whole = [4_u64.to_ne_bytes(), (program.as_ptr() as u64).to_ne_bytes()].concat();
    socket::try_set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &whole).expect("attach");
    let sender = raw(libc::AF_INET, libc::IPPROTO_ICMP);
    // It takes nothing itself.
    socket::try_set(sender.as_raw_fd(), SOL_RAW, 1, &u32::MAX.to_ne_bytes()).expect("ICMP_FILTER");
    move |findings| {
        if findings.sabotage() {
            socket::try_set(socket.as_raw_fd(), SOL_RAW, 1, &0_u32.to_ne_bytes()).expect("ICMP_FILTER");
        }
        // An answer comes to each request.
        for text in [b"1x", b"2y"] {
            findings.take("send", socket::send(sender.as_raw_fd(), &echo(8, text), &here()));
        }
        let kinds: Vec<u8> = all(socket.as_raw_fd()).iter().map(|one| one.bytes[20]).collect();
        findings.same("kinds of messages that a filter lets pass", &vec![0], &kinds);
        findings.same("what comes where nothing is wanted", &0, &all(sender.as_raw_fd()).len());
    }
}

/// Makes its own headers.
fn with_headers() -> impl FnMut(&mut Findings) {
    let sender = raw(libc::AF_INET, libc::IPPROTO_RAW);
    let receiver = raw(libc::AF_INET, EXPERIMENT);
    socket::set(receiver.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, 1);
    let own = raw(libc::AF_INET, EXPERIMENT);
    socket::set(own.as_raw_fd(), libc::IPPROTO_IP, libc::IP_HDRINCL, 1);
    socket::bind(own.as_raw_fd(), &to(Ipv4Addr::new(127, 0, 0, 3).into())).expect("bind");
    move |findings| {
        let mut packet = vec![
            0x45,
            0,
            0,
            0,
            0,
            1,
            0,
            0,
            44,
            EXPERIMENT as u8,
            0,
            0,
            127,
            0,
            0,
            9,
            127,
            0,
            0,
            1,
        ];
        packet.extend(b"hand made");
        findings.take("send", socket::send(sender.as_raw_fd(), &packet, &here()));
        packet[8] = 45;
        findings.take("send", socket::send(own.as_raw_fd(), &packet, &here()));
        let got = all(receiver.as_raw_fd());
        let told: Vec<_> = got
            .iter()
            .map(|one| (one.bytes[8], &one.bytes[20..], &one.from[4..8]))
            .collect();
        let from = &[127, 0, 0, 9][..];
        findings.same(
            "packets with headers",
            &vec![(44, &b"hand made"[..], from), (45, b"hand made", from)],
            &told,
        );
        findings.same("what comes to another address", &0, &all(own.as_raw_fd()).len());
    }
}

/// Sends to one address and takes from there alone.
fn connected() -> impl FnMut(&mut Findings) {
    let one = raw(libc::AF_INET, EXPERIMENT + 1);
    socket::connect(one.as_raw_fd(), &to(Ipv4Addr::new(127, 0, 0, 8).into())).expect("connect");
    let senders = [8, 9].map(|last| {
        let sender = raw(libc::AF_INET, EXPERIMENT + 1);
        socket::bind(sender.as_raw_fd(), &to(Ipv4Addr::new(127, 0, 0, last).into())).expect("bind");
        sender
    });
    move |findings| {
        for sender in &senders {
            findings.take("send", socket::send(sender.as_raw_fd(), b"to the connected", &here()));
            let _ = all(sender.as_raw_fd());
        }
        findings.same("packets from its other end", &1, &all(one.as_raw_fd()).len());
        findings.take("send", socket::send(one.as_raw_fd(), b"to its other end", &[]));
        findings.same("packets for the other end", &1, &all(senders[0].as_raw_fd()).len());
    }
}

fn six() -> impl FnMut(&mut Findings) {
    let socket = raw(libc::AF_INET6, libc::IPPROTO_ICMPV6);
    // Those of one kind alone, which is for experiments: a bit is what is kept out.
    let mut filter = [0xff_u8; 32];
    filter[200 / 8] &= !(1 << (200 % 8));
    socket::try_set(socket.as_raw_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter).expect("a filter");
    socket::set(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1);
    let summed = raw(libc::AF_INET6, EXPERIMENT);
    socket::set(summed.as_raw_fd(), libc::IPPROTO_IPV6, 7, 4);
    move |findings| {
        let place = to(Ipv6Addr::LOCALHOST.into());
        findings.take("send", socket::send(socket.as_raw_fd(), &echo(200, b"six"), &place));
        let got = all(socket.as_raw_fd());
        let kinds: Vec<_> = got.iter().map(|one| (one.bytes[0], one.control.len())).collect();
        findings.same("what a filter of IPv6 lets pass", &vec![(200, 1)], &kinds);
        // At its place a checksum is filled in.
        findings.take("send", socket::send(summed.as_raw_fd(), &[0; 8], &place));
        let got = all(summed.as_raw_fd());
        let sums: Vec<bool> = got.iter().map(|one| one.bytes[4..6] != [0, 0]).collect();
        findings.same("whether there is a checksum", &vec![true], &sums);
    }
}

/// Answers wait in one, and nothing in another.
fn echoes(ip: std::net::IpAddr) -> impl FnMut(&mut Findings) {
    let (family, protocol, request) = match ip {
        std::net::IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8),
        std::net::IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128),
    };
    let [one, other] = [0, 1].map(|_| socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol));
    for socket in [&one, &other] {
        socket::bind(socket.as_raw_fd(), &to(ip)).expect("bind");
    }
    let fill = move |socket: &OwnedFd| {
        for text in [&b"first"[..], b"", b"last"] {
            socket::send(socket.as_raw_fd(), &echo(request, text), &to(ip)).expect("send");
        }
    };
    fill(&one);
    let before = all(one.as_raw_fd());
    assert_eq!(before.len(), 3, "an answer to each");
    fill(&one);
    let (name, another) = (socket::name(one.as_raw_fd()).ok(), socket::name(other.as_raw_fd()).ok());
    move |findings| {
        findings.same("name of a socket of echoes", &name, &socket::name(one.as_raw_fd()).ok());
        findings.same("name of another", &another, &socket::name(other.as_raw_fd()).ok());
        findings.same("answers that wait", &before, &all(one.as_raw_fd()));
        findings.same("answers in another", &0, &all(other.as_raw_fd()).len());
        fill(&one);
    }
}

fn of_two_processes() -> impl FnMut(&mut Findings) {
    let socket = raw(libc::AF_INET, EXPERIMENT - 100);
    let number = socket.as_raw_fd();
    let peer = Peer::start(move |_| all(number).len() as i64);
    move |findings| {
        findings.take("send", socket::send(socket.as_raw_fd(), b"both", &here()));
        findings.same("packets for another process", &1, &peer.ask(0).expect("an answer"));
        findings.same("what is left", &0, &all(socket.as_raw_fd()).len());
    }
}
