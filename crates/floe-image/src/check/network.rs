//! Networks: devices with names and numbers of their own, which stand on each other, and settings that lead nowhere else.
//! What the kernel's own words mean, the kernel checks.

use super::{ensure, is_path, packet_filter::are_attributes};
use crate::{
    Image,
    record::{NamespaceContents, NamespaceOrigin, NetworkDeviceRecord, NetworkRecord, NetworkSetting, OuterEndRecord},
};
use serde_bytes::ByteBuf;
use std::collections::HashSet;

/// IFNAMSIZ, ALTIFNAMSIZ of linux/if.h.
const NAME_BYTES: usize = 16;
const OTHER_NAME_BYTES: usize = 128;
/// How long a message and a setting can be. An attribute says its length in 16 bits.
const MOST_BYTES: usize = 60_000;
/// How long all attributes of a device can be: they are told to the kernel within others, some longer than they are here.
const MOST_OF_DEVICE: usize = 16_384;

/// A network that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkFault {
    /// Others than its network namespaces, or in another order.
    #[error("its networks are not those of its network namespaces")]
    Namespaces,
    /// A device.
    #[error("network device {number} {fault}")]
    Device {
        /// Its number.
        number: u32,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// An entry of a table.
    #[error("entry {position} of the {table} of a network is too long")]
    Entry {
        /// The table.
        table: &'static str,
        /// Its position.
        position: usize,
    },
    /// A setting.
    #[error("setting {position} of a network {fault}")]
    Setting {
        /// Its position.
        position: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

pub(super) fn check(image: &Image) -> Result<(), NetworkFault> {
    let networks = image.networks();
    let own = image.sandbox().net == NamespaceOrigin::Own;
    let others = (1..).zip(&image.sandbox().namespaces);
    let others = others.filter(|(_, record)| record.contents == NamespaceContents::Network);
    let all = own.then_some(0).into_iter().chain(others.map(|(number, _)| number));
    let same = networks.iter().map(|record| record.namespace).eq(all);
    ensure(same, || NetworkFault::Namespaces)?;
    let devices = networks.iter().flat_map(|record| {
        let numbers = record.devices.iter().map(|device| device.number);
        numbers.map(|number| (record.namespace, number))
    });
    let devices = devices.collect();
    networks.iter().try_for_each(|record| one(record, &devices))
}

/// Network namespaces and the numbers of devices in them.
type Devices = HashSet<(u32, u32)>;

fn one(record: &NetworkRecord, devices: &Devices) -> Result<(), NetworkFault> {
    let mut names = HashSet::new();
    let mut last = 0;
    for found in &record.devices {
        let number = found.number;
        let bad = |fault| move || NetworkFault::Device { number, fault };
        ensure(number > last && i32::try_from(number).is_ok(), bad("is out of order"))?;
        last = number;
        device(found, record.namespace, devices).map_err(|fault| NetworkFault::Device { number, fault })?;
        let all = found.other_names.iter().map(|name| name.as_slice());
        for name in all.chain([found.name.as_slice()]) {
            ensure(names.insert(name), bad("has the name of another one"))?;
        }
    }
    tables(record)?;
    for (position, found) in record.settings.iter().enumerate() {
        setting(found).map_err(|fault| NetworkFault::Setting { position, fault })?;
    }
    Ok(())
}

fn device(record: &NetworkDeviceRecord, namespace: u32, devices: &Devices) -> Result<(), &'static str> {
    ensure(is_name(&record.name, NAME_BYTES), || "has an impossible name")?;
    let mut others = record.other_names.iter();
    ensure(
        others.all(|name| is_name(name, OTHER_NAME_BYTES)),
        || "has an impossible other name",
    )?;
    let is_there = |namespace: u32, other: u32| devices.contains(&(namespace, other));
    let related = |other: Option<u32>| other.is_none_or(|other| other != record.number && is_there(namespace, other));
    let is_on = match (record.link_namespace, record.link) {
        (None, link) => related(link),
        (Some(elsewhere), Some(link)) => elsewhere != namespace && is_there(elsewhere, link),
        (Some(_), None) => false,
    };
    ensure(is_on, || "is on one that is not there")?;
    ensure(related(record.master), || "is a part of one that is not there")?;
    ensure(record.inherited || !record.kind.is_empty(), || "is of no kind")?;
    let is_pair = record.kind == "veth" && !record.inherited;
    ensure(
        is_pair || record.outer.is_none(),
        || "has an end at the host, and is no pair",
    )?;
    let ends = usize::from(record.link.is_some()) + usize::from(record.outer.is_some());
    ensure(!is_pair || ends == 1, || "has not one other end")?;
    ensure(
        record.outer.as_ref().is_none_or(is_outer_end),
        || "has an end at the host with an impossible name",
    )?;
    let lists = [&record.attributes, &record.options, &record.port];
    let length: usize = lists.iter().map(|list| list.len()).sum();
    ensure(length <= MOST_OF_DEVICE, || "has attributes that are too long")?;
    let whole = lists.iter().all(|list| list.is_empty() || are_attributes(list));
    ensure(whole, || "has no attributes of netlink")
}

fn is_outer_end(record: &OuterEndRecord) -> bool {
    let mut names = record
        .bridge
        .iter()
        .map(|name| name.as_slice())
        .chain([&record.name[..]]);
    names.all(|name| is_name(name, NAME_BYTES))
}

/// As dev_valid_name() of the kernel has it.
fn is_name(name: &[u8], limit: usize) -> bool {
    let odd = |byte: &u8| matches!(byte, 0 | b'/' | b':') || byte.is_ascii_whitespace() || *byte == 0x0b;
    !name.is_empty() && name.len() < limit && name != b"." && name != b".." && !name.iter().any(odd)
}

fn tables(record: &NetworkRecord) -> Result<(), NetworkFault> {
    let tables: [(&'static str, &[ByteBuf]); 11] = [
        ("addresses", &record.addresses),
        ("labels", &record.labels),
        ("next hops", &record.next_hops),
        ("routes", &record.routes),
        ("rules", &record.rules),
        ("neighbours", &record.neighbours),
        ("proxies", &record.proxies),
        ("frames", &record.frames),
        ("queueing disciplines", &record.traffic.disciplines),
        ("queueing classes", &record.traffic.classes),
        ("queueing filters", &record.traffic.filters),
    ];
    for (table, entries) in tables {
        let long = entries.iter().position(|entry| entry.len() > MOST_BYTES);
        if let Some(position) = long {
            return Err(NetworkFault::Entry { table, position });
        }
    }
    Ok(())
}

fn setting(record: &NetworkSetting) -> Result<(), &'static str> {
    let mut steps = record.path.split(|byte| *byte == b'/');
    let leads_down = is_path(&record.path) && steps.all(|step| !matches!(step, b"" | b"." | b".."));
    ensure(leads_down, || "is not below the settings of networks")?;
    let fits = record.value.len() <= MOST_BYTES && !record.value.contains(&0);
    ensure(fits, || "has an impossible value")
}
