//! The packet filter of a network namespace (nf_tables, x_tables, ipset) and the connections that it tracks. What they are is kept
//! as the kernel tells it: attributes of linux/netfilter/nf_tables.h, nfnetlink_conntrack.h and ipset/ip_set.h, one behind the other,
//! and entries of ip_tables.h, ip6_tables.h and arp_tables.h.

use serde::{Deserialize, Serialize};

/// Rules and tracked connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketFilterRecord {
    /// Tables, lowest handle first.
    pub tables: Vec<FilterTableRecord>,
    /// Connections that are tracked.
    pub connections: Vec<TrackedRecord>,
    /// Sets of ipset, lowest number first.
    pub sets: Vec<IpSetRecord>,
    /// Tables of x_tables, in the order in which they were made.
    pub legacy: Vec<LegacyTableRecord>,
}

/// A set of ipset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSetRecord {
    /// Its number among the sets of the namespace, by which rules of x_tables name it.
    pub index: u16,
    /// IPSET_ATTR_SETNAME, TYPENAME, REVISION, FAMILY and DATA.
    #[serde(with = "serde_bytes")]
    pub attributes: Vec<u8>,
    /// Of each element: what is in IPSET_ATTR_DATA.
    pub elements: Vec<Vec<u8>>,
}

impl IpSetRecord {
    /// The most numbers without a set, in all networks of a tree: each takes a wait of some milliseconds.
    pub const MOST_MISSING: u64 = 1024;
}

/// A table of x_tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyTableRecord {
    /// NFPROTO_IPV4, NFPROTO_ARP or NFPROTO_IPV6.
    pub family: u8,
    /// As `filter`.
    pub name: String,
    /// Hooks that it is at, a bit each.
    pub hooks: u32,
    /// Where in its entries each hook begins.
    pub begins: Vec<u32>,
    /// Where the entry is that decides where no other one does.
    pub ends: Vec<u32>,
    /// struct ipt_entry, ip6t_entry or arpt_entry, with matches and targets.
    #[serde(with = "serde_bytes")]
    pub entries: Vec<u8>,
}

/// A table of rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterTableRecord {
    /// NFPROTO_*.
    pub family: u8,
    /// Its number among the tables of the namespace.
    pub handle: u64,
    /// NFTA_TABLE_*.
    #[serde(with = "serde_bytes")]
    pub attributes: Vec<u8>,
    /// What is in it; rules of a chain in their order.
    pub parts: Vec<FilterPartRecord>,
}

/// Something in a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterPartRecord {
    /// What it is.
    pub kind: FilterPartKind,
    /// Its number in the table.
    pub handle: u64,
    /// NFTA_CHAIN_*, NFTA_OBJ_*, NFTA_SET_*, NFTA_FLOWTABLE_* or NFTA_RULE_*.
    #[serde(with = "serde_bytes")]
    pub attributes: Vec<u8>,
    /// Of each element of a set: NFTA_SET_ELEM_*.
    pub elements: Vec<Vec<u8>>,
}

/// What there is in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterPartKind {
    /// A chain.
    Chain,
    /// A counter, quota, limit or the like that has a name.
    Object,
    /// A set or map.
    Set,
    /// A flowtable.
    Flowtable,
    /// A rule.
    Rule,
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedRecord {
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// CTA_*, with the ends of answers as without translation, and CTA_NAT_* for that.
    #[serde(with = "serde_bytes")]
    pub attributes: Vec<u8>,
}
