//! How packets come to a socket once more: by a raw socket, which sends them to this host, and by a program that says which
//! socket they are for (`floe_sys::steering`). From within the network namespace of the socket.

use super::{Datagram, await_effect};
use crate::file::socket::{
    number_option, options,
    way::{Way, loopback},
};
use floe_sys::{
    packet,
    socket::{option, set_option},
    steering::Steering,
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// No protocol: packets are whole as they are.
pub(super) const WHOLE: i32 = -1;

/// Has the socket take all of them meanwhile, and be chosen for itself alone.
pub(in crate::file::socket) fn with_room(
    socket: BorrowedFd<'_>,
    datagrams: &[Datagram],
    fill: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    // What the kernel counts beside the bytes.
    const BESIDE: usize = 4096;
    let get = |name| number_option(socket, libc::SOL_SOCKET, name);
    let set = |name, value: i32| set_option(socket, libc::SOL_SOCKET, name, &value.to_ne_bytes());
    let (room, fixed) = (get(libc::SO_RCVBUF)?, get(options::SO_BUF_LOCK)?);
    let shares = get(libc::SO_REUSEPORT)?;
    let wanted: usize = datagrams.iter().map(|one| 2 * one.content.len() + BESIDE).sum();
    let wanted = i32::try_from(wanted).unwrap_or(i32::MAX / 4);
    set(libc::SO_RCVBUFFORCE, wanted.saturating_add(room / 2).min(i32::MAX / 2))?;
    set(libc::SO_REUSEPORT, 0)?;
    let filled = fill();
    set(libc::SO_REUSEPORT, shares)?;
    set(libc::SO_RCVBUFFORCE, room / 2)?;
    set(options::SO_BUF_LOCK, fixed)?;
    filled
}

/// Number of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Sends what is to come to a socket, from within its network namespace.
pub(in crate::file::socket) struct Filling<'a> {
    socket: BorrowedFd<'a>,
    protocol: i32,
    /// `None` for others than UDP: their sockets can't be told apart by a program. Nobody else may have the port then.
    steering: Option<Steering>,
    /// By family, and whether to all.
    raw: BTreeMap<(i32, bool), OwnedFd>,
    /// Loopback takes what is sent to a group only if it is a member: by address of loopback.
    members: BTreeMap<IpAddr, UdpSocket>,
    joined: BTreeSet<IpAddr>,
}

impl<'a> Filling<'a> {
    pub(super) fn new(socket: BorrowedFd<'a>, protocol: i32) -> io::Result<Self> {
        let mark = std::process::id().rotate_left(12) ^ 0xf10e_f10e;
        let steering = match protocol {
            libc::IPPROTO_UDP => Some(Steering::to(socket, mark)?),
            _ => None,
        };
        Ok(Self {
            socket,
            protocol,
            steering,
            raw: BTreeMap::new(),
            members: BTreeMap::new(),
            joined: BTreeSet::new(),
        })
    }

    /// The same of whole packets, for a socket of a protocol.
    pub(in crate::file::socket) fn with_whole(socket: BorrowedFd<'a>, protocol: i32) -> io::Result<Self> {
        let filling = Self::new(socket, protocol)?;
        Ok(Self {
            protocol: WHOLE,
            ..filling
        })
    }

    pub(super) fn all(mut self, datagrams: &[Datagram]) -> io::Result<()> {
        if self.protocol == libc::IPPROTO_UDPLITE
            && let Some(port) = datagrams.iter().map(|one| one.ports[1]).find(|port| is_shared(*port))
        {
            return Err(io::Error::other(format!("another UDP-Lite socket has port {port} too")));
        }
        datagrams.iter().try_for_each(|datagram| self.one(datagram))
    }

    /// Sends one, and waits until it has come.
    pub(in crate::file::socket) fn one(&mut self, datagram: &Datagram) -> io::Result<()> {
        let packet = match self.protocol {
            WHOLE => packet::whole(datagram.bytes()),
            protocol => datagram.packet(protocol),
        };
        let packet = packet.ok_or(Errno::EINVAL)?;
        let [_, to] = datagram.addresses().ok_or(Errno::EINVAL)?;
        if let Some(steering) = &self.steering {
            steering.next_are(datagram.mark, datagram.time)?;
        }
        let before = self.taken()?;
        match to {
            IpAddr::V6(six) if datagram.device != 0 => {
                // Else it would be sent there.
                let own = SocketAddrV6::new(six, 0, 0, datagram.device);
                let lacking = |_| io::Error::other(format!("network device {} does not have {six}", datagram.device));
                UdpSocket::bind(own).map_err(lacking)?;
                let packet = packet.on(datagram.device);
                packet.send(self.raw((packet.family(), false))?)?;
            }
            _ => {
                let way = Way::to(to);
                if way == Way::Group {
                    self.join(to)?;
                }
                let packet = packet.by(way.by(to));
                packet.send(self.raw((packet.family(), way == Way::All))?)?;
            }
        }
        await_effect(|| Ok(self.taken()? != before))
    }

    /// How much memory of the kernel's what waits in the socket takes.
    fn taken(&self) -> Result<u32, Errno> {
        let counts = option(self.socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
        let first = counts.first_chunk::<4>().ok_or(Errno::EPROTO)?;
        Ok(u32::from_ne_bytes(*first))
    }

    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        if !self.joined.insert(group) {
            return Ok(());
        }
        let own = loopback(group);
        let member = match self.members.entry(own) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => free.insert(UdpSocket::bind((own, 0))?),
        };
        match group {
            IpAddr::V4(four) => member.join_multicast_v4(&four, &Ipv4Addr::LOCALHOST),
            IpAddr::V6(six) => member.join_multicast_v6(&six, LOOPBACK),
        }
    }

    fn raw(&mut self, (family, to_all): (i32, bool)) -> Result<BorrowedFd<'_>, Errno> {
        if !self.raw.contains_key(&(family, to_all)) {
            let socket = floe_sys::socket::new(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
            let set = |level, name, value: &[u8]| set_option(socket.as_fd(), level, name, value);
            if let Some(steering) = &self.steering {
                set(libc::SOL_SOCKET, libc::SO_MARK, &steering.mark().to_ne_bytes())?;
            }
            if to_all {
                set(libc::SOL_SOCKET, libc::SO_BROADCAST, &1_i32.to_ne_bytes())?;
                set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo")?;
            }
            if family == libc::AF_INET {
                // struct ip_mreqn: no group, no address, the device.
                let by = [0, 0, LOOPBACK].map(u32::to_ne_bytes).concat();
                set(libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &by)?;
            }
            self.raw.insert((family, to_all), socket);
        }
        Ok(self.raw[&(family, to_all)].as_fd())
    }
}

/// Whether more than one socket of UDP-Lite has a port, in the network namespace of the calling thread.
fn is_shared(port: u16) -> bool {
    let own = format!(":{port:04X}");
    let lists = ["udplite", "udplite6"].map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    let lines = lists.iter().flatten().flat_map(|text| text.lines());
    let has_port = |line: &&str| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|local| local.ends_with(&own))
    };
    lines.filter(has_port).count() > 1
}
