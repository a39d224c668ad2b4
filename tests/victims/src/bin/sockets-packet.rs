//! Packet sockets: of a device and of all, of a protocol and of all, with what they ask of devices, and who take turns.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use victims::{Findings, Peer, play, socket, socket::Received};

type Check = Box<dyn FnMut(&mut Findings)>;

const SOL_PACKET: i32 = 263;
const ADD_MEMBERSHIP: i32 = 1;
const DROP_MEMBERSHIP: i32 = 2;
const AUXDATA: i32 = 8;
const VERSION: i32 = 10;
const FANOUT: i32 = 18;
const IGNORE_OUTGOING: i32 = 23;
/// Number of lo.
const DEVICE: u32 = 1;
/// For experiments, IEEE 802.
const PROTOCOL: u16 = 0x88b5;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(bound()),
            Box::new(unbound()),
            Box::new(members()),
            Box::new(in_turns()),
            Box::new(of_two_processes()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn packets(kind: i32, protocol: u16) -> OwnedFd {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    socket::new(libc::AF_PACKET, kind, protocol.to_be().into())
}

/// struct sockaddr_ll.
fn place(protocol: u16, device: u32) -> Vec<u8> {
    let mut bytes = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    bytes.extend(protocol.to_be_bytes());
    bytes.extend(device.to_ne_bytes());
    bytes.extend([0, 0, 0, 6]);
    bytes.resize(20, 0);
    bytes
}

fn all(socket: RawFd) -> Vec<Received> {
    std::iter::from_fn(|| socket::receive(&socket, 0).expect("receive")).collect()
}

fn send(findings: &mut Findings, protocol: u16) {
    let sender = packets(libc::SOCK_DGRAM, 0);
    findings.take(
        "send",
        socket::send(sender.as_raw_fd(), b"a frame", &place(protocol, DEVICE)),
    );
}

/// To lo, with headers, and what comes in alone.
fn bound() -> impl FnMut(&mut Findings) {
    let socket = packets(libc::SOCK_RAW, 0);
    for (name, value) in [(AUXDATA, 1), (VERSION, 1), (IGNORE_OUTGOING, 1)] {
        socket::set(socket.as_raw_fd(), SOL_PACKET, name, value);
    }
    socket::bind(socket.as_raw_fd(), &place(PROTOCOL, DEVICE)).expect("bind");
    let name = socket::name(socket.as_raw_fd()).expect("a name");
    move |findings| {
        if findings.sabotage() {
            socket::set(socket.as_raw_fd(), SOL_PACKET, AUXDATA, 0);
        }
        findings.same("name", &Some(&name), &socket::name(socket.as_raw_fd()).ok().as_ref());
        send(findings, PROTOCOL);
        send(findings, PROTOCOL + 1);
        let got = all(socket.as_raw_fd());
        let told: Vec<_> = got
            .iter()
            .map(|one| (one.bytes.len(), one.from[10], one.control.len()))
            .collect();
        // A header of 14 bytes, PACKET_HOST, PACKET_AUXDATA.
        findings.same("frames", &vec![(21, 0, 1)], &told);
        let version = socket::get(socket.as_raw_fd(), SOL_PACKET, VERSION, 4).ok();
        findings.same("version", &Some(vec![1, 0, 0, 0]), &version);
    }
}

/// To no device, by its protocol, and to nothing at all.
fn unbound() -> impl FnMut(&mut Findings) {
    let socket = packets(libc::SOCK_DGRAM, PROTOCOL + 2);
    let deaf = packets(libc::SOCK_DGRAM, 0);
    move |findings| {
        send(findings, PROTOCOL + 2);
        let kinds: Vec<_> = all(socket.as_raw_fd())
            .iter()
            .map(|one| (one.bytes.clone(), one.from[10]))
            .collect();
        // PACKET_HOST: what goes out is told to those of all protocols.
        findings.same("frames without a device", &vec![(b"a frame".to_vec(), 0)], &kinds);
        findings.same("what one without a protocol has", &0, &all(deaf.as_raw_fd()).len());
    }
}

/// struct packet_mreq: one is to take what is for a group, or all.
fn membership(kind: u16) -> Vec<u8> {
    let mut value = DEVICE.to_ne_bytes().to_vec();
    value.extend(kind.to_ne_bytes());
    value.extend(6_u16.to_ne_bytes());
    value.extend([1, 0, 0x5e, 1, 1, 1, 0, 0]);
    value
}

/// It can give up just what it has asked for.
fn members() -> impl FnMut(&mut Findings) {
    let socket = packets(libc::SOCK_RAW, 0);
    // PACKET_MR_MULTICAST twice, PACKET_MR_ALLMULTI.
    let ask = [0_u16, 0, 2];
    let join = |kind: u16, name| socket::try_set(socket.as_raw_fd(), SOL_PACKET, name, &membership(kind));
    for kind in ask {
        join(kind, ADD_MEMBERSHIP).expect("join");
    }
    let number = socket.as_raw_fd();
    move |findings| {
        let _open = &socket;
        let join = |kind: u16, name| socket::try_set(number, SOL_PACKET, name, &membership(kind));
        let groups = || {
            std::fs::read_to_string("/proc/net/dev_mcast")
                .unwrap_or_default()
                .contains("01005e010101")
        };
        findings.that(groups(), "the device does not take what is for the group");
        for kind in ask {
            findings.take("leave", join(kind, DROP_MEMBERSHIP));
        }
        findings.that(!groups(), "the device takes more");
        for kind in ask {
            findings.take("join", join(kind, ADD_MEMBERSHIP));
        }
    }
}

/// Two, of which each frame comes to one.
fn in_turns() -> impl FnMut(&mut Findings) {
    let both = [0, 1].map(|_| {
        let socket = packets(libc::SOCK_DGRAM, 0);
        socket::bind(socket.as_raw_fd(), &place(PROTOCOL + 3, DEVICE)).expect("bind");
        // PACKET_FANOUT_LB, number 77.
        socket::set(socket.as_raw_fd(), SOL_PACKET, FANOUT, 1 << 16 | 77);
        socket
    });
    move |findings| {
        for _ in 0..6 {
            send(findings, PROTOCOL + 3);
        }
        let counts = [&both[0], &both[1]].map(|socket| all(socket.as_raw_fd()).len());
        findings.same("frames in turns", &[3, 3], &counts);
    }
}

fn of_two_processes() -> impl FnMut(&mut Findings) {
    let socket = packets(libc::SOCK_DGRAM, PROTOCOL + 4);
    let number = socket.as_raw_fd();
    let peer = Peer::start(move |_| all(number).len() as i64);
    move |findings| {
        send(findings, PROTOCOL + 4);
        findings.same("frames for another process", &1, &peer.ask(0).expect("an answer"));
        findings.same("what is left", &0, &all(socket.as_raw_fd()).len());
    }
}
