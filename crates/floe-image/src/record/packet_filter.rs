//! The packet filter of a network namespace (nf_tables) and the connections that it tracks. What they are is kept as netlink
//! tells it: attributes of linux/netfilter/nf_tables.h and nfnetlink_conntrack.h, one behind the other.

use serde::{Deserialize, Serialize};

/// Rules and tracked connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketFilterRecord {
    /// Tables, lowest handle first.
    pub tables: Vec<FilterTableRecord>,
    /// Connections that are tracked.
    pub connections: Vec<TrackedRecord>,
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
