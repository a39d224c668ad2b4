//! Packets that come to one socket and to nobody else, whatever addresses they have and whoever has the same port: a program
//! of bpf(2) sees what comes in by loopback, knows them by a mark (SO_MARK, socket(7)), and says which socket they are for
//! (bpf_sk_assign, Linux 5.7; bpf(2) programs of a device's own, Linux 6.6).

use crate::kernel::bpf::{self, Instruction, Program};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// Number of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// include/uapi/linux/bpf.h: functions that programs call, offsets in struct __sk_buff, and what becomes of a packet.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const MARK: i16 = 8;
const TIME: i16 = 152;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// As long as it is there, packets of a mark that come in by loopback are for one socket.
pub struct Steering {
    mark: u32,
    values: OwnedFd,
    _socket: OwnedFd,
    _link: OwnedFd,
}

impl Steering {
    /// Those of the calling thread's network namespace come to a socket of UDP, which has a port.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn to(socket: BorrowedFd<'_>, mark: u32) -> io::Result<Self> {
        let (sockets, values) = (bpf::map_of_a_socket()?, bpf::map_of_words(2)?);
        bpf::set_map(sockets.as_fd(), &[socket.as_raw_fd() as u64])?;
        let program = Program::of_packets(&code(mark, &values, &sockets))?;
        Ok(Self {
            mark,
            _link: program.attach(LOOPBACK)?,
            values,
            _socket: sockets,
        })
    }

    /// The mark that tells them.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// The mark that the next ones have when they come in, and when they seem to have come: nanoseconds of CLOCK_REALTIME,
    /// 0 for now.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn next_are(&self, mark: u32, time: u64) -> io::Result<()> {
        bpf::set_map(self.values.as_fd(), &[time, u64::from(mark)])
    }
}

/// What is not assigned is dropped: nobody else is to have it.
fn code(mark: u32, values: &OwnedFd, sockets: &OwnedFd) -> [Instruction; 35] {
    [
        (0xbf, (6, 1), 0, 0),                   // r6 = packet
        (0x61, (1, 6), MARK, 0),                // r1 = its mark
        (0x56, (1, 0), 28, mark as i32),        // if that is another one, go on to "next"
        (0x62, (10, 0), -4, 0),                 // the first value's key
        (0x18, (1, 1), 0, values.as_raw_fd()),  // r1 = values (BPF_PSEUDO_MAP_FD), in two halves
        (0x00, (0, 0), 0, 0),                   //
        (0xbf, (2, 10), 0, 0),                  // r2 = frame
        (0x07, (2, 0), 0, -4),                  //      - 4
        (0x85, (0, 0), 0, MAP_LOOKUP_ELEM),     // r0 = values
        (0x15, (0, 0), 23, 0),                  // if there are none, go on to "drop"
        (0x79, (9, 0), 0, 0),                   // r9 = time
        (0x61, (8, 0), 8, 0),                   // r8 = mark
        (0x63, (6, 8), MARK, 0),                // mark = r8
        (0x15, (9, 0), 1, 0),                   // if there is a time
        (0x7b, (6, 9), TIME, 0),                //   time = r9
        (0x18, (1, 1), 0, sockets.as_raw_fd()), // r1 = sockets
        (0x00, (0, 0), 0, 0),                   //
        (0xbf, (2, 10), 0, 0),                  // r2 = frame
        (0x07, (2, 0), 0, -4),                  //      - 4
        (0x85, (0, 0), 0, MAP_LOOKUP_ELEM),     // r0 = the socket
        (0x15, (0, 0), 12, 0),                  // if there is none, go on to "drop"
        (0xbf, (7, 0), 0, 0),                   // r7 = the socket
        (0xbf, (1, 6), 0, 0),                   // r1 = packet
        (0xbf, (2, 7), 0, 0),                   // r2 = the socket
        (0xb7, (3, 0), 0, 0),                   // r3 = no flags
        (0x85, (0, 0), 0, SK_ASSIGN),           // r0 = whether it is for that
        (0xbf, (8, 0), 0, 0),                   // r8 = the same
        (0xbf, (1, 7), 0, 0),                   // r1 = the socket
        (0x85, (0, 0), 0, SK_RELEASE),          //
        (0x55, (8, 0), 3, 0),                   // if it is not, go on to "drop"
        (0x05, (0, 0), 0, 0),                   //
        (0xb7, (0, 0), 0, TCX_NEXT),            // next
        (0x95, (0, 0), 0, 0),                   //
        (0xb7, (0, 0), 0, TCX_DROP),            // drop
        (0x95, (0, 0), 0, 0),                   //
    ]
}

#[cfg(test)]
mod tests {
    use super::Steering;
    use crate::{packet, socket::set_option};
    use nix::sched::{CloneFlags, unshare};
    use std::{
        net::UdpSocket,
        os::fd::{AsFd, OwnedFd},
        time::Duration,
    };

    /// One of several that share a port.
    fn sharing(place: &str) -> UdpSocket {
        let family = if place.starts_with('[') {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        let socket = crate::socket::new(family, libc::SOCK_DGRAM, 0).expect("a socket");
        for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
            set_option(socket.as_fd(), libc::SOL_SOCKET, option, &1_i32.to_ne_bytes()).expect("set");
        }
        crate::message::bind(socket.as_fd(), &address(place)).expect("bind");
        let socket = UdpSocket::from(socket);
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a time-out");
        socket
    }

    fn address(place: &str) -> Vec<u8> {
        let place: std::net::SocketAddr = place.parse().expect("an address");
        match place {
            std::net::SocketAddr::V4(four) => {
                let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
                bytes.extend(four.port().to_be_bytes());
                bytes.extend(four.ip().octets());
                bytes.extend([0; 8]);
                bytes
            }
            std::net::SocketAddr::V6(six) => {
                let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
                bytes.extend(six.port().to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(six.ip().octets());
                bytes.extend([0; 4]);
                bytes
            }
        }
    }

    #[test]
    fn packets_come_to_one_socket_of_several_that_share_a_port() {
        const MARKED: u32 = 0xf10e_f10e;
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        crate::network::raise_loopback().expect("lo");
        for (place, to) in [
            ("0.0.0.0:5000", "239.1.2.3:5000"),
            ("[::]:5000", "[ff05::1234]:5000"),
            ("127.0.0.1:6000", "127.0.0.1:6000"),
        ] {
            // What loopback is no member of does not come in there.
            let member = UdpSocket::bind("[::]:0").expect("bind");
            if let Ok(group) = to.parse::<std::net::SocketAddrV6>() {
                member.join_multicast_v6(group.ip(), 1).expect("join");
            }
            let all: Vec<UdpSocket> = (0..4).map(|_| sharing(place)).collect();
            for index in [2, 0, 3, 1] {
                let one = all[index].as_fd();
                set_option(one, libc::SOL_SOCKET, libc::SO_REUSEPORT, &0_i32.to_ne_bytes()).expect("set");
                let steering = Steering::to(one, MARKED).expect("steer");
                steering.next_are(7, 0).expect("a mark");
                let from = if place.starts_with('[') {
                    "[2001:db8::7]:4711"
                } else {
                    "198.51.100.7:4711"
                }
                .parse()
                .expect("an address");
                let loopback = if place.starts_with('[') { "::1" } else { "127.0.0.1" }
                    .parse()
                    .expect("an address");
                let packet = packet::datagram(
                    from,
                    to.parse().expect("an address"),
                    libc::IPPROTO_UDP as u8,
                    b"for one",
                )
                .by(loopback);
                let raw: OwnedFd = crate::socket::new(packet.family(), libc::SOCK_RAW, libc::IPPROTO_RAW).expect("raw");
                set_option(
                    raw.as_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_MARK,
                    &steering.mark().to_ne_bytes(),
                )
                .expect("mark");
                packet.send(raw.as_fd()).expect("send");
                drop(steering);
                set_option(one, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1_i32.to_ne_bytes()).expect("set");
                let mut buffer = [0; 100];
                let got = all[index].recv_from(&mut buffer).expect("it comes");
                assert_eq!((got, &buffer[..got.0]), ((7, from), &b"for one"[..]));
                for other in &all {
                    other.set_nonblocking(true).expect("set");
                    assert!(other.recv_from(&mut buffer).is_err(), "nobody else has it");
                    other.set_nonblocking(false).expect("set");
                }
            }
        }
    }
}
