//! Network namespaces and the tasks that make sockets, which are of the one that their maker is in: a task goes there for them,
//! and back.

use super::{Maker, system};
use crate::{channel::Channel, file::FileError, ns::Known};
use floe_image::record::NamespaceKind;
use floe_tracee::{Batch, Puppet, Script};
use nix::{errno::Errno, sys::stat::fstat};
use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, BorrowedFd},
};

/// Tasks and namespaces of a tree that is restored.
#[derive(Clone, Copy)]
pub(super) struct Makers<'a> {
    pub puppets: &'a BTreeMap<i32, Puppet>,
    pub channel: &'a Channel,
    pub known: &'a Known,
}

/// What a task needs to go to a network namespace and back.
#[derive(Debug)]
pub(super) struct Visit(Option<Numbers>);

/// Descriptors of the task.
#[derive(Debug)]
struct Numbers {
    there: i32,
    back: i32,
}

impl<'a> Makers<'a> {
    /// The first task of the tree, which may go to all its network namespaces.
    pub(super) fn first(&self, id: u32) -> Result<&'a Puppet, FileError> {
        Maker::of(1).among(id, self.puppets)
    }

    /// Whether a task is in the network namespace of this number.
    pub(super) fn is_in(&self, id: u32, puppet: &Puppet, network: u32) -> Result<bool, FileError> {
        Ok(self.way(id, puppet, network)?.is_none())
    }

    /// Prepares a task to go to the network namespace of this number, unless it is there.
    pub(super) fn visit(&self, id: u32, puppet: &Puppet, network: u32) -> Result<Visit, FileError> {
        let Some((there, back)) = self.way(id, puppet, network)? else {
            return Ok(Visit(None));
        };
        let numbers = self.channel.give(&mut Script::new(puppet), &[there, back.as_fd()])?;
        Ok(Visit(Some(Numbers {
            there: numbers[0],
            back: numbers[1],
        })))
    }

    /// The network namespace of this number and the one that a task is in, unless that is the same.
    fn way(&self, id: u32, puppet: &Puppet, network: u32) -> Result<Option<(BorrowedFd<'a>, File)>, FileError> {
        if !self.known.has_networks() {
            return Ok(None);
        }
        let wrap = |source| system("find the network namespace of", id, source);
        let there = self.known.one(NamespaceKind::Network, network);
        let there = there.ok_or_else(|| wrap(Errno::ESRCH.into()))?;
        let back = File::open(format!("/proc/{}/ns/net", puppet.tid())).map_err(wrap)?;
        let inode = |file: BorrowedFd<'_>| fstat(file).map(|found| found.st_ino);
        let same = inode(there).and_then(|there| Ok(there == inode(back.as_fd())?));
        Ok((!same.map_err(|error| wrap(error.into()))?).then_some((there, back)))
    }
}

impl Visit {
    /// Adds calls that the task does there.
    pub(super) fn during<T>(self, batch: &mut Batch, calls: impl FnOnce(&mut Batch) -> T) -> T {
        let Some(numbers) = self.0 else { return calls(batch) };
        let enter = |batch: &mut Batch, number: i32| {
            let arguments = [number as u64, libc::CLONE_NEWNET as u64];
            batch.call("enter a network namespace", libc::SYS_setns, &arguments);
            batch.call("close it", libc::SYS_close, &[number as u64]);
        };
        enter(batch, numbers.there);
        let done = calls(batch);
        enter(batch, numbers.back);
        done
    }
}
