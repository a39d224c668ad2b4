//! Namespaces of a restored tree, as far as they are there.

use floe_image::record::NamespaceKind;
use floe_sys::{Pid, namespace::Kind};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Those that are there by now.
#[derive(Debug, Default)]
pub struct Known {
    /// Of other kinds than PIDs and mounts, by number.
    made: HashMap<u32, OwnedFd>,
    /// PID namespaces below the tree's, and the first task of each that has not ended.
    pids: HashMap<u32, (Option<Pid>, OwnedFd)>,
    /// The tree root's.
    own: HashMap<NamespaceKind, OwnedFd>,
    /// Whether those of the tree's root stand for all others.
    rehearsed: bool,
    /// Whether there are network namespaces but the tree root's.
    has_networks: bool,
}

impl Known {
    /// floe's own, which stand for those of any tree.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn rehearsed() -> io::Result<Self> {
        let mut known = Self {
            rehearsed: true,
            ..Self::default()
        };
        for kind in Kind::ALL {
            known.add_own(kind, "self")?;
        }
        Ok(known)
    }

    /// Notes what a task is in, which is as the tree's root.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn add_own(&mut self, kind: Kind, task: &str) -> io::Result<()> {
        // A kind that this kernel has not is in no image that got here.
        match File::open(format!("/proc/{task}/ns/{kind}")) {
            Ok(file) => self
                .own
                .extend(NamespaceKind::named(kind.name()).map(|kind| (kind, file.into()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Notes a namespace, by its number in the image.
    pub fn add(&mut self, number: u32, made: OwnedFd) {
        self.made.insert(number, made);
    }

    /// Notes that there are network namespaces but the tree root's.
    pub fn expect_networks(&mut self) {
        self.has_networks = true;
    }

    /// Whether there are.
    pub(crate) fn has_networks(&self) -> bool {
        self.has_networks
    }

    /// Notes a PID namespace and the first task in it, which is none where that has ended before.
    pub fn add_pids(&mut self, number: u32, (first, made): (Option<Pid>, OwnedFd)) {
        self.pids.insert(number, (first, made));
    }

    /// One but of PIDs and mounts.
    #[must_use]
    pub fn made(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.made.get(&number).map(AsFd::as_fd)
    }

    /// One of PIDs below the tree's.
    #[must_use]
    pub fn pids(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.pids.get(&number).map(|(_, made)| made.as_fd())
    }

    /// An IPC namespace, also that of the tree's root, which is 0.
    #[must_use]
    pub fn ipc(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.one(NamespaceKind::Ipc, number)
    }

    pub(crate) fn first_of_pids(&self, number: u32) -> Option<Pid> {
        self.pids.get(&number).and_then(|(first, _)| *first)
    }

    /// One of a kind but mounts, where it is there.
    #[must_use]
    pub fn one(&self, kind: NamespaceKind, number: u32) -> Option<BorrowedFd<'_>> {
        match (number, kind) {
            (0, _) => self.own.get(&kind).map(AsFd::as_fd),
            _ if self.rehearsed => self.own.get(&kind).map(AsFd::as_fd),
            (_, NamespaceKind::Pid) => self.pids(number),
            _ => self.made(number),
        }
    }
}
