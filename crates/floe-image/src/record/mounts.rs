//! What was mounted in a sandbox besides what a new one has by itself, and filesystems that are made anew.

use super::{CgroupPlace, ContentOwner, ExtendedAttribute, NamespaceKind};
use serde::{Deserialize, Serialize};

/// Layers of overlayfs are opened by their paths.
const LAYERS: [&str; 4] = ["lowerdir+", "datadir+", "upperdir", "workdir"];

/// A mount namespace, as far as it differs from that of a new sandbox. Their numbers are their positions; 0 is the one of
/// the tree's root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountNamespaceRecord {
    /// The user namespace whose privileges count in it, by its number among the
    /// [`NamespaceRecord`](super::NamespaceRecord)s; 0 for that of the tree's root.
    pub owner: u32,
    /// Mount points at which a new sandbox has something that is not there, in the order in which it is unmounted.
    pub unmounted: Vec<MountPoint>,
    /// Mounts, each behind the one that it is on; the first is the root. None where nothing else is different.
    pub mounts: Vec<MountRecord>,
}

/// A path from the root of a mount namespace, or of a filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MountPoint(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Position of the mount that it is on; that of the root is its own.
    pub parent: u32,
    /// Where.
    pub point: MountPoint,
    /// What it shows.
    pub source: MountSource,
    /// MOUNT_ATTR_* of linux/mount.h. Of what a new sandbox has by itself: `None` where it is as there.
    pub attributes: Option<u32>,
    /// Number of the group of mounts that it shares mounts with; 0 for none.
    pub shared: u32,
    /// Number of the group whose mounts come to it, too; 0 for none.
    pub master: u32,
    /// Whether it may not be bound elsewhere.
    pub unbindable: bool,
    /// Whether it was copied into a user namespace with what it hides, so that nobody there may unmount it. What a new sandbox
    /// has by itself always is, in a mount namespace of a user namespace's.
    pub locked: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A new sandbox has it by itself.
    Inherited,
    /// What a new sandbox has at a path, before anything else is mounted in it.
    Path {
        /// It.
        path: MountPoint,
        /// Whether that is a directory.
        directory: bool,
    },
    /// A filesystem that is made anew, or a part of it.
    Filesystem {
        /// Id of a [`FilesystemRecord`].
        filesystem: u32,
        /// The part.
        root: MountPoint,
    },
    /// The tree's own cgroup of a hierarchy, or one below.
    Cgroup {
        /// Which.
        place: CgroupPlace,
        /// What it says that it was made of.
        #[serde(with = "serde_bytes")]
        source: Vec<u8>,
    },
    /// A namespace, which it keeps.
    Namespace {
        /// Of this kind.
        kind: NamespaceKind,
        /// Its number among those of its kind; see [`NamespaceRecord`](super::NamespaceRecord) for all but mount and PID
        /// namespaces.
        number: u32,
    },
}

/// A filesystem that is made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemRecord {
    /// Number of this filesystem in the image.
    pub id: u32,
    /// Its type.
    pub kind: FilesystemKind,
    /// What it says that it was made of.
    #[serde(with = "serde_bytes")]
    pub source: Vec<u8>,
    /// Options.
    pub options: Vec<FilesystemOption>,
    /// Of [`FilesystemKind::Proc`]: number of the PID namespace whose processes it shows; 0 of others.
    pub pid_namespace: u32,
    /// Of [`FilesystemKind::Mqueue`]: number of the IPC namespace whose queues it shows; 0 of others.
    pub ipc_namespace: u32,
    /// Whether nobody can write to it, through whichever mount.
    pub read_only: bool,
    /// What is in it, for those that hold something; each behind the directory that it is in, the first is the root.
    pub nodes: Vec<NodeRecord>,
}

impl FilesystemRecord {
    /// Its regular files, whose content is in the page store, and their bytes.
    pub fn contents(&self) -> impl Iterator<Item = (ContentOwner, u64)> + use<'_> {
        let filesystem = self.id;
        (0..)
            .zip(&self.nodes)
            .filter_map(move |(node, record)| match record.kind {
                NodeKind::File { size } => Some((ContentOwner::Node { filesystem, node }, size)),
                _ => None,
            })
    }
}

/// Types of filesystems that are made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilesystemKind {
    /// Files in memory.
    Tmpfs,
    /// Processes of the tree's PID namespace.
    Proc,
    /// Devices.
    Sysfs,
    /// POSIX message queues.
    Mqueue,
    /// Terminals.
    Devpts,
    /// Directories that lie one over the other.
    Overlay,
}

/// An option of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemOption {
    /// Its name.
    pub key: String,
    /// Its value, where it has one.
    #[serde(with = "serde_bytes")]
    pub value: Option<Vec<u8>>,
}

/// A file of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Position of the directory that it is in; that of the root is its own.
    pub parent: u32,
    /// Its name there; that of the root is empty.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access and modification time, nanoseconds since 1970.
    pub times: [i64; 2],
    /// Extended attributes, access lists among them.
    pub attributes: Vec<ExtendedAttribute>,
}

/// What a file of a filesystem is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file, whose content is in the page store.
    File {
        /// Bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where to.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    /// A fifo.
    Fifo,
    /// The name of a socket.
    Socket,
    /// A device.
    Device {
        /// Whether it is a block device.
        block: bool,
        /// Its numbers, as makedev(3) joins them.
        number: u64,
    },
    /// Another name of a file.
    Link {
        /// Position of the first one, which tells all else.
        to: u32,
    },
}

impl MountPoint {
    /// Where it is below another one: a relative path, empty where they are the same; `None` where it is not below.
    #[must_use]
    pub fn below(&self, above: &Self) -> Option<&[u8]> {
        if above.0 == b"/" {
            return self.0.strip_prefix(b"/");
        }
        match self.0.strip_prefix(above.0.as_slice())? {
            [] => Some(&[]),
            [b'/', rest @ ..] => Some(rest),
            _ => None,
        }
    }
}

impl FilesystemKind {
    /// Its name, as the kernel has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Proc => "proc",
            Self::Sysfs => "sysfs",
            Self::Mqueue => "mqueue",
            Self::Devpts => "devpts",
            Self::Overlay => "overlay",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        const ALL: [FilesystemKind; 6] = [
            FilesystemKind::Tmpfs,
            FilesystemKind::Proc,
            FilesystemKind::Sysfs,
            FilesystemKind::Mqueue,
            FilesystemKind::Devpts,
            FilesystemKind::Overlay,
        ];
        ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    /// Whether it is made anew with an option of this name. Others might have the kernel do something.
    #[must_use]
    pub fn knows(self, key: &str) -> bool {
        let known: &[&str] = match self {
            Self::Tmpfs => &[
                "size",
                "nr_inodes",
                "mode",
                "uid",
                "gid",
                "huge",
                "mpol",
                "inode32",
                "inode64",
                "noswap",
            ],
            Self::Proc => &["hidepid", "subset", "gid"],
            Self::Sysfs | Self::Mqueue => &[],
            Self::Devpts => &["mode", "ptmxmode", "uid", "gid", "max"],
            Self::Overlay => &[
                "lowerdir+",
                "datadir+",
                "upperdir",
                "workdir",
                "redirect_dir",
                "index",
                "uuid",
                "nfs_export",
                "xino",
                "metacopy",
                "volatile",
                "userxattr",
                "default_permissions",
                "verity",
            ],
        };
        known.contains(&key)
    }
}

impl FilesystemOption {
    /// Whether it names a directory that a filesystem is made of.
    #[must_use]
    pub fn is_layer(&self) -> bool {
        LAYERS.contains(&self.key.as_str())
    }
}
