//! Datagrams that wait in sockets of UDP: who sent them, whom to, and all that comes beside them; in sockets that share a
//! port, that are connected, that two processes have, and that were shut down.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::Duration,
};
use victims::{Findings, Peer, play, socket, socket::Received};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(of_many_senders("127.0.0.1:0")),
            Box::new(of_many_senders("[::1]:0")),
            Box::new(of_both_families()),
            Box::new(broadcast()),
            Box::new(connected("127.0.0.1:0")),
            Box::new(connected("[::1]:0")),
            Box::new(sharing_a_port("127.0.0.1:0")),
            Box::new(sharing_a_port("[::1]:0")),
            Box::new(lite()),
            Box::new(stamped()),
            Box::new(cramped()),
            Box::new(joined()),
            Box::new(shut()),
            Box::new(of_two_processes()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// A socket and what waits in it: each datagram's sender, who lives on or is bound anew for each, its bytes and to where.
struct Mailbox {
    what: &'static str,
    socket: OwnedFd,
    letters: Vec<(SocketAddr, Option<UdpSocket>, Vec<u8>, SocketAddr)>,
    expected: Vec<Received>,
}

const ROOM: i32 = 1 << 20;

impl Mailbox {
    fn new(what: &'static str, socket: OwnedFd) -> Self {
        socket::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, ROOM);
        Self {
            what,
            socket,
            letters: Vec::new(),
            expected: Vec::new(),
        }
    }

    /// At a place, telling all that it can.
    fn at(what: &'static str, place: &str, protocol: i32) -> Self {
        let place: SocketAddr = place.parse().expect("an address");
        let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol);
        tell_all(socket.as_raw_fd(), family);
        socket::bind(socket.as_raw_fd(), &socket::address(place)).expect("bind");
        Self::new(what, socket)
    }

    fn address(&self) -> SocketAddr {
        UdpSocket::from(self.socket.try_clone().expect("dup"))
            .local_addr()
            .expect("an address")
    }

    fn letter(&mut self, from: &str, stays: bool, bytes: impl Into<Vec<u8>>, to: SocketAddr) {
        let sender = UdpSocket::bind(from).expect("bind");
        let own = sender.local_addr().expect("an address");
        self.letters.push((own, stays.then_some(sender), bytes.into(), to));
    }

    fn fill(&self) {
        for (number, (from, sender, bytes, to)) in self.letters.iter().enumerate() {
            let again = || UdpSocket::bind(from).expect("bind again");
            let sender = sender
                .as_ref()
                .map_or_else(again, |sender| sender.try_clone().expect("dup"));
            if from.is_ipv4() {
                socket::set(sender.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TTL, 30 + number as i32);
                socket::set(sender.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, 4 * number as i32);
            } else {
                socket::set(
                    sender.as_raw_fd(),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_UNICAST_HOPS,
                    30 + number as i32,
                );
                socket::set(
                    sender.as_raw_fd(),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_TCLASS,
                    4 * number as i32,
                );
            }
            sender.send_to(bytes, to).expect("send");
        }
    }

    fn all(&self) -> Vec<Received> {
        std::iter::from_fn(|| socket::receive(&self.socket, 0).expect("receive")).collect()
    }

    /// Fills it, and knows from now on what is to be there.
    fn ready(mut self) -> Self {
        self.fill();
        self.expected = self.all();
        assert_eq!(self.expected.len(), self.letters.len(), "{}", self.what);
        self.fill();
        self
    }

    fn check(&self, findings: &mut Findings) {
        let now = self.all();
        findings.same(format!("{}: datagrams", self.what), &self.expected.len(), &now.len());
        for (number, (before, now)) in self.expected.iter().zip(&now).enumerate() {
            let short = |one: &Received| Received {
                bytes: one.bytes.iter().take(20).copied().collect(),
                ..one.clone()
            };
            findings.that(
                before == now,
                format!(
                    "{}: datagram {number} was {:?}, is {:?}",
                    self.what,
                    short(before),
                    short(now)
                ),
            );
        }
        self.fill();
    }
}

fn tell_all(socket: RawFd, family: i32) {
    for name in [
        libc::IP_PKTINFO,
        libc::IP_RECVTTL,
        libc::IP_RECVTOS,
        libc::IP_RECVORIGDSTADDR,
    ] {
        socket::set(socket, libc::IPPROTO_IP, name, 1);
    }
    if family == libc::AF_INET6 {
        for name in [libc::IPV6_RECVPKTINFO, libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS] {
            socket::set(socket, libc::IPPROTO_IPV6, name, 1);
        }
    }
}

fn of_many_senders(place: &'static str) -> impl FnMut(&mut Findings) {
    let mut mailbox = Mailbox::at("many senders", place, 0);
    let to = mailbox.address();
    mailbox.letter(place, true, "of one who lives", to);
    mailbox.letter(place, false, "of one who is gone", to);
    mailbox.letter(place, true, "", to);
    mailbox.letter(place, false, vec![7; 60_000], to);
    mailbox.letter(place, true, "last", to);
    let mailbox = mailbox.ready();
    move |findings| {
        if findings.sabotage() {
            let _ = socket::receive(&mailbox.socket, 0);
        }
        mailbox.check(findings);
    }
}

/// At any address, and reached by several.
fn of_both_families() -> impl FnMut(&mut Findings) {
    let mut mailbox = Mailbox::at("both families", "[::]:0", 0);
    let port = mailbox.address().port();
    mailbox.letter(
        "[::1]:0",
        false,
        "six",
        SocketAddr::new("::1".parse().expect("an address"), port),
    );
    mailbox.letter(
        "127.0.0.9:0",
        false,
        "four",
        SocketAddr::new("127.0.0.5".parse().expect("an address"), port),
    );
    mailbox.letter(
        "127.0.0.1:0",
        true,
        "four again",
        SocketAddr::new("127.0.0.1".parse().expect("an address"), port),
    );
    let mailbox = mailbox.ready();
    move |findings| mailbox.check(findings)
}

/// Sent to all by lo.
fn broadcast() -> impl FnMut(&mut Findings) {
    let mailbox = Mailbox::at("to all", "0.0.0.0:0", 0);
    let to: SocketAddr = ([255, 255, 255, 255], mailbox.address().port()).into();
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    sender.set_broadcast(true).expect("set");
    socket::try_set(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo").expect("set");
    let fill = move || {
        sender.send_to(b"all", to).expect("send");
    };
    fill();
    let before = mailbox.all();
    assert_eq!(before.len(), 1, "one has come");
    fill();
    move |findings| {
        findings.same("to all", &before, &mailbox.all());
        fill();
    }
}

fn connected(place: &'static str) -> impl FnMut(&mut Findings) {
    let mut mailbox = Mailbox::at("connected", place, 0);
    let to = mailbox.address();
    mailbox.letter(place, true, "from its other end", to);
    let (other, sender, ..) = &mailbox.letters[0];
    let (other, sender) = (*other, sender.as_ref().map(|sender| sender.try_clone().expect("dup")));
    socket::connect(mailbox.socket.as_raw_fd(), &socket::address(other)).expect("connect");
    mailbox.letters.push((other, sender, b"once more".to_vec(), to));
    let mailbox = mailbox.ready();
    move |findings| mailbox.check(findings)
}

/// One of several may have what was sent to all; and one is connected.
fn sharing_a_port(place: &'static str) -> impl FnMut(&mut Findings) {
    let place: SocketAddr = place.parse().expect("an address");
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut port = place;
    let mut all = Vec::new();
    for _ in 0..4 {
        let socket = socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        socket::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        socket::bind(socket.as_raw_fd(), &socket::address(port)).expect("bind");
        let mailbox = Mailbox::new("sharing a port", socket);
        port = mailbox.address();
        all.push(mailbox);
    }
    let senders: Vec<UdpSocket> = (0..40).map(|_| UdpSocket::bind(place).expect("bind")).collect();
    let fill = move || {
        for (number, sender) in senders.iter().enumerate() {
            sender.send_to(&[number as u8], port).expect("send");
        }
    };
    let contents = move || -> Vec<Vec<u8>> {
        all.iter()
            .map(|mailbox| mailbox.all().into_iter().flat_map(|one| one.bytes).collect())
            .collect()
    };
    // The kernel chooses by a secret of the network namespace, which is another one each time.
    let prepare = move |contents: &dyn Fn() -> Vec<Vec<u8>>| {
        fill();
        let chosen = contents();
        assert_eq!(chosen.concat().len(), 40, "all have come");
        fill();
        chosen
    };
    let mut chosen = prepare(&contents);
    move |findings| {
        findings.same("what each of several has", &chosen, &contents());
        chosen = prepare(&contents);
    }
}

fn lite() -> impl FnMut(&mut Findings) {
    let mailbox = Mailbox::at("UDP-Lite", "127.0.0.1:0", libc::IPPROTO_UDPLITE);
    let sender = socket::new(
        libc::AF_INET,
        libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
        libc::IPPROTO_UDPLITE,
    );
    socket::bind(
        sender.as_raw_fd(),
        &socket::address("127.0.0.1:0".parse().expect("an address")),
    )
    .expect("bind");
    let to = socket::address(mailbox.address());
    let fill = move || {
        for text in [&b"light"[..], b"", b"lighter"] {
            socket::send(sender.as_raw_fd(), text, &to).expect("send");
        }
    };
    fill();
    let before = mailbox.all();
    fill();
    move |findings| {
        findings.same("UDP-Lite", &before, &mailbox.all());
        fill();
    }
}

/// When they came.
fn stamped() -> impl FnMut(&mut Findings) {
    let mut mailbox = Mailbox::at("time stamps", "127.0.0.1:0", 0);
    socket::set(mailbox.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    let to = mailbox.address();
    mailbox.letter("127.0.0.1:0", true, "when", to);
    let look = |mailbox: &Mailbox, flags| socket::receive(&mailbox.socket, flags).expect("receive");
    mailbox.fill();
    let mut before = look(&mailbox, libc::MSG_PEEK);
    let stamp = before
        .as_ref()
        .and_then(|one| one.beside(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS));
    assert!(stamp.is_some(), "it has a time stamp");
    move |findings| {
        findings.same("one with a time stamp", &before, &look(&mailbox, 0));
        mailbox.fill();
        before = look(&mailbox, libc::MSG_PEEK);
    }
}

/// In a socket that has room for no more.
fn cramped() -> impl FnMut(&mut Findings) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4096);
    socket.set_nonblocking(true).expect("set");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let to = socket.local_addr().expect("an address");
    let fill = move || {
        for number in 0..100_u8 {
            sender.send_to(&[number; 100], to).expect("send");
        }
    };
    let contents = move || -> Vec<u8> {
        let one = || socket.recv(&mut [0; 100]).ok().map(|bytes| bytes as u8);
        std::iter::from_fn(one).collect()
    };
    fill();
    let before = contents();
    fill();
    move |findings| {
        findings.same("what there was room for", &before, &contents());
        fill();
    }
}

/// Sent as one packet, and cut up; the receiver may have them joined (UDP_GRO) or not.
fn joined() -> impl FnMut(&mut Findings) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket::set(socket.as_raw_fd(), libc::IPPROTO_UDP, 104, 1);
    socket.set_nonblocking(true).expect("set");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket::set(sender.as_raw_fd(), libc::IPPROTO_UDP, 103, 1000);
    let to = socket.local_addr().expect("an address");
    let text: Vec<u8> = (0..5500_u32).map(|number| (number % 251) as u8).collect();
    sender.send_to(&text, to).expect("send");
    move |findings| {
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = [0; 10_000];
        while let Ok(bytes) = socket.recv(&mut buffer) {
            findings.that(
                bytes.is_multiple_of(1000) || bytes % 1000 == 500,
                "a datagram is cut elsewhere",
            );
            got.extend(&buffer[..bytes]);
        }
        findings.that(got == text, format!("joined: {} bytes of {}", got.len(), text.len()));
        findings.take("send", sender.send_to(&text, to));
    }
}

/// Both ways, one with something in it.
fn shut() -> impl FnMut(&mut Findings) {
    let mut all = Vec::new();
    for how in [libc::SHUT_RD, libc::SHUT_WR, libc::SHUT_RDWR] {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket
            .connect(sender.local_addr().expect("an address"))
            .expect("connect");
        sender
            .send_to(b"before", socket.local_addr().expect("an address"))
            .expect("send");
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::shutdown(socket.as_raw_fd(), how) }, 0, "shutdown");
        all.push((how, socket, sender));
    }
    move |findings| {
        for (how, socket, sender) in &all {
            let mut buffer = [0; 100];
            // One that is shut down for reading does not wait.
            let patience = Duration::from_millis(if *how == libc::SHUT_WR { 1 } else { 5000 });
            socket.set_read_timeout(Some(patience)).expect("a time-out");
            findings.same(
                format!("shutdown {how}: waits"),
                &Some(6),
                &socket.recv(&mut buffer).ok(),
            );
            let end = socket.recv(&mut buffer).map_err(|error| error.raw_os_error());
            let wanted = if *how == libc::SHUT_WR {
                Err(Some(libc::EAGAIN))
            } else {
                Ok(0)
            };
            findings.same(format!("shutdown {how}: end"), &wanted, &end);
            let sent = socket::send(socket.as_raw_fd(), b"x", &[]).map_err(|error| error.raw_os_error());
            let wanted = if *how == libc::SHUT_RD {
                Ok(())
            } else {
                Err(Some(libc::EPIPE))
            };
            findings.same(format!("shutdown {how}: send"), &wanted, &sent);
            let to = socket.local_addr().expect("an address");
            findings.take("send", sender.send_to(b"before", to));
        }
    }
}

/// What one process reads is not there for the other.
fn of_two_processes() -> impl FnMut(&mut Findings) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_nonblocking(true).expect("set");
    let to = socket.local_addr().expect("an address");
    let shared = socket.try_clone().expect("dup");
    let peer = Peer::start(move |_| {
        let mut byte = [0];
        shared.recv(&mut byte).map_or(-1, |_| byte[0].into())
    });
    let fill = move |socket: &UdpSocket| {
        for number in 0..4 {
            socket.send_to(&[number], to).expect("send");
        }
    };
    fill(&socket);
    move |findings| {
        let mut byte = [0];
        let mut got = Vec::new();
        for _ in 0..2 {
            got.push(socket.recv(&mut byte).map_or(-1, |_| i64::from(byte[0])));
            got.push(peer.ask(0).expect("an answer"));
        }
        findings.same("read in turns", &vec![0, 1, 2, 3], &got);
        fill(&socket);
    }
}
