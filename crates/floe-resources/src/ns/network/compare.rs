//! What differs between network namespaces and what they should be.

use super::{Made, record_of, relatives_here, tables, title, traffic};
use crate::ns::inside::run_in;
use floe_image::record::{NetworkDeviceRecord, NetworkRecord};
use floe_sys::route::{Table, devices};
use nix::errno::Errno;
use std::{collections::BTreeSet, io, os::fd::BorrowedFd};

/// What differs from records in their network namespaces, in words. Settings were compared when they were made.
///
/// # Errors
/// Those of setns(2) and of netlink.
pub fn differences(all: &[Made<'_>]) -> io::Result<Vec<String>> {
    let known: Vec<_> = all.iter().map(|(record, file)| (record.namespace, *file)).collect();
    let mut found = Vec::new();
    for (record, file) in all {
        let differing = run_in(*file, || Ok(here(record, &known)?))?.into_iter();
        found.extend(differing.map(|text| match record.namespace {
            0 => text,
            number => format!("{text} (network namespace {number} of the image)"),
        }));
    }
    Ok(found)
}

/// The same of the calling thread's.
fn here(record: &NetworkRecord, known: &[(u32, BorrowedFd<'_>)]) -> Result<Vec<String>, Errno> {
    let mut found = Vec::new();
    let relatives = relatives_here(known)?;
    let present: Vec<NetworkDeviceRecord> = devices()?
        .into_iter()
        .map(|(device, beyond)| record_of(device, (&beyond, &relatives), false))
        .collect();
    for wanted in &record.devices {
        let name = title::device(&wanted.name, &wanted.kind);
        match present.iter().find(|device| device.number == wanted.number) {
            None => found.push(format!("{name} is not there")),
            Some(device) => {
                let is = essence(device, &present);
                let should = essence(wanted, &record.devices);
                if is != should {
                    found.push(format!("{name} is {is:?}, should be {should:?}"));
                }
            }
        }
    }
    let numbers: BTreeSet<u32> = record.devices.iter().map(|device| device.number).collect();
    for table in Table::ALL {
        let present = tables::present(table, &numbers)?;
        let wanted: Vec<Vec<u8>> = tables::of(record, table).iter().map(|entry| entry.to_vec()).collect();
        for entry in tables::lacking(table, &wanted, &present) {
            found.push(format!("{} is not there", title::entry(table, entry)));
        }
        if !table.may_grow() {
            // An address that was still probed for had none of the kernel's routes.
            let surplus = tables::lacking(table, &present, &wanted).into_iter();
            for entry in surplus.filter(|entry| !table.is_kernels(entry)) {
                found.push(format!("{} should not be there", title::entry(table, entry)));
            }
        }
    }
    found.extend(traffic::differs(record)?);
    Ok(found)
}

/// What can be compared of a device among others.
fn essence(device: &NetworkDeviceRecord, all: &[NetworkDeviceRecord]) -> NetworkDeviceRecord {
    let essence = super::device_of(device).essence();
    let has_parts = all.iter().any(|other| other.master == Some(device.number));
    let mut bare = NetworkDeviceRecord {
        inherited: false,
        outer: None,
        // Who is down has none, and a bridge without ports one until it first had some.
        carrier: device.carrier && essence.is_up() && (device.kind != "bridge" || has_parts),
        port: essence.port,
        ..device.clone()
    };
    bare.other_names.sort();
    bare
}
