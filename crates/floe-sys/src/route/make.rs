//! Making network devices: RTM_NEWLINK, linux/if_link.h and linux/veth.h.

use super::message::{Request, attribute};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `struct ifinfomsg`.
const HEAD: usize = 16;
const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// One end of a pair of devices (veth(4)).
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address; any where `None`.
    pub address: Option<[u8; 6]>,
    /// Its number; any where 0.
    pub index: u32,
    /// The network namespace that it is in; the calling thread's where `None`.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// Makes a pair of devices that are each other's other ends.
///
/// # Errors
/// Those of netlink: EEXIST where there is such a device, EOPNOTSUPP where the kernel has none of this kind.
pub fn make_veth(one: &VethEnd<'_>, other: &VethEnd<'_>) -> Result<(), Errno> {
    let mut peer = Vec::new();
    attribute(&mut peer, VETH_INFO_PEER, &end(other));
    make(end(one), "veth", &peer)
}

/// Makes a bridge without any part.
///
/// # Errors
/// Those of netlink, as for [`make_veth`].
pub fn make_bridge(name: &[u8]) -> Result<(), Errno> {
    let mut body = vec![0; HEAD];
    attribute(&mut body, IFLA_IFNAME, &[name, &[0]].concat());
    make(body, "bridge", &[])
}

fn end(end: &VethEnd<'_>) -> Vec<u8> {
    let mut body = vec![0; HEAD];
    body[4..8].copy_from_slice(&end.index.to_ne_bytes());
    attribute(&mut body, IFLA_IFNAME, &[end.name.as_bytes(), &[0]].concat());
    if let Some(address) = end.address {
        attribute(&mut body, IFLA_ADDRESS, &address);
    }
    if let Some(namespace) = end.namespace {
        attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    }
    body
}

fn make(mut body: Vec<u8>, kind: &str, data: &[u8]) -> Result<(), Errno> {
    let mut information = Vec::new();
    attribute(&mut information, IFLA_INFO_KIND, kind.as_bytes());
    if !data.is_empty() {
        attribute(&mut information, IFLA_INFO_DATA, data);
    }
    attribute(&mut body, IFLA_LINKINFO, &information);
    Request::new(RTM_NEWLINK, NEW, &body).perform()
}

/// Takes a device away, by its number: its name may be another's by now.
///
/// # Errors
/// ENODEV where there is none of this number.
pub fn remove(index: u32) -> Result<(), Errno> {
    let mut body = vec![0; HEAD];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    Request::new(RTM_DELLINK, 0, &body).perform()
}
