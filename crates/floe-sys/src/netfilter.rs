//! Holding back the packets of TCP connections, by nf_tables(8) through netlink(7): linux/netfilter/nf_tables.h and
//! nfnetlink.h.
//!
//! A table of the family `inet` has a set of address pairs for each IP version, and at the hooks where packets come in
//! and leave, before all others, a rule that drops what is in it:
//! ```text
//! ip saddr . ip daddr . tcp sport . tcp dport @held4 drop
//! ip6 saddr . ip6 daddr . tcp sport . tcp dport @held6 drop
//! ```
//! To both ends that looks like a network that loses packets for a while, so TCP sends them again.

use crate::descriptor::adopt;
use nix::errno::Errno;
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

/// The two ends of a connection.
pub type Connection = (SocketAddr, SocketAddr);

/// Packets are held back as long as this is there: the kernel removes the table with the socket, also where the
/// process is killed.
#[derive(Debug)]
pub struct Hold {
    /// That owns the table.
    _socket: OwnedFd,
}

impl Hold {
    /// Holds back all packets of these connections in the calling thread's network namespace, by a table of this name.
    ///
    /// # Errors
    /// EEXIST or, where it is another process's, EPERM if there is such a table; EOPNOTSUPP and EPROTONOSUPPORT where the kernel has no nf_tables, or none with
    /// owners (Linux 5.12); EPERM without CAP_NET_ADMIN.
    pub fn take(name: &str, connections: &[Connection]) -> Result<Self, Errno> {
        let socket = open()?;
        perform(&socket, &table(name, NFT_TABLE_F_OWNER, connections, None))?;
        Ok(Self { _socket: socket })
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

/// Holds back packets for so many milliseconds, whatever becomes of this process, by a table of this name.
///
/// # Errors
/// As for [`Hold::take`].
pub fn hold_for(name: &str, connections: &[Connection], milliseconds: u64) -> Result<(), Errno> {
    perform(&open()?, &table(name, 0, connections, Some(milliseconds)))
}

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_SET_TIMEOUT: u32 = 0x10;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;

const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CMP_EQ: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
/// The first of sixteen registers of four bytes.
const NFT_REG32_00: u32 = 8;
const NF_DROP: u32 = 0;

/// Chains: name and hook (NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT).
const CHAINS: [(&str, u32); 2] = [("in", 1), ("out", 3)];
/// As NF_IP_PRI_RAW, so that connection tracking sees none of it.
const PRIORITY: i32 = -300;

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
fn table(name: &str, flags: u32, connections: &[Connection], milliseconds: Option<u64>) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.message(NFT_MSG_NEWTABLE, NEW, |message| {
        message.text(NFTA_TABLE_NAME, name);
        message.number(NFTA_TABLE_FLAGS, flags);
    });
    for (chain, hook) in CHAINS {
        batch.message(NFT_MSG_NEWCHAIN, NEW, |message| {
            message.text(NFTA_CHAIN_TABLE, name);
            message.text(NFTA_CHAIN_NAME, chain);
            message.nest(NFTA_CHAIN_HOOK, |hooked| {
                hooked.number(NFTA_HOOK_HOOKNUM, hook);
                hooked.number(NFTA_HOOK_PRIORITY, PRIORITY as u32);
            });
            message.text(NFTA_CHAIN_TYPE, "filter");
        });
    }
    for set in &SETS {
        add_set(&mut batch, name, set, connections, milliseconds);
        for (chain, _) in CHAINS {
            batch.message(NFT_MSG_NEWRULE, NEW | libc::NLM_F_APPEND as u16, |message| {
                message.text(NFTA_RULE_TABLE, name);
                message.text(NFTA_RULE_CHAIN, chain);
                message.nest(NFTA_RULE_EXPRESSIONS, |list| rule(list, set));
            });
        }
    }
    batch.finish()
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
fn rule(list: &mut Message<'_>, set: &Set) {
    for (key, value) in [
        (NFT_META_NFPROTO, set.protocol),
        (NFT_META_L4PROTO, libc::IPPROTO_TCP as u8),
    ] {
        list.expression("meta", |data| {
            data.number(NFTA_META_DREG, NFT_REG_1);
            data.number(NFTA_META_KEY, key);
        });
        list.expression("cmp", |data| {
            data.number(NFTA_CMP_SREG, NFT_REG_1);
            data.number(NFTA_CMP_OP, NFT_CMP_EQ);
            data.nest(NFTA_CMP_DATA, |nested| nested.attribute(NFTA_DATA_VALUE, &[value]));
        });
    }
    let ports = NFT_REG32_00 + 2 * set.address / 4;
    for (register, base, offset, length) in [
        (NFT_REG32_00, NFT_PAYLOAD_NETWORK_HEADER, set.offset, 2 * set.address),
        (ports, NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2),
        (ports + 1, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
    ] {
        list.expression("payload", |data| {
            data.number(NFTA_PAYLOAD_DREG, register);
            data.number(NFTA_PAYLOAD_BASE, base);
            data.number(NFTA_PAYLOAD_OFFSET, offset);
            data.number(NFTA_PAYLOAD_LEN, length);
        });
    }
    list.expression("lookup", |data| {
        data.text(NFTA_LOOKUP_SET, set.name);
        data.number(NFTA_LOOKUP_SREG, NFT_REG32_00);
        data.number(NFTA_LOOKUP_SET_ID, set.id);
    });
    list.expression("immediate", |data| {
        data.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
        data.nest(NFTA_IMMEDIATE_DATA, |nested| {
            nested.nest(NFTA_DATA_VERDICT, |verdict| verdict.number(NFTA_VERDICT_CODE, NF_DROP));
        });
    });
}

/// What must not be there yet.
const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// struct nlmsghdr and struct nfgenmsg.
const NETLINK_HEADER: usize = 16;

/// Messages of one transaction.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where the last message is.
    last: usize,
}

/// One of them, at its end.
struct Message<'a>(&'a mut Vec<u8>);

impl Batch {
    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message<'_>)) {
        if self.bytes.is_empty() {
            self.raw(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        }
        self.raw(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFPROTO_INET, 0, fill);
    }

    /// With an answer for the last message.
    fn finish(mut self) -> Vec<u8> {
        let flags = self.last + 6;
        let acknowledged = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | libc::NLM_F_ACK as u16;
        self.bytes[flags..flags + 2].copy_from_slice(&acknowledged.to_ne_bytes());
        self.raw(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        self.bytes
    }

    fn raw(&mut self, kind: u16, flags: u16, family: u8, resource: u16, fill: impl FnOnce(&mut Message<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Message(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.last = start;
    }
}

impl Message<'_> {
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message<'_>)) {
        let start = self.0.len();
        self.attribute(kind | libc::NLA_F_NESTED as u16, &[]);
        fill(&mut Message(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message<'_>)) {
        self.nest(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, fill);
        });
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

/// Has a transaction done, and waits for the answer.
fn perform(socket: &OwnedFd, request: &[u8]) -> Result<(), Errno> {
    use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt::SndBufForce};
    setsockopt(socket, SndBufForce, &(2 * request.len().max(64 << 10)))?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    // The first answer is an error, or that of the last message.
    let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let code = buffer[..got].get(NETLINK_HEADER..NETLINK_HEADER + 4);
    let code = code.and_then(|four| four.try_into().ok()).map(i32::from_ne_bytes);
    match code.ok_or(Errno::EPROTO)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(-error)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Hold, Release, hold_for};
    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };
    use std::{
        io::{ErrorKind, Read, Write},
        net::{TcpListener, TcpStream},
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
        let hold = Hold::take("floe-test", &ends(&connections)).expect("hold");
        assert_eq!(Hold::take("floe-test", &[]).err(), Some(Errno::EPERM));
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
        hold_for("floe-test", &[ends(&connections), many].concat(), 60_000).expect("hold");
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
