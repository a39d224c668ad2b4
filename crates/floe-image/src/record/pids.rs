//! PID namespaces below that of the tree: pid_namespaces(7).

use super::NsPid;
use serde::{Deserialize, Serialize};

/// A PID namespace below the tree's own. They are numbered from 1 on; 0 is the tree's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidNamespaceRecord {
    /// The one above it, which comes before it.
    pub parent: u32,
    /// The user namespace whose privileges count in it, by its number among the [`NamespaceRecord`](super::NamespaceRecord)s.
    pub owner: u32,
    /// Whether its PID 1 has ended, and nothing of it is left, but that descriptors or mounts keep it.
    pub ended: bool,
}

/// The ids of a process that has ended, by which a process group or a session is still called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedLeaderRecord {
    /// Its id in the tree's PID namespace.
    pub pid: NsPid,
    /// Its PID namespace.
    pub pid_namespace: u32,
    /// Its ids in the namespaces below the tree's, outermost first.
    pub inner: Vec<NsPid>,
}

/// The PID namespace that children of a process are born into, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidsOfChildren {
    /// This one.
    Known(u32),
    /// A new one, unshare(2), in which there has been no process yet.
    New,
    /// One whose PID 1 has ended, so that no child can be born.
    Ended,
}
