//! What sockets of UDP have put aside, to be sent as one with what is written next (UDP_CORK, MSG_MORE):
//! net/ipv4/ip_output.c, net/ipv6/ip6_output.c, net/ipv4/udp.c.

use super::FileMemory;
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::BorrowedFd,
};

/// What is asked for here, and not by `connections`, `datagrams` and `hidden`.
pub(super) const STRUCTURES: [&str; 2] = ["ip_options", "ipv6_txoptions"];

/// Buffers of one packet.
const MOST_BUFFERS: usize = 1 << 16;
/// Bytes of UDP's header, which is made when it is sent.
const UDP: usize = 8;
/// A buffer has memory of the program's (MSG_ZEROCOPY), include/linux/skbuff.h.
const SKBFL_ZEROCOPY_ENABLE: u8 = 1;
/// linux/in.h, linux/in6.h: options by which headers of IP come beside a packet.
const IP_RETOPTS: i32 = 7;
const SIX_HEADERS: [(i32, &str); 4] = [(54, "hopopt"), (55, "dst0opt"), (57, "srcrt"), (59, "dst1opt")];
/// The part of flow information that is no traffic class, in network order.
const LABEL: u32 = 0x000f_ffff;

/// A packet that is being gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatheredPacket {
    /// Whom it goes to.
    pub to: SocketAddr,
    /// The address and port that it comes from.
    pub from: SocketAddr,
    /// What was written.
    pub content: Vec<u8>,
    /// Hops or TTL, where they do not follow the socket's option.
    pub hops: Option<u8>,
    /// Traffic class or TOS, where it does not follow the socket's option.
    pub class: Option<u8>,
    /// Of IPv6, that it goes as one packet or not at all (IPV6_DONTFRAG).
    pub undivided: bool,
    /// SO_MARK.
    pub mark: u32,
    /// SO_PRIORITY.
    pub priority: u32,
    /// Where it is to be sent as several, how long each of these but the last is (UDP_SEGMENT).
    pub segment: u16,
    /// Headers that come beside it: by which ancillary message they are given, and their bytes.
    pub headers: Vec<(i32, Vec<u8>)>,
    /// What can't be given to another one.
    pub peculiar: Option<&'static str>,
}

/// What is asked of buffers.
#[derive(Default)]
struct Flags {
    /// They have a program's memory.
    is_shared: bool,
    /// It is to be told when they are sent.
    is_stamped: bool,
}

impl FileMemory {
    /// What a socket of UDP of the caller's has put aside; `None` where that is nothing. Nobody writes meanwhile.
    ///
    /// # Errors
    /// Those of reading.
    pub fn gathered(&self, socket: BorrowedFd<'_>) -> io::Result<Option<GatheredPacket>> {
        let (memory, sock) = (&self.0, self.sock(socket)?);
        let family = memory.number("udp_sock", sock, "pending")? as i32;
        if family == 0 {
            return Ok(None);
        }
        let (content, flags) = self.put_aside(sock)?;
        if usize::from(memory.number("udp_sock", sock, "len")? as u16) != (content.len() + UDP) & 0xffff {
            return Err(io::Error::other("what was put aside is not as long as the kernel says"));
        }
        let number = |member: &str| memory.number("inet_sock", sock, member);
        let nowhere = (Ipv4Addr::UNSPECIFIED, 0).into();
        let mut found = GatheredPacket {
            to: nowhere,
            from: nowhere,
            content,
            hops: None,
            class: None,
            undivided: false,
            mark: number("cork.base.mark")?,
            priority: number("cork.base.priority")?,
            segment: number("cork.base.gso_size")? as u16,
            headers: Vec::new(),
            peculiar: None,
        };
        if family == libc::AF_INET {
            self.of_four(sock, &mut found)?;
        } else {
            self.of_six(sock, &mut found)?;
        }
        if flags.is_shared {
            found.peculiar = Some("it is to be sent from where it lies (MSG_ZEROCOPY)");
        } else if flags.is_stamped {
            found.peculiar = Some("it is to be told when it is sent (SO_TIMESTAMPING)");
        } else if memory.member("inet_sock", sock, "cork.base.transmit_time")? != 0 {
            found.peculiar = Some("it is to be sent at a certain time (SO_TXTIME)");
        }
        Ok(Some(found))
    }

    /// The bytes in a write queue, and what is asked beside them.
    fn put_aside(&self, sock: u64) -> io::Result<(Vec<u8>, Flags)> {
        let memory = &self.0;
        let head = sock + memory.types.offset("sock", "sk_write_queue")?;
        let (mut content, mut flags) = (Vec::new(), Flags::default());
        let mut buffer = memory.word(head)?;
        for index in 0.. {
            if buffer == head {
                break;
            }
            if index == MOST_BUFFERS {
                return Err(io::Error::other("the kernel's queue of buffers has no end"));
            }
            let number = |member: &str| memory.number("sk_buff", buffer, member);
            let start = memory.member("sk_buff", buffer, "head")?;
            let behind_ip = start + u64::from(number("transport_header")? as u16);
            let before = behind_ip.wrapping_sub(memory.member("sk_buff", buffer, "data")?) as usize;
            // Each begins with a header of IP, the first one also with one of UDP.
            let before = before.saturating_add(if index == 0 { UDP } else { 0 });
            let bytes = self.buffer(buffer)?;
            let bytes = bytes.get(before..);
            content.extend(bytes.ok_or_else(|| io::Error::other("a buffer of the kernel's has no headers"))?);
            let shared = start + u64::from(number("end")?);
            let byte = |member| memory.number("skb_shared_info", shared, member).map(|word| word as u8);
            flags.is_shared |= byte("flags")? & SKBFL_ZEROCOPY_ENABLE != 0;
            flags.is_stamped |= byte("tx_flags")? != 0;
            buffer = memory.member("sk_buff", buffer, "next")?;
        }
        Ok((content, flags))
    }

    fn of_four(&self, sock: u64, found: &mut GatheredPacket) -> io::Result<()> {
        let memory = &self.0;
        let number = |member: &str| memory.number("inet_sock", sock, member);
        let end = |address: &str, port: &str| -> io::Result<SocketAddr> {
            let address = Ipv4Addr::from(number(address)?.to_ne_bytes());
            Ok((address, u16::from_be(number(port)? as u16)).into())
        };
        found.to = end("cork.fl.u.ip4.daddr", "cork.fl.u.ip4.uli.ports.dport")?;
        found.from = end("cork.fl.u.ip4.saddr", "cork.fl.u.ip4.uli.ports.sport")?;
        // Of a ttl of 0, and a tos of -1, the socket decides when it is sent.
        found.hops = Some(number("cork.base.ttl")? as u8).filter(|hops| *hops != 0);
        found.class = u8::try_from(number("cork.base.tos")? as i16).ok();
        let options = memory.member("inet_sock", sock, "cork.base.opt")?;
        if options == 0 {
            return Ok(());
        }
        if memory.number("ip_options", options, "faddr")? != 0 {
            found.peculiar = Some("it goes by a route that it names");
        }
        let length = memory.number("ip_options", options, "optlen")? as u8;
        let place = options + memory.types.offset("ip_options", "__data")?;
        let bytes = memory.bytes(place, length.into())?;
        found.headers.push((IP_RETOPTS, bytes));
        Ok(())
    }

    fn of_six(&self, sock: u64, found: &mut GatheredPacket) -> io::Result<()> {
        let memory = &self.0;
        let number = |member: &str| memory.number("inet_sock", sock, member);
        let device = number("cork.fl.u.ip6.__fl_common.flowic_oif")?;
        let end = |address: &str, port: &str| -> io::Result<SocketAddr> {
            let place = sock + memory.types.offset("inet_sock", address)?;
            let bytes: [u8; 16] = memory.bytes(place, 16)?.try_into().expect("16 bytes");
            let address = Ipv6Addr::from(bytes);
            let device = if is_of_a_device(address) { device } else { 0 };
            Ok(SocketAddrV6::new(address, u16::from_be(number(port)? as u16), 0, device).into())
        };
        found.to = end("cork.fl.u.ip6.daddr", "cork.fl.u.ip6.uli.ports.dport")?;
        found.from = end("cork.fl.u.ip6.saddr", "cork.fl.u.ip6.uli.ports.sport")?;
        if u32::from_be(number("cork.fl.u.ip6.flowlabel")?) & LABEL != 0 {
            found.peculiar = Some("it has a flow label");
        }
        let own = memory.member("inet_sock", sock, "pinet6")?;
        let byte = |member: &str| memory.number("ipv6_pinfo", own, member).map(|word| word as u8);
        (found.hops, found.class) = (Some(byte("cork.hop_limit")?), Some(byte("cork.tclass")?));
        let bit = memory.types.bit("ipv6_pinfo", "cork.dontfrag")?;
        found.undivided = memory.word(own + bit / 8)? >> (bit % 8) & 1 != 0;
        let options = memory.member("ipv6_pinfo", own, "cork.opt")?;
        for (kind, member) in SIX_HEADERS.into_iter().filter(|_| options != 0) {
            let header = memory.member("ipv6_txoptions", options, member)?;
            if header != 0 {
                // Behind the kind of the next header it says how long it is, in eights but for the first.
                let length = 8 + 8 * usize::from((memory.word(header)? >> 8) as u8);
                found.headers.push((kind, memory.bytes(header, length)?));
            }
        }
        Ok(())
    }
}

/// Whether an address means something only together with a device.
fn is_of_a_device(address: Ipv6Addr) -> bool {
    // Groups of an interface and of a link: RFC 4291.
    let scope = address.octets()[1] & 15;
    address.is_unicast_link_local() || address.is_multicast() && [1, 2].contains(&scope)
}

#[cfg(test)]
mod tests {
    use crate::{
        kernel::{FileMemory, GatheredPacket},
        message::{Beside, send_beside},
    };
    use std::{
        net::{IpAddr, SocketAddr, UdpSocket},
        os::fd::AsFd,
    };

    fn plain(to: SocketAddr, from: SocketAddr, content: &[u8]) -> GatheredPacket {
        let is_six = to.is_ipv6();
        GatheredPacket {
            to,
            from,
            content: content.to_vec(),
            hops: is_six.then_some(64),
            class: is_six.then_some(0),
            undivided: false,
            mark: 0,
            priority: 0,
            segment: 0,
            headers: Vec::new(),
            peculiar: None,
        }
    }

    #[test]
    fn what_is_put_aside_is_told_and_stays() {
        let memory = FileMemory::open().expect("as root");
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().expect("an address");
            let [one, other] = [0, 1].map(|_| UdpSocket::bind((ip, 0)).expect("bind"));
            let ends = [&one, &other].map(|socket| socket.local_addr().expect("an address"));
            assert_eq!(memory.gathered(one.as_fd()).expect("read"), None);
            let long = vec![9; 40_000];
            let (level, hops, class) = match ip {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
            };
            let beside: [Beside; 3] = [
                (level, hops, 7_i32.to_ne_bytes().to_vec()),
                (level, class, 8_i32.to_ne_bytes().to_vec()),
                (libc::SOL_SOCKET, libc::SO_MARK, 9_u32.to_ne_bytes().to_vec()),
            ];
            send_beside(one.as_fd(), ends[1], b"begun, ", &beside, libc::MSG_MORE).expect("send");
            send_beside(one.as_fd(), ends[1], &long, &[], libc::MSG_MORE).expect("send");
            let content = [&b"begun, "[..], &long].concat();
            let wanted = GatheredPacket {
                hops: Some(7),
                class: Some(8),
                mark: 9,
                // What IP_TOS means for it.
                priority: if ip.is_ipv4() { 2 } else { 0 },
                ..plain(ends[1], ends[0], &content)
            };
            for _ in 0..2 {
                let found = memory.gathered(one.as_fd()).expect("read");
                let found = found.expect("something is put aside");
                assert!(
                    found == wanted,
                    "{:?}",
                    GatheredPacket {
                        content: Vec::new(),
                        ..found
                    }
                );
            }
            one.send_to(b".", ends[1]).expect("send");
            let mut buffer = vec![0; 70_000];
            let got = other.recv(&mut buffer).expect("it comes");
            assert_eq!(buffer[..got], [&content[..], b"."].concat());
            assert_eq!(memory.gathered(one.as_fd()).expect("read"), None);
        }
    }

    #[test]
    fn what_a_socket_of_ipv6_sends_by_ipv4_is_told() {
        let memory = FileMemory::open().expect("as root");
        let both = UdpSocket::bind("[::]:0").expect("bind");
        let mapped = "[::ffff:127.0.0.1]:9".parse().expect("an address");
        send_beside(both.as_fd(), mapped, b"half", &[], libc::MSG_MORE).expect("send");
        let port = both.local_addr().expect("an address").port();
        let [to, from] = [9, port].map(|port| ([127, 0, 0, 1], port).into());
        let found = memory.gathered(both.as_fd()).expect("read").expect("something");
        // Before Linux 6.14 it is not chosen yet.
        let class = found.class.filter(|class| *class == 0);
        assert_eq!(
            found,
            GatheredPacket {
                class,
                ..plain(to, from, b"half")
            }
        );
    }
}
