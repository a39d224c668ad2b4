//! What was set in a socket and is told by no call: net/ipv4/igmp.c, net/ipv6/mcast.c, net/core/sock_reuseport.c.

use super::{FileMemory, KernelMemory};
use std::{io, os::fd::BorrowedFd};

/// What is asked for here, and not by `connections` and `datagrams`.
pub(super) const STRUCTURES: [&str; 11] = [
    "ipv6_pinfo",
    "ip_mc_socklist",
    "ip_sf_socklist",
    "ipv6_mc_socklist",
    "ip6_sf_socklist",
    "ipv6_ac_socklist",
    "sock_reuseport",
    "bpf_prog",
    "sock_fprog_kern",
    "packet_sock",
    "packet_mclist",
];

/// linux/in.h, linux/in6.h, linux/if_packet.h, asm-generic/socket.h.
const MCAST_MSFILTER: i32 = 48;
const IPV6_JOIN_ANYCAST: i32 = 27;
const IPV6_FLOWLABEL_MGR: i32 = 32;
const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
const TCP_MD5SIG: i32 = 14;
/// MCAST_EXCLUDE, how a group without sources is had.
const EXCLUDE: u32 = 0;

/// Elements of a list, sources of a group, and instructions of a program (BPF_MAXINSNS).
const MOST: usize = 4096;

/// An option that was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenOption {
    /// SOL_SOCKET or another level.
    pub level: i32,
    /// By which it is set.
    pub name: i32,
    /// What it was set to; `None` where that can't be told.
    pub value: Option<Vec<u8>>,
}

impl HiddenOption {
    fn new(level: i32, name: i32, value: impl Into<Option<Vec<u8>>>) -> Self {
        let value = value.into();
        Self { level, name, value }
    }
}

impl FileMemory {
    /// What was set in a socket of the caller's of the internet's families, which is no connection: groups, sources, devices,
    /// programs.
    ///
    /// # Errors
    /// Those of reading.
    pub fn hidden_options(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<HiddenOption>> {
        let sock = self.sock(socket)?;
        let mut found = four(&self.0, sock)?;
        if i32::from(self.0.number("sock_common", sock, "skc_family")? as u16) == libc::AF_INET6 {
            found.extend(six(&self.0, sock)?);
        }
        found.extend(chooser(&self.0, sock)?);
        let protocol = self.0.number("sock", sock, "sk_protocol")? as u16;
        let kind = self.0.number("sock", sock, "sk_type")? as u16;
        if (i32::from(kind), i32::from(protocol)) == (libc::SOCK_STREAM, libc::IPPROTO_TCP)
            && self
                .0
                .member("tcp_sock", sock, "md5sig_info")
                .is_ok_and(|keys| keys != 0)
        {
            found.push(HiddenOption::new(libc::IPPROTO_TCP, TCP_MD5SIG, None));
        }
        Ok(found)
    }

    /// Addresses that a packet socket of the caller's wants its devices to take; `None` for one with rings.
    ///
    /// # Errors
    /// Those of reading.
    pub fn packet_memberships(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Vec<HiddenOption>>> {
        let memory = &self.0;
        let sock = self.sock(socket)?;
        for ring in ["rx_ring.pg_vec", "tx_ring.pg_vec"] {
            if memory.member("packet_sock", sock, ring)? != 0 {
                return Ok(None);
            }
        }
        let mut found = Vec::new();
        let mut one = memory.member("packet_sock", sock, "mclist")?;
        while one != 0 {
            see_an_end(found.len())?;
            // struct packet_mreq: device, type, length of the address, address.
            let mut value = memory.number("packet_mclist", one, "ifindex")?.to_ne_bytes().to_vec();
            value.extend((memory.number("packet_mclist", one, "type")? as u16).to_ne_bytes());
            value.extend((memory.number("packet_mclist", one, "alen")? as u16).to_ne_bytes());
            value.extend(memory.bytes(one + memory.types.offset("packet_mclist", "addr")?, 8)?);
            // Each time that it was asked for.
            let times = memory.number("packet_mclist", one, "count")?;
            see_an_end(found.len().saturating_add(times as usize))?;
            found.extend((0..times).map(|_| HiddenOption::new(SOL_PACKET, PACKET_ADD_MEMBERSHIP, value.clone())));
            one = memory.member("packet_mclist", one, "next")?;
        }
        found.reverse();
        Ok(Some(found))
    }
}

/// Whether a list of so many can be read on; else it would be taken for all of it.
fn see_an_end(read: usize) -> io::Result<()> {
    if read <= MOST {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "a list of a socket's has more than {MOST} elements"
    )))
}

/// What IPv4 has, also in sockets of IPv6.
fn four(memory: &KernelMemory, sock: u64) -> io::Result<Vec<HiddenOption>> {
    let mut found = Vec::new();
    let device = memory.number("inet_sock", sock, "mc_index")?;
    let address = memory.number("inet_sock", sock, "mc_addr")?;
    if (device, address) != (0, 0) {
        // struct ip_mreqn: group, address, device.
        let value = [0, address, device]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect::<Vec<u8>>();
        found.push(HiddenOption::new(libc::IPPROTO_IP, libc::IP_MULTICAST_IF, value));
    }
    let mut groups = Vec::new();
    let mut one = memory.member("inet_sock", sock, "mc_list")?;
    while one != 0 {
        see_an_end(groups.len())?;
        let place = one + memory.types.offset("ip_mc_socklist", "multi")?;
        let value = memory.bytes(place, 12)?;
        let (group, device) = (&value[..4], &value[8..]);
        let sources = memory.member("ip_mc_socklist", one, "sflist")?;
        let sources = match sources {
            0 => Vec::new(),
            list => addresses(memory, ("ip_sf_socklist", list), 4)?,
        };
        let mode = memory.number("ip_mc_socklist", one, "sfmode")?;
        let filter = (mode != EXCLUDE || !sources.is_empty()).then(|| {
            HiddenOption::new(
                libc::IPPROTO_IP,
                MCAST_MSFILTER,
                group_filter(device, group, mode, &sources),
            )
        });
        groups.push((
            HiddenOption::new(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, value),
            filter,
        ));
        one = memory.member("ip_mc_socklist", one, "next_rcu")?;
    }
    found.extend(in_order(groups));
    Ok(found)
}

/// The last one that was joined is the first.
fn in_order(groups: Vec<(HiddenOption, Option<HiddenOption>)>) -> impl Iterator<Item = HiddenOption> {
    groups
        .into_iter()
        .rev()
        .flat_map(|(joined, filter)| [Some(joined), filter])
        .flatten()
}

fn six(memory: &KernelMemory, sock: u64) -> io::Result<Vec<HiddenOption>> {
    let mut found = Vec::new();
    let own = memory.member("inet_sock", sock, "pinet6")?;
    if own == 0 {
        return Ok(found);
    }
    // struct in6_pktinfo: address, device.
    let source = memory.bytes(own + memory.types.offset("ipv6_pinfo", "sticky_pktinfo")?, 20)?;
    if source.iter().any(|byte| *byte != 0) {
        found.push(HiddenOption::new(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, source));
    }
    if memory
        .member("ipv6_pinfo", own, "ipv6_fl_list")
        .is_ok_and(|labels| labels != 0)
    {
        found.push(HiddenOption::new(libc::IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, None));
    }
    let mut groups = Vec::new();
    let mut one = memory.member("ipv6_pinfo", own, "ipv6_mc_list")?;
    while one != 0 {
        see_an_end(groups.len())?;
        let group = memory.bytes(one + memory.types.offset("ipv6_mc_socklist", "addr")?, 16)?;
        let device = memory.number("ipv6_mc_socklist", one, "ifindex")?.to_ne_bytes();
        let sources = match memory.member("ipv6_mc_socklist", one, "sflist")? {
            0 => Vec::new(),
            list => addresses(memory, ("ip6_sf_socklist", list), 16)?,
        };
        let mode = memory.number("ipv6_mc_socklist", one, "sfmode")?;
        let filter = (mode != EXCLUDE || !sources.is_empty()).then(|| {
            HiddenOption::new(
                libc::IPPROTO_IPV6,
                MCAST_MSFILTER,
                group_filter(&device, &group, mode, &sources),
            )
        });
        // struct ipv6_mreq: group, device.
        let value = [&group[..], &device].concat();
        groups.push((
            HiddenOption::new(libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, value),
            filter,
        ));
        one = memory.member("ipv6_mc_socklist", one, "next")?;
    }
    found.extend(in_order(groups));
    let mut one = memory.member("ipv6_pinfo", own, "ipv6_ac_list")?;
    let mut joined = Vec::new();
    while one != 0 {
        see_an_end(joined.len())?;
        let mut value = memory.bytes(one + memory.types.offset("ipv6_ac_socklist", "acl_addr")?, 16)?;
        value.extend(memory.number("ipv6_ac_socklist", one, "acl_ifindex")?.to_ne_bytes());
        joined.push((HiddenOption::new(libc::IPPROTO_IPV6, IPV6_JOIN_ANYCAST, value), None));
        one = memory.member("ipv6_ac_socklist", one, "acl_next")?;
    }
    found.extend(in_order(joined));
    Ok(found)
}

/// The addresses of a list of sources, of so many bytes each.
fn addresses(memory: &KernelMemory, (structure, list): (&'static str, u64), bytes: usize) -> io::Result<Vec<Vec<u8>>> {
    let count = memory.number(structure, list, "sl_count")? as usize;
    if count > MOST {
        return Err(io::Error::other("the kernel's list of sources has no end"));
    }
    let all = memory.bytes(list + memory.types.offset(structure, "sl_addr")?, bytes * count)?;
    Ok(all.chunks(bytes).map(<[u8]>::to_vec).collect())
}

/// struct group_filter of linux/in.h: device, group, mode, how many sources, and those.
fn group_filter(device: &[u8], group: &[u8], mode: u32, sources: &[Vec<u8>]) -> Vec<u8> {
    let mut value = device.to_vec();
    value.resize(8, 0);
    value.extend(storage(group));
    value.extend(mode.to_ne_bytes());
    value.extend((sources.len() as u32).to_ne_bytes());
    value.extend(sources.iter().flat_map(|source| storage(source)));
    value
}

/// struct sockaddr_storage.
fn storage(address: &[u8]) -> Vec<u8> {
    let (family, before) = match address.len() {
        4 => (libc::AF_INET, 2),
        // Flow information comes first.
        _ => (libc::AF_INET6, 6),
    };
    let mut bytes = (family as u16).to_ne_bytes().to_vec();
    bytes.resize(2 + before, 0);
    bytes.extend(address);
    bytes.resize(128, 0);
    bytes
}

/// What chooses among the sockets that share a port.
fn chooser(memory: &KernelMemory, sock: u64) -> io::Result<Option<HiddenOption>> {
    let sharing = memory.member("sock", sock, "sk_reuseport_cb")?;
    if sharing == 0 {
        return Ok(None);
    }
    let program = memory.member("sock_reuseport", sharing, "prog")?;
    if program == 0 {
        return Ok(None);
    }
    let classic = memory.member("bpf_prog", program, "orig_prog")?;
    if classic == 0 {
        return Ok(Some(HiddenOption::new(
            libc::SOL_SOCKET,
            SO_ATTACH_REUSEPORT_EBPF,
            None,
        )));
    }
    let count = usize::from(memory.number("sock_fprog_kern", classic, "len")? as u16);
    let place = memory.member("sock_fprog_kern", classic, "filter")?;
    let value = memory.bytes(place, 8 * count)?;
    Ok(Some(HiddenOption::new(
        libc::SOL_SOCKET,
        SO_ATTACH_REUSEPORT_CBPF,
        value,
    )))
}

#[cfg(test)]
mod tests {
    use super::{HiddenOption, MCAST_MSFILTER, PACKET_ADD_MEMBERSHIP, SO_ATTACH_REUSEPORT_CBPF, SOL_PACKET};
    use crate::{
        kernel::FileMemory,
        socket::{set_option, set_program},
    };
    use std::{net::UdpSocket, os::fd::AsFd};

    /// In a network namespace of its own, whose first device is `lo`.
    #[test]
    fn a_list_is_read_to_its_end_or_not_at_all() {
        let read = |joins: &[u32]| {
            let memory = FileMemory::open().expect("as root");
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
            let socket = crate::socket::new(libc::AF_PACKET, libc::SOCK_RAW, 0).expect("a socket");
            for number in joins {
                // struct packet_mreq.
                let mut request = 1_i32.to_ne_bytes().to_vec();
                request.extend((libc::PACKET_MR_MULTICAST as u16).to_ne_bytes());
                request.extend(6_u16.to_ne_bytes());
                request.extend([1, 0]);
                request.extend(number.to_be_bytes());
                request.extend([0; 2]);
                set_option(socket.as_fd(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request).expect("join");
            }
            let found = memory.packet_memberships(socket.as_fd());
            found.map(|found| found.expect("no rings").len()).ok()
        };
        let read = |joins: Vec<u32>| std::thread::spawn(move || read(&joins)).join().expect("no panic");
        assert_eq!(read((0..100).collect()), Some(100));
        assert_eq!(read(vec![7; 4096]), Some(4096));
        assert_eq!(read(vec![7; 4097]), None);
        assert_eq!(read((0..4098).collect()), None);
    }

    #[test]
    fn groups_and_programs_are_told() {
        let memory = FileMemory::open().expect("as root");
        let socket = crate::socket::new(libc::AF_INET6, libc::SOCK_DGRAM, 0).expect("a socket");
        assert_eq!(memory.hidden_options(socket.as_fd()).expect("read"), []);
        let set = |level, name, value: &[u8]| set_option(socket.as_fd(), level, name, value).expect("set");
        set(libc::SOL_SOCKET, libc::SO_REUSEPORT, &1_i32.to_ne_bytes());
        let udp = UdpSocket::from(socket.try_clone().expect("dup"));
        udp.join_multicast_v6(&"ff02::77".parse().expect("a group"), 1)
            .expect("join");
        let choose = [6, 0, 0, 0, 0, 0, 0, 0];
        set_program(socket.as_fd(), libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &choose).expect("attach");
        // Group, address, source: 127.0.0.1 alone.
        let joined = [224, 0, 0, 77, 127, 0, 0, 1, 127, 0, 0, 1];
        set(libc::IPPROTO_IP, libc::IP_ADD_SOURCE_MEMBERSHIP, &joined);
        let found = memory.hidden_options(socket.as_fd()).expect("read");
        let names: Vec<_> = found.iter().map(|one| (one.level, one.name)).collect();
        let wanted = [
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP),
            (libc::IPPROTO_IP, MCAST_MSFILTER),
            (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP),
            (libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF),
        ];
        assert_eq!(names, wanted);
        assert_eq!(
            found[3],
            HiddenOption::new(libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, choose.to_vec())
        );
        // What is told can be set.
        let other = crate::socket::new(libc::AF_INET6, libc::SOCK_DGRAM, 0).expect("a socket");
        for HiddenOption { level, name, value } in &found[..3] {
            set_option(other.as_fd(), *level, *name, value.as_ref().expect("told")).expect("set");
        }
        assert_eq!(memory.hidden_options(other.as_fd()).expect("read"), found[..3]);
    }
}
