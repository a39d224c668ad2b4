//! Network devices of /dev/net/tun: one that packets go through, with addresses and routes; one of frames, with headers and an
//! address of its own, that stays; one with several files; and a file without a device.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    path::Path,
    time::Duration,
};
use victims::{
    Findings, Seen, call,
    descriptor::open,
    play,
    tun::{HEADER, NO_INFORMATION, SEVERAL, TAP, TUN, Tun},
};

const SETPERSIST: libc::c_ulong = 0x4004_54cb;
const SETOWNER: libc::c_ulong = 0x4004_54cc;
const SETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const GETIFF: libc::c_ulong = 0x8004_54d2;
const GETSNDBUF: libc::c_ulong = 0x8004_54d3;
const SETSNDBUF: libc::c_ulong = 0x4004_54d4;
const GETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;
const SETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const SETQUEUE: libc::c_ulong = 0x4004_54d9;
const DETACH_QUEUE: u64 = 0x400;

fn main() {
    play(|_| {
        let packets = Tun::new(libc::O_NONBLOCK, "packets", TUN | NO_INFORMATION);
        packets.set_size(1200);
        packets.set_address([10, 5, 0, 1], [255, 255, 255, 0]);
        packets.raise();
        add_route([10, 77, 0, 0], [255, 255, 0, 0], [10, 5, 0, 9]);
        let frames = Tun::new(0, "frames", TAP | NO_INFORMATION | HEADER);
        frames.device(
            libc::SIOCSIFHWADDR,
            [u64::from_ne_bytes([1, 0, 2, 0, 0, 7, 7, 7]), 0, 0],
        );
        frames.device(libc::SIOCSIFTXQLEN, [77, 0, 0]);
        for (command, value) in [(SETOWNER, 1234), (SETOFFLOAD, 3), (SETPERSIST, 1)] {
            // SAFETY: a number.
            call::checked(unsafe { libc::ioctl(frames.file, command, value) }.into()).expect("a setting");
        }
        put(frames.file, SETVNETHDRSZ, 12);
        put(frames.file, SETSNDBUF, 100_000);
        let several = [0, libc::O_NONBLOCK].map(|flags| Tun::new(flags, "several", TUN | SEVERAL));
        let mut request = [0, 0, DETACH_QUEUE, 0, 0_u64];
        // SAFETY: struct ifreq is read.
        call::checked(unsafe { libc::ioctl(several[1].file, SETQUEUE, request.as_mut_ptr()) }.into()).expect("detach");
        let none = open(Path::new("/dev/net/tun"), libc::O_RDWR);
        let files = [packets.file, frames.file, several[0].file, several[1].file, none];
        let before = (files.map(Seen::of), files.map(file), network());
        let socket = UdpSocket::bind("10.5.0.1:5000").expect("bind");
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        move |findings: &mut Findings| {
            if findings.sabotage() {
                put(frames.file, SETVNETHDRSZ, 10);
            }
            let now = (files.map(Seen::of), files.map(file), network());
            findings.same("files", &before.0, &now.0);
            findings.same("devices", &before.1, &now.1);
            findings.same("the network", &before.2, &now.2);
            findings.take("send", socket.send_to(b"over there", "10.77.1.2:9"));
            let packet = findings
                .take("read", call::read(packets.file, 2000))
                .unwrap_or_default();
            findings.same("the packet's end", &Some(&b"over there"[..]), &packet.get(28..));
            let answer = packet_from([10, 77, 1, 2], [10, 5, 0, 1], b"back");
            findings.take("write", call::write(packets.file, &answer));
            let mut bytes = [0; 100];
            let got = findings.take("receive", socket.recv_from(&mut bytes));
            let who = got.map(|(length, who)| (bytes[..length].to_vec(), who.ip()));
            findings.same(
                "what came",
                &Some((b"back".to_vec(), Ipv4Addr::new(10, 77, 1, 2).into())),
                &who,
            );
        }
    })
}

fn put(file: RawFd, command: libc::c_ulong, value: i32) {
    // SAFETY: a number is read.
    call::checked(unsafe { libc::ioctl(file, command, &raw const value) }.into()).expect("a setting");
}

/// Name, kind, and settings; what can't be told is an error's number.
fn file(file: RawFd) -> (String, i64, i64, i64) {
    let mut request = [0_u64; 5];
    // SAFETY: struct ifreq is written.
    let told = call::checked(unsafe { libc::ioctl(file, GETIFF, request.as_mut_ptr()) }.into());
    let name: Vec<u8> = request[..2].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let number = |command| {
        let mut value = 0_i32;
        // SAFETY: room for a number.
        let told = call::checked(unsafe { libc::ioctl(file, command, &raw mut value) }.into());
        told.map_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(1)), |_| value.into())
    };
    let kind = told.map_or_else(
        |error| -i64::from(error.raw_os_error().unwrap_or(1)),
        |_| request[2] as u16 as i64,
    );
    let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
    (name, kind, number(GETSNDBUF), number(GETVNETHDRSZ))
}

/// Addresses, routes, and of each device flags, size, hardware address and queue.
fn network() -> (String, String, Vec<[u64; 5]>) {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).expect("it is there");
    let devices = ["packets", "frames", "several"].map(|name| {
        let device = Tun {
            file: -1,
            name: name.to_owned(),
        };
        let [flags, ..] = device.device(libc::SIOCGIFFLAGS, [0; 3]);
        let [size, ..] = device.device(libc::SIOCGIFMTU, [0; 3]);
        let [address, ..] = device.device(libc::SIOCGIFHWADDR, [0; 3]);
        let [queue, ..] = device.device(libc::SIOCGIFTXQLEN, [0; 3]);
        // Whether the kernel is to compute checksums: ETHTOOL_GTXCSUM.
        let mut sums = [0x16_u32, 0];
        device.device(0x8946, [sums.as_mut_ptr() as u64, 0, 0]);
        [
            flags as u16 as u64,
            size as u32 as u64,
            address,
            queue as u32 as u64,
            sums[1].into(),
        ]
    });
    (read("fib_trie"), read("route"), devices.into())
}

fn add_route(to: [u8; 4], mask: [u8; 4], by: [u8; 4]) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // SAFETY: numbers, and no pointers.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    for (place, [a, b, c, d]) in [
        (&mut route.rt_dst, to),
        (&mut route.rt_genmask, mask),
        (&mut route.rt_gateway, by),
    ] {
        place.sa_family = libc::AF_INET as u16;
        for (byte, value) in place.sa_data[2..].iter_mut().zip([a, b, c, d]) {
            *byte = value as libc::c_char;
        }
    }
    // RTF_UP, RTF_GATEWAY.
    route.rt_flags = 1 | 2;
    // SAFETY: the route is read.
    let added = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
    call::checked(added.into()).expect("a route");
}

/// A datagram from port 9 to port 5000, without a checksum of its own.
fn packet_from(from: [u8; 4], to: [u8; 4], text: &[u8]) -> Vec<u8> {
    let length = (28 + text.len()) as u16;
    let mut head = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0];
    head[2..4].copy_from_slice(&length.to_be_bytes());
    head.extend(from);
    head.extend(to);
    let sum: u32 = head
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    for number in [9, 5000, length - 20, 0] {
        head.extend(u16::to_be_bytes(number));
    }
    head.extend(text);
    head
}
