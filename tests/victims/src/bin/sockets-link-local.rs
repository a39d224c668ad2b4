//! Sockets with addresses that mean something only together with a network device (fe80::), of two devices, `link0` and
//! `link1`, that are a pair: what waits in them and is gathered, whom they send to, groups, connections of TCP. A device is
//! known by its name: its number may be another one each time.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};
use victims::{Findings, play, socket, socket::Received, wait_until};

type Check = Box<dyn FnMut(&mut Findings)>;

const DEVICES: [&str; 2] = ["link0", "link1"];
const SO_MEMINFO: i32 = 55;
const IPV6: i32 = libc::IPPROTO_IPV6;
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x77);

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(waiting(true)),
            Box::new(waiting(false)),
            Box::new(sending()),
            Box::new(group()),
            Box::new(connection(true)),
            Box::new(connection(false)),
            Box::new(unaccepted()),
            Box::new(raw()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// The number that one of the devices has now.
fn number(device: usize) -> u32 {
    let name = [DEVICES[device].as_bytes(), &[0]].concat();
    // SAFETY: a string that ends with a NUL.
    let number = unsafe { libc::if_nametoindex(name.as_ptr().cast()) };
    assert_ne!(number, 0, "there is no {}", DEVICES[device]);
    number
}

/// Its address.
fn address(device: usize) -> Ipv6Addr {
    let list = fs::read_to_string("/proc/thread-self/net/if_inet6").expect("a list");
    let own = list
        .lines()
        .find(|line| line.starts_with("fe80") && line.ends_with(DEVICES[device]));
    let bits = &own.expect("it has one")[..32];
    Ipv6Addr::from(u128::from_str_radix(bits, 16).expect("a number"))
}

/// A port of the address of one device, by one of them.
fn at(device: usize, by: usize, port: u16) -> SocketAddr {
    SocketAddrV6::new(address(device), port, 0, number(by)).into()
}

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("an address").port()
}

/// Sender and control with the numbers of devices replaced by their places in `DEVICES`.
fn told(mut one: Received) -> Received {
    let name = |bytes: &mut [u8]| {
        let before = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        let place = [0, 1].into_iter().position(|device| number(device) == before);
        bytes.copy_from_slice(&place.map_or(u32::MAX, |place| place as u32).to_ne_bytes());
    };
    name(&mut one.from[24..28]);
    for (.., bytes) in one
        .control
        .iter_mut()
        .filter(|(level, kind, _)| (*level, *kind) == (IPV6, libc::IPV6_PKTINFO))
    {
        name(&mut bytes[16..20]);
    }
    one
}

fn all(socket: &UdpSocket, count: usize) -> Vec<Received> {
    let mut found = Vec::new();
    wait_until(|| {
        found.extend(std::iter::from_fn(|| socket::receive(socket, 0).expect("receive")).map(told));
        found.len() >= count
    });
    found
}

/// What came from either end of the pair, in a socket that is bound to the address, or to any.
fn waiting(is_bound: bool) -> impl FnMut(&mut Findings) {
    let receiver = match is_bound {
        true => UdpSocket::bind(at(0, 0, 0)),
        false => UdpSocket::bind("[::]:0"),
    };
    let receiver = receiver.expect("bind");
    for name in [libc::IPV6_RECVPKTINFO, libc::IPV6_RECVHOPLIMIT] {
        socket::set(receiver.as_raw_fd(), IPV6, name, 1);
    }
    let [near, far] = [0, 1].map(|device| UdpSocket::bind(at(device, device, 0)).expect("bind"));
    let fill = move |receiver: &UdpSocket| {
        let counts = || socket::get(receiver.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, 36).expect("SO_MEMINFO");
        let taken = || counts()[..4].to_vec();
        for (sender, by, bytes) in [(&near, 0, &b"from here"[..]), (&far, 1, b"from over there")] {
            let before = taken();
            sender.send_to(bytes, at(0, by, port(receiver))).expect("send");
            assert!(wait_until(|| taken() != before), "it comes");
        }
    };
    let sorted = |mut all: Vec<Received>| {
        all.sort_by(|one, other| one.bytes.cmp(&other.bytes));
        all
    };
    fill(&receiver);
    let wanted = sorted(all(&receiver, 2));
    assert_eq!(wanted.len(), 2);
    fill(&receiver);
    move |findings: &mut Findings| {
        findings.same(
            format!("what waits (bound: {is_bound})"),
            &wanted,
            &sorted(all(&receiver, 2)),
        );
        fill(&receiver);
    }
}

/// To the other end of the pair, of which a part is written.
fn sending() -> impl FnMut(&mut Findings) {
    let receiver = UdpSocket::bind(at(1, 1, 0)).expect("bind");
    let [connected, gathering] = [0, 1].map(|_| UdpSocket::bind(at(0, 0, 0)).expect("bind"));
    connected.connect(at(1, 0, port(&receiver))).expect("connect");
    let begin = |socket: &UdpSocket, to: SocketAddr| {
        socket::send_beside(socket.as_raw_fd(), b"half ", &socket::address(to), &[], libc::MSG_MORE).expect("send");
    };
    begin(&gathering, at(1, 0, port(&receiver)));
    let bytes = |all: Vec<Received>| all.into_iter().map(|one| one.bytes).collect::<Vec<_>>();
    move |findings: &mut Findings| {
        let to = Some(at(1, 0, port(&receiver)));
        findings.same("the other end", &to, &connected.peer_addr().ok());
        findings.same(
            "the own address",
            &Some(at(0, 0, port(&connected))),
            &connected.local_addr().ok(),
        );
        findings.take("send", connected.send(b"hello"));
        findings.same("what was sent", &vec![b"hello".to_vec()], &bytes(all(&receiver, 1)));
        findings.take("send the rest", gathering.send_to(b"done", at(1, 0, port(&receiver))));
        findings.same(
            "what was gathered",
            &vec![b"half done".to_vec()],
            &bytes(all(&receiver, 1)),
        );
        begin(&gathering, at(1, 0, port(&receiver)));
    }
}

/// A member by one device, of what is sent by the other end of the pair.
fn group() -> impl FnMut(&mut Findings) {
    let member = UdpSocket::bind("[::]:0").expect("bind");
    member.join_multicast_v6(&GROUP, number(0)).expect("join");
    let sender = UdpSocket::bind("[::]:0").expect("bind");
    socket::set(sender.as_raw_fd(), IPV6, libc::IPV6_MULTICAST_IF, number(1) as i32);
    move |findings: &mut Findings| {
        let by = socket::get(sender.as_raw_fd(), IPV6, libc::IPV6_MULTICAST_IF, 4).ok();
        findings.same(
            "device of what is sent to groups",
            &Some(number(1).to_ne_bytes().to_vec()),
            &by,
        );
        let to = SocketAddrV6::new(GROUP, port(&member), 0, 0);
        findings.take("send", sender.send_to(b"all", to));
        let got = all(&member, 1);
        findings.same("what came to the group", &1, &got.len());
    }
}

/// Between the two ends of the pair, or at one; something waits at both, and the listener lives on.
fn connection(is_near: bool) -> impl FnMut(&mut Findings) {
    let by = usize::from(!is_near);
    let listener = TcpListener::bind(at(0, 0, 0)).expect("bind");
    let place = listener.local_addr().expect("an address").port();
    let connect = move || TcpStream::connect(at(0, by, place)).expect("connect");
    let mut client = connect();
    let (mut server, _) = listener.accept().expect("accept");
    let ends = (client.local_addr().expect("an address").port(), place);
    let fill = |client: &mut TcpStream, server: &mut TcpStream| {
        client.write_all(b"question").expect("write");
        server.write_all(b"answer").expect("write");
    };
    fill(&mut client, &mut server);
    move |findings: &mut Findings| {
        findings.same(
            "the client's address",
            &Some(at(by, by, ends.0)),
            &client.local_addr().ok(),
        );
        findings.same(
            "whom it is connected with",
            &Some(at(0, by, ends.1)),
            &client.peer_addr().ok(),
        );
        findings.same(
            "the server's address",
            &Some(at(0, 0, ends.1)),
            &server.local_addr().ok(),
        );
        findings.same(
            "the client, as the server sees it",
            &Some(at(by, 0, ends.0)),
            &server.peer_addr().ok(),
        );
        findings.same("where it listens", &Some(at(0, 0, place)), &listener.local_addr().ok());
        let (mut question, mut answer) = ([0; 8], [0; 6]);
        if findings.sabotage() {
            findings.take("read", server.read_exact(&mut question));
            findings.take("write", client.write_all(b"distinct"));
        }
        findings.take("read the question", server.read_exact(&mut question));
        findings.take("read the answer", client.read_exact(&mut answer));
        findings.same("question and answer", &(*b"question", *b"answer"), &(question, answer));
        fill(&mut client, &mut server);
        // Another one.
        let mut third = connect();
        let (mut fourth, _) = listener.accept().expect("accept");
        findings.take("write", third.write_all(b"x"));
        findings.take("read", fourth.read_exact(&mut [0]));
    }
}

/// One that waits to be accepted.
fn unaccepted() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind("[::]:0").expect("bind");
    let place = listener.local_addr().expect("an address").port();
    let connect = move || {
        let mut client = TcpStream::connect(at(0, 1, place)).expect("connect");
        client.write_all(b"hello").expect("write");
        client
    };
    let mut client = connect();
    move |findings: &mut Findings| {
        let (mut server, who) = listener.accept().expect("accept");
        let own = client.local_addr().expect("an address").port();
        findings.same("who connected", &at(1, 0, own), &who);
        let mut got = [0; 5];
        findings.take("read", server.read_exact(&mut got));
        findings.same("what was sent", b"hello", &got);
        client = connect();
    }
}

/// A raw socket at the address.
fn raw() -> impl FnMut(&mut Findings) {
    let raw: OwnedFd = socket::new(libc::AF_INET6, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 99);
    socket::bind(raw.as_raw_fd(), &socket::address(at(0, 0, 0))).expect("bind");
    move |findings: &mut Findings| {
        let name = socket::name(raw.as_raw_fd()).ok();
        let scope = name.as_ref().and_then(|name| name.get(8..28).map(<[u8]>::to_vec));
        let wanted = [&address(0).octets()[..], &number(0).to_ne_bytes()].concat();
        findings.same("the raw socket's address", &Some(wanted), &scope);
    }
}
