//! What is in the network namespaces of a tree: made in a rehearsal first, in such that nobody is in, then in the new sandbox,
//! before there is a socket that could need it. Packets are filtered when all is done.

use super::{RestoreError, namespaces::Namespaces, preflight::Obstacle};
use floe_image::{Image, record::NetworkRecord};
use floe_resources::ns::{
    network::{self, GivenEnds, MadeEnds, NetworkSpace, OuterEnds},
    packet_filter,
};
use floe_sys::{Pid, namespace::Kind};
use nix::sys::stat::fstat;
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    rc::Rc,
};

/// What is in the way of the networks of an image.
pub fn obstacles(image: &Image, given: &GivenEnds) -> Result<Vec<Obstacle>, RestoreError> {
    let networks = image.networks();
    let mut found = network::rehearse(networks, &image.sandbox().namespaces)?;
    found.extend(network::obstacles(networks, given).map_err(failed("look at the host's network devices"))?);
    found.extend(packet_filter::obstacles(networks, &image.sandbox().namespaces));
    let found = found.into_iter();
    Ok(found.map(|(object, reason)| Obstacle { object, reason }).collect())
}

/// The network namespaces of an image, made in a new sandbox.
pub struct Networks<'a> {
    root: File,
    records: &'a [NetworkRecord],
    given: &'a GivenEnds,
    /// The host's ends of pairs.
    ends: MadeEnds,
}

fn failed(action: &str) -> impl FnOnce(io::Error) -> RestoreError {
    let action = action.to_owned();
    move |source| RestoreError::System { action, source }
}

impl<'a> Networks<'a> {
    /// Those of an image, where `pid1` is the sandbox's first process, and what is given for ends at the host.
    pub fn of(image: &'a Image, pid1: Pid, given: &'a GivenEnds) -> Result<Self, RestoreError> {
        let path = format!("/proc/{pid1}/ns/net");
        Ok(Self {
            root: File::open(&path).map_err(failed(&format!("open {path}")))?,
            records: image.networks(),
            given,
            ends: MadeEnds::default(),
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

    /// They themselves, and floe's own where the tree is in that, by number: to be entered.
    pub fn spaces(&self, others: &Namespaces) -> Result<BTreeMap<u32, NetworkSpace>, RestoreError> {
        let all = self.records.iter().map(|record| record.namespace).chain([0]);
        let space = |number: u32| -> Result<(u32, NetworkSpace), RestoreError> {
            let file = match number {
                0 => self.root.as_fd(),
                number => others.file(Kind::Network, number)?,
            };
            let file = file.try_clone_to_owned().map_err(failed("duplicate a descriptor"))?;
            let inode = fstat(&file)
                .map_err(|error| failed("look at a network namespace")(error.into()))?
                .st_ino;
            Ok((number, NetworkSpace::apart(number, Rc::new(file), inode)))
        };
        all.map(space).collect()
    }

    /// Fills them.
    pub fn make(&mut self, others: &Namespaces) -> Result<(), RestoreError> {
        let path = "/proc/thread-self/ns/net";
        let host = File::open(path).map_err(failed(&format!("open {path}")))?;
        let outer = OuterEnds::given(host.as_fd(), self.records, self.given);
        self.ends = network::make(&self.all(others)?, Some(&outer))?;
        Ok(())
    }

    /// Has the host's network reach them, by the ends that are the host's.
    pub fn join(&self, others: &Namespaces) -> Result<(), RestoreError> {
        Ok(self.ends.join(&self.all(others)?, self.given)?)
    }

    /// Whether the host's network reaches them by ends that are its own.
    pub fn have_ends(&self) -> bool {
        self.records
            .iter()
            .any(|record| record.devices.iter().any(|device| device.outer.is_some()))
    }

    /// The descriptors that joining takes.
    pub fn descriptors(&self, others: &Namespaces) -> Result<Vec<RawFd>, RestoreError> {
        let own = self.root.as_raw_fd();
        let others = self.all(others)?.into_iter().map(|(_, file)| file.as_raw_fd());
        Ok(others.chain([own]).collect())
    }

    /// Sets what belongs to devices that came with files.
    pub fn finish(&self, others: &Namespaces) -> Result<(), RestoreError> {
        Ok(network::finish(&self.all(others)?)?)
    }

    /// Has packets be filtered, and queued.
    pub fn filter(&self, others: &Namespaces) -> Result<(), RestoreError> {
        network::shape(&self.all(others)?)?;
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
