//! What is in a network namespace: devices, addresses, routes, and what is set.
//!
//! Much of it is in the kernel's own words: attributes and messages of rtnetlink(7), without what goes before them, in the
//! byte order of the machine.

use super::PacketFilterRecord;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A network namespace of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its number; 0 is that of the tree's root, where it is its own.
    pub namespace: u32,
    /// Devices, by number. Not those that go with files of the tree, as tuns do.
    pub devices: Vec<NetworkDeviceRecord>,
    /// Messages RTM_NEWADDR: addresses of devices.
    pub addresses: Vec<ByteBuf>,
    /// RTM_NEWADDRLABEL: which of several addresses is chosen.
    pub labels: Vec<ByteBuf>,
    /// RTM_NEWNEXTHOP: next hops with numbers.
    pub next_hops: Vec<ByteBuf>,
    /// RTM_NEWROUTE: routes of all tables.
    pub routes: Vec<ByteBuf>,
    /// RTM_NEWRULE: which tables of routes are asked.
    pub rules: Vec<ByteBuf>,
    /// RTM_NEWNEIGH: neighbours that are not found by asking.
    pub neighbours: Vec<ByteBuf>,
    /// RTM_NEWNEIGH with NTF_PROXY: addresses that are answered for.
    pub proxies: Vec<ByteBuf>,
    /// RTM_NEWNEIGH of AF_BRIDGE: where bridges and tunnels send frames.
    pub frames: Vec<ByteBuf>,
    /// What is in /proc/sys/net and can be written, but what devices have because new ones have it (`conf/default`).
    pub settings: Vec<NetworkSetting>,
    /// What packets are filtered by.
    pub filter: PacketFilterRecord,
    /// How devices queue what they send.
    pub traffic: TrafficRecord,
}

/// How devices queue what they send (tc(8)): messages with `struct tcmsg`, in an order in which they can be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRecord {
    /// RTM_NEWQDISC: queueing disciplines.
    pub disciplines: Vec<ByteBuf>,
    /// RTM_NEWTCLASS: their classes.
    pub classes: Vec<ByteBuf>,
    /// RTM_NEWTFILTER: filters that choose among these.
    pub filters: Vec<ByteBuf>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDeviceRecord {
    /// Its number.
    pub number: u32,
    /// Its name.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Other names of its.
    pub other_names: Vec<ByteBuf>,
    /// What it was made as (IFLA_INFO_KIND); empty for `lo`.
    pub kind: String,
    /// Whether a new network namespace has it by itself.
    pub inherited: bool,
    /// IFF_* of net/if.h that can be set.
    pub flags: u32,
    /// Whether there is a line.
    pub carrier: bool,
    /// Number of the device that it is on; of a veth, of the other end.
    pub link: Option<u32>,
    /// Number of the network namespace that this one is in, where it is another one of the tree.
    pub link_namespace: Option<u32>,
    /// Number of the device that it is a part of.
    pub master: Option<u32>,
    /// Attributes of RTM_NEWLINK: address, largest packet, queue and so on.
    #[serde(with = "serde_bytes")]
    pub attributes: Vec<u8>,
    /// Attributes of its kind (IFLA_INFO_DATA).
    #[serde(with = "serde_bytes")]
    pub options: Vec<u8>,
    /// Attributes that it has as a bridge's port (IFLA_INFO_SLAVE_DATA).
    #[serde(with = "serde_bytes")]
    pub port: Vec<u8>,
    /// How it gets its own address of IPv6 (IN6_ADDR_GEN_MODE_*), where it has IPv6.
    pub address_mode: Option<u8>,
    /// Of a veth, the other end where that was the host's.
    pub outer: Option<OuterEndRecord>,
}

/// What the host's end of a pair of devices was. It is told to who restores the image, and nothing is made after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OuterEndRecord {
    /// Its name.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The name of the bridge that it was a part of.
    pub bridge: Option<ByteBuf>,
}

/// A file below /proc/sys/net.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSetting {
    /// Its path from there.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What is in it, without the end of the line.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// Whether a new network namespace of the source host had the same.
    pub usual: bool,
}
