//! What is in the network namespaces of a tree: made in a rehearsal first, in such that nobody is in, then in the new sandbox,
//! before there is a socket that could need it. Packets are filtered when all is done.

use super::{RestoreError, namespaces::Namespaces, preflight::Obstacle};
use floe_image::{Image, record::NetworkRecord};
use floe_resources::ns::{network, packet_filter};
use floe_sys::{Pid, namespace::Kind};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

/// What is in the way of the networks of an image.
pub fn obstacles(image: &Image) -> Result<Vec<Obstacle>, RestoreError> {
    let networks = image.networks();
    let mut found = network::rehearse(networks, &image.sandbox().namespaces)?;
    found.extend(
        networks
            .iter()
            .flat_map(|record| packet_filter::obstacles(&record.filter)),
    );
    let found = found.into_iter();
    Ok(found.map(|(object, reason)| Obstacle { object, reason }).collect())
}

/// The network namespaces of an image, made in a new sandbox.
pub struct Networks<'a> {
    root: File,
    records: &'a [NetworkRecord],
}

fn failed(action: &str) -> impl FnOnce(io::Error) -> RestoreError {
    let action = action.to_owned();
    move |source| RestoreError::System { action, source }
}

impl<'a> Networks<'a> {
    /// Those of an image, where `pid1` is the sandbox's first process.
    pub fn of(image: &'a Image, pid1: Pid) -> Result<Self, RestoreError> {
        let path = format!("/proc/{pid1}/ns/net");
        Ok(Self {
            root: File::open(&path).map_err(failed(&format!("open {path}")))?,
            records: image.networks(),
        })
    }

    fn all<'n>(&'n self, others: &'n Namespaces) -> Result<Vec<network::Made<'n>>, RestoreError> {
        let file = |record: &NetworkRecord| -> Result<BorrowedFd<'n>, RestoreError> {
            match record.namespace {
                0 => Ok(self.root.as_fd()),
                number => others.file(Kind::Network, number),
            }
        };
        self.records.iter().map(|record| Ok((record, file(record)?))).collect()
    }

    /// Fills them.
    pub fn make(&self, others: &Namespaces) -> Result<(), RestoreError> {
        Ok(network::make(&self.all(others)?)?)
    }

    /// Sets what belongs to devices that came with files.
    pub fn finish(&self, others: &Namespaces) -> Result<(), RestoreError> {
        Ok(network::finish(&self.all(others)?)?)
    }

    /// Has packets be filtered.
    pub fn filter(&self, others: &Namespaces) -> Result<(), RestoreError> {
        self.all(others)?.into_iter().try_for_each(|(record, namespace)| {
            packet_filter::restore(namespace, &record.filter).map_err(failed("make a packet filter"))
        })
    }

    /// What differs from the image in a restored tree.
    pub fn compare(&self, others: &Namespaces) -> Result<Vec<String>, RestoreError> {
        let all = self.all(others)?;
        let mut found = network::differences(&all).map_err(failed("look at networks"))?;
        for (record, namespace) in all {
            let differing = packet_filter::compare(namespace, &record.filter);
            found.extend(differing.map_err(failed("look at a packet filter"))?);
        }
        Ok(found)
    }
}
