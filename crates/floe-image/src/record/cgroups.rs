//! Cgroups of the tree: what is set in its own and those below, and who is where.

use super::{ExtendedAttribute, NsPid};
use serde::{Deserialize, Serialize};

/// What the tree has of one cgroup hierarchy. Where nothing is set, and all are in its own cgroup, there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HierarchyRecord {
    /// Controllers of version 1, or `name=` and a name, as /proc/PID/cgroup has them; empty for version 2.
    pub controllers: String,
    /// The tree's own cgroup first, whose path is empty, then those below it, parents before children.
    pub cgroups: Vec<CgroupRecord>,
    /// Threads that are not in the own cgroup, by id in the tree's PID namespace, lowest first, and the position of theirs.
    pub members: Vec<(NsPid, u32)>,
}

/// A cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// Its path below the own one.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Owner and permissions of its directory.
    pub access: CgroupAccess,
    /// The same of files in it that differ from new ones, by name.
    pub files: Vec<(String, CgroupAccess)>,
    /// Extended attributes of its directory.
    pub attributes: Vec<ExtendedAttribute>,
    /// Version 2: it has threads alone (`threaded` in cgroup.type).
    pub threaded: bool,
    /// Version 2: controllers of the cgroups below it, cgroup.subtree_control.
    pub hands_on: Vec<String>,
    /// It was frozen by whoever is in the tree.
    pub frozen: bool,
    /// What is set in it: files and what they say, in the order in which they are set.
    pub settings: Vec<(String, String)>,
}

/// A cgroup of the tree's, among those of a [`HierarchyRecord`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CgroupPlace {
    /// Its hierarchy, by the controllers of that.
    pub hierarchy: String,
    /// Its path below the tree's own one.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// Who may do what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupAccess {
    /// Owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl CgroupPlace {
    /// What is at a place; nothing where the image has no such cgroup.
    #[must_use]
    pub fn find<'a>(&self, all: &'a [HierarchyRecord]) -> Option<&'a CgroupRecord> {
        let mut all = all.iter();
        let hierarchy = all.find(|record| record.controllers == self.hierarchy)?;
        hierarchy.cgroups.iter().find(|cgroup| cgroup.path == self.path)
    }
}
