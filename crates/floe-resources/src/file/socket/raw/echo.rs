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
use floe_sys::Pid;
use floe_tracee::Puppet;
use nix::{errno::Errno, sched::CloneFlags};
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
    inside: Pid,
    make: impl FnOnce() -> Result<OwnedFd, FileError>,
) -> Result<OwnedFd, FileError> {
    let failed = |source| system("allow (net.ipv4.ping_group_range)", id, source);
    let origin = ns::origin(inside, "net").map_err(|error| failed(io::Error::other(error)))?;
    if origin == NamespaceOrigin::Host {
        return make();
    }
    let set = |range: String| {
        let set = || {
            let before = fs::read_to_string(GROUPS)?;
            fs::write(GROUPS, range)?;
            Ok(before)
        };
        ns::inside::run(inside, CloneFlags::CLONE_NEWNET, set).map_err(|error| failed(io::Error::other(error)))
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
    let inside = context.puppets.values().next().map(Puppet::tid);
    let inside = inside.ok_or_else(|| failed(Errno::ESRCH.into()))?;
    let fill = || send_again(socket, packets);
    ns::inside::run(inside, CloneFlags::CLONE_NEWNET, fill).map_err(|error| failed(io::Error::other(error)))
}
