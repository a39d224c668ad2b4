//! Makes what a record says in a network namespace that is as new.

use super::{compare, device_of, settings, tables, title};
use crate::ns::{NsError, inside};
use floe_image::record::{NetworkDeviceRecord, NetworkRecord};
use floe_sys::{
    Pid, ethtool,
    route::{Device, Link, Table, VethEnd, devices, link, make_veth, set_link},
};
use nix::{errno::Errno, sched::CloneFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd,
};

/// IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const NO_OWN_ADDRESS: u8 = 1;

/// Something of a network that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {object}")]
pub struct NetworkError {
    /// Which.
    pub object: String,
    /// What was attempted.
    pub action: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl NetworkError {
    pub(super) fn new(action: &str, object: impl Into<String>, source: Errno) -> Self {
        Self {
            object: object.into(),
            action: action.to_owned(),
            source: source.into(),
        }
    }

    fn of(action: &str, device: &Device) -> impl FnOnce(Errno) -> Self {
        let (action, object) = (action.to_owned(), title::device(&device.name, &device.kind));
        move |source| Self::new(&action, object, source)
    }
}

/// Makes a network in the namespace of a task, which is new.
///
/// # Errors
/// [`NsError`] where the namespace can't be entered; within, what could not be made.
pub fn make(record: &NetworkRecord, pid: Pid) -> Result<Result<(), NetworkError>, NsError> {
    inside::run(pid, CloneFlags::CLONE_NEWNET, || Ok(build(record)))
}

/// Sets what belongs to devices that others have made since.
///
/// # Errors
/// [`NsError`] where the namespace can't be entered; within, what could not be set.
pub fn finish(record: &NetworkRecord, pid: Pid) -> Result<Result<(), NetworkError>, NsError> {
    if later(record).is_empty() {
        return Ok(Ok(()));
    }
    inside::run(pid, CloneFlags::CLONE_NEWNET, || {
        Ok(settings::write(&record.settings, &BTreeSet::new()).map(drop))
    })
}

/// Makes it in a namespace that nobody is in, and tells what is in the way: objects and reasons.
///
/// # Errors
/// [`NsError`] where there can't be one.
pub fn rehearse(record: &NetworkRecord) -> Result<Vec<(String, String)>, NsError> {
    // What is usual can be set wherever there are networks.
    let unusual = record.settings.iter().filter(|setting| !setting.usual);
    let unusual = NetworkRecord {
        settings: unusual.cloned().collect(),
        ..record.clone()
    };
    inside::in_new_network(|| {
        let joining = record.devices.iter().find(|device| joins(device));
        let _beyond = joining.map(stand_in).transpose()?;
        if let Err(error) = build(&unusual) {
            let reason = format!("this host can't {} it: {}", error.action, error.source);
            return Ok(vec![(error.object, reason)]);
        }
        let differences = compare::here(record)?.into_iter();
        Ok(differences.map(|text| ("network".to_owned(), text)).collect())
    })
}

/// Whether a device is that by which the host joins the network to its own.
fn joins(device: &NetworkDeviceRecord) -> bool {
    device.inherited && device.kind == "veth"
}

/// Makes such a device in the calling thread's network namespace, whose other end is in one that goes with what is returned.
fn stand_in(device: &NetworkDeviceRecord) -> io::Result<File> {
    const OTHER: &str = "beyond";
    let here = File::open("/proc/thread-self/ns/net")?;
    let name = String::from_utf8_lossy(&device.name).into_owned();
    let make = || {
        let end = |name, index, namespace| VethEnd {
            name,
            address: None,
            index,
            namespace,
        };
        make_veth(&end(OTHER, 0, None), &end(&name, device.number, Some(here.as_fd())))?;
        let other = link(OTHER.as_bytes())?;
        let up = libc::IFF_UP as u32;
        set_link(
            other.index,
            &Link {
                flags: up,
                ..other.clone()
            },
            up,
        )?;
        File::open("/proc/thread-self/ns/net")
    };
    inside::in_new_network(make).map_err(io::Error::other)
}

fn build(record: &NetworkRecord) -> Result<(), NetworkError> {
    let wanted: Vec<Device> = record.devices.iter().map(device_of).collect();
    let inherited: BTreeSet<u32> = (record.devices.iter().filter(|device| device.inherited))
        .map(|device| device.number)
        .collect();
    check_inherited(&wanted, &inherited)?;
    let later = later(record);
    // What new devices have is what those for new devices are then.
    let own: BTreeSet<Vec<u8>> = (record.devices.iter().filter(|device| !device.inherited))
        .map(|device| device.name.clone())
        .collect();
    if !own.is_empty() {
        settings::write(&record.settings, &later.union(&own).cloned().collect())?;
    }
    make_devices(&wanted, &inherited)?;
    // With devices of its own it needs another look when they are there.
    let changed = settings::write(&record.settings, &later)?;
    let mut joining: Vec<&Device> = wanted.iter().collect();
    joining.sort_by_key(|device| (device.master, device.port_number()));
    for device in joining {
        device.join().map_err(NetworkError::of("join", device))?;
    }
    let now = look()?;
    for device in &wanted {
        let now = now.get(&device.index).ok_or(Errno::ENODEV);
        let now = now.map_err(NetworkError::of("find", device))?;
        device.set(now).map_err(NetworkError::of("configure", device))?;
        if device.address_mode.is_some() && now.address_mode.is_some() {
            let quiet = device.set_address_mode(NO_OWN_ADDRESS);
            quiet.map_err(NetworkError::of("set the addresses of", device))?;
        }
    }
    switch(&wanted)?;
    settle(&wanted)?;
    let numbers = wanted.iter().map(|device| device.index).collect();
    for table in Table::ALL {
        tables::fill(table, tables::of(record, table), &numbers)?;
    }
    for device in &wanted {
        if let Some(mode) = device.address_mode {
            let set = device.set_address_mode(mode);
            set.map_err(NetworkError::of("set the addresses of", device))?;
        }
    }
    if changed || wanted.len() > inherited.len() {
        settings::write(&record.settings, &later)?;
    }
    Ok(())
}

/// Devices that have settings and are made later.
fn later(record: &NetworkRecord) -> BTreeSet<Vec<u8>> {
    let known: BTreeSet<&[u8]> = record.devices.iter().map(|device| device.name.as_slice()).collect();
    let all = record
        .settings
        .iter()
        .filter_map(|setting| settings::device(&setting.path));
    all.filter(|device| !known.contains(device))
        .map(<[u8]>::to_vec)
        .collect()
}

fn look() -> Result<BTreeMap<u32, Device>, NetworkError> {
    let all = devices().map_err(|error| NetworkError::new("look at", "network devices", error))?;
    Ok(all.into_iter().map(|(device, _)| (device.index, device)).collect())
}

/// What every network namespace of this host has must be what those of the source host had.
fn check_inherited(wanted: &[Device], inherited: &BTreeSet<u32>) -> Result<(), NetworkError> {
    let here = look()?;
    for device in wanted.iter().filter(|device| inherited.contains(&device.index)) {
        let same = here.get(&device.index).is_some_and(|here| here.kind == device.kind);
        if !same {
            return Err(NetworkError::of("find", device)(Errno::ENODEV));
        }
    }
    let surplus = here.values().find(|device| !inherited.contains(&device.index));
    surplus.map_or(Ok(()), |device| {
        Err(NetworkError::of("do without", device)(Errno::EEXIST))
    })
}

/// Makes those that others are on first.
fn make_devices(wanted: &[Device], inherited: &BTreeSet<u32>) -> Result<(), NetworkError> {
    let mut made = inherited.clone();
    let mut waiting: Vec<&Device> = wanted.iter().filter(|device| !made.contains(&device.index)).collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        for device in waiting.clone() {
            let other = device.link.filter(|_| device.kind == "veth");
            let other = other.and_then(|link| wanted.iter().find(|other| other.index == link));
            if made.contains(&device.index) || other.is_none() && device.link.is_some_and(|link| !made.contains(&link))
            {
                continue;
            }
            device.make(other).map_err(NetworkError::of("make", device))?;
            made.insert(device.index);
            made.extend(other.map(|other| other.index));
        }
        waiting.retain(|device| !made.contains(&device.index));
        if waiting.len() == before {
            return Err(NetworkError::of("make", waiting[0])(Errno::ELOOP));
        }
    }
    Ok(())
}

/// Puts devices up and down; some can be up only on one that is.
fn switch(wanted: &[Device]) -> Result<(), NetworkError> {
    let (up, down): (Vec<&Device>, Vec<&Device>) = wanted.iter().partition(|device| device.is_up());
    for device in down {
        device.switch().map_err(NetworkError::of("put down", device))?;
    }
    let mut waiting = up;
    while !waiting.is_empty() {
        let failed: Vec<_> = waiting
            .iter()
            .filter_map(|device| device.switch().err().map(|error| (*device, error)))
            .collect();
        if failed.len() == waiting.len() {
            let (device, error) = failed[0];
            return Err(NetworkError::of("put up", device)(error));
        }
        waiting = failed.into_iter().map(|(device, _)| device).collect();
    }
    Ok(())
}

/// Waits until the kernel knows of all lines, and of what follows from them.
fn settle(wanted: &[Device]) -> Result<(), NetworkError> {
    let mut before = look()?;
    // Each may follow from the one before it.
    for _ in wanted {
        for device in wanted {
            ethtool::sync_line(&device.name).map_err(NetworkError::of("look at", device))?;
        }
        let now = look()?;
        if now == before {
            break;
        }
        before = now;
    }
    for device in wanted.iter().filter(|device| device.is_up()) {
        if before
            .get(&device.index)
            .is_none_or(|now| now.carrier == device.carrier)
        {
            continue;
        }
        match device.set_carrier() {
            // It has none of its own; what it has is compared.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(NetworkError::of("set the line of", device)(error)),
        }
    }
    Ok(())
}
