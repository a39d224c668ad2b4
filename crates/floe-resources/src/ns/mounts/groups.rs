//! Groups of mounts that share what is mounted on them, mount_namespaces(7).

use super::make::{MountError, failed};
use crate::refusal::Refusals;
use floe_image::record::MountRecord;
use floe_sys::{
    mount::{Propagation, join_group, set_propagation},
    procfs::MountInfo,
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
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
        let advice = "make its mounts private: mount --make-rprivate /";
        refusals.add(
            None,
            object,
            "mounts come to it from outside of the tree, or go there",
            advice,
        );
    }
    let members = |group: u32| mounts.iter().filter(move |mount| mount.shared == group);
    for mount in mounts
        .iter()
        .filter(|mount| inner.contains(&mount.shared) || inner.contains(&mount.master))
    {
        let shows = |root: &[u8]| root == b"/" || mount.root.starts_with(root);
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

/// Makes the groups of mounts that are all there, each by its root.
pub(super) fn make(mounts: &[MountRecord], roots: &[OwnedFd]) -> Result<(), MountError> {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, mount) in mounts.iter().enumerate().filter(|(_, mount)| mount.shared != 0) {
        groups.entry(mount.shared).or_default().push(index);
    }
    let (mut made, mut waiting): (BTreeSet<u32>, Vec<u32>) = (BTreeSet::from([0]), groups.keys().copied().collect());
    while !waiting.is_empty() {
        // Checked when the image was opened: some group's master is there.
        let (now, later): (Vec<u32>, Vec<u32>) =
            (waiting.into_iter()).partition(|group| made.contains(&mounts[groups[group][0]].master));
        for group in &now {
            make_group(mounts, roots, (&groups[group], &groups))?;
        }
        if now.is_empty() {
            break;
        }
        made.extend(now);
        waiting = later;
    }
    let alone = (mounts.iter().enumerate()).filter(|(_, mount)| mount.shared == 0 && mount.master != 0);
    for (index, mount) in alone {
        follow(roots, index, &groups[&mount.master]).map_err(failed("let it get the mounts of others", mount))?;
    }
    let unbindable = mounts.iter().zip(roots).filter(|(mount, _)| mount.unbindable);
    for (mount, root) in unbindable {
        set_propagation(root.as_fd(), Propagation::Unbindable).map_err(failed("forbid to bind it", mount))?;
    }
    Ok(())
}

fn make_group(
    mounts: &[MountRecord],
    roots: &[OwnedFd],
    (members, groups): (&[usize], &BTreeMap<u32, Vec<usize>>),
) -> Result<(), MountError> {
    let mut last = Errno::EINVAL;
    for leader in members {
        match gather(mounts, roots, (*leader, members, groups)) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        for member in members {
            let private = set_propagation(roots[*member].as_fd(), Propagation::Private);
            private.map_err(failed("make it private", &mounts[*member]))?;
        }
    }
    Err(failed("let it share mounts", &mounts[members[0]])(last))
}

/// Only to one that shows all that the others do can the others be added.
fn gather(
    mounts: &[MountRecord],
    roots: &[OwnedFd],
    (leader, members, groups): (usize, &[usize], &BTreeMap<u32, Vec<usize>>),
) -> Result<(), Errno> {
    if let Some(masters) = groups.get(&mounts[leader].master) {
        follow(roots, leader, masters)?;
    }
    set_propagation(roots[leader].as_fd(), Propagation::Shared)?;
    let others = members.iter().filter(|member| **member != leader);
    others
        .into_iter()
        .try_for_each(|member| join_group(roots[leader].as_fd(), roots[*member].as_fd()))
}

/// Lets one get the mounts of a group: of a group that it leaves again it is still told.
fn follow(roots: &[OwnedFd], index: usize, masters: &[usize]) -> Result<(), Errno> {
    let mut last = Errno::EINVAL;
    for master in masters {
        match join_group(roots[*master].as_fd(), roots[index].as_fd()) {
            Ok(()) => return set_propagation(roots[index].as_fd(), Propagation::Slave),
            Err(error) => last = error,
        }
    }
    Err(last)
}
