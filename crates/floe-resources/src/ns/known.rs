//! Namespaces of a restored tree that are not the ones of its root, but for that of IPC.

use floe_sys::Pid;
use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Those that are there by now.
#[derive(Debug, Default)]
pub struct Known {
    made: HashMap<u32, OwnedFd>,
    /// The IPC namespace of the tree's root.
    ipc_of_root: Option<OwnedFd>,
    /// The first task of each PID namespace below the tree's.
    firsts: HashMap<u32, Pid>,
    /// A task that is in the root's, and whether there are other network namespaces.
    root: Option<Pid>,
    has_networks: bool,
}

impl Known {
    /// Notes a namespace, by its number in the image.
    pub fn add(&mut self, number: u32, made: OwnedFd) {
        self.made.insert(number, made);
    }

    /// Notes a task that is where the tree's root is, and whether there are network namespaces where that is not.
    pub fn set_root(&mut self, root: Pid, has_networks: bool) {
        (self.root, self.has_networks) = (Some(root), has_networks);
    }

    /// A task that is in the network namespace of the tree's root, where there are others.
    pub(crate) fn root_beside_others(&self) -> Option<Pid> {
        self.root.filter(|_| self.has_networks)
    }

    /// Notes the IPC namespace of the tree's root.
    pub fn add_ipc_of_root(&mut self, namespace: OwnedFd) {
        self.ipc_of_root = Some(namespace);
    }

    /// Notes the first task of a PID namespace.
    pub fn add_first_of_pids(&mut self, number: u32, first: Pid) {
        self.firsts.insert(number, first);
    }

    /// One but of PIDs.
    #[must_use]
    pub fn made(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.made.get(&number).map(AsFd::as_fd)
    }

    /// An IPC namespace, also that of the tree's root, which is 0.
    #[must_use]
    pub fn ipc(&self, number: u32) -> Option<BorrowedFd<'_>> {
        match number {
            0 => self.ipc_of_root.as_ref().map(AsFd::as_fd),
            other => self.made(other),
        }
    }

    pub(crate) fn first_of_pids(&self, number: u32) -> Option<Pid> {
        self.firsts.get(&number).copied()
    }
}
