//! Namespaces that descriptors and mounts of nsfs keep, whether a task is in them or not: namespaces(7). They are looked for
//! before all else, since what is in them is found as that of all others is.

use super::inside::NsError;
use crate::tree::FoundTree;
use floe_sys::{
    Pid,
    namespace::{Kind, parse_link},
    procfs::{self, MountInfo, Stat},
};
use nix::sys::stat::fstat;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
};

/// A namespace's kind and inode number, which is its identity.
pub(crate) type Identity = (Kind, u64);

/// All of a tree.
#[derive(Debug)]
pub struct Held {
    all: BTreeMap<Identity, OwnedFd>,
    /// Those that others than the tree are in, or keep; looked for once there is anything to be kept.
    elsewhere: Option<BTreeSet<Identity>>,
}

fn read_error(path: String) -> impl FnOnce(std::io::Error) -> NsError {
    move |source| NsError::Read { path, source }
}

/// The namespace that a mount of nsfs shows.
pub(super) fn shown(mount: &MountInfo) -> Option<Identity> {
    (mount.kind == b"nsfs").then(|| parse_link(&mount.root)).flatten()
}

impl Held {
    /// Those of which the tree's processes have descriptors.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn by_descriptors(tree: &FoundTree) -> Result<Self, NsError> {
        let mut found = Self {
            all: BTreeMap::new(),
            elsewhere: None,
        };
        let own = std::fs::metadata(OWN).map_err(read_error(OWN.to_owned()))?;
        for process in tree.living() {
            let task = process.task();
            for number in procfs::descriptors(task).map_err(NsError::Proc)? {
                let path = format!("/proc/{task}/fd/{number}");
                let link = std::fs::read_link(&path).map_err(read_error(path.clone()))?;
                // Opened by a mount, it has the path of that.
                let is_path = link.is_absolute();
                if !is_path && parse_link(link.as_os_str().as_bytes()).is_none() {
                    continue;
                }
                let there = std::fs::metadata(&path).map_err(read_error(path.clone()))?;
                if there.dev() != own.dev() || found.all.keys().any(|(_, inode)| *inode == there.ino()) {
                    continue;
                }
                let file = File::open(&path).map_err(read_error(path.clone()))?;
                let kind = Kind::of(file.as_fd()).map_err(|error| read_error(path)(error.into()))?;
                found.add((kind, there.ino()), file.into(), tree)?;
            }
        }
        Ok(found)
    }

    /// Notes one; `file` is not it where another mount hides the one that shows it.
    pub(super) fn add(&mut self, identity: Identity, file: OwnedFd, tree: &FoundTree) -> Result<(), NsError> {
        if self.elsewhere.is_none() {
            self.elsewhere = Some(elsewhere(tree)?);
        }
        if fstat(&file).is_ok_and(|found| found.st_ino == identity.1) {
            self.all.entry(identity).or_insert(file);
        }
        Ok(())
    }

    /// Those of a kind that the tree alone has.
    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (u64, &OwnedFd)> {
        let own = self.all.iter().filter(|(identity, _)| !self.is_elsewhere(**identity));
        own.filter_map(move |((of, inode), file)| (*of == kind).then_some((*inode, file)))
    }

    fn is_elsewhere(&self, identity: Identity) -> bool {
        self.elsewhere.as_ref().is_some_and(|all| all.contains(&identity))
    }

    /// Those that others than the tree are in, too, or keep.
    pub(super) fn elsewhere(&self) -> BTreeSet<Identity> {
        let all = self.all.keys().copied();
        all.filter(|identity| self.is_elsewhere(*identity)).collect()
    }

    /// All that others than the tree are in, or keep, where that is wanted.
    ///
    /// # Errors
    /// [`NsError`].
    pub(super) fn of_outsiders(&self, tree: &FoundTree, wanted: bool) -> Result<BTreeSet<Identity>, NsError> {
        match &self.elsewhere {
            _ if !wanted => Ok(BTreeSet::new()),
            Some(known) => Ok(known.clone()),
            None => elsewhere(tree),
        }
    }
}

/// One that is there on every kernel.
const OWN: &str = "/proc/self/ns/mnt";

/// Namespaces of processes that are not of the tree, nor floe's own children, and those that the host's mounts keep.
fn elsewhere(tree: &FoundTree) -> Result<BTreeSet<Identity>, NsError> {
    let inside: BTreeSet<Pid> = tree.processes.iter().map(|process| process.pid).collect();
    let own = std::process::id() as i32;
    let mut found: BTreeSet<Identity> = BTreeSet::new();
    for pid in procfs::processes().map_err(NsError::Proc)? {
        // Of one that has ended, or that floe may not look at, nothing is found.
        let is_floes = || Stat::of(pid).is_ok_and(|stat| stat.ppid == own);
        if inside.contains(&pid) || is_floes() {
            continue;
        }
        let inode = |kind: &Kind| std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok();
        found.extend((Kind::ALL.iter()).filter_map(|kind| Some((*kind, inode(kind)?.ino()))));
    }
    let host = procfs::mount_points("/proc/self").map_err(NsError::Proc)?;
    found.extend(host.iter().filter_map(shown));
    Ok(found)
}
