//! What differs between a network namespace and what it should be.

use super::{as_seen_here, record_of, tables, title};
use crate::ns::{NsError, inside};
use floe_image::record::{NetworkDeviceRecord, NetworkRecord};
use floe_sys::{
    Pid,
    route::{Table, devices},
};
use nix::{errno::Errno, sched::CloneFlags};
use std::collections::BTreeSet;

/// What differs from a record in the network namespace of a task, in words. Settings were compared when they were made.
///
/// # Errors
/// [`NsError`].
pub fn differences(record: &NetworkRecord, pid: Pid) -> Result<Vec<String>, NsError> {
    inside::run(pid, CloneFlags::CLONE_NEWNET, || Ok(here(record)?))
}

/// The same of the calling thread's.
pub(super) fn here(record: &NetworkRecord) -> Result<Vec<String>, Errno> {
    let mut found = Vec::new();
    let present: Vec<NetworkDeviceRecord> = devices()?
        .into_iter()
        .map(|(device, beyond)| record_of(as_seen_here(device, &beyond), false))
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
    Ok(found)
}

/// What can be compared of a device among others.
fn essence(device: &NetworkDeviceRecord, all: &[NetworkDeviceRecord]) -> NetworkDeviceRecord {
    let bare = super::device_of(device).essence();
    let mut bare = record_of(bare, false);
    let has_parts = all.iter().any(|other| other.master == Some(device.number));
    // Who is down has none, and a bridge without ports one until it first had some.
    bare.carrier &= super::device_of(device).is_up() && (device.kind != "bridge" || has_parts);
    bare.other_names.sort();
    bare
}
