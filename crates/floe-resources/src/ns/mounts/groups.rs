//! Groups of mounts that share what is mounted on them, mount_namespaces(7).

use super::shape::{PRIVATE, below};
use super::{
    make::{MountError, failed},
    namespaces::Spaces,
};
use crate::refusal::Refusals;
use floe_image::record::MountRecord;
use floe_sys::{
    mount::{Propagation, join_group, set_propagation},
    procfs::MountInfo,
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::BorrowedFd,
};

/// Refuses groups that reach beyond the tree, and those that can't be made again.
pub(super) fn refuse(mounts: &[MountInfo], host: &[MountInfo], refusals: &mut Refusals) {
    let outer: BTreeSet<u32> = host
        .iter()
        .map(|mount| mount.shared)
        .filter(|group| *group != 0)
        .collect();
    let inner: BTreeSet<u32> = mounts
        .iter()
        .map(|mount| mount.shared)
        .filter(|group| !outer.contains(group))
        .collect();
    let crosses =
        |mount: &&MountInfo| outer.contains(&mount.shared) || mount.master != 0 && !inner.contains(&mount.master);
    let mut crossing = mounts.iter().filter(crosses);
    if let Some(first) = crossing.next() {
        let point = String::from_utf8_lossy(&first.path);
        let object = match crossing.count() {
            0 => format!("mount {point}"),
            others => format!("mount {point} and {others} others"),
        };
        refusals.add(
            None,
            object,
            "mounts come to it from outside of the tree, or go there",
            PRIVATE,
        );
    }
    let members = |group: u32| mounts.iter().filter(move |mount| mount.shared == group);
    for mount in mounts
        .iter()
        .filter(|mount| inner.contains(&mount.shared) || inner.contains(&mount.master))
    {
        let shows = |root: &[u8]| below(&mount.root, root).is_some();
        let leader = |group: u32| {
            members(group)
                .map(|other| other.root.as_slice())
                .min_by_key(|root| root.len())
        };
        let groups = [mount.shared, mount.master]
            .into_iter()
            .filter(|group| *group != 0 && inner.contains(group));
        if groups.filter_map(leader).any(|root| !shows(root)) {
            let object = format!("mount {}", String::from_utf8_lossy(&mount.path));
            let reason = "none of the mounts that it shares mounts with shows all that the others do";
            refusals.add(None, object, reason, "unmount it");
        }
    }
}

/// A mount that is there.
pub(super) struct There<'a> {
    /// The number of the mount namespace that it is in.
    pub space: u32,
    /// What the image says of it.
    pub mount: &'a MountRecord,
    /// Its root.
    pub root: BorrowedFd<'a>,
    /// That of another one of the same that is nowhere, which others join in its place: one that has locked ones on it, where
    /// they show these, the kernel lets nobody join (`has_locked_children` in `do_set_group` of fs/namespace.c).
    pub double: Option<BorrowedFd<'a>>,
}

/// Makes the groups of mounts that are all there.
pub(super) fn make(mounts: &[There<'_>], spaces: &Spaces) -> Result<(), MountError> {
    let groups = Groups::of(mounts, spaces);
    let (mut made, mut waiting): (BTreeSet<u32>, Vec<u32>) =
        (BTreeSet::from([0]), groups.members.keys().copied().collect());
    while !waiting.is_empty() {
        // Checked when the image was opened: some group's master is there.
        let (now, later): (Vec<u32>, Vec<u32>) =
            (waiting.into_iter()).partition(|group| made.contains(&mounts[groups.members[group][0]].mount.master));
        for group in &now {
            groups.make(&groups.members[group])?;
        }
        if now.is_empty() {
            break;
        }
        made.extend(now);
        waiting = later;
    }
    let alone = (mounts.iter().enumerate()).filter(|(_, there)| there.mount.shared == 0 && there.mount.master != 0);
    for (index, there) in alone {
        let masters = &groups.members[&there.mount.master];
        groups
            .follow((index, there.root), masters)
            .map_err(failed("let it get the mounts of others", there.mount))?;
    }
    let unbindable = (mounts.iter().enumerate()).filter(|(_, there)| there.mount.unbindable);
    for (index, there) in unbindable {
        let forbidden = groups.set(index, Propagation::Unbindable);
        forbidden.map_err(failed("forbid to bind it", there.mount))?;
    }
    Ok(())
}

struct Groups<'a> {
    mounts: &'a [There<'a>],
    spaces: &'a Spaces,
    /// Positions of the mounts of each.
    members: BTreeMap<u32, Vec<usize>>,
}

impl<'a> Groups<'a> {
    fn of(mounts: &'a [There<'a>], spaces: &'a Spaces) -> Self {
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, there) in mounts.iter().enumerate().filter(|(_, there)| there.mount.shared != 0) {
            members.entry(there.mount.shared).or_default().push(index);
        }
        Self {
            mounts,
            spaces,
            members,
        }
    }

    /// From within the namespace of a mount alone it can be changed.
    fn set(&self, index: usize, propagation: Propagation) -> Result<(), Errno> {
        self.spaces.enter(self.mounts[index].space)?;
        set_propagation(self.mounts[index].root, propagation)
    }

    /// Has a mount be of another one's group.
    fn join(&self, of: usize, index: usize) -> Result<(), Errno> {
        self.spaces.enter(self.mounts[index].space)?;
        join_group(self.joined(of), self.mounts[index].root)
    }

    /// What others join of one.
    fn joined(&self, index: usize) -> BorrowedFd<'a> {
        self.mounts[index].double.unwrap_or(self.mounts[index].root)
    }

    fn make(&self, members: &[usize]) -> Result<(), MountError> {
        let mut last = Errno::EINVAL;
        let (doubled, others): (Vec<usize>, Vec<usize>) =
            (members.iter()).partition(|member| self.mounts[**member].double.is_some());
        for leader in doubled.iter().chain(&others) {
            match self.gather(*leader, members) {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
            for member in members {
                let private = self.set(*member, Propagation::Private);
                private.map_err(failed("make it private", self.mounts[*member].mount))?;
            }
        }
        Err(failed("let it share mounts", self.mounts[members[0]].mount)(last))
    }

    /// Only to one that shows all that the others do can the others be added.
    fn gather(&self, leader: usize, members: &[usize]) -> Result<(), Errno> {
        let joined = self.joined(leader);
        if let Some(masters) = self.members.get(&self.mounts[leader].mount.master) {
            self.follow((leader, joined), masters)?;
        }
        self.spaces.enter(self.mounts[leader].space)?;
        set_propagation(joined, Propagation::Shared)?;
        let is_in_it = |member: usize| member == leader && self.mounts[leader].double.is_none();
        let mut others = members.iter().filter(|member| !is_in_it(**member));
        others.try_for_each(|member| self.join(leader, *member))
    }

    /// Lets one, or what stands for it, get the mounts of a group: of a group that it leaves again it is still told.
    fn follow(&self, (index, root): (usize, BorrowedFd<'_>), masters: &[usize]) -> Result<(), Errno> {
        self.spaces.enter(self.mounts[index].space)?;
        let mut last = Errno::EINVAL;
        for master in masters {
            match join_group(self.joined(*master), root) {
                Ok(()) => return set_propagation(root, Propagation::Slave),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
