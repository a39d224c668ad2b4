//! Finds what is in network namespaces, and what of it can't be carried.

use super::{NetworkSpace, Relatives, foreign, outer, record_of, relatives_here, settings, tables, title, traffic};
use crate::{
    ns::{
        NsError, Others,
        inside::{self, run_in},
        make_namespace, packet_filter,
    },
    refusal::Refusals,
};
use floe_image::record::{NamespaceContents, NamespaceOrigin, NetworkDeviceRecord, NetworkRecord, NetworkSetting};
use floe_sys::route::{Beyond, DEVICE_KINDS, Device, Entry, Strange, Table, Traffic, Unfit, devices, namespace_number};
use serde_bytes::ByteBuf;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    os::fd::{AsFd, BorrowedFd},
};

/// Kinds of devices that can be on one in another network namespace, or be one end of a pair that leads there.
const REACHING: [&str; 4] = ["ipvlan", "macvlan", "veth", "vlan"];
const REMOVE: &str = "remove it, or use --net host";

/// What was seen in a namespace.
struct Seen {
    devices: Vec<(Device, Beyond)>,
    relatives: Relatives,
    /// The number that it has for floe's own.
    host: Option<i32>,
    tables: Vec<(Table, Vec<Entry>)>,
    settings: settings::Settings,
    foreign: Vec<foreign::Finding>,
    traffic: (Traffic, Vec<Strange>),
}

fn look(all: &[(u32, BorrowedFd<'_>)], own: BorrowedFd<'_>) -> io::Result<Seen> {
    let devices = devices()?;
    let tables = Table::ALL
        .into_iter()
        .map(|table| Ok((table, table.entries()?)))
        .collect::<io::Result<_>>()?;
    Ok(Seen {
        foreign: foreign::look(&devices)?,
        devices,
        relatives: relatives_here(all)?,
        host: namespace_number(own)?,
        tables,
        settings: settings::read()?,
        traffic: Traffic::read()?,
    })
}

/// Network devices that go with files of the tree: number of the network namespace, and name.
pub type Carried = HashSet<(u32, Vec<u8>)>;

/// What is in all network namespaces of a tree but the host's, that of the tree's root first, without the devices `carried`. Of
/// the root's device `joined` the other end is the host's, and it is made with the sandbox.
///
/// # Errors
/// [`NsError`].
pub fn find(
    others: &Others,
    origin: NamespaceOrigin,
    (carried, joined): (&Carried, Option<&str>),
    refusals: &mut Refusals,
) -> Result<Vec<NetworkRecord>, NsError> {
    let unreadable = |source| NsError::Read {
        path: "a network namespace".to_owned(),
        source,
    };
    let spaces = others
        .networks()
        .filter(|space| space.number != 0 || origin == NamespaceOrigin::Own);
    let spaces = spaces.map(|space| Ok((space.file()?, space)));
    let spaces: Vec<_> = spaces.collect::<io::Result<_>>().map_err(unreadable)?;
    let all: Vec<_> = spaces
        .iter()
        .map(|(file, space)| (space.number, file.as_fd()))
        .collect();
    let own = outer::own_namespace().map_err(unreadable)?;
    let mut records = Vec::with_capacity(spaces.len());
    for (_, space) in &spaces {
        let joined = joined.filter(|_| space.number == 0);
        let carried = carried.iter().filter(|(network, _)| *network == space.number);
        let carried = carried.map(|(_, name)| name.as_slice()).collect();
        let (seen, fresh) = std::thread::scope(|scope| {
            let owner = others.owner(space.number);
            let fresh = scope.spawn(move || look_at_new(owner));
            let seen = space.run(|| look(&all, own.as_fd()));
            (
                seen,
                fresh.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        let mut record = one(
            (seen?, fresh.map_err(NsError::New)?),
            (space, &carried, joined),
            refusals,
        )
        .map_err(unreadable)?;
        record.filter = packet_filter::dump(space, others.owner(space.number), refusals)?;
        records.push(record);
    }
    refuse_unreached(&records, &spaces, refusals);
    packet_filter::refuse_crowd(records.iter().map(|record| &record.filter), refusals);
    Ok(records)
}

/// Devices and settings of a new network namespace: who owns it decides which settings it has.
type Fresh = (Vec<(Device, Beyond)>, settings::Settings);

fn look_at_new(owner: Option<BorrowedFd<'_>>) -> io::Result<Fresh> {
    let look = || Ok((devices()?, settings::read()?));
    match owner {
        Some(_) => run_in(make_namespace(&NamespaceContents::Network, owner, &[])?.as_fd(), look),
        None => inside::in_new_network(look).map_err(io::Error::other),
    }
}

/// Refuses devices that are on one in another network namespace which goes with a file.
fn refuse_unreached<T>(records: &[NetworkRecord], spaces: &[(T, NetworkSpace)], refusals: &mut Refusals) {
    let is_there = |device: &NetworkDeviceRecord| {
        let Some(elsewhere) = device.link_namespace else {
            return true;
        };
        let mut all = records.iter().filter(|record| record.namespace == elsewhere);
        all.any(|record| record.devices.iter().any(|other| Some(other.number) == device.link))
    };
    for (record, (_, space)) in records.iter().zip(spaces) {
        for device in record.devices.iter().filter(|device| !is_there(device)) {
            let reason = "the device that it is on, in another network namespace, is not carried with that";
            let title = space.title(title::device(&device.name, &device.kind));
            refusals.add(None, title, reason, REMOVE);
        }
    }
}

fn one(
    (seen, (new_devices, new_settings)): (Seen, Fresh),
    (space, carried, joined): (&NetworkSpace, &HashSet<&[u8]>, Option<&str>),
    refusals: &mut Refusals,
) -> io::Result<NetworkRecord> {
    let inherited = |device: &Device| {
        let mut new = new_devices.iter();
        new.any(|(new, _)| new.index == device.index && new.kind == device.kind)
    };
    for (object, reason, advice) in seen.foreign {
        refusals.add(None, space.title(object), reason, advice);
    }
    let (gone_with, own): (Vec<_>, Vec<_>) =
        (seen.devices.into_iter()).partition(|(one, _)| carried.contains(one.name.as_slice()));
    let gone_with: BTreeSet<u32> = gone_with.into_iter().map(|(device, _)| device.index).collect();
    let kinds: BTreeMap<u32, String> = own.iter().map(|(one, _)| (one.index, one.kind.clone())).collect();
    let mut record = NetworkRecord {
        namespace: space.number,
        ..NetworkRecord::default()
    };
    for (device, beyond) in own {
        let joins = beyond.namespace.is_some() && joined.is_some_and(|name| name.as_bytes() == device.name);
        let inherited = joins || inherited(&device);
        let mut found = record_of(device.clone(), (&beyond, &seen.relatives), inherited);
        let is_hosts = beyond.namespace.is_some() && beyond.namespace == seen.host && found.link_namespace.is_none();
        if let (true, "veth", Some(end)) = (is_hosts && !inherited, &device.kind[..], device.link) {
            found.outer = outer::look_at(end)?;
        }
        if let Some((reason, advice)) = obstacle((&device, &found), &beyond, (joins, &kinds)) {
            let title = space.title(title::device(&device.name, &device.kind));
            refusals.add(None, title, reason, advice);
        }
        record.devices.push(found);
    }
    let (queueing, strange) = seen.traffic;
    let name = |number: u32| {
        let device = record.devices.iter().find(|device| device.number == number);
        device.map_or_else(
            || format!("network device {number}"),
            |device| title::device(&device.name, &device.kind),
        )
    };
    const DELETE: &str = "remove it (tc qdisc del, tc filter del)";
    for (device, what, reason) in &strange {
        refusals.add(None, space.title(name(*device)), format!("{what}: {reason}"), DELETE);
    }
    for device in queueing.devices().intersection(&gone_with) {
        let reason = "it goes with a file, and has a queueing discipline of its own (tc qdisc)";
        refusals.add(None, space.title(name(*device)), reason, DELETE);
    }
    if strange.is_empty() {
        record.traffic = traffic::record(queueing);
        if let Some((object, reason)) = traffic::obstacle(&record) {
            refusals.add(None, space.title(object), reason, DELETE);
        }
    }
    for (table, entries) in seen.tables {
        let kept = entries
            .into_iter()
            .filter_map(|entry| kept((table, entry), &gone_with, (space, refusals)));
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
    (device, found): (&Device, &NetworkDeviceRecord),
    beyond: &Beyond,
    (joins, kinds): (bool, &BTreeMap<u32, String>),
) -> Option<(String, &'static str)> {
    let outside = if device.kind == "veth" {
        "its other end is in a network namespace that no task of the tree is in"
    } else {
        "the device that it is on is in a network namespace that no task of the tree is in"
    };
    let is_there = |other: Option<u32>| other.is_none_or(|other| kinds.contains_key(&other));
    let is_outside = found.link_namespace.is_none() && found.outer.is_none();
    if beyond.namespace.is_some() && is_outside && !joins {
        return Some((outside.to_owned(), REMOVE));
    }
    if beyond.program {
        return Some(("a program sees its packets (XDP)".to_owned(), "detach the program"));
    }
    if beyond.token {
        let reason = "it has a half of an address of IPv6 (ip token)";
        return Some((reason.to_owned(), "unset the token"));
    }
    if found.inherited {
        return None;
    }
    if device.kind.is_empty() {
        return Some(("it was brought here from outside".to_owned(), REMOVE));
    }
    if !DEVICE_KINDS.iter().any(|(kind, _)| *kind == device.kind) {
        return Some(("devices of this kind are not carried".to_owned(), REMOVE));
    }
    if found.link_namespace.is_some() {
        if !REACHING.contains(&device.kind.as_str()) {
            let reason = "devices of this kind are not carried where they were brought from another network namespace";
            return Some((reason.to_owned(), REMOVE));
        }
    } else if found.outer.is_none() && (device.kind == "veth" && device.link.is_none() || !is_there(device.link)) {
        return Some((outside.to_owned(), REMOVE));
    }
    if !is_there(device.master) {
        return Some(("it is a part of a device that goes with a file".to_owned(), REMOVE));
    }
    foreign::option(device).map(|reason| (reason.to_owned(), REMOVE))
}

/// What is kept of an entry.
fn kept(
    (table, entry): (Table, Entry),
    gone_with: &BTreeSet<u32>,
    (space, refusals): (&NetworkSpace, &mut Refusals),
) -> Option<Vec<u8>> {
    let mut refuse = |raw: &[u8], reason: String| {
        refusals.add(None, space.title(title::entry(table, raw)), reason, REMOVE);
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
