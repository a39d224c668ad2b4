//! A tun or tap: what it is, and how it is made again.

use floe_sys::{
    ethtool, route,
    tun::{self, Setting},
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::{io, os::fd::BorrowedFd};

/// The object behind files that have it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Device {
    #[serde(with = "serde_bytes")]
    pub(super) name: Vec<u8>,
    /// IFF_* of linux/if_tun.h.
    pub(super) kind: u16,
    /// Whether it stays when nobody has it.
    pub(super) persist: bool,
    owner: Option<u32>,
    group: Option<u32>,
    /// Bytes that may be on their way, and in front of each packet.
    send_buffer: u32,
    header_bytes: u32,
    /// Whether numbers there are little-endian, and big-endian, whatever the machine is.
    endian: [bool; 2],
    /// TUN_F_*.
    offload: u32,
    /// IFF_* of net/if.h that may be set.
    flags: u32,
    mtu: u32,
    queue: u32,
    #[serde(with = "serde_bytes")]
    address: Vec<u8>,
    carrier: bool,
    /// Messages of rtnetlink without heads.
    addresses: Vec<ByteBuf>,
    routes: Vec<ByteBuf>,
}

/// IFF_NO_PI, IFF_TUN_EXCL.
const NO_INFORMATION: u16 = 0x1000;
const EXCLUSIVE: u16 = 0x8000;
/// What a device is made with: IFF_TUN, _TAP, _NAPI, _NAPI_FRAGS, _MULTI_QUEUE, _VNET_HDR.
const KIND: u16 = 0x1 | 0x2 | 0x10 | 0x20 | 0x100 | 0x4000;

const UP: u32 = libc::IFF_UP as u32;
/// What may be set of a device: IFF_UP comes when all else is as it was.
const FLAGS: u32 = (libc::IFF_NOARP
    | libc::IFF_PROMISC
    | libc::IFF_ALLMULTI
    | libc::IFF_MULTICAST
    | libc::IFF_DEBUG
    | libc::IFF_DYNAMIC) as u32;

/// TUN_F_*, and what a device then does.
const OFFLOADS: [(u32, &str); 5] = [
    (1, "tx-checksum-ip-generic"),
    (2, "tx-tcp-segmentation"),
    (4, "tx-tcp6-segmentation"),
    (8, "tx-tcp-ecn-segmentation"),
    (0x60, "tx-udp-segmentation"),
];

impl Device {
    /// The device of a file, in the network namespace of the calling thread; how many files have it, where it can be several.
    pub(super) fn look(file: BorrowedFd<'_>, name: &[u8], flags: u16) -> io::Result<(Self, Option<u32>)> {
        let link = route::link(name)?;
        let own = link.tun.ok_or_else(|| io::Error::other("it is no tun"))?;
        if link.master.is_some() {
            return Err(io::Error::other("it is a part of another device"));
        }
        let no_information = if own.information { 0 } else { NO_INFORMATION };
        let features = ethtool::active_features(name)?;
        let active = OFFLOADS
            .iter()
            .filter(|(_, feature)| features.iter().any(|name| name == feature));
        // Kernels without one of the two say so.
        let endian = |setting: Setting| match setting.get(file) {
            Ok(value) => Ok(value != 0),
            Err(Errno::EINVAL) => Ok(false),
            Err(error) => Err(error),
        };
        let raw = |all: Vec<Vec<u8>>| all.into_iter().map(ByteBuf::from).collect();
        let device = Self {
            name: name.to_vec(),
            kind: flags & KIND | no_information,
            persist: own.persist,
            owner: own.owner,
            group: own.group,
            send_buffer: Setting::SendBuffer.get(file)?,
            header_bytes: Setting::HeaderBytes.get(file)?,
            endian: [endian(Setting::LittleEndian)?, endian(Setting::BigEndian)?],
            offload: active.fold(0, |all, (bits, _)| all | bits),
            flags: link.flags & (FLAGS | UP),
            mtu: link.mtu,
            queue: link.queue,
            // A tun has none.
            address: if flags & 2 != 0 { link.address } else { Vec::new() },
            carrier: link.carrier,
            addresses: raw(route::addresses(link.index)?),
            routes: raw(route::routes(link.index)?),
        };
        Ok((device, own.queues))
    }

    /// Gives a file its device. The `first` one makes it, unless it is one that has stayed.
    pub(super) fn attach(&self, file: BorrowedFd<'_>, first: bool) -> io::Result<()> {
        let is_there = match route::link(&self.name) {
            Ok(_) => true,
            Err(Errno::ENODEV) => false,
            Err(error) => return Err(error.into()),
        };
        if first && is_there && !self.persist {
            return Err(Errno::EEXIST.into());
        }
        let exclusive = if first && !is_there { EXCLUSIVE } else { 0 };
        tun::attach(file, &self.name, self.kind & (KIND | NO_INFORMATION) | exclusive)?;
        if first {
            self.set(file)?;
        }
        if is_there {
            return Ok(());
        }
        if !self.carrier && self.flags & UP != 0 {
            Setting::Carrier.set(file, 0)?;
        }
        self.set_link()?;
        if self.persist {
            Setting::Persist.set(file, 1)?;
        }
        Ok(())
    }

    /// What is the business of who has it.
    fn set(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Setting::HeaderBytes.set(file, self.header_bytes)?;
        Setting::SendBuffer.set(file, self.send_buffer)?;
        for (setting, is_set) in [Setting::LittleEndian, Setting::BigEndian].into_iter().zip(self.endian) {
            if is_set {
                setting.set(file, 1)?;
            }
        }
        for (setting, id) in [(Setting::Owner, self.owner), (Setting::Group, self.group)] {
            if let Some(id) = id {
                setting.set(file, id)?;
            }
        }
        if self.offload != 0 {
            Setting::Offload.set(file, self.offload)?;
        }
        Ok(())
    }

    fn set_link(&self) -> io::Result<()> {
        let index = route::link(&self.name)?.index;
        let like = route::Link {
            flags: self.flags,
            mtu: self.mtu,
            queue: self.queue,
            address: self.address.clone(),
            ..route::Link::default()
        };
        route::set_link(index, &like, FLAGS)?;
        route::set_link(index, &like, FLAGS | UP)?;
        // The kernel gives a device that is up an address by itself.
        let is = |one: &[u8], other: &[u8]| one.get(..2) == other.get(..2) && local(one) == local(other);
        for address in route::addresses(index)? {
            if !self.addresses.iter().any(|own| is(own, &address)) {
                route::remove_address(index, &address)?;
            }
        }
        for address in &self.addresses {
            route::add_address(index, address)?;
        }
        for one in &self.routes {
            route::add_route(index, one)?;
        }
        Ok(())
    }
}

/// The address itself: IFA_LOCAL, or else IFA_ADDRESS.
fn local(address: &[u8]) -> Option<Vec<u8>> {
    let of = |wanted| {
        let mut all = route::attributes(address.get(8..)?);
        all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec())
    };
    of(2).or_else(|| of(1))
}
