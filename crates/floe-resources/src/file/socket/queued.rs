//! Errors of UDP sockets that wait with what they are about (IP_RECVERR, MSG_ERRQUEUE): read from the kernel's memory. What
//! others told by ICMP is sent to the socket once more as it came; what this host told itself (EMSGSIZE) is caused again.
//! The rest (time stamps and their like) tells of what was sent, and can't be.

use super::{
    address::is_of_a_link,
    datagram::{Datagram, Filling, with_room},
    system,
};
use crate::{
    file::{FileError, OpenContext},
    ns::NetworkSpace,
};
use floe_sys::{
    kernel::{self, FileMemory, WaitingPacket},
    message::send_beside,
    packet,
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueuedError {
    /// errno.
    error: u32,
    /// SO_EE_ORIGIN_*.
    origin: u8,
    /// `ee_type` and `ee_code`.
    kind: [u8; 2],
    /// `ee_info` and `ee_data`.
    more: [u32; 2],
    /// Whom it was sent to that could not be sent.
    to: IpAddr,
    port: u16,
    /// What told of it, whole; of this host's own nothing.
    packet: Datagram,
}

/// linux/errqueue.h: SO_EE_ORIGIN_*.
const LOCAL: u8 = 1;
const ICMP: u8 = 2;
const ICMP6: u8 = 3;
const TIMESTAMPING: u8 = 4;
const ZEROCOPY: u8 = 5;
const TXTIME: u8 = 6;

/// More than can be sent as one, by either family.
const TOO_LONG: usize = 65_535;

/// A socket: protocol, its own address and that of its other end.
pub(super) type Ends = (i32, Option<SocketAddr>, Option<SocketAddr>);

/// Errors that wait in a socket of a task's network namespace, as the kernel has them; or why they can't be carried.
pub(super) fn queued(
    found: Vec<kernel::QueuedError>,
    ends: Ends,
    network: &NetworkSpace,
) -> Result<Vec<QueuedError>, String> {
    let cant = |why: &str| format!("errors that wait with what they are about (MSG_ERRQUEUE) can't be carried: {why}");
    let all: Vec<QueuedError> = found.into_iter().map(QueuedError::new).collect();
    for one in &all {
        let (protocol, local, remote) = ends;
        let port = remote.map_or(0, |remote| remote.port());
        match one.origin {
            TIMESTAMPING => return Err(cant("a time stamp of what was sent (SO_TIMESTAMPING)")),
            ZEROCOPY => return Err(cant("one tells that memory is free again (MSG_ZEROCOPY)")),
            TXTIME => return Err(cant("one is of what was to be sent at a certain time (SO_TXTIME)")),
            LOCAL | ICMP | ICMP6 if one.is_of_a_link() => return Err(cant("one is of one network device (scope)")),
            LOCAL if one.to.is_ipv4() && one.port != port => {
                return Err(cant("one is of another end than the socket has now"));
            }
            LOCAL | ICMP | ICMP6 if one.is_possible((protocol, local)) => {}
            origin => {
                return Err(cant(&format!(
                    "one is of origin {origin} (SO_EE_ORIGIN_*), errno {}",
                    one.error
                )));
            }
        }
    }
    let (protocol, local, remote) = ends;
    let is_told = all.iter().any(|one| one.origin != LOCAL);
    if let (Some(local), None, true) = (local, remote, is_told)
        && is_told_to_many(network, protocol, local.port())
    {
        return Err(cant(
            "others have the socket's address too, and which of them is told is the kernel's choice",
        ));
    }
    Ok(all)
}

impl QueuedError {
    fn new(found: kernel::QueuedError) -> Self {
        let packet = match found.origin {
            LOCAL => WaitingPacket {
                header: Vec::new(),
                ..found.packet
            },
            _ => found.packet,
        };
        Self {
            error: found.error,
            origin: found.origin,
            kind: found.kind,
            more: found.more,
            to: found.to.0,
            port: found.to.1,
            packet: Datagram::whole(packet),
        }
    }

    /// Whether a socket of a protocol at its own address can have that.
    pub(super) fn is_possible(&self, (protocol, local): (i32, Option<SocketAddr>)) -> bool {
        let Some(local) = local else { return false };
        if self.origin == LOCAL {
            return self.error == libc::EMSGSIZE as u32 && self.packet.is_empty();
        }
        let is_own = |from: SocketAddr| {
            let ip = local.ip().to_canonical();
            from.port() == local.port() && (ip.is_unspecified() || ip == from.ip())
        };
        let told = packet::about(&self.packet.bytes());
        [ICMP, ICMP6].contains(&self.origin)
            && told.is_some_and(|about| i32::from(about.protocol) == protocol && is_own(about.from))
    }

    fn is_of_a_link(&self) -> bool {
        is_of_a_link(self.to) || self.packet.is_of_a_link()
    }

    /// Whether this host told it itself.
    pub(super) fn is_local(&self) -> bool {
        self.origin == LOCAL
    }

    /// errno.
    pub(super) fn error(&self) -> i32 {
        self.error as i32
    }

    /// Sends more than can be sent.
    fn cause(&self, socket: BorrowedFd<'_>, family: i32) -> io::Result<()> {
        let to = match self.to {
            IpAddr::V4(four) if family == libc::AF_INET6 => four.to_ipv6_mapped().into(),
            to => to,
        };
        // Of IPv4 the error tells of the socket's other end, whatever is asked for here.
        let port = if self.port == 0 { 9 } else { self.port };
        match send_beside(socket, (to, port).into(), &[0; TOO_LONG], &[], 0) {
            Err(Errno::EMSGSIZE) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => Err(io::Error::other("what is too long was sent")),
        }
    }

    fn is_like(&self, found: &kernel::QueuedError) -> bool {
        let told = |one: &Self| (one.error, one.origin, one.kind, one.more, one.to, one.port);
        let now = Self::new(found.clone());
        told(self) == told(&now) && self.packet.content() == now.packet.content()
    }
}

/// Puts errors back into a socket of a family and protocol, which has its addresses and all options but its filter.
pub(super) fn put_back(
    id: u32,
    socket: BorrowedFd<'_>,
    (family, ends): (i32, Ends),
    errors: &[QueuedError],
    context: &OpenContext<'_>,
) -> Result<(), FileError> {
    if errors.is_empty() {
        return Ok(());
    }
    let failed = |source| system("put back the errors that waited in", id, source);
    let packets: Vec<Datagram> = errors.iter().map(|one| one.packet.clone()).collect();
    let fill = || {
        let (protocol, local, remote) = ends;
        if let (Some(local), None) = (local, remote)
            && is_shared(protocol, local.port())
        {
            return Err(io::Error::other(format!(
                "another socket has port {} too",
                local.port()
            )));
        }
        with_room(socket, &packets, || {
            let mut filling = Filling::with_whole(socket, protocol)?;
            errors.iter().try_for_each(|one| match one.origin {
                LOCAL => one.cause(socket, family),
                _ => filling.one(&one.packet),
            })
        })
    };
    context.inside(context.network(id), fill).map_err(failed)
}

/// Sees that those that wait now are these.
pub(super) fn check(id: u32, socket: BorrowedFd<'_>, errors: &[QueuedError]) -> Result<(), FileError> {
    if errors.is_empty() {
        return Ok(());
    }
    let failed = |source| system("look at the errors that wait in", id, source);
    let memory = FileMemory::open().map_err(failed)?;
    let found = memory.queued_errors(socket).map_err(failed)?;
    let is_same = found.len() == errors.len() && errors.iter().zip(&found).all(|(one, found)| one.is_like(found));
    if is_same {
        return Ok(());
    }
    let sizes = |all: Vec<u32>| format!("{all:?}");
    let (before, now) = (
        errors.iter().map(|one| one.more[0]),
        found.iter().map(|one| one.more[0]),
    );
    Err(failed(io::Error::other(format!(
        "they are others than before (can as much be sent at once? {} before, {} now)",
        sizes(before.collect()),
        sizes(now.collect())
    ))))
}

/// Whether errors for a port of a network namespace are for several sockets, or for how many it is can't be told.
fn is_told_to_many(network: &NetworkSpace, protocol: i32, port: u16) -> bool {
    network.run(|| Ok(is_shared(protocol, port))).unwrap_or(true)
}

/// Whether several sockets of a protocol have an address with this port in the calling thread's network namespace.
fn is_shared(protocol: i32, port: u16) -> bool {
    let names = match protocol {
        libc::IPPROTO_UDPLITE => ["udplite", "udplite6"],
        _ => ["udp", "udp6"],
    };
    let end = format!(":{port:04X}");
    names.into_iter().any(|name| {
        let list = fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        let mut seen = BTreeSet::new();
        let locals = list.lines().filter_map(|line| line.split_whitespace().nth(1));
        locals
            .filter(|local| local.ends_with(&end))
            .any(|local| !seen.insert(local))
    })
}

#[cfg(test)]
mod tests {
    use super::{Datagram, ICMP, LOCAL, QueuedError, TIMESTAMPING};
    use floe_sys::kernel::{self, WaitingPacket};

    fn told(origin: u8, header: &[u8]) -> QueuedError {
        QueuedError::new(kernel::QueuedError {
            error: if origin == LOCAL {
                libc::EMSGSIZE
            } else {
                libc::ECONNREFUSED
            } as u32,
            origin,
            kind: [3, 3],
            more: [0; 2],
            to: ([127, 0, 0, 1].into(), 9),
            packet: WaitingPacket {
                header: header.to_vec(),
                content: Vec::new(),
                segment: 0,
                mark: 0,
                time: 0,
                device: 1,
            },
        })
    }

    /// An image could have floe send any packet to this host.
    #[test]
    fn only_errors_of_what_the_socket_sent_are_possible() {
        let ip = |protocol: u8| {
            [
                &[0x45, 0, 0, 56, 0, 0, 0, 0, 64, protocol, 0, 0][..],
                &[127, 0, 0, 1].repeat(2),
            ]
            .concat()
        };
        let sent = |protocol: u8, port: u8| [&ip(protocol)[..], &[0, port, 0, 9, 0, 8, 0, 0]].concat();
        let icmp = |kind: u8, sent: Vec<u8>| [&ip(1)[..], &[kind, 3, 0, 0, 0, 0, 0, 0], &sent].concat();
        let of = |place: &str| (libc::IPPROTO_UDP, Some(place.parse().expect("an address")));
        let own = icmp(3, sent(17, 7));
        for place in ["127.0.0.1:7", "0.0.0.0:7", "[::]:7", "[::ffff:127.0.0.1]:7"] {
            assert!(told(ICMP, &own).is_possible(of(place)), "{place}");
        }
        let is_possible = |one: QueuedError| one.is_possible(of("127.0.0.1:7"));
        assert!(is_possible(told(LOCAL, &[])));
        let others = [
            sent(6, 7),
            icmp(8, sent(17, 7)),
            icmp(5, sent(17, 7)),
            icmp(3, sent(17, 8)),
            icmp(3, sent(6, 7)),
            own[..40].to_vec(),
            Vec::new(),
        ];
        for header in others {
            assert!(!is_possible(told(ICMP, &header)), "{header:?}");
        }
        assert!(!is_possible(told(TIMESTAMPING, &own)));
        assert!(!told(ICMP, &own).is_possible((libc::IPPROTO_UDP, None)));
        assert!(!told(ICMP, &own).is_possible(of("127.0.0.2:7")));
        let packet: Datagram = told(ICMP, &own).packet;
        assert!(!is_possible(QueuedError {
            packet,
            ..told(LOCAL, &[])
        }));
    }
}
