//! The cgroups that a tree has, by which mounts and cgroup namespaces are known: by the directory that they begin at.

use super::dump::usual;
use crate::ns::run_in;
use floe_cgroup::Hierarchies;
use floe_image::record::{CgroupPlace, CgroupRecord, HierarchyRecord, MountNamespaceRecord, MountSource};
use floe_sys::mount::NewFilesystem;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::stat::fstat,
};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

/// Device and inode number of a directory.
type Identity = (u64, u64);

/// What was found.
#[derive(Debug, Default)]
pub struct FoundCgroups {
    /// Each hierarchy in which the tree has a cgroup of its own.
    pub records: Vec<HierarchyRecord>,
    /// Its cgroups.
    pub(super) places: HashMap<Identity, CgroupPlace>,
    /// Those that it shares with others.
    pub(super) shared: HashSet<Identity>,
    /// Whether the root's cgroup namespace begins elsewhere than at the tree's own cgroups.
    pub(crate) root_is_elsewhere: bool,
}

impl FoundCgroups {
    /// The tree's cgroup that is a directory.
    pub(crate) fn place(&self, directory: Identity) -> Option<&CgroupPlace> {
        self.places.get(&directory)
    }

    /// Where a cgroup namespace begins, but for the tree's own cgroups; `None` where that is outside of the tree's.
    pub(crate) fn beginning(&self, namespace: BorrowedFd<'_>) -> io::Result<Option<Vec<CgroupPlace>>> {
        let hierarchies = Hierarchies::probe()?;
        let roots = match run_in(namespace, || roots(&hierarchies)) {
            Ok(roots) => roots,
            // One of them was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for root in roots {
            match self.places.get(&root) {
                Some(place) if place.path.is_empty() => {}
                Some(place) => found.push(place.clone()),
                None if self.shared.contains(&root) => {}
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// What is to be carried: hierarchies in which something is set, or of which mounts show the tree's own cgroup.
    #[must_use]
    pub fn into_records(mut self, mounts: &[MountNamespaceRecord]) -> Vec<HierarchyRecord> {
        let mounts = || mounts.iter().flat_map(|namespace| &namespace.mounts);
        let is_shown = |record: &HierarchyRecord| {
            mounts().any(|mount| match &mount.source {
                MountSource::Cgroup { place, .. } => place.hierarchy == record.controllers,
                _ => false,
            })
        };
        self.records.retain(|record| !is_new(record) || is_shown(record));
        self.records
    }
}

/// Whether a hierarchy is as any new sandbox has it.
fn is_new(record: &HierarchyRecord) -> bool {
    let new = CgroupRecord {
        access: usual(),
        ..CgroupRecord::default()
    };
    record.cgroups == [new]
}

/// The directories at which the cgroup namespace of the calling thread begins: what is mounted in it shows them.
fn roots(hierarchies: &Hierarchies) -> io::Result<Vec<Identity>> {
    // Who may not mount here may do it in a mount namespace of its own.
    unshare(CloneFlags::CLONE_NEWNS)?;
    let v1 = hierarchies.v1.iter().map(|hierarchy| hierarchy.controllers.join(","));
    let all = v1.chain(hierarchies.v2.iter().map(|_| String::new()));
    let identity = |controllers: String| {
        let root = fstat(mount(&controllers, b"")?)?;
        Ok((root.st_dev, root.st_ino))
    };
    all.map(identity).collect()
}

/// A mount of a hierarchy, which is nowhere yet: of version 1 with these controllers, or of version 2 without any. It shows what
/// the caller's cgroup namespace begins at. In another namespace than the first one this changes no options.
pub(crate) fn mount(controllers: &str, source: &[u8]) -> Result<OwnedFd, Errno> {
    let new = NewFilesystem::new(if controllers.is_empty() { c"cgroup2" } else { c"cgroup" })?;
    for controller in controllers.split(',').filter(|controller| !controller.is_empty()) {
        match controller.strip_prefix("name=") {
            Some(name) => {
                new.set_flag(b"none")?;
                new.set(b"name", name.as_bytes())?;
            }
            None => new.set_flag(controller.as_bytes())?,
        }
    }
    if !source.is_empty() {
        new.set(b"source", source)?;
    }
    new.mount()
}
