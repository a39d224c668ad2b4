//! Datagrams of which a part is written, that are sent with the rest (MSG_MORE, UDP_CORK): of both families, of UDP and
//! UDP-Lite, with all that can come beside them; and a TCP connection whose last bytes wait for more (TCP_CORK).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
};
use victims::{Findings, play, socket, socket::Received};

type Check = Box<dyn FnMut(&mut Findings)>;
/// What comes beside a message: level, kind, bytes.
type Beside = Vec<(i32, i32, Vec<u8>)>;

const FOUR: &str = "127.0.0.1:0";
const SIX: &str = "[::1]:0";
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const UDP_CORK: i32 = 1;
const UDP_SEGMENT: i32 = 103;
const IPV6_DONTFRAG: i32 = 62;
const SO_RCVMARK: i32 = 75;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = Vec::new();
        for place in [FOUR, SIX] {
            for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE] {
                checks.push(Box::new(Letter::new("plain", place, protocol).begun()));
            }
            checks.push(Box::new(Letter::new("of nothing yet", place, 0).parts(&[b""]).begun()));
            checks.push(Box::new(
                Letter::new("long", place, 0)
                    .parts(&[&[7; 30_000], b"", &[8; 20_000]])
                    .begun(),
            ));
            checks.push(Box::new(Letter::new("connected", place, 0).connected().begun()));
            checks.push(Box::new(Letter::new("corked", place, 0).corked().begun()));
            checks.push(Box::new(
                Letter::new("in segments", place, 0).beside(vec![segments()]).begun(),
            ));
        }
        checks.push(Box::new(
            Letter::new("beside it, four", FOUR, 0)
                .from("0.0.0.0:0")
                .beside(beside_four())
                .begun(),
        ));
        checks.push(Box::new(
            Letter::new("beside it, six", SIX, 0)
                .from("[::]:0")
                .beside(beside_six())
                .begun(),
        ));
        checks.push(Box::new(
            Letter::new("by another family", FOUR, 0).from("[::]:0").begun(),
        ));
        checks.push(Box::new(tcp()));
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Three bytes each.
fn segments() -> (i32, i32, Vec<u8>) {
    (libc::IPPROTO_UDP, UDP_SEGMENT, 3_u16.to_ne_bytes().to_vec())
}

fn number(level: i32, kind: i32, value: i32) -> (i32, i32, Vec<u8>) {
    (level, kind, value.to_ne_bytes().to_vec())
}

/// TTL, TOS, source, options of IP, mark, priority.
fn beside_four() -> Beside {
    let source = [0, 0, 0, 0, 127, 0, 0, 9, 0, 0, 0, 0];
    vec![
        number(IP, libc::IP_TTL, 7),
        number(IP, libc::IP_TOS, 0x10),
        (IP, libc::IP_PKTINFO, source.to_vec()),
        // To nothing, three times, and the end.
        (IP, libc::IP_RETOPTS, vec![1, 1, 1, 0]),
        number(libc::SOL_SOCKET, libc::SO_MARK, 99),
    ]
}

/// Hops, class, source, two headers, mark.
fn beside_six() -> Beside {
    let source = [&[0; 15][..], &[1, 0, 0, 0, 0]].concat();
    // Filled up by an option that means nothing.
    let header = vec![0, 0, 1, 4, 0, 0, 0, 0];
    vec![
        number(IPV6, libc::IPV6_HOPLIMIT, 7),
        number(IPV6, libc::IPV6_TCLASS, 0x10),
        number(IPV6, IPV6_DONTFRAG, 1),
        (IPV6, libc::IPV6_PKTINFO, source),
        (IPV6, libc::IPV6_HOPOPTS, header.clone()),
        (IPV6, libc::IPV6_DSTOPTS, header),
        number(libc::SOL_SOCKET, libc::SO_MARK, 99),
    ]
}

/// A socket that writes in parts, and one that receives.
struct Letter {
    what: &'static str,
    protocol: i32,
    sender: OwnedFd,
    receiver: OwnedFd,
    /// Whom it is sent to; empty for the other end.
    to: Vec<u8>,
    parts: Vec<Vec<u8>>,
    beside: Beside,
    is_corked: bool,
}

fn bound(place: &str, protocol: i32) -> OwnedFd {
    let place: SocketAddr = place.parse().expect("an address");
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let made = socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol);
    socket::bind(made.as_raw_fd(), &socket::address(place)).expect("bind");
    made
}

impl Letter {
    fn new(what: &'static str, place: &str, protocol: i32) -> Self {
        let [sender, receiver] = [0, 1].map(|_| bound(place, protocol));
        let wanted: &[(i32, i32)] = match place {
            FOUR => &[(IP, libc::IP_RECVTTL), (IP, libc::IP_RECVTOS), (IP, libc::IP_RECVOPTS)],
            _ => &[
                (IPV6, libc::IPV6_RECVHOPLIMIT),
                (IPV6, libc::IPV6_RECVTCLASS),
                (IPV6, libc::IPV6_RECVHOPOPTS),
                (IPV6, libc::IPV6_RECVDSTOPTS),
            ],
        };
        for (level, name) in wanted.iter().chain(&[(libc::SOL_SOCKET, SO_RCVMARK)]) {
            socket::set(receiver.as_raw_fd(), *level, *name, 1);
        }
        let to = socket::name(receiver.as_raw_fd()).expect("a name");
        Self {
            what,
            protocol,
            sender,
            receiver,
            to,
            parts: vec![b"begun, ".to_vec(), b"gone on with, ".to_vec()],
            beside: Vec::new(),
            is_corked: false,
        }
    }

    fn parts(mut self, parts: &[&[u8]]) -> Self {
        self.parts = parts.iter().map(|part| part.to_vec()).collect();
        self
    }

    fn beside(mut self, beside: Beside) -> Self {
        self.beside = beside;
        self
    }

    /// From another place, perhaps of the other family.
    fn from(mut self, place: &str) -> Self {
        self.sender = bound(place, self.protocol);
        if place.starts_with('[') && self.to[..2] == (libc::AF_INET as u16).to_ne_bytes() {
            let [_, _, high, low, a, b, c, d, ..] = self.to[..] else {
                panic!("struct sockaddr_in");
            };
            let mapped = std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped();
            self.to = socket::address((mapped, u16::from_be_bytes([high, low])).into());
        }
        self
    }

    fn connected(mut self) -> Self {
        socket::connect(self.sender.as_raw_fd(), &self.to).expect("connect");
        self.to = Vec::new();
        self
    }

    fn corked(mut self) -> Self {
        self.is_corked = true;
        self.cork(1);
        self
    }

    fn cork(&self, on: i32) {
        socket::set(self.sender.as_raw_fd(), libc::IPPROTO_UDP, UDP_CORK, on);
    }

    fn begin(&self) {
        let more = if self.is_corked { 0 } else { libc::MSG_MORE };
        for (index, part) in self.parts.iter().enumerate() {
            let beside = if index == 0 { &self.beside[..] } else { &[] };
            socket::send_beside(self.sender.as_raw_fd(), part, &self.to, beside, more).expect("send");
        }
    }

    fn end(&self) -> std::io::Result<()> {
        if self.is_corked {
            socket::send_beside(self.sender.as_raw_fd(), b"done", &self.to, &[], 0)?;
            self.cork(0);
            self.cork(1);
            return Ok(());
        }
        socket::send_beside(self.sender.as_raw_fd(), b"done", &self.to, &[], 0)
    }

    fn all(&self) -> Vec<Received> {
        std::iter::from_fn(|| socket::receive(&self.receiver, 0).expect("receive")).collect()
    }

    /// It is the same at each check as it was at first.
    fn begun(self) -> impl FnMut(&mut Findings) {
        self.begin();
        assert_eq!(self.all(), [], "{}: it waits for the rest", self.what);
        self.end().expect("send");
        let wanted = self.all();
        let whole = [&self.parts.concat()[..], b"done"].concat();
        let got: Vec<u8> = wanted.iter().flat_map(|one| one.bytes.clone()).collect();
        assert_eq!(got, whole, "{}", self.what);
        self.begin();
        move |findings: &mut Findings| {
            let what = self.what;
            if findings.sabotage() && what == "plain" {
                findings.take("send", self.end());
                let _ = self.all();
            }
            findings.same(
                format!("{what}: what was received before the rest"),
                &0,
                &self.all().len(),
            );
            findings.take("send", self.end());
            let now = self.all();
            let sizes = |all: &[Received]| all.iter().map(|one| one.bytes.len()).collect::<Vec<_>>();
            findings.same(format!("{what}: sizes"), &sizes(&wanted), &sizes(&now));
            let beside = |all: &[Received]| {
                all.iter()
                    .map(|one| (one.from.clone(), one.control.clone()))
                    .collect::<Vec<_>>()
            };
            findings.same(
                format!("{what}: sender and what comes beside"),
                &beside(&wanted),
                &beside(&now),
            );
            findings.that(wanted == now, format!("{what}: other bytes"));
            self.begin();
        }
    }
}

/// The kernel sends what waits for more after some time, so that only the order is told.
fn tcp() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind(FOUR).expect("bind");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    socket::set(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, 1);
    client.write_all(b"begun, ").expect("write");
    move |findings: &mut Findings| {
        let corked = socket::get(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, 4).ok();
        findings.same("TCP_CORK", &Some(vec![1, 0, 0, 0]), &corked);
        findings.take("write", client.write_all(b"done"));
        let mut got = [0; 11];
        findings.take("read", server.read_exact(&mut got));
        findings.same("what came by TCP", &b"begun, done"[..], &got[..]);
        findings.take("write", client.write_all(b"begun, "));
    }
}
