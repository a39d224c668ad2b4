//! Options of sockets of the internet: all that can be set are, and all that can be read are compared; filters, and what
//! chooses among sockets that share a port, work as they did.

use std::{
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};
use victims::{
    Findings, Peer,
    filter::{self, Instruction, instruction},
    play, socket,
};

type Check = Box<dyn FnMut(&mut Findings)>;
type Snapshot = Vec<(i32, i32, Vec<u8>)>;

const REUSEPORT_CBPF: i32 = 51;
const SOL_RAW: i32 = 255;
const LITE: i32 = libc::IPPROTO_UDPLITE;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(filtered()),
            Box::new(locked()),
            Box::new(prioritised()),
            Box::new(chosen()),
            Box::new(of_two_processes()),
        ];
        for family in [libc::AF_INET, libc::AF_INET6] {
            for (kind, protocol) in [
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
                (libc::SOCK_DGRAM, LITE),
                (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            ] {
                for is_bound in [false, true] {
                    checks.push(Box::new(all_set(family, kind, protocol, is_bound)));
                }
            }
        }
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// All levels, and how many names each has.
const LEVELS: [(i32, i32); 7] = [
    (libc::SOL_SOCKET, 90),
    (libc::IPPROTO_IP, 60),
    (libc::IPPROTO_IPV6, 85),
    (libc::IPPROTO_TCP, 50),
    (libc::IPPROTO_UDP, 110),
    (LITE, 110),
    (SOL_RAW, 10),
];

/// What tells of what happened, or does something when it is asked for: SO_ERROR, GET_FILTER, INCOMING_CPU, MEMINFO,
/// INCOMING_NAPI_ID, COOKIE, NETNS_COOKIE, PEERPIDFD; TCP_INFO, QUICKACK, TIMESTAMP, CC_INFO.
fn is_no_setting(level: i32, name: i32) -> bool {
    let names: &[i32] = match level {
        libc::SOL_SOCKET => &[4, 26, 49, 55, 56, 57, 71, 77],
        libc::IPPROTO_TCP => &[11, 12, 24, 26],
        _ => &[],
    };
    names.contains(&name)
}

/// What is not to be set: filters, TCP_REPAIR and its like, TCP_ULP, IPV6_ADDRFORM, what gathers; the device, which is set
/// by its name.
fn is_left(level: i32, name: i32) -> bool {
    let names: &[i32] = match level {
        libc::SOL_SOCKET => &[25, 26, 27, 44, 50, 51, 52, 62],
        libc::IPPROTO_TCP => &[19, 20, 21, 22, 29, 31, 35],
        libc::IPPROTO_IPV6 => &[1],
        libc::IPPROTO_UDP => &[100],
        _ => &[],
    };
    names.contains(&name)
}

fn snapshot(socket: RawFd) -> Snapshot {
    let mut found = Vec::new();
    for (level, names) in LEVELS {
        for name in (1..names).filter(|name| !is_no_setting(level, *name)) {
            if let Ok(value) = socket::get(socket, level, name, 4096) {
                found.push((level, name, value));
            }
        }
    }
    found
}

/// Sets all that take a number, and those that take something else; how many differ from a new socket's.
fn set_all(socket: RawFd) -> usize {
    let before = snapshot(socket);
    for (level, names) in LEVELS {
        for name in (1..names).filter(|name| !is_left(level, *name)) {
            let now = || socket::get(socket, level, name, 4096).ok();
            let was = now();
            for value in [1_i32, 3, 0, 64, 9000] {
                let _ = socket::try_set(socket, level, name, &value.to_ne_bytes());
                if now() != was {
                    break;
                }
            }
        }
    }
    let others: [(i32, i32, &[u8]); 6] = [
        (libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 7, 0, 0, 0]),
        (libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo"),
        (
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &[0, 0, 1, 0, 0, 0, 0, 0]),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno"),
    ];
    for (level, name, value) in others {
        let _ = socket::try_set(socket, level, name, value);
    }
    let now = snapshot(socket);
    before.iter().zip(&now).filter(|(one, other)| one != other).count()
}

fn all_set(family: i32, kind: i32, protocol: i32, is_bound: bool) -> impl FnMut(&mut Findings) {
    let socket = socket::new(family, kind | libc::SOCK_CLOEXEC, protocol);
    let differ = set_all(socket.as_raw_fd());
    assert!(differ > 30, "only {differ} options could be set");
    if is_bound {
        let place = if family == libc::AF_INET {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let place = socket::address(place.parse().expect("an address"));
        socket::bind(socket.as_raw_fd(), &place).expect("bind");
        if kind == libc::SOCK_STREAM {
            // SAFETY: plain numbers.
            assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 5) }, 0, "listen");
        }
    }
    let before = snapshot(socket.as_raw_fd());
    move |findings| {
        if findings.sabotage() {
            let _ = socket::try_set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, &[8, 0, 0, 0]);
        }
        let now = snapshot(socket.as_raw_fd());
        findings.same("options that can be read", &before.len(), &now.len());
        for ((level, name, was), (.., is)) in before.iter().zip(&now) {
            findings.same(format!("{family}/{protocol} {is_bound}: {level}/{name}"), was, is);
        }
    }
}

/// Lets nothing pass that begins with an x, behind UDP's header.
fn no_x() -> [Instruction; 4] {
    filter::without(8, b'x')
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_nonblocking(true).expect("set");
    socket
}

/// What waited before passes it once more.
fn filtered() -> impl FnMut(&mut Findings) {
    let socket = udp();
    let to = socket.local_addr().expect("an address");
    let program = no_x();
    let fill = {
        let socket = socket.try_clone().expect("dup");
        move || {
            let _ = filter::detach(&socket);
            for text in [b"x0", b"y1", b"x2"] {
                socket.send_to(text, to).expect("send");
            }
            filter::attach(&socket, &program);
            for text in [b"x3", b"y4"] {
                socket.send_to(text, to).expect("send");
            }
        }
    };
    fill();
    move |findings| {
        findings.take("send", socket.send_to(b"x5", to));
        let mut got = Vec::new();
        let mut buffer = [0; 2];
        while socket.recv(&mut buffer).is_ok() {
            got.push(buffer[1] - b'0');
        }
        findings.same("what a filter lets pass", &vec![0, 1, 2, 4], &got);
        fill();
    }
}

fn locked() -> impl FnMut(&mut Findings) {
    let socket = udp();
    filter::attach(&socket, &no_x());
    socket::set(socket.as_raw_fd(), libc::SOL_SOCKET, filter::LOCK, 1);
    move |findings| {
        let again = filter::try_set(&socket, libc::SO_ATTACH_FILTER, &no_x());
        let refused = again.map_err(|error| error.raw_os_error());
        findings.same("another filter where it is locked", &Err(Some(libc::EPERM)), &refused);
        let to = socket.local_addr().expect("an address");
        findings.take("send", socket.send_to(b"x", to));
        findings.take("send", socket.send_to(b"y", to));
        let mut byte = [0];
        findings.take("receive", socket.recv(&mut byte));
        findings.same("what a locked filter lets pass", b"y", &byte);
    }
}

/// The type of service chooses a priority, and then another one was set.
fn prioritised() -> impl FnMut(&mut Findings) {
    let service = (libc::IPPROTO_IP, libc::IP_TOS, 0x10);
    let priority = (libc::SOL_SOCKET, libc::SO_PRIORITY, 3);
    let one = udp();
    for (level, name, value) in [service, priority] {
        socket::set(one.as_raw_fd(), level, name, value);
    }
    move |findings| {
        for (level, name, value) in [service, priority] {
            let now = socket::get(one.as_raw_fd(), level, name, 4).ok();
            findings.same("service or priority", &Some(i32::to_ne_bytes(value).to_vec()), &now);
        }
    }
}

/// The first byte says which of three that share a port.
fn chosen() -> impl FnMut(&mut Findings) {
    let mut place = "127.0.0.1:0".parse().expect("an address");
    let mut all: Vec<UdpSocket> = Vec::new();
    for _ in 0..3 {
        let socket = socket::new(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        );
        socket::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        socket::bind(socket.as_raw_fd(), &socket::address(place)).expect("bind");
        let socket = UdpSocket::from(socket);
        place = socket.local_addr().expect("an address");
        all.push(socket);
    }
    let program = [instruction(0x30, 0, 0, 0), instruction(0x16, 0, 0, 0)];
    filter::try_set(&all[1], REUSEPORT_CBPF, &program).expect("attach");
    let sender = udp();
    move |findings| {
        for number in [2, 0, 1, 1, 2, 0_u8] {
            findings.take("send", sender.send_to(&[number], place));
        }
        for (number, socket) in (0_u8..).zip(&all) {
            let mut byte = [9];
            for _ in 0..2 {
                findings.take("receive", socket.recv(&mut byte));
                findings.same("whom a program chose", &number, &byte[0]);
            }
            findings.that(socket.recv(&mut byte).is_err(), "one has more");
        }
    }
}

/// One socket, so one has what the other sets.
fn of_two_processes() -> impl FnMut(&mut Findings) {
    let socket: OwnedFd = udp().into();
    let number = socket.as_raw_fd();
    let peer = Peer::start(move |mark| {
        let value = (mark as i32).to_ne_bytes();
        socket::try_set(number, libc::SOL_SOCKET, libc::SO_MARK, &value).map_or(-1, |()| mark)
    });
    let mut mark = 40;
    move |findings| {
        mark += 1;
        findings.same("mark", &mark, &peer.ask(mark).expect("an answer"));
        let now = socket::get(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, 4).expect("SO_MARK");
        findings.same("a mark of a shared socket", &(mark as i32).to_ne_bytes()[..], &now[..]);
    }
}
