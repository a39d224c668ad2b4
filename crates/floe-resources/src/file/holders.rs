//! Who has which file, when all are placed: for kinds that connect files with each other.

use super::FileError;
use crate::{
    channel::Channel,
    ns::{Known, Roots},
};
use floe_image::{
    Numbering,
    record::{DescriptorTableRecord, OpenFileRecord},
};
use floe_sys::descriptor::{pidfd_getfd, pidfd_open};
use floe_tracee::Puppet;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// A process and a descriptor number there, both as in the image.
type Place = (i32, i32);

/// Files and their places.
#[derive(Debug)]
pub struct Holders<'a> {
    /// The tree's processes, by their ids.
    pub puppets: &'a BTreeMap<i32, Puppet>,
    /// To hand over files.
    pub channel: &'a Channel,
    /// Their ids in all PID namespaces.
    pub numbering: &'a Numbering,
    /// The root directories of the tree's mount namespaces.
    roots: &'a Roots,
    /// Namespaces but the tree root's.
    pub(super) known: &'a Known,
    own: [i32; 2],
    first: HashMap<u32, Place>,
    files: HashMap<Place, (u32, bool)>,
}

impl<'a> Holders<'a> {
    /// From the image's tables; `own` are the numbers that floe itself has in every task.
    #[must_use]
    pub fn new<'t>(
        tables: impl Iterator<Item = &'t DescriptorTableRecord>,
        (puppets, numbering, known): (&'a BTreeMap<i32, Puppet>, &'a Numbering, &'a Known),
        (channel, roots): (&'a Channel, &'a Roots),
        own: [i32; 2],
    ) -> Self {
        let mut first = HashMap::new();
        let mut files = HashMap::new();
        for table in tables {
            for descriptor in &table.descriptors {
                let place = (table.pid.0, descriptor.number);
                first.entry(descriptor.file).or_insert(place);
                files.insert(place, (descriptor.file, descriptor.close_on_exec));
            }
        }
        Self {
            puppets,
            numbering,
            channel,
            roots,
            known,
            own,
            first,
            files,
        }
    }

    /// Runs a closure on a thread that has entered one of the tree's network namespaces.
    ///
    /// # Errors
    /// Those of setns(2) and of the closure.
    pub fn inside<T: Send>(&self, network: u32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        super::inside((self.puppets, self.known), network, work)
    }

    /// The root directory that the paths of a file count from.
    #[must_use]
    pub fn root(&self, record: &OpenFileRecord) -> BorrowedFd<'a> {
        self.roots.of(record.mount_namespace)
    }

    /// One of those who have a file.
    #[must_use]
    pub fn first(&self, file: u32) -> Option<Place> {
        self.first.get(&file).copied()
    }

    /// All who have a file, and whether it is closed on exec there.
    pub fn all(&self, file: u32) -> impl Iterator<Item = (Place, bool)> {
        let own = self.files.iter().filter(move |(_, (id, _))| *id == file);
        own.map(|(place, (_, close_on_exec))| (*place, *close_on_exec))
    }

    /// The lowest number by which a process has a file.
    #[must_use]
    pub fn number(&self, pid: i32, file: u32) -> Option<i32> {
        let own = self
            .files
            .iter()
            .filter(|((holder, _), (id, _))| (*holder, *id) == (pid, file));
        own.map(|((_, number), _)| *number).min()
    }

    /// Which file is at a place, and whether it is closed on exec.
    #[must_use]
    pub fn file(&self, place: Place) -> Option<(u32, bool)> {
        self.files.get(&place).copied()
    }

    /// Whether a number is one of floe's own in every task.
    #[must_use]
    pub fn is_own(&self, number: i32) -> bool {
        self.own.contains(&number)
    }

    /// The process with this id.
    ///
    /// # Errors
    /// [`FileError::Unknown`].
    pub fn puppet(&self, pid: i32) -> Result<&'a Puppet, FileError> {
        self.puppets.get(&pid).ok_or_else(|| FileError::Unknown {
            id: 0,
            what: format!("process {pid} has it open but is not there"),
        })
    }

    /// One of those who have a file, and what a task is called in its PID namespace; none where nobody sees it.
    #[must_use]
    pub fn who_sees(&self, file: u32, task: i32) -> Option<(Place, i32)> {
        let seen = |(pid, number): Place| {
            let namespace = self.numbering.namespace(pid);
            Some(((pid, number), self.numbering.seen_from(namespace, task)?))
        };
        let first = self.first(file).and_then(seen);
        first.or_else(|| self.all(file).find_map(|(place, _)| seen(place)))
    }

    /// A duplicate of the file at a place.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn fetch(&self, (pid, number): Place) -> Result<OwnedFd, FileError> {
        let wrap = |action| FileError::system(action, format!("descriptor {number} of process {pid}"));
        let pidfd = pidfd_open(self.puppet(pid)?.tid()).map_err(wrap("open a pidfd to fetch"))?;
        pidfd_getfd(pidfd.as_fd(), number).map_err(wrap("fetch"))
    }
}
