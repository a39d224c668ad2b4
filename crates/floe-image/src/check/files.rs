//! Descriptor tables and what open files share.

use super::ensure;
use crate::{
    Image,
    record::{IN_FLIGHT, LockKind},
};
use std::collections::HashSet;

/// All that a directory can tell of, DN_* of linux/fcntl.h.
const DN_ALL: u32 = 0x3f;

/// Descriptors that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// No such process, or a second table.
    #[error("a descriptor table belongs to {0}, which is no living process or has one already")]
    Owner(i32),
    /// Without a table.
    #[error("living process {0} has no descriptor table")]
    NoTable(i32),
    /// Negative, twice, or not in order.
    #[error("descriptor {number} of process {pid} is out of order")]
    Order {
        /// Whose.
        pid: i32,
        /// Its number.
        number: i32,
    },
    /// Refers to nothing.
    #[error("descriptor {number} of process {pid} refers to open file {file}, which is missing")]
    File {
        /// Whose.
        pid: i32,
        /// Its number.
        number: i32,
        /// The open file's number.
        file: u32,
    },
    /// Of a network namespace that the image lacks.
    #[error("open file {id} is of network namespace {network}, which the image lacks")]
    Network {
        /// The open file's number.
        id: u32,
        /// The namespace.
        network: u32,
    },
    /// Through no descriptor, or none that the kernel gives.
    #[error("a lock through descriptor {number} of process {pid} is impossible")]
    Lock {
        /// Whose.
        pid: i32,
        /// The descriptor's number.
        number: i32,
    },
    /// The same of a directory's signals.
    #[error("a notice through descriptor {number} of process {pid} is impossible")]
    Notice {
        /// Whose.
        pid: i32,
        /// The descriptor's number.
        number: i32,
    },
    /// Two objects with one name.
    #[error("two objects are {kind} {id}")]
    Object {
        /// Their kind.
        kind: String,
        /// Their number.
        id: u32,
    },
}

pub(super) fn check(image: &Image, owners: &HashSet<i32>) -> Result<(), FileFault> {
    let mut objects = HashSet::new();
    for object in image.objects() {
        let (kind, id) = (&object.kind, object.id);
        ensure(objects.insert((kind, id)), || FileFault::Object {
            kind: kind.clone(),
            id,
        })?;
    }
    for file in image.open_files().iter().filter(|file| file.network != 0) {
        let is_there = image.networks().iter().any(|network| network.namespace == file.network);
        let (id, network) = (file.id, file.network);
        ensure(is_there, || FileFault::Network { id, network })?;
    }
    let mut seen = HashSet::new();
    for table in image.descriptor_tables() {
        let pid = table.pid.0;
        let known = owners.contains(&pid) || pid == IN_FLIGHT.0;
        ensure(known && seen.insert(pid), || FileFault::Owner(pid))?;
        let mut last = -1;
        for descriptor in &table.descriptors {
            let (number, file) = (descriptor.number, descriptor.file);
            ensure(number > last, || FileFault::Order { pid, number })?;
            ensure((file as usize) < image.open_files().len(), || FileFault::File {
                pid,
                number,
                file,
            })?;
            last = number;
        }
        let has = |number: i32| {
            let place = table.descriptors.binary_search_by_key(&number, |one| one.number);
            place.is_ok()
        };
        for notice in &table.notices {
            let number = notice.number;
            // What is nobody's tells nobody.
            let fits = has(number) && notice.events & DN_ALL != 0 && pid != IN_FLIGHT.0;
            ensure(fits, || FileFault::Notice { pid, number })?;
        }
        for lock in &table.locks {
            let (pid, number) = (table.pid.0, lock.number);
            let end = lock.start.checked_add(lock.length);
            let inside = end.is_some_and(|end| end <= i64::MAX as u64);
            let whole = !matches!(lock.kind, LockKind::Flock | LockKind::Lease) || (lock.start, lock.length) == (0, 0);
            ensure(has(number) && inside && whole, || FileFault::Lock { pid, number })?;
        }
    }
    match owners.iter().find(|pid| !seen.contains(pid)) {
        Some(pid) => Err(FileFault::NoTable(*pid)),
        None => Ok(()),
    }
}
