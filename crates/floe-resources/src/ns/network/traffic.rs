//! How devices queue what they send.

use super::{Made, NetworkError, title};
use crate::ns::inside::{in_new_network, run_in};
use floe_image::record::{NetworkDeviceRecord, NetworkRecord, TrafficRecord};
use floe_sys::route::{self, Traffic};
use nix::errno::Errno;
use serde_bytes::ByteBuf;
use std::{collections::BTreeMap, io};

pub(super) fn record(traffic: Traffic) -> TrafficRecord {
    let list = |list: Vec<Vec<u8>>| list.into_iter().map(ByteBuf::from).collect();
    TrafficRecord {
        disciplines: list(traffic.disciplines),
        classes: list(traffic.classes),
        filters: list(traffic.filters),
    }
}

pub(super) fn of(record: &TrafficRecord) -> Traffic {
    let list = |list: &[ByteBuf]| list.iter().map(|one| one.to_vec()).collect();
    Traffic {
        disciplines: list(&record.disciplines),
        classes: list(&record.classes),
        filters: list(&record.filters),
    }
}

/// Has devices queue what they send as records say, in network namespaces whose devices do so as new ones do.
///
/// # Errors
/// What could not be made.
pub fn shape(all: &[Made<'_>]) -> Result<(), NetworkError> {
    for (record, file) in all {
        let traffic = of(&record.traffic);
        if traffic.is_empty() {
            continue;
        }
        let failed = |device, source| NetworkError::new("make", object(&record.devices, device), source);
        let made = run_in(*file, || Ok(traffic.load()));
        made.unwrap_or_else(|error| Err((0, Errno::from_raw(error.raw_os_error().unwrap_or(0)))))
            .map_err(|(device, error)| failed(device, error))?;
    }
    Ok(())
}

fn object(devices: &[NetworkDeviceRecord], number: u32) -> String {
    let device = devices.iter().find(|device| device.number == number);
    let name = device.map(|device| title::device(&device.name, &device.kind));
    format!(
        "queueing (tc) of {}",
        name.unwrap_or_else(|| format!("network device {number}"))
    )
}

/// Why it can't be made again: it is tried, in a network namespace of its own, on bridges that have the names of the devices.
pub(super) fn obstacle(record: &NetworkRecord) -> Option<(String, String)> {
    let traffic = of(&record.traffic);
    let first = *traffic.devices().first()?;
    let make = || -> io::Result<Option<(u32, String)>> {
        let mut places = BTreeMap::new();
        for device in record
            .devices
            .iter()
            .filter(|device| traffic.devices().contains(&device.number))
        {
            if device.name != b"lo" {
                route::make_bridge(&device.name)?;
            }
            places.insert(device.number, route::link(&device.name)?.index);
        }
        let moved = traffic.moved(|number| places.get(&number).copied().unwrap_or(number));
        if let Err((place, error)) = moved.load() {
            let device = places
                .iter()
                .find(|(_, index)| **index == place)
                .map_or(first, |(number, _)| *number);
            return Ok(Some((device, format!("it can't be made again: {error}"))));
        }
        let is_same = Traffic::read()?.0.is_same(&moved);
        Ok((!is_same).then(|| (first, "made again it is another one".to_owned())))
    };
    let found = in_new_network(make).unwrap_or_else(|error| Some((first, format!("it can't be tried: {error}"))));
    found.map(|(device, reason)| (object(&record.devices, device), reason))
}

/// Whether the calling thread's network namespace has other than a record.
pub(super) fn differs(record: &NetworkRecord) -> Result<Option<String>, Errno> {
    let wanted = of(&record.traffic);
    let is_same = Traffic::read()?.0.is_same(&wanted);
    Ok((!is_same).then(|| "how its devices queue what they send (tc) is another way".to_owned()))
}
