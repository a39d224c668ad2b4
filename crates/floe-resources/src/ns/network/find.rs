//! Finds what is in a network namespace, and what of it can't be carried.

use super::{as_seen_here, foreign, record_of, settings, tables, title};
use crate::{
    ns::{NsError, inside},
    refusal::Refusals,
};
use floe_image::record::{NetworkRecord, NetworkSetting};
use floe_sys::{
    Pid,
    route::{Beyond, DEVICE_KINDS, Device, Entry, Table, Unfit, devices},
};
use nix::sched::CloneFlags;
use serde_bytes::ByteBuf;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
};

/// What was seen in a namespace.
struct Seen {
    devices: Vec<(Device, Beyond)>,
    tables: Vec<(Table, Vec<Entry>)>,
    settings: settings::Settings,
    foreign: Vec<foreign::Finding>,
}

fn look() -> io::Result<Seen> {
    let devices = devices()?;
    let tables = Table::ALL
        .into_iter()
        .map(|table| Ok((table, table.entries()?)))
        .collect::<io::Result<_>>()?;
    Ok(Seen {
        foreign: foreign::look(&devices)?,
        devices,
        tables,
        settings: settings::read()?,
    })
}

/// What is in the network namespace of a task, but for the devices with the names `carried`, which go with files of the tree. Of
/// the device `joined` the other end is the host's, and it is made with the sandbox.
///
/// # Errors
/// [`NsError`].
pub fn find(
    pid: Pid,
    (carried, joined): (&HashSet<Vec<u8>>, Option<&str>),
    refusals: &mut Refusals,
) -> Result<NetworkRecord, NsError> {
    let (seen, new) = std::thread::scope(|scope| {
        let new = scope.spawn(|| inside::in_new_network(|| Ok((devices()?, settings::read()?))));
        let seen = inside::run(pid, CloneFlags::CLONE_NEWNET, look);
        (
            seen,
            new.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    let (seen, (new_devices, new_settings)) = (seen?, new?);
    let inherited = |device: &Device| {
        let mut new = new_devices.iter();
        new.any(|(new, _)| new.index == device.index && new.kind == device.kind)
    };
    for (object, reason, advice) in seen.foreign {
        refusals.add(None, object, reason, advice);
    }
    let (gone_with, own): (Vec<_>, Vec<_>) =
        (seen.devices.into_iter()).partition(|(one, _)| carried.contains(&one.name));
    let gone_with: BTreeSet<u32> = gone_with.into_iter().map(|(device, _)| device.index).collect();
    let kinds: BTreeMap<u32, String> = own.iter().map(|(one, _)| (one.index, one.kind.clone())).collect();
    let mut record = NetworkRecord::default();
    for (device, beyond) in own {
        let joins = beyond.namespace.is_some() && joined.is_some_and(|name| name.as_bytes() == device.name);
        let inherited = joins || inherited(&device);
        if let Some((reason, advice)) = obstacle(&device, &beyond, (inherited, joins, &kinds)) {
            refusals.add(None, title::device(&device.name, &device.kind), reason, advice);
        }
        record.devices.push(record_of(as_seen_here(device, &beyond), inherited));
    }
    for (table, entries) in seen.tables {
        let kept = entries
            .into_iter()
            .filter_map(|entry| kept(table, entry, &gone_with, refusals));
        *tables::of_mut(&mut record, table) = kept.map(ByteBuf::from).collect();
    }
    // Others get it by themselves when they are made.
    let inherited = |path: &[u8]| {
        let mut all = record.devices.iter().filter(|device| device.inherited);
        settings::device(path).is_none_or(|device| all.any(|own| own.name == device))
    };
    record.settings = (seen.settings.iter())
        .filter(|(path, value)| inherited(path) || !settings::is_as_by_default(path, value, &seen.settings))
        .map(|(path, value)| NetworkSetting {
            path: path.clone(),
            value: value.clone(),
            usual: settings::is_usual(path, value, &new_settings),
        })
        .collect();
    Ok(record)
}

/// Why a device can't be carried, and what to do.
fn obstacle(
    device: &Device,
    beyond: &Beyond,
    (inherited, joins, kinds): (bool, bool, &BTreeMap<u32, String>),
) -> Option<(String, &'static str)> {
    const REMOVE: &str = "remove it, or use --net host";
    let outside = if device.kind == "veth" {
        "its other end is in another network namespace"
    } else {
        "the device that it is on is in another network namespace"
    };
    let is_there = |other: Option<u32>| other.is_none_or(|other| kinds.contains_key(&other));
    if beyond.namespace.is_some() && !joins {
        return Some((outside.to_owned(), REMOVE));
    }
    if beyond.program {
        return Some(("a program sees its packets (XDP)".to_owned(), "detach the program"));
    }
    if beyond.token {
        let reason = "it has a half of an address of IPv6 (ip token)";
        return Some((reason.to_owned(), "unset the token"));
    }
    if inherited {
        return None;
    }
    if device.kind.is_empty() {
        return Some(("it was brought here from outside".to_owned(), REMOVE));
    }
    if !DEVICE_KINDS.iter().any(|(kind, _)| *kind == device.kind) {
        return Some(("devices of this kind are not carried".to_owned(), REMOVE));
    }
    if device.kind == "veth" && device.link.is_none() || !is_there(device.link) {
        return Some((outside.to_owned(), REMOVE));
    }
    if !is_there(device.master) {
        return Some(("it is a part of a device that goes with a file".to_owned(), REMOVE));
    }
    foreign::option(device).map(|reason| (reason.to_owned(), REMOVE))
}

/// What is kept of an entry.
fn kept(table: Table, entry: Entry, gone_with: &BTreeSet<u32>, refusals: &mut Refusals) -> Option<Vec<u8>> {
    let mut refuse = |raw: &[u8], reason: String| {
        refusals.add(None, title::entry(table, raw), reason, "remove it, or use --net host");
    };
    match entry {
        Ok(entry) => {
            let about = table.devices(&entry);
            let gone = about.iter().filter(|device| gone_with.contains(device)).count();
            let goes_with = matches!(table, Table::Addresses | Table::Routes) && gone == about.len();
            if gone == 0 {
                return Some(entry);
            }
            if !goes_with {
                refuse(&entry, "it is about a device that goes with a file".to_owned());
            }
            None
        }
        Err((raw, Unfit::Attribute(kind))) => {
            refuse(
                &raw,
                format!("it has something that floe does not know (attribute {kind})"),
            );
            None
        }
        Err((raw, Unfit::Address(reason))) => {
            refuse(&raw, reason.to_owned());
            None
        }
        Err((raw, Unfit::Short)) => {
            refuse(&raw, "floe can't read it".to_owned());
            None
        }
    }
}
