//! What is in a network namespace: found in one, made in another one, and compared.
//!
//! All functions are about *a* namespace, which a task is in. Devices that go with files of the tree, as tuns do, are
//! others' business, and so is what packets are filtered by.
//!
//! Making follows from what the kernel does by itself: a device that is up gets addresses, an address brings routes. So each
//! table is looked at again, and what is there is made what it should be.

mod build;
mod compare;
mod find;
mod foreign;
mod settings;
mod tables;
mod title;

pub use build::{NetworkError, finish, make, rehearse};
pub use compare::differences;
pub use find::find;

use floe_image::record::NetworkDeviceRecord;
use floe_sys::route::{Beyond, Device};
use serde_bytes::ByteBuf;

/// A device as the record has it.
fn record_of(device: Device, inherited: bool) -> NetworkDeviceRecord {
    NetworkDeviceRecord {
        number: device.index,
        name: device.name,
        other_names: device.other_names.into_iter().map(ByteBuf::from).collect(),
        kind: device.kind,
        inherited,
        flags: device.flags,
        carrier: device.carrier,
        link: device.link,
        master: device.master,
        attributes: device.attributes,
        options: device.options,
        port: device.port,
        address_mode: device.address_mode,
    }
}

/// Without what it is in another network namespace's view.
fn as_seen_here(mut device: Device, beyond: &Beyond) -> Device {
    if beyond.namespace.is_some() {
        device.link = None;
    }
    device
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
