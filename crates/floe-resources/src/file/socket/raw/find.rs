//! How raw sockets are found, and what of them can't be carried.

use super::{Body, echo};
use crate::file::{
    DumpContext, FileError, FoundFile,
    socket::{
        ADVICE,
        datagram::Datagram,
        devices::devices_of,
        has_events, number_option,
        options::{self, Filter, SocketOption},
    },
};
use floe_sys::{
    message,
    socket::{option, sized_option},
};
use nix::errno::Errno;
use serde_bytes::ByteBuf;
use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

/// Why something can't be carried, and what to do.
type Refusal = (String, &'static str);
type Found<T> = Result<Result<T, Refusal>, FileError>;

const SOL_RAW: i32 = 255;
const SOL_NETLINK: i32 = 270;
const SOL_PACKET: i32 = 263;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
const PACKET_FANOUT: i32 = 18;
/// Families of netlink in which the kernel keeps more of a socket than its groups.
const KEEPERS: [(i32, &str); 4] = [
    (libc::NETLINK_AUDIT, "of audit"),
    (libc::NETLINK_CONNECTOR, "of connectors"),
    (libc::NETLINK_NETFILTER, "of netfilter"),
    (libc::NETLINK_RDMA, "of RDMA"),
];

/// Whether a socket of the internet's is raw, or of echoes.
pub(in crate::file::socket) fn is_raw(socket: BorrowedFd<'_>) -> bool {
    let number = |name| number_option(socket, libc::SOL_SOCKET, name).ok();
    let kind = number(libc::SO_TYPE);
    let is_echo = || number(libc::SO_PROTOCOL) == number(libc::SO_DOMAIN).and_then(echo::protocol);
    kind == Some(libc::SOCK_RAW) || kind == Some(libc::SOCK_DGRAM) && is_echo()
}

pub(super) fn body(file: &FoundFile, context: &DumpContext<'_>) -> Found<Body> {
    let wrap = |action| FileError::system(action, file.title());
    let socket = file.as_fd();
    let number = |name| number_option(socket, libc::SOL_SOCKET, name).map_err(wrap("read the kind of"));
    let mut body = Body {
        family: number(libc::SO_DOMAIN)?,
        kind: number(libc::SO_TYPE)?,
        protocol: number(libc::SO_PROTOCOL)?,
        local: None,
        remote: None,
        packets: Vec::new(),
        options: Vec::new(),
        devices: Vec::new(),
    };
    if has_events(socket, libc::POLLERR).map_err(wrap("poll"))? {
        let reason = "a socket with an error that nobody has read can't be carried yet";
        return Ok(Err((reason.to_owned(), "read it (SO_ERROR)")));
    }
    // Where the kernel's memory can't be read they are refused anyway.
    if context
        .memory
        .socket_state(socket, false)
        .is_ok_and(|state| state.gathers)
        && matches!(body.family, libc::AF_INET | libc::AF_INET6)
    {
        let reason =
            "a packet that is being gathered in a raw socket (MSG_MORE) can't be carried: whom it goes to is not told";
        return Ok(Err((reason.to_owned(), "have it sent first")));
    }
    if let Err(refusal) = addresses(file, &mut body, context)? {
        return Ok(Err(refusal));
    }
    if has_events(socket, libc::POLLIN).map_err(wrap("poll"))?
        && let Err(refusal) = waiting(socket, &mut body, context)
    {
        return Ok(Err(refusal));
    }
    match all_options(file, &body, context)? {
        Ok(options) => body.options = options,
        Err(refusal) => return Ok(Err(refusal)),
    }
    if body.is_of_a_link() && options::bound_device(&body.options).is_none() {
        let reason = "an address of one network device (scope), in a socket that is bound to none, can't be carried";
        return Ok(Err((reason.to_owned(), ADVICE)));
    }
    body.devices = devices_of(file, &body.options, body.device().into_iter().collect())?;
    Ok(Ok(body))
}

/// The bytes of an address: struct sockaddr_in, struct sockaddr_in6.
fn without_port(ip: IpAddr) -> Vec<u8> {
    let bytes = |family: i32, before: usize, ip: &[u8], behind: usize| {
        [
            &(family as u16).to_ne_bytes()[..],
            &vec![0; before],
            ip,
            &vec![0; behind],
        ]
        .concat()
    };
    match ip {
        IpAddr::V4(four) => bytes(libc::AF_INET, 2, &four.octets(), 8),
        IpAddr::V6(six) => bytes(libc::AF_INET6, 6, &six.octets(), 4),
    }
}

/// Its own address and that of whom it sends to.
fn addresses(file: &FoundFile, body: &mut Body, context: &DumpContext<'_>) -> Found<()> {
    let wrap = |action| FileError::system(action, file.title());
    let own = message::own_address(file.as_fd()).map_err(wrap("read the address of"))?;
    let other = match message::other_address(file.as_fd()) {
        Err(Errno::ENOTCONN | Errno::EOPNOTSUPP) => None,
        other => Some(other.map_err(wrap("read the other address of"))?),
    };
    let is_bound = |address: &Vec<u8>| address.iter().skip(2).any(|byte| *byte != 0);
    match body.family {
        libc::AF_PACKET => {
            // struct sockaddr_ll: family, protocol, device; the rest is told only. What a socket has had to do with its
            // protocol alone it gets by bind(2) too.
            let protocol = own.get(2..4).map_or([0; 2], |two| [two[0], two[1]]);
            body.protocol = u16::from_ne_bytes(protocol).into();
            let mut place = own.get(..8).unwrap_or_default().to_vec();
            place.resize(20, 0);
            body.local = is_bound(&place).then(|| ByteBuf::from(place));
        }
        libc::AF_NETLINK => {
            // struct sockaddr_nl: family, port, the first 32 groups, which bind(2) sets.
            body.local = is_bound(&own).then(|| ByteBuf::from(own));
            body.remote = other.filter(is_bound).map(ByteBuf::from);
        }
        _ => {
            let mut own = own;
            // Of a raw one the port is its protocol.
            if let Some(port) = own.get_mut(2..4).filter(|_| body.kind == libc::SOCK_RAW) {
                port.fill(0);
            }
            let other = match context.memory.connected_with(file.as_fd()) {
                Ok(connected) => other.or_else(|| connected.map(|other| without_port(other.ip()))),
                Err(error) => {
                    let reason = format!(
                        "whom a raw socket is connected with is told by the kernel's memory alone, which can't be read \
                         ({error})"
                    );
                    return Ok(Err((reason, "run floe as root")));
                }
            };
            // An option has the device by its name.
            let mut other = other;
            for scope in [Some(&mut own), other.as_mut()]
                .into_iter()
                .flatten()
                .filter_map(|bytes| bytes.get_mut(24..28))
            {
                scope.fill(0);
            }
            body.local = is_bound(&own).then(|| ByteBuf::from(own));
            body.remote = other.map(ByteBuf::from);
        }
    }
    Ok(Ok(()))
}

/// Notes what waits, or why it can't be put back.
fn waiting(socket: BorrowedFd<'_>, body: &mut Body, context: &DumpContext<'_>) -> Result<(), Refusal> {
    let refuse = |reason: String| Err((reason, "have it read first"));
    if !body.is_echo() {
        let what = match body.family {
            libc::AF_PACKET => {
                "packets that wait in a packet socket can't be carried: they would have to come in by its device again"
            }
            libc::AF_NETLINK => {
                "messages that wait in a netlink socket can't be carried: the kernel sent them, and does not again"
            }
            _ => "packets that wait in a raw socket can't be carried: the kernel would act on them once more",
        };
        return refuse(what.to_owned());
    }
    let packets = match context.memory.waiting_packets(socket, false) {
        Ok(packets) => packets,
        Err(error) => {
            return refuse(format!(
                "echoes that wait in a socket are told by the kernel's memory alone, which can't be read ({error})"
            ));
        }
    };
    for packet in packets {
        let packet = Datagram::whole(packet);
        if !echo::is_possible(&packet) || packet.is_of_a_link() {
            return refuse("what waits in a socket of echoes, and is none, can't be carried".to_owned());
        }
        body.packets.push(packet);
    }
    Ok(())
}

/// All that are not as in a new socket.
fn all_options(file: &FoundFile, body: &Body, context: &DumpContext<'_>) -> Found<Vec<SocketOption>> {
    let (socket, wrap) = (file.as_fd(), |action| FileError::system(action, file.title()));
    // One of echoes may not be allowed here; one of UDP has the same options on these levels.
    let (kind, protocol) = match body.is_echo() {
        true => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        false if body.family == libc::AF_PACKET => (body.kind, 0),
        false => (body.kind, body.protocol),
    };
    let levels: &[i32] = match body.family {
        libc::AF_PACKET => &[libc::SOL_SOCKET, SOL_PACKET],
        libc::AF_NETLINK => &[libc::SOL_SOCKET, SOL_NETLINK],
        _ if body.protocol == libc::IPPROTO_ICMPV6 && !body.is_echo() => &[
            libc::SOL_SOCKET,
            libc::IPPROTO_IP,
            libc::IPPROTO_IPV6,
            SOL_RAW,
            libc::IPPROTO_ICMPV6,
        ],
        _ => &[libc::SOL_SOCKET, libc::IPPROTO_IP, libc::IPPROTO_IPV6, SOL_RAW],
    };
    let usual = context.usual.of((body.family, kind, protocol), levels);
    let usual = usual.map_err(wrap("make a socket like"))?;
    let (mut options, others) = options::differing(socket, &usual).map_err(wrap("read the options of"))?;
    if !others.is_empty() {
        return Ok(Err((options::refusal(&others), ADVICE)));
    }
    match options::filter(socket).map_err(wrap("read the filter of"))? {
        Filter::None => {}
        Filter::Classic(filter) => options.push(filter),
        Filter::Extended => return Ok(Err((options::EXTENDED.to_owned(), ADVICE))),
    }
    let more = match body.family {
        libc::AF_PACKET => of_devices(socket, context),
        libc::AF_NETLINK => of_netlink(socket, body.protocol).map_err(wrap("read the groups of"))?,
        _ => match options::hidden(socket, &context.memory) {
            Ok(found) => found.map_err(|reason| (reason.to_owned(), ADVICE)),
            Err(error) if options::has_groups(&file.network) => Err((options::unreadable_groups(&error), ADVICE)),
            Err(_) => Ok(Vec::new()),
        },
    };
    Ok(more.map(|more| {
        options.extend(more);
        options
    }))
}

/// Of a packet socket: what devices are to take for it, and who takes turns with it.
fn of_devices(socket: BorrowedFd<'_>, context: &DumpContext<'_>) -> Result<Vec<SocketOption>, Refusal> {
    let hidden = options::of_packets(socket, &context.memory);
    let mut options = match hidden {
        Ok(Some(options)) => options,
        Ok(None) => {
            let reason = "a ring of a packet socket (PACKET_RX_RING, PACKET_TX_RING) can't be carried";
            return Err((reason.to_owned(), "have packets read by recvmsg(2)"));
        }
        Err(error) => {
            let reason = format!(
                "what a packet socket asks of devices is told by the kernel's memory alone, which can't be read ({error})"
            );
            return Err((reason, "run floe as root"));
        }
    };
    let fanout = number_option(socket, SOL_PACKET, PACKET_FANOUT).unwrap_or(0);
    // PACKET_FANOUT_CBPF, PACKET_FANOUT_EBPF: what a program says is told nowhere.
    let mode = fanout >> 16 & 0xff;
    if [6, 7].contains(&mode) {
        let reason = "a packet socket that takes turns as a program says (PACKET_FANOUT_CBPF, _EBPF) can't be carried";
        return Err((reason.to_owned(), ADVICE));
    }
    if fanout != 0 {
        options.push(SocketOption::number(SOL_PACKET, PACKET_FANOUT, fanout));
    }
    Ok(options)
}

/// Of a netlink socket: its groups, which are told as bits.
fn of_netlink(socket: BorrowedFd<'_>, protocol: i32) -> Result<Result<Vec<SocketOption>, Refusal>, Errno> {
    if let Some((_, name)) = KEEPERS.iter().find(|(number, _)| *number == protocol) {
        let reason = format!("a netlink socket {name}, of which the kernel keeps more than it tells, can't be carried");
        return Ok(Err((reason, ADVICE)));
    }
    // With too little room it tells how much it takes.
    let bits = match option(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS) {
        Ok(bits) => bits,
        Err(_) => sized_option(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 4096)?,
    };
    let words = bits
        .chunks_exact(4)
        .map(|four| u32::from_ne_bytes(four.try_into().expect("four bytes")));
    let groups = words.enumerate().flat_map(|(word, bits)| {
        let own = (0..32).filter(move |bit| bits >> bit & 1 != 0);
        own.map(move |bit| 32 * word as i32 + bit + 1)
    });
    let joined = groups.map(|group| SocketOption::number(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group));
    Ok(Ok(joined.collect()))
}
