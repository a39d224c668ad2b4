//! Datagrams that wait in sockets of UDP: read whole from the kernel's memory, and sent once more as they came, by whoever
//! sent them first, to the one socket that had them (`floe_sys::steering`).

mod filling;

pub(super) use filling::{Filling, with_room};

use super::{address::is_of_a_link, devices::Devices, system, way::Way};
use crate::file::{FileError, OpenContext, memory::Memory};
use filling::WHOLE;
use floe_sys::{
    kernel::WaitingPacket,
    packet::{self, Came, Packet},
    socket::set_option,
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

/// A datagram as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Datagram {
    /// All headers of IP.
    header: ByteBuf,
    /// Whose port, and to which.
    ports: [u16; 2],
    content: ByteBuf,
    /// SO_RCVMARK.
    mark: u32,
    /// When, in nanoseconds of CLOCK_REALTIME; 0 where nobody asked.
    time: u64,
    /// The number of the network device by which it came, where its addresses mean something only together with that; else 0.
    device: u32,
}

/// Bytes of UDP's header.
const UDP: usize = 8;
/// Nothing is longer that comes in one packet of IP.
const LONGEST: usize = 65_535;
/// How long one may be on its way to its socket.
const PATIENCE: Duration = Duration::from_secs(5);

/// What waits in a socket of UDP; or why that can't be told.
pub(super) fn waiting(socket: BorrowedFd<'_>, memory: &Memory) -> Result<Vec<Datagram>, String> {
    let unreadable = |error: io::Error| {
        format!("datagrams that wait in a socket are told by the kernel's memory alone, which can't be read ({error})")
    };
    let packets = memory.waiting_packets(socket, true).map_err(unreadable)?;
    let mut found = Vec::new();
    for packet in packets {
        found.extend(Datagram::all_of(&packet).ok_or("a datagram that waits in a socket is none that floe knows")?);
    }
    // They come again by loopback, which counts as the device that has the address: groups are nobody's.
    if found.iter().any(|one| one.is_of_a_link() && !one.is_for_own()) {
        let reason = "datagrams from an address of one network device (scope), which came to a group or to an address that others \
                      have too, can't be carried: they would come by another device";
        return Err(reason.to_owned());
    }
    Ok(found)
}

impl Datagram {
    /// The kernel may have put several together (UDP_GRO), which it is free not to do.
    fn all_of(packet: &WaitingPacket) -> Option<Vec<Self>> {
        let (header, udp) = packet.header.split_at_checked(packet.header.len().checked_sub(UDP)?)?;
        let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        let one = |content: &[u8]| Self {
            header: ByteBuf::from(header),
            ports: [port(0), port(2)],
            content: ByteBuf::from(content),
            mark: packet.mark,
            time: packet.time,
            device: 0,
        };
        let one = |content: &[u8]| one(content).on(packet.device);
        if packet.segment == 0 || packet.content.is_empty() {
            return Some(vec![one(&packet.content)]);
        }
        Some(packet.content.chunks(packet.segment.into()).map(one).collect())
    }

    /// One that is put back as it is, with all that it has.
    pub(super) fn whole(packet: WaitingPacket) -> Self {
        Self {
            header: ByteBuf::from(packet.header),
            ports: [0; 2],
            content: ByteBuf::from(packet.content),
            mark: packet.mark,
            time: packet.time,
            device: 0,
        }
    }

    /// The same that came by a device, which matters for some.
    fn on(self, device: u32) -> Self {
        let device = if self.is_of_a_link() { device } else { 0 };
        Self { device, ..self }
    }

    /// The number of the device by which it came, where that matters.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Has it come by the device of that name here.
    pub(super) fn renumber(&mut self, devices: &Devices) {
        self.device = devices.now(self.device);
    }

    /// 4 or 6.
    pub(super) fn version(&self) -> Option<u8> {
        self.header.first().map(|byte| byte >> 4)
    }

    /// All of it, of one that is whole.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [&self.header[..], &self.content].concat()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.header.is_empty() && self.content.is_empty()
    }

    /// What a program receives.
    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }

    /// Source and destination.
    fn addresses(&self) -> Option<[IpAddr; 2]> {
        let four = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(self.header.get(at..at + 4)?).ok()?).into());
        let six = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(self.header.get(at..at + 16)?).ok()?).into());
        match self.header.first()? >> 4 {
            4 => Some([four(12)?, four(16)?]),
            6 => Some([six(8)?, six(24)?]),
            _ => None,
        }
    }

    pub(super) fn is_of_a_link(&self) -> bool {
        let addresses = self.addresses();
        addresses.is_some_and(|[from, to]| is_of_a_link(from) || is_link_local(to))
    }

    /// Whether it was sent to the address that the device has for its link.
    fn is_for_own(&self) -> bool {
        self.addresses().is_some_and(|[_, to]| is_link_local(to))
    }

    fn packet(&self, protocol: i32) -> Option<Packet> {
        packet::again(&Came {
            header: &self.header,
            ports: self.ports,
            protocol: protocol as u8,
            content: &self.content,
        })
    }

    /// Whether there can be such a datagram.
    pub(super) fn is_possible(&self, protocol: i32) -> bool {
        self.content.len() <= LONGEST
            && self.packet(protocol).is_some()
            && (self.device != 0) == self.is_of_a_link()
            && (self.device == 0 || self.is_for_own())
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(six) if six.is_unicast_link_local())
}

/// Puts them back into the socket, which has its address and all options but its filter.
pub(super) fn put_back(
    id: u32,
    socket: BorrowedFd<'_>,
    (protocol, datagrams): (i32, &[Datagram]),
    context: &OpenContext<'_>,
) -> Result<(), FileError> {
    if datagrams.is_empty() {
        return Ok(());
    }
    let failed = |source| system("put back what waited in", id, source);
    let fill = || with_room(socket, datagrams, || Filling::new(socket, protocol)?.all(datagrams));
    context.inside(context.network(id), fill).map_err(failed)
}

/// Sends whole packets once more that come to a socket by what they say. From within its network namespace.
pub(super) fn send_again(socket: BorrowedFd<'_>, packets: &[Datagram]) -> io::Result<()> {
    with_room(socket, packets, || Filling::new(socket, WHOLE)?.all(packets))
}

/// Sends a packet to this host, with a mark if there is one, and waits until it has had its effect. From within the tree's
/// network namespace.
pub(super) fn inject(
    id: u32,
    packet: &Packet,
    has_come: impl Fn() -> Result<bool, Errno> + Send + Sync,
    (context, mark): (&OpenContext<'_>, Option<u32>),
) -> Result<(), FileError> {
    let failed = |source| system("send a packet to", id, source);
    let send = || {
        let raw = floe_sys::socket::new(packet.family(), libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        if let Some(mark) = mark {
            set_option(raw.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes())?;
        }
        let to = packet.to();
        packet.clone().by(Way::to(to).by(to)).send(raw.as_fd())?;
        await_effect(|| has_come().map_err(io::Error::from))
    };
    context.inside(context.network(id), send).map_err(failed)
}

fn await_effect(has_come: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !has_come()? {
        if Instant::now() > end {
            return Err(io::Error::other("a packet did not come in (does a firewall drop it?)"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Datagram;
    use floe_sys::kernel::WaitingPacket;
    use serde_bytes::ByteBuf;

    #[test]
    fn what_was_put_together_is_taken_apart() {
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2];
        let ip = header.clone();
        header.extend([0, 53, 0x14, 0xe9, 0, 0, 0, 0]);
        let packet = |segment, content: &[u8]| WaitingPacket {
            header: header.clone(),
            content: content.to_vec(),
            segment,
            mark: 3,
            time: 9,
            device: 1,
        };
        let contents = |packet| {
            let all = Datagram::all_of(&packet).expect("a datagram");
            assert!(
                all.iter()
                    .all(|one| one.ports == [53, 5353] && one.header == ip && one.is_possible(17))
            );
            all.into_iter().map(|one| one.content).collect::<Vec<ByteBuf>>()
        };
        assert_eq!(contents(packet(2, b"aabbc")), ["aa", "bb", "c"].map(ByteBuf::from));
        assert_eq!(contents(packet(0, b"whole")), ["whole"].map(ByteBuf::from));
        assert_eq!(contents(packet(4, b"")), [""].map(ByteBuf::from));
        let headless = WaitingPacket {
            header: vec![0; 5],
            ..packet(0, b"")
        };
        assert_eq!(Datagram::all_of(&headless), None);
    }
}
