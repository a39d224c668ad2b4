//! What was set by an option, and is told by none: multicast groups, the device of what is sent to groups, fixed source
//! addresses, and what chooses among sockets that share a port. The kernel's memory has it.

use super::{LONGEST, SocketOption};
use crate::{
    file::{memory::Memory, socket::devices::Devices},
    ns::NetworkSpace,
};
use floe_sys::kernel::HiddenOption;
use std::{collections::BTreeSet, io, os::fd::BorrowedFd};

const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
/// linux/in6.h.
const IPV6_JOIN_ANYCAST: i32 = 27;
/// linux/in.h.
const MCAST_MSFILTER: i32 = 48;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const SOL_PACKET: i32 = 263;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const SOL_NETLINK: i32 = 270;

/// Those that are here: IP_MULTICAST_IF, IP_ADD_MEMBERSHIP, MCAST_MSFILTER; IPV6_ADD_MEMBERSHIP, IPV6_JOIN_ANYCAST,
/// MCAST_MSFILTER, IPV6_PKTINFO; PACKET_ADD_MEMBERSHIP; NETLINK_ADD_MEMBERSHIP.
pub(super) fn is_hidden(which: (i32, i32)) -> bool {
    [
        (IP, libc::IP_MULTICAST_IF),
        (IP, libc::IP_ADD_MEMBERSHIP),
        (IP, MCAST_MSFILTER),
        (IPV6, libc::IPV6_ADD_MEMBERSHIP),
        (IPV6, IPV6_JOIN_ANYCAST),
        (IPV6, MCAST_MSFILTER),
        (IPV6, libc::IPV6_PKTINFO),
        (SOL_PACKET, PACKET_ADD_MEMBERSHIP),
        (SOL_NETLINK, NETLINK_ADD_MEMBERSHIP),
    ]
    .contains(&which)
}

/// Those of a socket of the internet's; or why they can't be carried.
pub(in crate::file::socket) fn hidden(
    socket: BorrowedFd<'_>,
    memory: &Memory,
) -> io::Result<Result<Vec<SocketOption>, &'static str>> {
    memory.hidden_options(socket).map(carried)
}

/// The same of a packet socket; `None` for one with rings.
pub(in crate::file::socket) fn of_packets(
    socket: BorrowedFd<'_>,
    memory: &Memory,
) -> io::Result<Option<Vec<SocketOption>>> {
    let found = memory.packet_memberships(socket)?;
    found.map(|found| carried(found).map_err(io::Error::other)).transpose()
}

/// What a finding says where they can't be told.
pub(in crate::file::socket) fn unreadable_groups(error: &io::Error) -> String {
    format!(
        "whether a socket is a member of multicast groups is told by the kernel's memory alone, which can't be read \
         ({error})"
    )
}

fn carried(found: Vec<HiddenOption>) -> Result<Vec<SocketOption>, &'static str> {
    let told = found.into_iter().map(|HiddenOption { level, name, value }| match (value, level) {
        (Some(value), _) if value.len() > LONGEST => {
            Err("a multicast group of so many sources can't be carried: they take more than 32 KiB")
        }
        (Some(value), _) => Ok(SocketOption { level, name, value }),
        (None, libc::SOL_SOCKET) => Err(
            "a program of bpf(2) that chooses among sockets which share a port (SO_ATTACH_REUSEPORT_EBPF) can't be carried: \
             the kernel has changed its instructions since it was loaded",
        ),
        (None, IPV6) => Err("flow labels (IPV6_FLOWLABEL_MGR) can't be carried yet"),
        (None, _) => Err("signatures of TCP segments (TCP_MD5SIG) can't be carried: their keys are secret"),
    });
    told.collect()
}

/// Whether sockets of a network namespace are members of groups that the kernel does not join by itself; whose they are
/// these lists don't tell.
pub(in crate::file::socket) fn has_groups(network: &NetworkSpace) -> bool {
    let list = |name| match std::fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
        // A kernel without this version, or without groups.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        list => list,
    };
    let lists = network.run(|| Ok(["igmp", "igmp6"].map(list)));
    // What can't be looked at may hold some.
    let Ok([Ok(four), Ok(six)]) = lists else { return true };
    // A line for a device, and for each of its groups one that begins with a tab: 224.0.0.1.
    let mut fours = four
        .lines()
        .skip(1)
        .filter_map(|line| line.strip_prefix('\t')?.split_whitespace().next());
    // Number, device, group: those of all nodes, and of a node's own address.
    let own = ["ff010000000000000000000000000001", "ff020000000000000000000000000001"];
    let mut sixes = six.lines().filter_map(|line| line.split_whitespace().nth(2));
    fours.any(|group| group != "010000E0")
        || sixes.any(|group| !own.contains(&group) && !group.starts_with("ff0200000000000000000001ff"))
}

/// The numbers of network devices that options name.
pub(in crate::file::socket) fn devices(options: &[SocketOption]) -> BTreeSet<u32> {
    let numbers = options.iter().filter_map(SocketOption::device);
    numbers.filter(|number| *number != 0).collect()
}

impl SocketOption {
    /// The number of the device that it names.
    fn device(&self) -> Option<u32> {
        let (at, is_swapped) = self.place_of_device()?;
        let word = u32::from_ne_bytes(self.value.get(at..at + 4)?.try_into().ok()?);
        Some(if is_swapped { u32::from_be(word) } else { word })
    }

    /// Has it name the device by the number that it has now.
    pub(in crate::file::socket) fn renumber(&mut self, devices: &Devices) {
        let Some((at, is_swapped)) = self.place_of_device() else {
            return;
        };
        if let (Some(before), Some(place)) = (self.device(), self.value.get_mut(at..at + 4)) {
            let now = devices.now(before);
            let now = if is_swapped { now.to_be() } else { now };
            place.copy_from_slice(&now.to_ne_bytes());
        }
    }

    /// Where that number is, and whether it is in the order of networks.
    fn place_of_device(&self) -> Option<(usize, bool)> {
        match self.which() {
            (IP, libc::IP_MULTICAST_IF | libc::IP_ADD_MEMBERSHIP) => Some((8, false)),
            (IP | IPV6, MCAST_MSFILTER) | (IPV6, libc::IPV6_MULTICAST_IF) | (SOL_PACKET, PACKET_ADD_MEMBERSHIP) => {
                Some((0, false))
            }
            (IPV6, libc::IPV6_ADD_MEMBERSHIP | IPV6_JOIN_ANYCAST | libc::IPV6_PKTINFO) => Some((16, false)),
            (IP, libc::IP_UNICAST_IF) | (IPV6, libc::IPV6_UNICAST_IF) => Some((0, true)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{IP, MCAST_MSFILTER, carried};
    use crate::file::socket::options::are_possible;
    use floe_sys::kernel::HiddenOption;

    #[test]
    fn what_is_saved_can_be_restored() {
        // struct group_filter, with so many sources.
        let of = |sources: usize| HiddenOption {
            level: IP,
            name: MCAST_MSFILTER,
            value: Some(vec![1; 144 + 128 * sources]),
        };
        let found = carried(vec![of(254)]).expect("254 sources");
        assert!(are_possible(&found));
        carried(vec![of(255)]).expect_err("255 sources");
    }
}
