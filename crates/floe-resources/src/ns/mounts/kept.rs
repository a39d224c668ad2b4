//! Namespaces that mounts of nsfs keep, as `ip netns add` does: namespaces(7).

use super::seen::{lay_bare, proc_directory};
use crate::ns::{
    held::{Identity, shown},
    inside::{NsError, run},
};
use floe_sys::{
    Pid,
    procfs::{self, MountInfo},
};
use nix::sched::CloneFlags;
use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
};

/// Those that `mounts` keep, which are all of the mount namespace of a task, but not those that the host's own mounts do.
/// What could not be opened is not among them.
pub(in crate::ns) fn kept(task: Pid, mounts: &[MountInfo]) -> Result<Vec<(Identity, OwnedFd)>, NsError> {
    if !mounts.iter().any(|mount| shown(mount).is_some()) {
        return Ok(Vec::new());
    }
    let host = procfs::mount_points("/proc/self").map_err(NsError::Proc)?;
    let of_host: HashSet<Identity> = host.iter().filter_map(shown).collect();
    let wanted: BTreeSet<usize> = (mounts.iter().zip(0..))
        .filter_map(|(mount, index)| shown(mount).filter(|it| !of_host.contains(it)).map(|_| index))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let proc = proc_directory()?;
    let roots = run(task, CloneFlags::CLONE_NEWNS, || lay_bare(mounts, wanted, &proc))?;
    let opened = roots.into_iter().filter_map(|(index, root)| {
        let root = root.ok()?;
        let file = File::open(format!("/proc/self/fd/{}", root.file.as_raw_fd())).ok()?;
        Some((shown(&mounts[index])?, file.into()))
    });
    Ok(opened.collect())
}
