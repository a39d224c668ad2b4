//! Sockets of ICMP echoes, icmp(7): which groups may make them a network namespace says, and the answers that wait in one are
//! sent to it once more. Each has a number of its own, so that they come to no other.

use crate::{
    file::{
        FileError, OpenContext,
        socket::{
            datagram::{Datagram, send_again},
            system,
        },
    },
    ns,
};
use floe_image::record::NamespaceOrigin;
use std::{
    fs, io,
    os::fd::{BorrowedFd, OwnedFd},
};

/// Which groups may.
const GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Their protocol.
pub(super) fn protocol(family: i32) -> Option<i32> {
    match family {
        libc::AF_INET => Some(libc::IPPROTO_ICMP),
        libc::AF_INET6 => Some(libc::IPPROTO_ICMPV6),
        _ => None,
    }
}

/// Whether there can be such an answer: ICMP_ECHOREPLY, ICMPV6_ECHO_REPLY.
pub(super) fn is_possible(packet: &Datagram) -> bool {
    let wanted = match packet.version() {
        Some(4) => 0,
        Some(6) => 129,
        _ => return false,
    };
    packet.content().first() == Some(&wanted)
}

/// Makes one, which is allowed to the maker meanwhile in a network namespace that is the tree's own.
pub(super) fn allowed(
    id: u32,
    context: &OpenContext<'_>,
    make: impl FnOnce() -> Result<OwnedFd, FileError>,
) -> Result<OwnedFd, FileError> {
    let failed = |source| system("allow (net.ipv4.ping_group_range)", id, source);
    let network = context.network(id);
    let root = context.puppets.values().next().filter(|_| network == 0);
    let origin = root.map(|root| ns::origin(root.tid(), "net")).transpose();
    if origin.map_err(|error| failed(io::Error::other(error)))? == Some(NamespaceOrigin::Host) {
        return make();
    }
    let set = |range: String| {
        let set = || {
            let before = fs::read_to_string(GROUPS)?;
            fs::write(GROUPS, range)?;
            Ok(before)
        };
        context.inside(network, set).map_err(failed)
    };
    let before = set("0 2147483647".to_owned())?;
    let made = make();
    set(before)?;
    made
}

/// Puts answers back.
pub(super) fn put_back(
    id: u32,
    socket: BorrowedFd<'_>,
    packets: &[Datagram],
    context: &OpenContext<'_>,
) -> Result<(), FileError> {
    if packets.is_empty() {
        return Ok(());
    }
    let failed = |source| system("put back what waited in", id, source);
    let fill = || send_again(socket, packets);
    context.inside(context.network(id), fill).map_err(failed)
}
