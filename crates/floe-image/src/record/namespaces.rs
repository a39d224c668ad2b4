//! Namespaces of a tree whose tasks are not all in the same, or that none is in: namespaces(7).

use super::{CgroupPlace, ClocksRecord, IpcRecord};
use serde::{Deserialize, Serialize};

/// A namespace, of another kind than PIDs, that is not the one of the tree's root. It may be that no task is in it, and that
/// descriptors or mounts keep it, or a namespace below it. They are numbered from 1 on; of each kind 0 is that of the root. The user namespaces come first, each behind the one above it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// The user namespace whose privileges count in it; of a user namespace the one above it.
    pub owner: u32,
    /// What is in it.
    pub contents: NamespaceContents,
}

/// What is in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceContents {
    /// Users and groups, user_namespaces(7).
    User(UserNamespaceRecord),
    /// Names, uts_namespaces(7).
    Uts {
        /// Host name.
        #[serde(with = "serde_bytes")]
        host: Vec<u8>,
        /// NIS domain name.
        #[serde(with = "serde_bytes")]
        domain: Vec<u8>,
    },
    /// System V IPC and POSIX message queues, ipc_namespaces(7).
    Ipc(IpcRecord),
    /// What a [`NetworkRecord`](super::NetworkRecord) tells: network_namespaces(7).
    Network,
    /// Clocks, time_namespaces(7).
    Time(ClocksRecord),
    /// Where in each hierarchy it begins, unless that is at the tree's own cgroup: cgroup_namespaces(7).
    Cgroup(Vec<CgroupPlace>),
}

/// A user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespaceRecord {
    /// Who made it, by the numbers of the user namespace that floe ran in: user and group.
    pub maker: (u32, u32),
    /// Users that it knows: `/proc/PID/uid_map`. None where nobody has written it.
    pub users: Vec<IdRange>,
    /// Groups.
    pub groups: Vec<IdRange>,
    /// Whether setgroups(2) is allowed in it.
    pub setgroups: bool,
}

/// Consecutive users or groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first one's number inside.
    pub inside: u32,
    /// Its number in the user namespace above.
    pub above: u32,
    /// How many.
    pub count: u32,
}

/// Kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "their names are all there is to say")]
pub enum NamespaceKind {
    Mount,
    Network,
    Ipc,
    User,
    Pid,
    Uts,
    Cgroup,
    Time,
}

impl NamespaceKind {
    /// Its name in /proc/PID/ns.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        const ALL: [NamespaceKind; 8] = [
            NamespaceKind::Mount,
            NamespaceKind::Network,
            NamespaceKind::Ipc,
            NamespaceKind::User,
            NamespaceKind::Pid,
            NamespaceKind::Uts,
            NamespaceKind::Cgroup,
            NamespaceKind::Time,
        ];
        ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl NamespaceContents {
    /// The kind of namespace that this is in.
    #[must_use]
    pub const fn kind(&self) -> NamespaceKind {
        match self {
            Self::User(_) => NamespaceKind::User,
            Self::Uts { .. } => NamespaceKind::Uts,
            Self::Ipc(_) => NamespaceKind::Ipc,
            Self::Network { .. } => NamespaceKind::Network,
            Self::Time(_) => NamespaceKind::Time,
            Self::Cgroup(_) => NamespaceKind::Cgroup,
        }
    }
}

/// The namespaces that a task is in, by their numbers. Those of PIDs stand apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskNamespaces {
    /// User namespace.
    pub user: u32,
    /// UTS namespace.
    pub uts: u32,
    /// IPC namespace.
    pub ipc: u32,
    /// Network namespace.
    pub network: u32,
    /// Time namespace.
    pub time: u32,
    /// Cgroup namespace; 0 is the one that begins at the tree's own cgroups, or the host's.
    pub cgroup: u32,
}
