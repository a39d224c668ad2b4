//! Members of multicast groups: who gets what, by group, source and device; what is sent to groups, and how; and what was
//! sent to one and waits.

use std::{
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, RawFd},
};
use victims::{Findings, Peer, play, socket};

type Check = Box<dyn FnMut(&mut Findings)>;

/// Number of lo.
const DEVICE: u32 = 1;
const MCAST_MSFILTER: i32 = 48;

fn main() {
    play(|_stage| {
        route_groups();
        let mut checks: Vec<Check> = vec![
            Box::new(four()),
            Box::new(six()),
            Box::new(waiting()),
            Box::new(sending()),
            Box::new(of_two_processes()),
        ];
        move |findings| {
            route_groups();
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Has lo take what is sent to groups of IPv6: a route, which is the network's and not the socket's.
fn route_groups() {
    let socket = socket::new(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
    // struct in6_rtmsg of linux/ipv6_route.h: to ff00::/8, of no source, by no gateway. What is not local lo rejects.
    const RTN_LOCAL: u32 = 2;
    let mut request = [0_u8; 80];
    request[0] = 0xff;
    request[48..52].copy_from_slice(&RTN_LOCAL.to_ne_bytes());
    request[52..54].copy_from_slice(&8_u16.to_ne_bytes());
    request[56..60].copy_from_slice(&1024_u32.to_ne_bytes());
    request[72..76].copy_from_slice(&(RTF_UP | RTF_LOCAL).to_ne_bytes());
    request[76..80].copy_from_slice(&DEVICE.to_ne_bytes());
    // SAFETY: a struct of that size is read.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as libc::Ioctl, request.as_ptr()) };
    let error = std::io::Error::last_os_error();
    assert!(
        result == 0 || error.raw_os_error() == Some(libc::EEXIST),
        "add a route: {error}"
    );
}

/// linux/route.h, linux/ipv6_route.h.
const RTF_UP: u32 = 1;
const RTF_LOCAL: u32 = 0x8000_0000;

fn receiver(place: &str) -> UdpSocket {
    let place: SocketAddr = place.parse().expect("an address");
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
    socket::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    if family == libc::AF_INET {
        socket::set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0);
    } else {
        socket::set(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0);
    }
    socket::bind(socket.as_raw_fd(), &socket::address(place)).expect("bind");
    socket.into()
}

/// One that sends to groups by lo, from an address.
fn sender(place: &str) -> UdpSocket {
    let socket = UdpSocket::bind(place).expect("bind");
    let by = [&[0; 8][..], &DEVICE.to_ne_bytes()].concat();
    if place.starts_with('[') {
        socket::set(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MULTICAST_IF,
            DEVICE as i32,
        );
    } else {
        socket::try_set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &by).expect("IP_MULTICAST_IF");
    }
    socket
}

fn join(socket: &UdpSocket, group: [u8; 4]) {
    let value = [&group[..], &[0; 4], &DEVICE.to_ne_bytes()].concat();
    socket::try_set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &value).expect("join");
}

/// Group, device, source.
fn source(socket: &UdpSocket, name: i32, group: [u8; 4], from: [u8; 4]) {
    let value = [&group[..], &[127, 0, 0, 1], &from].concat();
    socket::try_set(socket.as_raw_fd(), libc::IPPROTO_IP, name, &value).expect("a source");
}

fn numbers(socket: &UdpSocket) -> Vec<u8> {
    let mut byte = [0];
    std::iter::from_fn(|| socket.recv(&mut byte).ok().map(|_| byte[0])).collect()
}

fn same(findings: &mut Findings, what: &str, wanted: &[&[u8]], receivers: &[UdpSocket]) {
    let got: Vec<Vec<u8>> = receivers.iter().map(numbers).collect();
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|one| one.to_vec()).collect();
    findings.same(what, &wanted, &got);
}

fn four() -> impl FnMut(&mut Findings) {
    const ONE: [u8; 4] = [239, 1, 1, 1];
    const TWO: [u8; 4] = [239, 1, 1, 2];
    let first = receiver("0.0.0.0:0");
    let port = first.local_addr().expect("an address").port();
    let mut all = vec![first];
    all.extend((1..5).map(|_| receiver(&format!("0.0.0.0:{port}"))));
    join(&all[0], ONE);
    join(&all[1], TWO);
    join(&all[1], ONE);
    source(&all[2], libc::IP_ADD_SOURCE_MEMBERSHIP, ONE, [127, 0, 0, 1]);
    join(&all[3], ONE);
    source(&all[3], libc::IP_BLOCK_SOURCE, ONE, [127, 0, 0, 1]);
    let senders = [sender("127.0.0.1:0"), sender("127.0.0.2:0")];
    move |findings| {
        if findings.sabotage() {
            let value = [&ONE[..], &[0; 4], &DEVICE.to_ne_bytes()].concat();
            let left = socket::try_set(all[0].as_raw_fd(), libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP, &value);
            left.expect("leave");
        }
        let to = [ONE, TWO].map(|group| SocketAddr::from((group, port)));
        findings.take("send", senders[0].send_to(&[1], to[0]));
        findings.take("send", senders[1].send_to(&[2], to[0]));
        findings.take("send", senders[0].send_to(&[3], to[1]));
        same(
            findings,
            "members of groups",
            &[&[1, 2], &[1, 2, 3], &[1], &[2], &[]],
            &all,
        );
    }
}

fn six() -> impl FnMut(&mut Findings) {
    let group: Ipv6Addr = "ff02::77".parse().expect("a group");
    let first = receiver("[::]:0");
    let port = first.local_addr().expect("an address").port();
    let mut all = vec![first];
    all.extend((1..4).map(|_| receiver(&format!("[::]:{port}"))));
    all[0].join_multicast_v6(&group, DEVICE).expect("join");
    for (index, mode) in [(1, 1_u32), (2, 0)] {
        all[index].join_multicast_v6(&group, DEVICE).expect("join");
        let mut filter = DEVICE.to_ne_bytes().to_vec();
        filter.resize(8, 0);
        filter.extend(storage(group));
        filter.extend(mode.to_ne_bytes());
        filter.extend(1_u32.to_ne_bytes());
        filter.extend(storage(Ipv6Addr::LOCALHOST));
        socket::try_set(all[index].as_raw_fd(), libc::IPPROTO_IPV6, MCAST_MSFILTER, &filter).expect("a filter");
    }
    let sender = sender("[::1]:0");
    move |findings| {
        findings.take("send", sender.send_to(&[6], (group, port)));
        same(findings, "members of a group of IPv6", &[&[6], &[6], &[], &[]], &all);
    }
}

fn storage(address: Ipv6Addr) -> Vec<u8> {
    let mut bytes = socket::address((address, 0).into());
    bytes.resize(128, 0);
    bytes
}

/// Two members of both families, and one datagram each that the other has read already.
fn waiting() -> impl FnMut(&mut Findings) {
    const GROUP: [u8; 4] = [239, 1, 1, 3];
    let six: Ipv6Addr = "ff02::78".parse().expect("a group");
    let mut all = Vec::new();
    for place in ["0.0.0.0", "[::]"] {
        let first = receiver(&format!("{place}:0"));
        let port = first.local_addr().expect("an address").port();
        let second = receiver(&format!("{place}:{port}"));
        for socket in [&first, &second] {
            if place.starts_with('[') {
                socket.join_multicast_v6(&six, DEVICE).expect("join");
                socket::set(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
            } else {
                join(socket, GROUP);
                socket::set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
            }
        }
        let to: SocketAddr = if place.starts_with('[') {
            (six, port).into()
        } else {
            (GROUP, port).into()
        };
        let from = sender(if place.starts_with('[') {
            "[::1]:0"
        } else {
            "127.0.0.1:0"
        });
        all.push((first, second, from, to));
    }
    let fill = |(first, second, from, to): &(UdpSocket, UdpSocket, UdpSocket, SocketAddr)| {
        for number in 0..3 {
            from.send_to(&[number], to).expect("send");
        }
        let mut byte = [0];
        second.recv(&mut byte).expect("receive");
        first.recv(&mut byte).expect("receive");
        first.recv(&mut byte).expect("receive");
    };
    let expected: Vec<_> = all
        .iter()
        .map(|mailbox| {
            fill(mailbox);
            let both = [received(mailbox.0.as_raw_fd()), received(mailbox.1.as_raw_fd())];
            fill(mailbox);
            both
        })
        .collect();
    move |findings| {
        for (mailbox, expected) in all.iter().zip(&expected) {
            let now = [received(mailbox.0.as_raw_fd()), received(mailbox.1.as_raw_fd())];
            findings.same("what was sent to a group and waits", expected, &now);
            fill(mailbox);
        }
    }
}

fn received(socket: RawFd) -> Vec<socket::Received> {
    std::iter::from_fn(|| socket::receive(&socket, 0).expect("receive")).collect()
}

/// How far it goes, and by which device. Whether it comes back lo does not ask.
fn sending() -> impl FnMut(&mut Findings) {
    const GROUP: [u8; 4] = [239, 1, 1, 4];
    let receiver = receiver("0.0.0.0:0");
    join(&receiver, GROUP);
    socket::set(receiver.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, 1);
    let to: SocketAddr = (GROUP, receiver.local_addr().expect("an address").port()).into();
    let [near, quiet] = ["127.0.0.1:0", "127.0.0.1:0"].map(sender);
    near.set_multicast_ttl_v4(7).expect("set");
    quiet.set_multicast_loop_v4(false).expect("set");
    move |findings| {
        findings.take("send", near.send_to(b"n", to));
        findings.same("IP_MULTICAST_LOOP", &Some(false), &quiet.multicast_loop_v4().ok());
        let ttl = |one: &socket::Received| one.beside(libc::IPPROTO_IP, libc::IP_TTL).map(<[u8]>::to_vec);
        let got: Vec<_> = received(receiver.as_raw_fd())
            .into_iter()
            .map(|one| (ttl(&one), one.bytes))
            .collect();
        let wanted = vec![(Some(7_i32.to_ne_bytes().to_vec()), b"n".to_vec())];
        findings.same("what comes of what is sent to a group", &wanted, &got);
    }
}

/// One socket, in a group once.
fn of_two_processes() -> impl FnMut(&mut Findings) {
    const GROUP: [u8; 4] = [239, 1, 1, 5];
    let socket = receiver("0.0.0.0:0");
    join(&socket, GROUP);
    let to: SocketAddr = (GROUP, socket.local_addr().expect("an address").port()).into();
    let number = socket.as_raw_fd();
    let peer = Peer::start(move |_| received(number).len() as i64);
    let sender = sender("127.0.0.1:0");
    move |findings| {
        findings.take("send", sender.send_to(b"both", to));
        findings.same("datagrams for another process", &1, &peer.ask(0).expect("an answer"));
        findings.same("what is left", &0, &received(socket.as_raw_fd()).len());
    }
}
