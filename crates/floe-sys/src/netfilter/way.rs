//! The way of a sandbox's packets to others and back: what leaves by the host has the host's address, and what comes to
//! published ports of the host goes on to the sandbox. Rules of the table that has them:
//! ```text
//! guard        iifname DEVICE ip saddr 127.0.0.0/8 drop
//!              iifname DEVICE ip daddr 127.0.0.0/8 drop
//! postrouting  ip saddr INSIDE oifname != DEVICE masquerade
//!              ip saddr 127.0.0.0/8 oifname DEVICE snat to HOST
//! prerouting   fib daddr type local PROTOCOL dport PORT dnat to INSIDE:PORT
//! output       the same
//! forward      ip daddr WITHHELD ct direction reply accept
//!              iifname DEVICE ip daddr WITHHELD drop
//! ```
//! The first two come before all others where packets come in: for published ports the host's device takes packets of
//! loopback's addresses (route_localnet), and the sandbox must not reach by it what listens there. The last two are there where
//! some addresses stand for what it must not reach either, but may answer.

use super::{Batch, add_rule, message::*, open, perform};
use nix::errno::Errno;
use std::{net::Ipv4Addr, os::fd::OwnedFd};

const NFTA_META_IIFNAME: u32 = 6;
const NFTA_META_OIFNAME: u32 = 7;
const NFT_CMP_NEQ: u32 = 1;
const NFT_REG_2: u32 = 2;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
/// Chains: name, hook (NF_INET_POST_ROUTING, PRE_ROUTING, LOCAL_OUT) and priority, as NF_IP_PRI_NAT_SRC and _DST.
const CHAINS: [super::Chain; 3] = [("leaves", 4, 100), ("comes", 0, -100), ("own", 3, -100)];
/// NF_INET_PRE_ROUTING, before connections are tracked (NF_IP_PRI_RAW).
const GUARD: super::Chain = ("guard", 0, -300);
/// NF_INET_FORWARD, among all others (NF_IP_PRI_FILTER).
const WITHHOLDING: super::Chain = ("withholds", 2, 0);
/// linux/netfilter/nf_tables.h, and IP_CT_DIR_REPLY.
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_DIRECTION: u32 = 1;
const REPLY: u8 = 1;
/// Where the addresses are in a header of IP version 4.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// Bytes of a device's name with its NUL, IFNAMSIZ.
const NAME: usize = 16;

/// Who is reached by which device, and by which ports of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The host's device.
    pub device: String,
    /// The host's address on it.
    pub host: Ipv4Addr,
    /// The address inside.
    pub inside: Ipv4Addr,
    /// Ports of the host that are ports of the sandbox.
    pub published: Vec<PublishedPort>,
    /// The first three bytes of addresses that the sandbox may answer alone.
    pub withheld: Option<[u8; 3]>,
}

/// A port of the host that is a port of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub protocol: u8,
    /// The host's.
    pub host: u16,
    /// The sandbox's.
    pub inside: u16,
}

/// A way that is open as long as this is there: the kernel removes it with the socket, also where the process is killed.
#[derive(Debug)]
pub struct OpenWay {
    /// That owns the table.
    _socket: OwnedFd,
}

impl OpenWay {
    /// Opens it in the calling thread's network namespace, by a table of this name.
    ///
    /// # Errors
    /// EEXIST and EPERM where there is such a table; EOPNOTSUPP and EPROTONOSUPPORT where the kernel has no nf_tables, or none with
    /// owners (Linux 5.12); EPERM without CAP_NET_ADMIN.
    pub fn open(name: &str, way: &Way) -> Result<Self, Errno> {
        let socket = open()?;
        let mut batch = Batch::default();
        super::add_table(&mut batch, name, NFT_TABLE_F_OWNER, &[]);
        add(&mut batch, name, way);
        perform(&socket, &batch.finish())?;
        Ok(Self { _socket: socket })
    }
}

/// Adds the rules to a table.
pub(super) fn add(batch: &mut Batch, table: &str, way: &Way) {
    super::add_chains(batch, (table, "filter"), &[GUARD]);
    super::add_chains(batch, (table, "nat"), &CHAINS);
    let mut device = [0; NAME];
    for (slot, byte) in device.iter_mut().zip(way.device.bytes().take(NAME - 1)) {
        *slot = byte;
    }
    for address in [SOURCE, DESTINATION] {
        add_rule(batch, table, GUARD.0, |list| {
            list.compare_known(NFTA_META_IIFNAME, &device);
            list.compare_known(NFT_META_NFPROTO, &[NFPROTO_IPV4]);
            list.payload(NFT_REG_1, NFT_PAYLOAD_NETWORK_HEADER, address, 1);
            list.compare(&[127]);
            list.drop();
        });
    }
    if let Some(network) = way.withheld {
        withhold(batch, table, (network, &device));
    }
    let [leaves, comes, own] = CHAINS.map(|(chain, ..)| chain);
    for (source, operator) in [(&way.inside.octets()[..], NFT_CMP_NEQ), (&[127], NFT_CMP_EQ)] {
        add_rule(batch, table, leaves, |list| {
            list.compare_known(NFT_META_NFPROTO, &[NFPROTO_IPV4]);
            list.payload(NFT_REG_1, NFT_PAYLOAD_NETWORK_HEADER, SOURCE, source.len() as u32);
            list.compare(source);
            list.load_known(NFTA_META_OIFNAME);
            list.compare_by(operator, &device);
            if operator == NFT_CMP_NEQ {
                list.expression("masq", |_| {});
            } else {
                list.put(NFT_REG_1, &way.host.octets());
                list.expression("nat", |data| {
                    data.number(NFTA_NAT_TYPE, NFT_NAT_SNAT);
                    data.number(NFTA_NAT_FAMILY, NFPROTO_IPV4.into());
                    data.number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
                });
            }
        });
    }
    for chain in [comes, own] {
        for port in &way.published {
            add_rule(batch, table, chain, |list| publish(list, *port, way.inside));
        }
    }
}

fn withhold(batch: &mut Batch, table: &str, (network, device): ([u8; 3], &[u8; NAME])) {
    super::add_chains(batch, (table, "filter"), &[WITHHOLDING]);
    let to_network = |list: &mut Message<'_>| {
        list.compare_known(NFT_META_NFPROTO, &[NFPROTO_IPV4]);
        list.payload(NFT_REG_1, NFT_PAYLOAD_NETWORK_HEADER, DESTINATION, network.len() as u32);
        list.compare(&network);
    };
    add_rule(batch, table, WITHHOLDING.0, |list| {
        to_network(list);
        list.expression("ct", |data| {
            data.number(NFTA_CT_DREG, NFT_REG_1);
            data.number(NFTA_CT_KEY, NFT_CT_DIRECTION);
        });
        list.compare(&[REPLY]);
        list.accept();
    });
    // Whosever address it says that it comes from.
    add_rule(batch, table, WITHHOLDING.0, |list| {
        list.compare_known(NFTA_META_IIFNAME, device);
        to_network(list);
        list.drop();
    });
}

fn publish(list: &mut Message<'_>, port: PublishedPort, inside: Ipv4Addr) {
    list.compare_known(NFT_META_NFPROTO, &[NFPROTO_IPV4]);
    list.compare_known(NFT_META_L4PROTO, &[port.protocol]);
    list.payload(NFT_REG_1, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
    list.compare(&port.host.to_be_bytes());
    list.expression("fib", |data| {
        data.number(NFTA_FIB_DREG, NFT_REG_1);
        data.number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
        data.number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
    });
    list.compare(&RTN_LOCAL.to_ne_bytes());
    list.put(NFT_REG_1, &inside.octets());
    list.put(NFT_REG_2, &port.inside.to_be_bytes());
    list.expression("nat", |data| {
        data.number(NFTA_NAT_TYPE, NFT_NAT_DNAT);
        data.number(NFTA_NAT_FAMILY, NFPROTO_IPV4.into());
        data.number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
        data.number(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2);
    });
}
