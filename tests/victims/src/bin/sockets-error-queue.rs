//! Errors that wait with what they are about (IP_RECVERR, MSG_ERRQUEUE): of ports that nobody has, of routers, and of this
//! host's own; with and without the error that the next call tells, beside datagrams that wait and one that is being gathered.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};
use victims::{Findings, play, socket, socket::Received, wait_until};

type Check = Box<dyn FnMut(&mut Findings)>;

const PLACES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];
const SO_MEMINFO: i32 = 55;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = Vec::new();
        for place in PLACES {
            for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE] {
                checks.push(Box::new(Mailbox::new("told", (place, protocol), told).check()));
            }
            let at = (place, libc::IPPROTO_UDP);
            checks.push(Box::new(Mailbox::new("one end", at, told).connected().check()));
            checks.push(Box::new(Mailbox::new("asked for", at, asked_for).check()));
            checks.push(Box::new(Mailbox::new("of routers", at, of_routers).check()));
            checks.push(Box::new(Mailbox::new("the first was read", at, first_read).check()));
            checks.push(Box::new(Mailbox::new("own ones between", at, own_between).check()));
            checks.push(Box::new(
                Mailbox::new("only own ones", at, only_own).connected().check(),
            ));
            checks.push(Box::new(Mailbox::new("gathering", at, gathering).gathering().check()));
            let last = Mailbox::new("the first was read, gathering", at, first_read_gathering);
            checks.push(Box::new(last.gathering().check()));
        }
        let at = (PLACES[0], libc::IPPROTO_UDP);
        checks.push(Box::new(Mailbox::new("unasked", at, unasked).connected().check()));
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// A socket that wants to know, and nobody to whom it sends.
struct Mailbox {
    what: &'static str,
    socket: OwnedFd,
    local: SocketAddr,
    /// Somebody who sends to it.
    sender: OwnedFd,
    /// Whom it sends to; empty for the other end.
    to: Vec<u8>,
    fill: fn(&Self),
    /// Whether it has begun to send something to itself.
    gathers: bool,
}

/// All that there is to be read.
#[derive(Debug, PartialEq)]
struct Contents {
    error: Option<i32>,
    errors: Vec<Received>,
    datagrams: Vec<Received>,
}

fn bound(place: &str, protocol: i32) -> (OwnedFd, SocketAddr) {
    let place: SocketAddr = place.parse().expect("an address");
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let made = socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol);
    socket::bind(made.as_raw_fd(), &socket::address(place)).expect("bind");
    let name = socket::name(made.as_raw_fd()).expect("a name");
    let port = u16::from_be_bytes([name[2], name[3]]);
    (made, SocketAddr::new(place.ip(), port))
}

impl Mailbox {
    fn new(what: &'static str, (place, protocol): (&str, i32), fill: fn(&Self)) -> Self {
        let (socket, local) = bound(place, protocol);
        let [(sender, _), (_, nobody)] = [0, 1].map(|_| bound(place, protocol));
        let (level, names) = match local.ip() {
            IpAddr::V4(_) => (libc::IPPROTO_IP, [libc::IP_RECVERR, libc::IP_RECVTTL]),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, [libc::IPV6_RECVERR, libc::IPV6_RECVHOPLIMIT]),
        };
        for name in names {
            socket::set(socket.as_raw_fd(), level, name, 1);
        }
        Self {
            what,
            socket,
            local,
            sender,
            to: socket::address(nobody),
            fill,
            gathers: false,
        }
    }

    fn connected(mut self) -> Self {
        socket::connect(self.socket.as_raw_fd(), &self.to).expect("connect");
        self.to = Vec::new();
        self
    }

    fn gathering(mut self) -> Self {
        self.gathers = true;
        self
    }

    /// Does what has something come to wait in it.
    fn causes(&self, cause: impl FnOnce()) {
        let taken = || {
            socket::get(self.socket.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, 36).expect("SO_MEMINFO")[..4].to_vec()
        };
        let before = taken();
        cause();
        assert!(wait_until(|| taken() != before), "{}: it comes", self.what);
    }

    fn send(&self, bytes: &[u8]) {
        // An error that waits is told first.
        let send = || socket::send(self.socket.as_raw_fd(), bytes, &self.to);
        self.causes(|| send().or_else(|_| send()).expect("send"));
    }

    /// More than can be sent.
    fn send_too_much(&self) {
        let send = || socket::send(self.socket.as_raw_fd(), &[0; 65_535], &self.to).expect_err("it is too much");
        self.causes(|| {
            if send().raw_os_error() != Some(libc::EMSGSIZE) {
                assert_eq!(send().raw_os_error(), Some(libc::EMSGSIZE));
            }
        });
    }

    fn error(&self) -> Option<i32> {
        let value = socket::get(self.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 4).ok()?;
        Some(i32::from_ne_bytes(value.try_into().ok()?))
    }

    fn read_one(&self) -> Option<Received> {
        socket::receive(&self.socket, libc::MSG_ERRQUEUE).expect("receive")
    }

    fn contents(&self) -> Contents {
        let error = self.error();
        let errors = std::iter::from_fn(|| self.read_one()).collect();
        // Those that were read have each told the next one's.
        self.error();
        if self.gathers {
            self.causes(|| self.write(b"done", 0));
        }
        let datagrams = std::iter::from_fn(|| socket::receive(&self.socket, 0).expect("receive")).collect();
        Contents {
            error,
            errors,
            datagrams,
        }
    }

    fn datagram(&self) {
        let to = socket::address(self.local);
        self.causes(|| socket::send(self.sender.as_raw_fd(), b"hello", &to).expect("send"));
    }

    /// What a router says of what was sent, by a packet of ICMP.
    fn router_says(&self, [kind, code]: [u8; 2], more: u32) {
        let raw = match self.local.ip() {
            IpAddr::V4(_) => socket::new(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP),
            IpAddr::V6(_) => socket::new(
                libc::AF_INET6,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::IPPROTO_ICMPV6,
            ),
        };
        let bytes = |ip: IpAddr| match ip {
            IpAddr::V4(four) => four.octets().to_vec(),
            IpAddr::V6(six) => six.octets().to_vec(),
        };
        let far: IpAddr = match self.local.ip() {
            IpAddr::V4(_) => "198.51.100.7".parse().expect("an address"),
            IpAddr::V6(_) => "2001:db8::7".parse().expect("an address"),
        };
        let mut sent = match self.local.ip() {
            IpAddr::V4(_) => vec![0x45, 0, 0, 36, 0, 1, 0, 0, 1, 17, 0, 0],
            IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 16, 17, 1],
        };
        sent.extend([bytes(self.local.ip()), bytes(far)].concat());
        sent.extend([self.local.port().to_be_bytes(), 33_434_u16.to_be_bytes()].concat());
        sent.extend([0, 16, 0, 0]);
        sent.extend(b"how far?");
        let mut packet = vec![kind, code, 0, 0];
        packet.extend(more.to_be_bytes());
        packet.extend(sent);
        // The kernel computes that of IPv6.
        let sum: u32 = packet
            .chunks(2)
            .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        let to = socket::address(SocketAddr::new(self.local.ip(), 0));
        self.causes(|| socket::send(raw.as_raw_fd(), &packet, &to).expect("send"));
    }

    fn far_away(&self) {
        let is_four = self.local.is_ipv4();
        self.router_says(if is_four { [11, 0] } else { [3, 0] }, 0);
    }

    fn misunderstood(&self) {
        let is_four = self.local.is_ipv4();
        self.router_says(
            if is_four { [12, 0] } else { [4, 1] },
            if is_four { 9 << 24 } else { 6 },
        );
    }

    fn write(&self, bytes: &[u8], flags: i32) {
        let to = socket::address(self.local);
        socket::send_beside(self.socket.as_raw_fd(), bytes, &to, &[], flags).expect("send");
    }

    /// What was to be sent has told all errors that were to be told first.
    fn gather(&self) {
        self.error();
        self.write(b"half ", libc::MSG_MORE);
    }

    /// It is the same at each check as it was at first.
    fn check(self) -> impl FnMut(&mut Findings) {
        (self.fill)(&self);
        let wanted = self.contents();
        assert!(!wanted.errors.is_empty(), "{}", self.what);
        (self.fill)(&self);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                self.read_one();
            }
            findings.same(
                format!("{} ({})", self.what, self.local.ip()),
                &wanted,
                &self.contents(),
            );
            (self.fill)(&self);
        }
    }
}

fn told(mailbox: &Mailbox) {
    mailbox.send(b"to nobody");
    mailbox.send(b"to nobody, once more");
}

fn asked_for(mailbox: &Mailbox) {
    mailbox.datagram();
    told(mailbox);
    mailbox.error();
}

fn of_routers(mailbox: &Mailbox) {
    mailbox.far_away();
    mailbox.datagram();
    mailbox.misunderstood();
}

fn first_read(mailbox: &Mailbox) {
    mailbox.send(b"to nobody");
    mailbox.far_away();
    mailbox.misunderstood();
    mailbox.read_one();
}

fn own_between(mailbox: &Mailbox) {
    mailbox.send_too_much();
    mailbox.send(b"to nobody");
    mailbox.send_too_much();
    mailbox.far_away();
}

fn only_own(mailbox: &Mailbox) {
    mailbox.send_too_much();
    mailbox.send_too_much();
}

fn gathering(mailbox: &Mailbox) {
    own_between(mailbox);
    mailbox.gather();
    mailbox.misunderstood();
}

fn first_read_gathering(mailbox: &Mailbox) {
    mailbox.send(b"to nobody");
    mailbox.far_away();
    mailbox.gather();
    mailbox.misunderstood();
    mailbox.read_one();
}

/// It came when nobody wanted to know what it is about, which somebody does now; there is an own one beside it.
fn unasked(mailbox: &Mailbox) {
    let want = |on: i32| socket::set(mailbox.socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, on);
    want(0);
    socket::send(mailbox.socket.as_raw_fd(), b"to nobody", &mailbox.to).expect("send");
    let mut asked = libc::pollfd {
        fd: mailbox.socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one struct.
    let has_come = || unsafe { libc::poll(&raw mut asked, 1, 0) } == 1;
    assert!(wait_until(has_come), "an error comes");
    want(1);
    // It leaves that where it is.
    mailbox.causes(|| {
        let sent = socket::send(mailbox.socket.as_raw_fd(), &[0; 65_535], &mailbox.to);
        assert_eq!(sent.expect_err("it is too much").raw_os_error(), Some(libc::EMSGSIZE));
    });
}
