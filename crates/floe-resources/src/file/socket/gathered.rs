//! What a UDP socket has put aside, to be sent as one with what is written next (UDP_CORK, MSG_MORE): read from the kernel's
//! memory, and put aside once more.

use super::{devices::Devices, number_option, options};
use crate::file::memory::Memory;
use floe_sys::{
    kernel::GatheredPacket,
    message::{Beside, send_beside},
    socket::option,
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::fd::BorrowedFd,
};

/// A datagram of which a part is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gathered {
    to: SocketAddr,
    /// The number of the network device, of an address that means something only together with it; else 0.
    device: u32,
    /// The address that it comes from.
    from: IpAddr,
    /// What was written.
    content: ByteBuf,
    /// TTL or hops, and TOS or class, where they are not the socket's.
    hops: Option<u8>,
    class: Option<u8>,
    /// IPV6_DONTFRAG.
    undivided: bool,
    mark: u32,
    priority: u32,
    /// UDP_SEGMENT.
    segment: u16,
    /// Headers that come beside it: by which ancillary message they are given, and their bytes.
    headers: Vec<(i32, ByteBuf)>,
}

/// linux/udp.h.
const UDP_SEGMENT: i32 = 103;
/// Nothing is longer that is sent as one.
const LONGEST: usize = 65_535;
/// Of a header of IPv6, which counts eights by a byte.
const LONGEST_HEADER: usize = 2048;
/// linux/in.h, linux/in6.h: IP_RETOPTS; IPV6_HOPOPTS, _RTHDRDSTOPTS, _RTHDR, _DSTOPTS.
const FOUR_HEADERS: &[i32] = &[7];
const SIX_HEADERS: &[i32] = &[54, 55, 57, 59];
const IPV6_DONTFRAG: i32 = 62;

/// What a socket of UDP, at its own address, has put aside; or why that can't be carried.
pub(super) fn gathered(
    socket: BorrowedFd<'_>,
    local: Option<SocketAddr>,
    memory: &Memory,
) -> Result<Option<Gathered>, String> {
    let cant = |why: &str| format!("a datagram that is being gathered (UDP_CORK, MSG_MORE) can't be carried: {why}");
    let found = memory.gathered(socket).map_err(|error| cant(&error.to_string()))?;
    let Some(found) = found else { return Ok(None) };
    match found.peculiar {
        Some(why) => Err(cant(why)),
        None if local.map(|local| local.port()) != Some(found.from.port()) => {
            Err(cant("it comes from a port that the socket has lost"))
        }
        None => Ok(Some(Gathered::new(found))),
    }
}

impl Gathered {
    fn new(found: GatheredPacket) -> Self {
        let headers = found.headers.into_iter();
        let device = match found.to {
            SocketAddr::V6(six) => six.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        Self {
            to: found.to,
            device,
            from: found.from.ip(),
            content: ByteBuf::from(found.content),
            hops: found.hops,
            class: found.class,
            undivided: found.undivided,
            mark: found.mark,
            priority: found.priority,
            segment: found.segment,
            headers: headers.map(|(kind, bytes)| (kind, ByteBuf::from(bytes))).collect(),
        }
    }

    /// The number of the device of its addresses, or 0.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Has it go by the device of that name here.
    pub(super) fn renumber(&mut self, devices: &Devices) {
        self.device = devices.now(self.device);
    }

    /// Whether a socket of a family can have put that aside.
    pub(super) fn is_possible(&self, family: i32) -> bool {
        let known = if self.to.is_ipv4() { FOUR_HEADERS } else { SIX_HEADERS };
        let is_header = |(kind, bytes): &(i32, ByteBuf)| known.contains(kind) && bytes.len() <= LONGEST_HEADER;
        self.to.is_ipv4() == self.from.is_ipv4()
            && (self.to.is_ipv4() && self.device == 0 || self.to.is_ipv6() && family == libc::AF_INET6)
            && self.content.len() <= LONGEST
            && self.headers.len() <= known.len()
            && self.headers.iter().all(is_header)
    }

    /// Has a socket, which has its address and its options, put it aside.
    pub(super) fn put_aside(
        &self,
        socket: BorrowedFd<'_>,
        (family, protocol): (i32, i32),
        local: Option<SocketAddr>,
    ) -> Result<(), Errno> {
        let beside = self.beside(socket, protocol, local)?;
        let to = match self.to {
            SocketAddr::V4(four) if family == libc::AF_INET6 => (four.ip().to_ipv6_mapped(), four.port()).into(),
            SocketAddr::V6(six) => SocketAddrV6::new(*six.ip(), six.port(), 0, self.device).into(),
            to => to,
        };
        options::with_room(socket, self.content.len(), || {
            send_beside(socket, to, &self.content, &beside, libc::MSG_MORE)
        })
    }

    /// What is not as the socket's options have it.
    fn beside(&self, socket: BorrowedFd<'_>, protocol: i32, local: Option<SocketAddr>) -> Result<Vec<Beside>, Errno> {
        let number = |level, name| number_option(socket, level, name);
        let mut beside = Vec::new();
        let mut give = |level: i32, kind: i32, value: i32| beside.push((level, kind, value.to_ne_bytes().to_vec()));
        let mut has_class = false;
        if self.to.is_ipv4() {
            self.hops
                .into_iter()
                .for_each(|hops| give(libc::IPPROTO_IP, libc::IP_TTL, hops.into()));
            let own = option(socket, libc::IPPROTO_IP, libc::IP_TOS)?;
            if let Some(class) = self.class.filter(|class| own.first() != Some(class)) {
                give(libc::IPPROTO_IP, libc::IP_TOS, class.into());
                has_class = true;
            }
        } else {
            let six = |value: Option<u8>| value.map_or(-1, i32::from);
            give(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, six(self.hops));
            give(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, six(self.class));
            give(libc::IPPROTO_IPV6, IPV6_DONTFRAG, self.undivided.into());
        }
        // A class of IPv4 brings its own priority.
        if has_class || number(libc::SOL_SOCKET, libc::SO_PRIORITY)? as u32 != self.priority {
            give(libc::SOL_SOCKET, libc::SO_PRIORITY, self.priority as i32);
        }
        if number(libc::SOL_SOCKET, libc::SO_MARK)? as u32 != self.mark {
            give(libc::SOL_SOCKET, libc::SO_MARK, self.mark as i32);
        }
        if protocol == libc::IPPROTO_UDP && number(protocol, UDP_SEGMENT)? != i32::from(self.segment) {
            beside.push((protocol, UDP_SEGMENT, self.segment.to_ne_bytes().to_vec()));
        }
        if local.is_none_or(|local| local.ip().to_canonical() != self.from) {
            beside.push(self.comes_from());
        }
        let level = if self.to.is_ipv4() {
            libc::IPPROTO_IP
        } else {
            libc::IPPROTO_IPV6
        };
        let headers = self.headers.iter();
        beside.extend(headers.map(|(kind, bytes)| (level, *kind, bytes.to_vec())));
        Ok(beside)
    }

    /// struct in_pktinfo: device, source, destination; struct in6_pktinfo: source, device.
    fn comes_from(&self) -> Beside {
        match self.from {
            IpAddr::V4(four) => {
                let parts = [[0; 4], four.octets(), Ipv4Addr::UNSPECIFIED.octets()];
                (libc::IPPROTO_IP, libc::IP_PKTINFO, parts.concat())
            }
            IpAddr::V6(six) => {
                let value = [&six.octets()[..], &self.device.to_ne_bytes()].concat();
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteBuf, Gathered, LONGEST};

    #[test]
    fn what_no_socket_gathers_is_not_possible() {
        let four = || Gathered {
            to: ([127, 0, 0, 1], 9).into(),
            device: 0,
            from: [127, 0, 0, 1].into(),
            content: ByteBuf::from(*b"half"),
            hops: None,
            class: None,
            undivided: false,
            mark: 0,
            priority: 0,
            segment: 0,
            headers: vec![(libc::IP_RETOPTS, ByteBuf::from([1, 0]))],
        };
        let six = || Gathered {
            to: "[::1]:9".parse().expect("an address"),
            from: "::1".parse().expect("an address"),
            headers: Vec::new(),
            ..four()
        };
        assert!(four().is_possible(libc::AF_INET) && four().is_possible(libc::AF_INET6));
        assert!(six().is_possible(libc::AF_INET6) && !six().is_possible(libc::AF_INET));
        let long = ByteBuf::from(vec![0; LONGEST + 1]);
        for one in [
            Gathered { to: six().to, ..four() },
            Gathered { device: 1, ..four() },
            Gathered {
                content: long.clone(),
                ..six()
            },
            Gathered {
                headers: four().headers,
                ..six()
            },
            Gathered {
                headers: vec![(libc::IP_RETOPTS, long)],
                ..four()
            },
            Gathered {
                headers: vec![(libc::IP_PKTINFO, ByteBuf::from([0; 12]))],
                ..four()
            },
        ] {
            assert!(!one.is_possible(libc::AF_INET6), "{one:?}");
        }
    }
}
