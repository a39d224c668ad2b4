//! Packets made by hand, as they would come from elsewhere: RFC 791, 8200, 9293, 768.

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, sendto},
};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
};

/// Flags of a segment.
pub const FIN: u8 = 1;
/// Flags of a segment.
pub const ACK: u8 = 16;
/// Flags of a segment.
pub const URG: u8 = 32;

/// A segment of TCP.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Who seems to send it.
    pub from: SocketAddr,
    /// Who gets it, on this host.
    pub to: SocketAddr,
    /// Of the first byte.
    pub sequence: u32,
    /// That of the first byte that has not come from there.
    pub acknowledged: u32,
    /// [`FIN`] and the like.
    pub flags: u8,
    /// As it is on the wire.
    pub window: u16,
    /// With [`URG`] how many bytes from its first there are up to and with the urgent one.
    pub urgent: u16,
    /// What it carries.
    pub bytes: &'a [u8],
}

/// A whole packet, and the address that it is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    to: IpAddr,
    /// Of an address that means something only there.
    device: u32,
    bytes: Vec<u8>,
}

/// The packet of a segment.
#[must_use]
pub fn tcp(segment: &Segment<'_>) -> Packet {
    let mut bytes = Vec::with_capacity(20 + segment.bytes.len());
    bytes.extend(segment.from.port().to_be_bytes());
    bytes.extend(segment.to.port().to_be_bytes());
    bytes.extend(segment.sequence.to_be_bytes());
    bytes.extend(segment.acknowledged.to_be_bytes());
    // Five words of header.
    bytes.extend([5 << 4, segment.flags]);
    bytes.extend(segment.window.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(segment.urgent.to_be_bytes());
    bytes.extend(segment.bytes);
    packet((segment.from, segment.to), libc::IPPROTO_TCP as u8, 16, bytes)
}

/// The packet of a datagram of UDP or UDP-Lite.
#[must_use]
pub fn datagram(from: SocketAddr, to: SocketAddr, protocol: u8, content: &[u8]) -> Packet {
    let mut bytes = Vec::with_capacity(8 + content.len());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    // Of UDP-Lite how much is covered by the checksum: all.
    bytes.extend((8 + content.len() as u16).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(content);
    packet((from, to), protocol, 6, bytes)
}

/// An unsolicited neighbour advertisement to all nodes, with the header of IP: RFC 4861, 4.4. `routes` is whether who sends it is
/// a router.
#[must_use]
pub fn advertisement(hardware: [u8; 6], address: Ipv6Addr, routes: bool) -> Vec<u8> {
    const ADVERTISEMENT: u8 = 136;
    const ROUTER: u8 = 0x80;
    const OVERRIDE: u8 = 0x20;
    /// The option that tells a hardware address, and its length in units of eight bytes.
    const TARGET_ADDRESS: [u8; 2] = [2, 1];
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    /// What came by a router is not taken.
    const HOPS: u8 = 255;
    let flags = OVERRIDE | if routes { ROUTER } else { 0 };
    let mut content = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    content.extend(address.octets());
    content.extend(TARGET_ADDRESS);
    content.extend(hardware);
    let ends = [address, ALL_NODES].map(|address| SocketAddr::new(address.into(), 0));
    let mut bytes = packet(ends.into(), libc::IPPROTO_ICMPV6 as u8, 2, content).bytes;
    bytes[7] = HOPS;
    bytes
}

/// With the header of IP and, at its place, the checksum.
fn packet((from, to): (SocketAddr, SocketAddr), protocol: u8, checksum: usize, mut content: Vec<u8>) -> Packet {
    let (from, to) = (from.ip().to_canonical(), to.ip().to_canonical());
    let pseudo = [
        octets(from),
        octets(to),
        (content.len() as u32).to_be_bytes().to_vec(),
        vec![0, 0, 0, protocol],
    ]
    .concat();
    let sum = match sum(&[&pseudo, &content]) {
        // Which would mean that there is none.
        0 => u16::MAX,
        sum => sum,
    };
    content[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
    let mut bytes = header((from, to), protocol, content.len());
    bytes.extend(content);
    let device = 0;
    Packet { to, device, bytes }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

/// The header of IP of what carries so many bytes.
fn header((from, to): (IpAddr, IpAddr), protocol: u8, length: usize) -> Vec<u8> {
    let length = length as u16;
    let mut bytes = match to {
        IpAddr::V4(_) => {
            // The kernel fills in the checksum of this one.
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            header
        }
        IpAddr::V6(_) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([protocol, 64]);
            header
        }
    };
    bytes.extend(octets(from));
    bytes.extend(octets(to));
    bytes
}

/// What tells a socket of UDP or UDP-Lite that what it sent from `local` to `remote` did not get there, as an error (errno);
/// `None` for one that is told by no such packet: RFC 792, 4443.
#[must_use]
pub fn unreachable(error: i32, (local, remote): (SocketAddr, SocketAddr), protocol: u8) -> Option<Packet> {
    let is_four = local.ip().to_canonical().is_ipv4();
    let code = match (error, is_four) {
        (libc::ENOPROTOOPT, true) => 2,
        (libc::ECONNREFUSED, true) => 3,
        (libc::ENETUNREACH, true) => 6,
        (libc::EHOSTDOWN, true) => 7,
        (libc::EHOSTUNREACH, true) => 10,
        (libc::EACCES, false) => 1,
        (libc::ECONNREFUSED, false) => 4,
        _ => return None,
    };
    let sent = datagram(local, remote, protocol, &[]).bytes;
    let (kind, icmp) = if is_four {
        (3, libc::IPPROTO_ICMP)
    } else {
        (1, libc::IPPROTO_ICMPV6)
    };
    let mut content = vec![kind, code, 0, 0, 0, 0, 0, 0];
    content.extend(sent);
    if !is_four {
        return Some(packet((remote, local), icmp as u8, 2, content));
    }
    let checksum = sum(&[&content]);
    content[2..4].copy_from_slice(&checksum.to_be_bytes());
    let (from, to) = (remote.ip().to_canonical(), local.ip().to_canonical());
    let mut bytes = header((from, to), icmp as u8, content.len());
    bytes.extend(content);
    Some(Packet { to, device: 0, bytes })
}

/// What a packet of ICMP tells of that did not get there: a datagram of this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// IPPROTO_UDP or another one that has ports.
    pub protocol: u8,
    /// Who sent it.
    pub from: SocketAddr,
}

/// What such a packet is about; `None` for one that tells no error, or where other headers of IPv6 lie between.
#[must_use]
pub fn about(packet: &[u8]) -> Option<About> {
    /// RFC 792, 4443: those that tell errors; protocols.
    const FOUR: [u8; 3] = [3, 11, 12];
    const SIX: [u8; 4] = [1, 2, 3, 4];
    let four = |bytes: &[u8]| Some((*bytes.get(9)?, bytes.get(usize::from(bytes[0] & 15) * 4..)?.to_vec()));
    let six = |bytes: &[u8]| Some((*bytes.get(6)?, bytes.get(40..)?.to_vec()));
    let is_four = match packet.first()? >> 4 {
        4 => true,
        6 => false,
        _ => return None,
    };
    let (protocol, icmp) = if is_four { four(packet)? } else { six(packet)? };
    let is_error = match is_four {
        true => i32::from(protocol) == libc::IPPROTO_ICMP && FOUR.contains(icmp.first()?),
        false => i32::from(protocol) == libc::IPPROTO_ICMPV6 && SIX.contains(icmp.first()?),
    };
    let sent = icmp.get(8..).filter(|_| is_error)?;
    let (ip, (protocol, rest)) = match (is_four, sent.first()? >> 4) {
        (true, 4) => (IpAddr::from(<[u8; 4]>::try_from(sent.get(12..16)?).ok()?), four(sent)?),
        (false, 6) => (IpAddr::from(<[u8; 16]>::try_from(sent.get(8..24)?).ok()?), six(sent)?),
        _ => return None,
    };
    let port = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
    let from = (ip, port).into();
    Some(About { protocol, from })
}

/// RFC 1071. All parts but the last have an even number of bytes.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words
        .map(|two| u64::from(u16::from_be_bytes([two[0], two.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a datagram of UDP came with.
#[derive(Debug, Clone, Copy)]
pub struct Came<'a> {
    /// All headers of IP.
    pub header: &'a [u8],
    /// Whose port and to which.
    pub ports: [u16; 2],
    /// IPPROTO_UDP or IPPROTO_UDPLITE.
    pub protocol: u8,
    /// Its bytes.
    pub content: &'a [u8],
}

/// Such a datagram once more; `None` where its header is none.
#[must_use]
pub fn again(came: &Came<'_>) -> Option<Packet> {
    let mut header = came.header.to_vec();
    let length = 8 + came.content.len();
    let mut content = Vec::with_capacity(length);
    content.extend(came.ports.iter().flat_map(|port| port.to_be_bytes()));
    content.extend(u16::try_from(length).ok()?.to_be_bytes());
    content.extend([0; 2]);
    content.extend(came.content);
    let (to, addresses) = match header.first()? >> 4 {
        4 if header.len() >= 20 && header.len() == usize::from(header[0] & 15) * 4 => {
            header[2..4].copy_from_slice(&u16::try_from(came.header.len() + length).ok()?.to_be_bytes());
            // It is whole, though it may have come in fragments.
            header[6] &= 0x40;
            header[7] = 0;
            let to: [u8; 4] = header[16..20].try_into().expect("four bytes");
            (IpAddr::from(to), 12..20)
        }
        6 if header.len() >= 40 => {
            header[4..6].copy_from_slice(&u16::try_from(came.header.len() - 40 + length).ok()?.to_be_bytes());
            let to: [u8; 16] = header[24..40].try_into().expect("sixteen bytes");
            (IpAddr::from(to), 8..40)
        }
        _ => return None,
    };
    let pseudo = [
        &header[addresses],
        &(length as u32).to_be_bytes(),
        &[0, 0, 0, came.protocol],
    ]
    .concat();
    let checksum = match sum(&[&pseudo, &content]) {
        0 => u16::MAX,
        sum => sum,
    };
    content[6..8].copy_from_slice(&checksum.to_be_bytes());
    header.extend(content);
    Some(Packet {
        to,
        device: 0,
        bytes: header,
    })
}

/// A whole packet as it came; `None` where it is none of IP.
#[must_use]
pub fn whole(bytes: Vec<u8>) -> Option<Packet> {
    let to = match bytes.first()? >> 4 {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes.get(16..20)?).ok()?),
        6 => IpAddr::from(<[u8; 16]>::try_from(bytes.get(24..40)?).ok()?),
        _ => return None,
    };
    Some(Packet { to, device: 0, bytes })
}

impl Packet {
    /// The same, sent to another address of this host: whom it says it is for stays.
    #[must_use]
    pub fn by(self, to: IpAddr) -> Self {
        Self { to, ..self }
    }

    /// The same by a network device, where its address means something only together with one.
    #[must_use]
    pub fn on(self, device: u32) -> Self {
        Self { device, ..self }
    }

    /// Whom it says it is for, unless that was changed.
    #[must_use]
    pub fn to(&self) -> IpAddr {
        self.to
    }

    /// The family of the raw socket that sends it.
    #[must_use]
    pub fn family(&self) -> i32 {
        match self.to {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        }
    }

    /// Sends it by a raw socket (SOCK_RAW, IPPROTO_RAW, raw(7)) of its [family](Self::family). To this host it comes by
    /// way of loopback, whoever seems to send it: its route is known from the sending.
    ///
    /// # Errors
    /// Those of sendto(2).
    pub fn send(&self, raw: BorrowedFd<'_>) -> Result<(), Errno> {
        let to = match self.to {
            IpAddr::V4(_) => SocketAddr::new(self.to, 0),
            IpAddr::V6(six) => SocketAddrV6::new(six, 0, 0, self.device).into(),
        };
        let to = SockaddrStorage::from(to);
        sendto(raw.as_raw_fd(), &self.bytes, &to, MsgFlags::empty()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::{Packet, datagram};
    use std::{
        net::{SocketAddr, UdpSocket},
        os::fd::AsFd,
        time::Duration,
    };

    /// What a socket at `place` is told of who sent it.
    fn arrives(place: &str, from: &str) {
        let socket = UdpSocket::bind(place).expect("bind");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        let from: SocketAddr = from.parse().expect("an address");
        let packet: Packet = datagram(
            from,
            socket.local_addr().expect("an address"),
            libc::IPPROTO_UDP as u8,
            b"hello!!",
        );
        let raw = crate::socket::new(packet.family(), libc::SOCK_RAW, libc::IPPROTO_RAW).expect("a raw socket");
        packet.send(raw.as_fd()).expect("send");
        let mut buffer = [0; 100];
        let (bytes, sender) = socket.recv_from(&mut buffer).expect("it arrives");
        assert_eq!((&buffer[..bytes], sender), (&b"hello!!"[..], from));
    }

    #[test]
    fn a_connected_socket_is_told_an_error() {
        for place in ["127.0.0.1:0", "[::1]:0"] {
            let [one, other] = [0, 1].map(|_| UdpSocket::bind(place).expect("bind"));
            let ends = [&one, &other].map(|socket| socket.local_addr().expect("an address"));
            one.connect(ends[1]).expect("connect");
            let packet = super::unreachable(libc::ECONNREFUSED, (ends[0], ends[1]), libc::IPPROTO_UDP as u8);
            let packet = packet.expect("it is told by one");
            let raw = crate::socket::new(packet.family(), libc::SOCK_RAW, libc::IPPROTO_RAW).expect("a raw socket");
            packet.send(raw.as_fd()).expect("send");
            one.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
            let error = one.recv(&mut [0]).expect_err("it comes");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        }
        for (one, other) in [("127.0.0.1:7", "127.0.0.2:9"), ("[::1]:7", "[::2]:9")] {
            let ends = [one, other].map(|end| end.parse().expect("an address"));
            let told = super::unreachable(libc::ECONNREFUSED, (ends[0], ends[1]), 17).expect("it is told by one");
            let about = super::About {
                protocol: 17,
                from: ends[0],
            };
            assert_eq!(super::about(&told.bytes), Some(about));
            assert_eq!(super::about(&told.bytes[..49]), None);
            assert_eq!(super::about(&datagram(ends[0], ends[1], 17, b"no error").bytes), None);
        }
        let place = "127.0.0.1:1".parse().expect("an address");
        assert_eq!(
            super::unreachable(libc::ENOMEM, (place, place), libc::IPPROTO_UDP as u8),
            None
        );
    }

    #[test]
    fn a_datagram_arrives_from_an_address_that_this_host_does_not_have() {
        arrives("127.0.0.1:0", "198.51.100.7:4711");
        arrives("[::1]:0", "[2001:db8::7]:4711");
    }
}
