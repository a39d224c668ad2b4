//! What is in network namespaces: found in some, made in others, and compared.
//!
//! A device can be on one that is in another namespace, so all of a tree are made together. Devices that go with files of the tree, as tuns do, are
//! others' business.
//!
//! Making follows from what the kernel does by itself: a device that is up gets addresses, an address brings routes. So each
//! table is looked at again, and what is there is made what it should be.

mod build;
mod compare;
mod find;
mod foreign;
mod outer;
mod rehearse;
mod settings;
mod space;
mod tables;
mod title;
mod traffic;

pub use build::{NetworkError, finish, make};
pub use compare::differences;
pub use find::{Carried, find};
pub use outer::{EndError, GivenEnd, GivenEnds, MadeEnds, OuterEnds, cut_off, obstacles};
pub use rehearse::rehearse;
pub use space::NetworkSpace;
pub use title::{addresses, own_addresses};
pub use traffic::shape;

use floe_image::record::{NetworkDeviceRecord, NetworkRecord};
use floe_sys::route::{Beyond, Device, namespace_number};
use nix::errno::Errno;
use serde_bytes::ByteBuf;
use std::{collections::BTreeMap, os::fd::BorrowedFd};

/// A network namespace that was made, and what is to be in it.
pub type Made<'a> = (&'a NetworkRecord, BorrowedFd<'a>);

/// The tree's other network namespaces, by the numbers that one gives them.
type Relatives = BTreeMap<i32, u32>;

/// Those of the calling thread's network namespace, among `all`.
fn relatives_here(all: &[(u32, BorrowedFd<'_>)]) -> Result<Relatives, Errno> {
    let known = all.iter().map(|(number, file)| Ok((namespace_number(*file)?, *number)));
    let known: Vec<_> = known.collect::<Result<_, Errno>>()?;
    Ok(known
        .into_iter()
        .filter_map(|(here, number)| Some((here?, number)))
        .collect())
}

/// A device as the record has it.
fn record_of(device: Device, (beyond, relatives): (&Beyond, &Relatives), inherited: bool) -> NetworkDeviceRecord {
    let link_namespace = beyond.namespace.and_then(|number| relatives.get(&number).copied());
    let is_known = beyond.namespace.is_none() || link_namespace.is_some();
    NetworkDeviceRecord {
        number: device.index,
        name: device.name,
        other_names: device.other_names.into_iter().map(ByteBuf::from).collect(),
        kind: device.kind,
        inherited,
        flags: device.flags,
        carrier: device.carrier,
        link: device.link.filter(|_| is_known),
        link_namespace,
        master: device.master,
        attributes: device.attributes,
        options: device.options,
        port: device.port,
        address_mode: device.address_mode,
        outer: None,
    }
}

/// The device of a record.
fn device_of(record: &NetworkDeviceRecord) -> Device {
    Device {
        index: record.number,
        name: record.name.clone(),
        other_names: record.other_names.iter().map(|name| name.to_vec()).collect(),
        kind: record.kind.clone(),
        flags: record.flags,
        carrier: record.carrier,
        link: record.link,
        master: record.master,
        attributes: record.attributes.clone(),
        options: record.options.clone(),
        port: record.port.clone(),
        address_mode: record.address_mode,
    }
}
