//! Tables of a network namespace: looked at, and filled.

use super::{NetworkError, title};
use floe_image::record::NetworkRecord;
use floe_sys::route::{Entry, Table};
use nix::errno::Errno;
use serde_bytes::ByteBuf;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How long the kernel is given to do what it has begun.
const PATIENCE: Duration = Duration::from_secs(10);

/// The entries that a record has of a table.
pub(super) fn of(record: &NetworkRecord, table: Table) -> &[ByteBuf] {
    match table {
        Table::Addresses => &record.addresses,
        Table::Labels => &record.labels,
        Table::NextHops => &record.next_hops,
        Table::Routes => &record.routes,
        Table::Rules => &record.rules,
        Table::Neighbours => &record.neighbours,
        Table::Proxies => &record.proxies,
        Table::Frames => &record.frames,
    }
}

/// The same, to be filled.
pub(super) fn of_mut(record: &mut NetworkRecord, table: Table) -> &mut Vec<ByteBuf> {
    match table {
        Table::Addresses => &mut record.addresses,
        Table::Labels => &mut record.labels,
        Table::NextHops => &mut record.next_hops,
        Table::Routes => &mut record.routes,
        Table::Rules => &mut record.rules,
        Table::Neighbours => &mut record.neighbours,
        Table::Proxies => &mut record.proxies,
        Table::Frames => &mut record.frames,
    }
}

/// What is in the table of the calling thread's network namespace, but what is about devices that are not in `devices`.
pub(super) fn present(table: Table, devices: &BTreeSet<u32>) -> Result<Vec<Vec<u8>>, Errno> {
    let own = |entry: &[u8]| table.devices(entry).iter().all(|device| devices.contains(device));
    let told = |entry: Entry| entry.unwrap_or_else(|(raw, _)| raw);
    let all = table.entries()?.into_iter().map(told);
    Ok(all.filter(|entry| own(entry)).collect())
}

/// What is in one list and not in the other one.
pub(super) fn lacking<'a>(table: Table, list: &'a [Vec<u8>], other: &[Vec<u8>]) -> Vec<&'a Vec<u8>> {
    let known: BTreeSet<Vec<u8>> = other.iter().map(|entry| table.identity(entry)).collect();
    let lacks = |entry: &&Vec<u8>| !known.contains(&table.identity(entry));
    list.iter().filter(lacks).collect()
}

/// Makes a table of the calling thread's network namespace what a record says.
pub(super) fn fill(table: Table, wanted: &[ByteBuf], devices: &BTreeSet<u32>) -> Result<(), NetworkError> {
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|entry| entry.to_vec()).collect();
    let present = await_kernel(table, &wanted, devices)?;
    let same = |one: &[Vec<u8>], other: &[Vec<u8>]| {
        one.iter()
            .map(|e| table.identity(e))
            .eq(other.iter().map(|e| table.identity(e)))
    };
    let all_anew = table.is_ordered() && !same(&wanted, &present);
    let (gone, missing) = if all_anew {
        (present.iter().collect(), wanted.iter().collect())
    } else {
        (lacking(table, &present, &wanted), lacking(table, &wanted, &present))
    };
    let gone = if table.may_grow() { Vec::new() } else { gone };
    // Gateways are looked for on ways that addresses brought, which may have been taken away since.
    if table == Table::Routes {
        add(table, missing)?;
        remove(table, gone)
    } else {
        remove(table, gone)?;
        add(table, in_order(table, missing))
    }
}

/// In the order in which they came: the last address of IPv6 is told first.
fn in_order(table: Table, entries: Vec<&Vec<u8>>) -> Vec<&Vec<u8>> {
    let is_six = |entry: &&Vec<u8>| table == Table::Addresses && entry.first() == Some(&(libc::AF_INET6 as u8));
    let (six, mut all): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_six);
    all.extend(six.into_iter().rev());
    all
}

/// What is in the table when all is in it that only the kernel can make, which it does a moment after an address is there.
fn await_kernel(table: Table, wanted: &[Vec<u8>], devices: &BTreeSet<u32>) -> Result<Vec<Vec<u8>>, NetworkError> {
    let began = Instant::now();
    loop {
        let looked = |source| NetworkError::new("look at", title::table(table), source);
        let present = present(table, devices).map_err(looked)?;
        let mut missing = lacking(table, wanted, &present).into_iter();
        match missing.find(|entry| table.is_kernels(entry)) {
            None => return Ok(present),
            Some(entry) if began.elapsed() > PATIENCE => {
                return Err(NetworkError::new(
                    "wait for",
                    title::entry(table, entry),
                    Errno::ETIMEDOUT,
                ));
            }
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn remove(table: Table, gone: Vec<&Vec<u8>>) -> Result<(), NetworkError> {
    for entry in gone.into_iter().filter(|entry| !table.is_kernels(entry)) {
        match table.remove(entry) {
            // It went with another one.
            Ok(()) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL) => {}
            Err(source) => return Err(NetworkError::new("remove", title::entry(table, entry), source)),
        }
    }
    Ok(())
}

/// Some need others, as a gateway the route to it.
fn add(table: Table, mut missing: Vec<&Vec<u8>>) -> Result<(), NetworkError> {
    while !missing.is_empty() {
        let mut failed = Vec::new();
        let before = missing.len();
        for entry in missing {
            if let Err(error) = table.put(entry) {
                failed.push((entry, error));
            }
        }
        if failed.len() == before {
            let (entry, source) = failed[0];
            return Err(NetworkError::new("make", title::entry(table, entry), source));
        }
        missing = failed.into_iter().map(|(entry, _)| entry).collect();
    }
    Ok(())
}
