//! Network devices: linux/if_link.h.

use super::message::{Request, attribute, attributes};
use nix::errno::Errno;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER: u16 = 33;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

/// Of a tun or tap.
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_PI: u16 = 4;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// `struct ifinfomsg`: family, type, index, flags, which of them.
const LINK_HEAD: usize = 16;

/// A network device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// IFF_*.
    pub flags: u32,
    /// Bytes of its largest packet.
    pub mtu: u32,
    /// How many packets wait at most.
    pub queue: u32,
    /// Its hardware address; empty where it has none.
    pub address: Vec<u8>,
    /// The device that it is a part of.
    pub master: Option<u32>,
    /// Whether there is a line.
    pub carrier: bool,
    /// What it is as a tun or tap.
    pub tun: Option<TunLink>,
}

/// Of a tun or tap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunLink {
    /// Who may attach to it.
    pub owner: Option<u32>,
    /// Which group may.
    pub group: Option<u32>,
    /// Whether packets are preceded by what they are.
    pub information: bool,
    /// Whether it stays when nobody has it.
    pub persist: bool,
    /// How many files have it, those that are switched off too; `None` for one that is for one file.
    pub queues: Option<u32>,
}

/// The device with a name.
///
/// # Errors
/// ENODEV.
pub fn link(name: &[u8]) -> Result<Link, Errno> {
    let mut body = vec![0; LINK_HEAD];
    attribute(&mut body, IFLA_IFNAME, &[name, &[0]].concat());
    let answers = Request::new(RTM_GETLINK, 0, &body).answers()?;
    let answer = answers.first().ok_or(Errno::EPROTO)?;
    parse(answer).ok_or(Errno::EPROTO)
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

fn parse(answer: &[u8]) -> Option<Link> {
    let mut found = Link {
        index: number(answer.get(4..)?)?,
        flags: number(answer.get(8..)?)?,
        ..Link::default()
    };
    for (kind, value) in attributes(answer.get(LINK_HEAD..)?) {
        match kind {
            IFLA_ADDRESS => found.address = value.to_vec(),
            IFLA_MTU => found.mtu = number(value)?,
            IFLA_TXQLEN => found.queue = number(value)?,
            IFLA_MASTER => found.master = number(value),
            IFLA_CARRIER => found.carrier = value.first() == Some(&1),
            IFLA_LINKINFO => found.tun = tun(value),
            _ => {}
        }
    }
    Some(found)
}

fn tun(information: &[u8]) -> Option<TunLink> {
    let of = |wanted| attributes(information).find(|(kind, _)| *kind == wanted);
    let (_, name) = of(IFLA_INFO_KIND)?;
    if name.strip_suffix(&[0]).unwrap_or(name) != b"tun" {
        return None;
    }
    let mut found = TunLink::default();
    let (mut queues, mut disabled) = (None, 0);
    for (kind, value) in attributes(of(IFLA_INFO_DATA)?.1) {
        let is_set = value.first() == Some(&1);
        match kind {
            IFLA_TUN_OWNER => found.owner = number(value),
            IFLA_TUN_GROUP => found.group = number(value),
            IFLA_TUN_PI => found.information = is_set,
            IFLA_TUN_PERSIST => found.persist = is_set,
            IFLA_TUN_NUM_QUEUES => queues = number(value),
            IFLA_TUN_NUM_DISABLED_QUEUES => disabled = number(value)?,
            _ => {}
        }
    }
    found.queues = queues.map(|queues| queues + disabled);
    Some(found)
}

/// Gives a device the size, the queue, the hardware address (where there is one) and those of the flags that are in `which`.
///
/// # Errors
/// Those of netlink.
pub fn set_link(index: u32, like: &Link, which: u32) -> Result<(), Errno> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend((like.flags & which).to_ne_bytes());
    body.extend(which.to_ne_bytes());
    attribute(&mut body, IFLA_MTU, &like.mtu.to_ne_bytes());
    attribute(&mut body, IFLA_TXQLEN, &like.queue.to_ne_bytes());
    if !like.address.is_empty() {
        attribute(&mut body, IFLA_ADDRESS, &like.address);
    }
    Request::new(RTM_NEWLINK, 0, &body).perform()
}
