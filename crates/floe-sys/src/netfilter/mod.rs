//! Holding back the packets of TCP connections, by nf_tables(8) through netlink(7): linux/netfilter/nf_tables.h and
//! nfnetlink.h.
//!
//! A table of the family `inet` has a set of address pairs for each IP version, and at the hooks where packets come in
//! and leave, before all others, a rule that drops what is in it, but for what floe itself sends with a mark ([`PASS`]):
//! ```text
//! meta mark PASS accept
//! ip saddr . ip daddr . tcp sport . tcp dport @held4 drop
//! ip6 saddr . ip6 daddr . tcp sport . tcp dport @held6 drop
//! ```
//! To both ends that looks like a network that loses packets for a while, so TCP sends them again.

pub mod legacy;
mod message;
pub mod ruleset;
pub mod sets;
pub mod tracking;
mod way;

use crate::descriptor::adopt;
use message::*;
use nix::errno::Errno;
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};
pub use way::{OpenWay, PublishedPort, Way};

/// The two ends of a connection.
pub type Connection = (SocketAddr, SocketAddr);

/// Packets are held back as long as this is there: the kernel removes the table with the socket, also where the
/// process is killed.
#[derive(Debug)]
pub struct Hold {
    /// That owns the table.
    socket: OwnedFd,
}

impl Hold {
    /// Holds back all packets of these connections in the calling thread's network namespace, by a table of this name; with a
    /// way those that pass there to and from another network namespace.
    ///
    /// # Errors
    /// EEXIST or, where it is another process's, EPERM if there is such a table; EOPNOTSUPP and EPROTONOSUPPORT where the kernel has no nf_tables, or none with
    /// owners (Linux 5.12); EPERM without CAP_NET_ADMIN.
    pub fn take(name: &str, connections: &[Connection], way: Option<&Way>) -> Result<Self, Errno> {
        let socket = open()?;
        perform(&socket, &table(name, NFT_TABLE_F_OWNER, (connections, way), None))?;
        Ok(Self { socket })
    }

    /// Holds back all that would begin new connections with these addresses, in the calling thread's network namespace,
    /// by a table of this name. An address that is unspecified stands for all.
    ///
    /// # Errors
    /// As for [`Hold::take`].
    pub fn newcomers(name: &str, places: &[SocketAddr]) -> Result<Self, Errno> {
        let socket = open()?;
        let mut batch = Batch::default();
        add_table(&mut batch, name, NFT_TABLE_F_OWNER, &CHAINS[..1]);
        for place in places {
            add_rule(&mut batch, name, CHAINS[0].0, |list| drop_newcomers(list, *place));
        }
        perform(&socket, &batch.finish())?;
        Ok(Self { socket })
    }
}

impl AsFd for Hold {
    /// As long as this is open, in any process, they are held back.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A way to end a lasting hold that needs no memory of what it was: bytes to send on a netlink socket of its network
/// namespace.
#[derive(Debug)]
pub struct Release {
    socket: OwnedFd,
    request: Vec<u8>,
}

impl Release {
    /// Of the table with this name in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn of(name: &str) -> Result<Self, Errno> {
        let mut batch = Batch::default();
        batch.message(NFT_MSG_DELTABLE, 0, |message| message.text(NFTA_TABLE_NAME, name));
        Ok(Self {
            socket: open()?,
            request: batch.finish(),
        })
    }

    /// The netlink socket and what to send on it.
    #[must_use]
    pub fn parts(&self) -> (&OwnedFd, &[u8]) {
        (&self.socket, &self.request)
    }

    /// Lets packets pass again; whether there was such a table.
    ///
    /// # Errors
    /// As for [`Hold::take`].
    pub fn perform(&self) -> Result<bool, Errno> {
        match perform(&self.socket, &self.request) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Holds back packets for so many milliseconds, whatever becomes of this process, by a table of this name; with a way it keeps
/// that open, too, so that nobody is told meanwhile that there is no such port.
///
/// # Errors
/// As for [`Hold::take`].
pub fn hold_for(name: &str, (connections, way): (&[Connection], Option<&Way>), milliseconds: u64) -> Result<(), Errno> {
    perform(&open()?, &table(name, 0, (connections, way), Some(milliseconds)))
}

/// The mark (SO_MARK) of packets that are not held back.
pub const PASS: u32 = u32::from_be_bytes(*b"floe");

/// Chains: name, hook (NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT) and priority: as NF_IP_PRI_RAW, so that connection tracking sees
/// none of it.
const CHAINS: [Chain; 2] = [("in", 1, -300), ("out", 3, -300)];
/// Where packets of another network namespace pass (NF_INET_PRE_ROUTING, NF_INET_POST_ROUTING): before addresses are translated
/// in one direction and behind that in the other, so that they are those that it knows.
const PASSING: [Chain; 2] = [("from", 0, -300), ("to", 4, 300)];
type Chain = (&'static str, u32, i32);

/// The set for an IP version.
struct Set {
    name: &'static str,
    id: u32,
    protocol: u8,
    /// Bytes of an address.
    address: u32,
    /// Where in its header the addresses are.
    offset: u32,
    /// What nft(8) takes an address for, TYPE_IPADDR or TYPE_IP6ADDR of its datatype.h.
    shown_as: u32,
}

const SETS: [Set; 2] = [
    Set {
        name: "held4",
        id: 1,
        protocol: NFPROTO_IPV4,
        address: 4,
        offset: 12,
        shown_as: 7,
    },
    Set {
        name: "held6",
        id: 2,
        protocol: NFPROTO_IPV6,
        address: 16,
        offset: 8,
        shown_as: 8,
    },
];

impl Set {
    /// Both addresses, and both ports in four bytes each.
    fn key_bytes(&self) -> u32 {
        2 * self.address + 8
    }

    /// Four types of six bits each.
    fn key_type(&self) -> u32 {
        const TYPE_INET_SERVICE: u32 = 13;
        let types = [self.shown_as, self.shown_as, TYPE_INET_SERVICE, TYPE_INET_SERVICE];
        types.iter().fold(0, |all, one| all << 6 | one)
    }

    /// `None` where a connection is of the other version.
    fn key(&self, (from, to): Connection) -> Option<Vec<u8>> {
        let mut key = Vec::with_capacity(self.key_bytes() as usize);
        for end in [from, to] {
            match end.ip().to_canonical() {
                IpAddr::V4(four) => key.extend(four.octets()),
                IpAddr::V6(six) => key.extend(six.octets()),
            }
        }
        for end in [from, to] {
            key.extend(end.port().to_be_bytes());
            key.extend([0; 2]);
        }
        (key.len() == self.key_bytes() as usize).then_some(key)
    }
}

/// As many elements as one message may have: an attribute is no longer than 64 KiB.
const ELEMENTS: usize = 500;

/// A table with all in it, as one transaction.
fn table(
    name: &str,
    flags: u32,
    (connections, way): (&[Connection], Option<&Way>),
    milliseconds: Option<u64>,
) -> Vec<u8> {
    let mut batch = Batch::default();
    let chains = if way.is_some() { PASSING } else { CHAINS };
    add_table(&mut batch, name, flags, &chains);
    if let (Some(way), Some(_)) = (way, milliseconds) {
        way::add(&mut batch, name, way);
    }
    for (chain, ..) in chains {
        add_rule(&mut batch, name, chain, |list| {
            list.compare_known(NFT_META_MARK, &PASS.to_ne_bytes());
            list.accept();
        });
    }
    for set in &SETS {
        add_set(&mut batch, name, set, connections, milliseconds);
        for (chain, ..) in chains {
            add_rule(&mut batch, name, chain, |list| drop_members(list, set));
        }
    }
    batch.finish()
}

fn add_table(batch: &mut Batch, name: &str, flags: u32, chains: &[Chain]) {
    batch.message(NFT_MSG_NEWTABLE, NEW, |message| {
        message.text(NFTA_TABLE_NAME, name);
        message.number(NFTA_TABLE_FLAGS, flags);
    });
    add_chains(batch, (name, "filter"), chains);
}

fn add_chains(batch: &mut Batch, (table, kind): (&str, &str), chains: &[Chain]) {
    for (chain, hook, priority) in chains {
        batch.message(NFT_MSG_NEWCHAIN, NEW, |message| {
            message.text(NFTA_CHAIN_TABLE, table);
            message.text(NFTA_CHAIN_NAME, chain);
            message.nest(NFTA_CHAIN_HOOK, |hooked| {
                hooked.number(NFTA_HOOK_HOOKNUM, *hook);
                hooked.number(NFTA_HOOK_PRIORITY, *priority as u32);
            });
            message.text(NFTA_CHAIN_TYPE, kind);
        });
    }
}

fn add_rule(batch: &mut Batch, table: &str, chain: &str, fill: impl FnOnce(&mut Message<'_>)) {
    batch.message(NFT_MSG_NEWRULE, NEW | libc::NLM_F_APPEND as u16, |message| {
        message.text(NFTA_RULE_TABLE, table);
        message.text(NFTA_RULE_CHAIN, chain);
        message.nest(NFTA_RULE_EXPRESSIONS, fill);
    });
}

fn add_set(batch: &mut Batch, table: &str, set: &Set, connections: &[Connection], milliseconds: Option<u64>) {
    batch.message(NFT_MSG_NEWSET, NEW, |message| {
        message.text(NFTA_SET_TABLE, table);
        message.text(NFTA_SET_NAME, set.name);
        message.number(NFTA_SET_KEY_TYPE, set.key_type());
        message.number(NFTA_SET_KEY_LEN, set.key_bytes());
        message.number(NFTA_SET_ID, set.id);
        if let Some(milliseconds) = milliseconds {
            message.number(NFTA_SET_FLAGS, NFT_SET_TIMEOUT);
            message.attribute(NFTA_SET_TIMEOUT, &milliseconds.to_be_bytes());
        }
    });
    let both_ways = connections
        .iter()
        .flat_map(|(one, other)| [(*one, *other), (*other, *one)]);
    let keys: Vec<_> = both_ways.filter_map(|connection| set.key(connection)).collect();
    for keys in keys.chunks(ELEMENTS) {
        batch.message(NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE as u16, |message| {
            message.text(NFTA_SET_ELEM_LIST_TABLE, table);
            message.text(NFTA_SET_ELEM_LIST_SET, set.name);
            message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for key in keys {
                    list.nest(NFTA_LIST_ELEM, |element| {
                        element.nest(NFTA_SET_ELEM_KEY, |data| data.attribute(NFTA_DATA_VALUE, key));
                    });
                }
            });
        });
    }
}

/// Drops what is in a set.
fn drop_members(list: &mut Message<'_>, set: &Set) {
    only_tcp(list, Some(set.protocol));
    let ports = NFT_REG32_00 + 2 * set.address / 4;
    for (register, base, offset, length) in [
        (NFT_REG32_00, NFT_PAYLOAD_NETWORK_HEADER, set.offset, 2 * set.address),
        (ports, NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2),
        (ports + 1, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
    ] {
        list.payload(register, base, offset, length);
    }
    list.expression("lookup", |data| {
        data.text(NFTA_LOOKUP_SET, set.name);
        data.number(NFTA_LOOKUP_SREG, NFT_REG32_00);
        data.number(NFTA_LOOKUP_SET_ID, set.id);
    });
    list.drop();
}

/// Drops the first packets of connections (SYN without ACK) with an address.
fn drop_newcomers(list: &mut Message<'_>, place: SocketAddr) {
    /// Where the flags are in the header, and those that count.
    const FLAGS: u32 = 13;
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 0x12;
    let ip = place.ip().to_canonical();
    let set = &SETS[usize::from(ip.is_ipv6())];
    let any = ip.is_unspecified();
    // What listens at :: gets those of both versions.
    only_tcp(list, (!any || ip.is_ipv4()).then_some(set.protocol));
    if !any {
        list.payload(
            NFT_REG_1,
            NFT_PAYLOAD_NETWORK_HEADER,
            set.offset + set.address,
            set.address,
        );
        match ip {
            IpAddr::V4(four) => list.compare(&four.octets()),
            IpAddr::V6(six) => list.compare(&six.octets()),
        }
    }
    list.payload(NFT_REG_1, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
    list.compare(&place.port().to_be_bytes());
    list.payload(NFT_REG_1, NFT_PAYLOAD_TRANSPORT_HEADER, FLAGS, 1);
    list.expression("bitwise", |data| {
        data.number(NFTA_BITWISE_SREG, NFT_REG_1);
        data.number(NFTA_BITWISE_DREG, NFT_REG_1);
        data.number(NFTA_BITWISE_LEN, 1);
        data.nest(NFTA_BITWISE_MASK, |mask| mask.attribute(NFTA_DATA_VALUE, &[SYN_ACK]));
        data.nest(NFTA_BITWISE_XOR, |xor| xor.attribute(NFTA_DATA_VALUE, &[0]));
    });
    list.compare(&[SYN]);
    list.drop();
}

/// Goes on only for TCP, and for one IP version if it is named.
fn only_tcp(list: &mut Message<'_>, version: Option<u8>) {
    let keys = [
        (NFT_META_NFPROTO, version),
        (NFT_META_L4PROTO, Some(libc::IPPROTO_TCP as u8)),
    ];
    for (key, value) in keys {
        if let Some(value) = value {
            list.compare_known(key, &[value]);
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    let made = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_NETFILTER,
        )
    };
    Errno::result(made).map(adopt)
}

/// What the calling thread's network namespace has of objects that rules can name and floe does not carry: linux/netfilter's
/// nfnetlink_acct.h and nfnetlink_cttimeout.h.
///
/// # Errors
/// Those of netlink.
pub fn others() -> Result<Vec<&'static str>, Errno> {
    const GET: u16 = 1;
    let kinds = [(7, "counters of nfacct(8)"), (8, "time-outs of nfct(8)")];
    let mut found = Vec::new();
    for (subsystem, name) in kinds {
        match crate::route::netfilter(subsystem << 8 | GET, &[0; 4]) {
            Ok(all) if all.is_empty() => {}
            Ok(_) => found.push(name),
            // Not in this kernel.
            Err(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Has a transaction done, and waits for the answer.
fn perform(socket: &OwnedFd, request: &[u8]) -> Result<(), Errno> {
    match answer_of(socket, request)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// Sends a request, and waits for the answer: 0, or the number of an error.
fn answer_of(socket: &OwnedFd, request: &[u8]) -> Result<i32, Errno> {
    use nix::sys::socket::{
        MsgFlags, recv, send, setsockopt,
        sockopt::{SndBuf, SndBufForce},
    };
    let room = 2 * request.len().max(64 << 10);
    match setsockopt(socket, SndBufForce, &room) {
        // In a user namespace of one's own, up to a limit (net.core.wmem_max).
        Err(Errno::EPERM) => setsockopt(socket, SndBuf, &room)?,
        done => done?,
    }
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    // The first answer is an error, or that of the last message.
    let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let code = buffer[..got].get(NETLINK_HEADER..NETLINK_HEADER + 4);
    let code = code.and_then(|four| four.try_into().ok()).map(i32::from_ne_bytes);
    code.map(i32::wrapping_neg).ok_or(Errno::EPROTO)
}

/// Has one message done that is no part of a transaction.
fn perform_alone(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
    perform(socket, &alone(kind, flags, body))
}

/// One message, with an answer.
fn alone(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((NETLINK_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "a test that can't run says why")]
pub(crate) fn skip(program: &str) {
    println!("skip: {program} is not installed");
}

#[cfg(test)]
mod tests {
    use super::{Hold, PASS, Release, hold_for};
    use crate::socket::set_option;
    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };
    use std::{
        io::{ErrorKind, Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
        time::Duration,
    };

    /// A connection within a network namespace of this thread's own, of both IP versions.
    fn connected() -> Vec<(TcpStream, TcpStream)> {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        crate::network::raise_loopback().expect("lo");
        ["127.0.0.1:0", "[::1]:0"]
            .map(|place| {
                let listener = TcpListener::bind(place).expect("bind");
                let one = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
                one.set_nodelay(true).expect("no delay");
                (one, listener.accept().expect("accept").0)
            })
            .into()
    }

    fn ends(connections: &[(TcpStream, TcpStream)]) -> Vec<super::Connection> {
        let pair = |one: &TcpStream| (one.local_addr().expect("local"), one.peer_addr().expect("remote"));
        connections.iter().map(|(one, _)| pair(one)).collect()
    }

    fn comes(one: &mut TcpStream, other: &mut TcpStream) -> bool {
        one.write_all(b"x").expect("write");
        other
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a time-out");
        match other.read(&mut [0]) {
            Ok(bytes) => bytes == 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_hold_ends_with_its_owner() {
        let mut connections = connected();
        let hold = Hold::take("floe-test", &ends(&connections), None).expect("hold");
        assert_eq!(Hold::take("floe-test", &[], None).err(), Some(Errno::EPERM));
        for (one, other) in &mut connections {
            assert!(!comes(one, other), "held");
        }
        drop(hold);
        for (one, other) in &mut connections {
            other.set_read_timeout(None).expect("no time-out");
            let mut held = [0; 1];
            other.read_exact(&mut held).expect("what was held is sent again");
            assert!(comes(one, other), "released");
        }
    }

    #[test]
    fn what_is_marked_passes() {
        let mut connections = connected();
        let _hold = Hold::take("floe-test", &ends(&connections), None).expect("hold");
        for (one, other) in &mut connections {
            for (mark, passes) in [(PASS, true), (PASS + 1, false)] {
                set_option(one.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes()).expect("SO_MARK");
                assert_eq!(comes(one, other), passes);
            }
        }
    }

    #[test]
    fn newcomers_are_held_back_and_others_are_not() {
        let mut connections = connected();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let other = TcpListener::bind("127.0.0.2:0").expect("bind");
        let [place, other] = [listener, other].map(|one| (one.local_addr().expect("an address"), one));
        let connects = |to| TcpStream::connect_timeout(&to, Duration::from_millis(50)).is_ok();
        for held in [place.0, (std::net::Ipv6Addr::UNSPECIFIED, place.0.port()).into()] {
            let all = [held, "[::1]:9".parse().expect("an address")];
            let hold = Hold::newcomers("floe-test-new", &all).expect("hold");
            assert!(!connects(place.0), "held");
            assert!(connects(other.0), "another address");
            for (one, other) in &mut connections {
                assert!(comes(one, other), "a connection that is there");
            }
            drop(hold);
            assert!(connects(place.0), "released");
        }
    }

    #[test]
    fn a_lasting_hold_is_released_by_name() {
        let mut connections = connected();
        let many: Vec<_> = (1..2000)
            .map(|port| {
                (
                    (connections[0].0.local_addr().expect("local").ip(), port).into(),
                    ends(&connections)[0].1,
                )
            })
            .collect();
        hold_for("floe-test", (&[ends(&connections), many].concat(), None), 60_000).expect("hold");
        for (one, other) in &mut connections {
            assert!(!comes(other, one), "held");
        }
        let release = Release::of("floe-test").expect("a socket");
        assert_eq!(release.perform(), Ok(true));
        assert_eq!(release.perform(), Ok(false));
        for (one, other) in &mut connections {
            one.set_read_timeout(None).expect("no time-out");
            one.read_exact(&mut [0]).expect("what was held is sent again");
            assert!(comes(one, other), "released");
        }
    }
}
