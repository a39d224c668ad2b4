//! Netlink sockets: their numbers, groups and options; one hears what happens to the network, and one asks.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use victims::{Findings, Peer, play, socket};

type Check = Box<dyn FnMut(&mut Findings)>;

const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
/// RTNLGRP_IPV4_IFADDR.
const ADDRESSES: i32 = 5;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(hears()),
            Box::new(asks()),
            Box::new(others()),
            Box::new(of_two_processes()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn netlink(protocol: i32) -> OwnedFd {
    socket::new(
        libc::AF_NETLINK,
        libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        protocol,
    )
}

/// struct sockaddr_nl.
fn place(number: u32, groups: u32) -> Vec<u8> {
    let mut bytes = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(number.to_ne_bytes());
    bytes.extend(groups.to_ne_bytes());
    bytes
}

fn kinds(socket: RawFd) -> Vec<u16> {
    let next = || socket::receive(&socket, 0).expect("receive");
    std::iter::from_fn(next)
        .map(|one| u16::from_ne_bytes([one.bytes[4], one.bytes[5]]))
        .collect()
}

/// A request with a body: struct nlmsghdr, type, flags.
fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | 1).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// 127.7.7.7 on lo comes and goes.
fn change(findings: &mut Findings) {
    let socket = netlink(libc::NETLINK_ROUTE);
    for kind in [RTM_NEWADDR, RTM_DELADDR] {
        // struct ifaddrmsg: IPv4, 32 bits, of lo; IFA_LOCAL.
        let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 1, 0, 0, 0];
        body.extend([8, 0, 2, 0, 127, 7, 7, 7]);
        let flags = if kind == RTM_NEWADDR { 0x600 } else { 0 };
        findings.take(
            "ask",
            socket::send(socket.as_raw_fd(), &request(kind, flags, &body), &place(0, 0)),
        );
    }
    findings.same("errors", &Vec::<u16>::new(), &kinds(socket.as_raw_fd()));
}

fn hears() -> impl FnMut(&mut Findings) {
    let by_bind = netlink(libc::NETLINK_ROUTE);
    socket::bind(by_bind.as_raw_fd(), &place(0, 1 << (ADDRESSES - 1))).expect("bind");
    let by_option = netlink(libc::NETLINK_ROUTE);
    socket::bind(by_option.as_raw_fd(), &place(4711, 0)).expect("bind");
    for group in [ADDRESSES, 33] {
        socket::set(by_option.as_raw_fd(), SOL_NETLINK, ADD_MEMBERSHIP, group);
    }
    let look = |socket: &OwnedFd| {
        let groups = socket::get(socket.as_raw_fd(), SOL_NETLINK, LIST_MEMBERSHIPS, 64).ok();
        (socket::name(socket.as_raw_fd()).ok(), groups)
    };
    let both = [by_bind, by_option];
    let before = [&both[0], &both[1]].map(look);
    move |findings| {
        if findings.sabotage() {
            socket::set(both[1].as_raw_fd(), SOL_NETLINK, 2, 33);
        }
        findings.same("names and groups", &before, &[&both[0], &both[1]].map(look));
        change(findings);
        for socket in &both {
            findings.same(
                "what is heard",
                &vec![RTM_NEWADDR, RTM_DELADDR],
                &kinds(socket.as_raw_fd()),
            );
        }
    }
}

/// Connected with the kernel, with options, and a number that it chose.
fn asks() -> impl FnMut(&mut Findings) {
    let socket = netlink(libc::NETLINK_ROUTE);
    socket::connect(socket.as_raw_fd(), &place(0, 0)).expect("connect");
    // PKTINFO, NO_ENOBUFS, CAP_ACK, EXT_ACK, GET_STRICT_CHK.
    let options = [3, 5, 10, 11, 12];
    for name in options {
        socket::set(socket.as_raw_fd(), SOL_NETLINK, name, 1);
    }
    let name = socket::name(socket.as_raw_fd()).expect("a name");
    move |findings| {
        findings.same("name", &Some(&name), &socket::name(socket.as_raw_fd()).ok().as_ref());
        for option in options {
            let value = socket::get(socket.as_raw_fd(), SOL_NETLINK, option, 4).ok();
            findings.same(format!("option {option}"), &Some(vec![1, 0, 0, 0]), &value);
        }
        findings.take("ask", socket::send(socket.as_raw_fd(), &first_device(), &[]));
        findings.same("answers", &vec![16], &kinds(socket.as_raw_fd()));
    }
}

/// Of other protocols, some never bound.
fn others() -> impl FnMut(&mut Findings) {
    let all = [
        libc::NETLINK_SOCK_DIAG,
        libc::NETLINK_KOBJECT_UEVENT,
        libc::NETLINK_GENERIC,
        libc::NETLINK_USERSOCK,
    ];
    let made = all.map(|protocol| (protocol, netlink(protocol)));
    socket::bind(made[1].1.as_raw_fd(), &place(0, 1)).expect("bind");
    let look = |(protocol, socket): &(i32, OwnedFd)| {
        let told = socket::get(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL, 4).ok();
        (*protocol, told, socket::name(socket.as_raw_fd()).ok())
    };
    let before: Vec<_> = made.iter().map(look).collect();
    move |findings| {
        let now: Vec<_> = made.iter().map(look).collect();
        findings.same("sockets of other protocols", &before, &now);
    }
}

/// One asks, and the other has the answer.
fn of_two_processes() -> impl FnMut(&mut Findings) {
    let socket = netlink(libc::NETLINK_ROUTE);
    let number = socket.as_raw_fd();
    let peer = Peer::start(move |_| kinds(number).len() as i64);
    move |findings| {
        findings.take("ask", socket::send(socket.as_raw_fd(), &first_device(), &place(0, 0)));
        findings.same("messages for another process", &1, &peer.ask(0).expect("an answer"));
        findings.same("what is left", &0, &kinds(socket.as_raw_fd()).len());
    }
}

/// What asks for device 1, by struct ifinfomsg.
fn first_device() -> Vec<u8> {
    request(RTM_GETLINK, 0, &[&[0; 4][..], &1_u32.to_ne_bytes(), &[0; 8]].concat())
}
