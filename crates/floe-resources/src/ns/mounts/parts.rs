//! Which parts of a filesystem a tree's mounts show: after pivot_root(2) often none shows all of it.

use super::{
    seen::Seen,
    shape::{Refused, UNMOUNT, below},
};
use floe_sys::procfs::MountInfo;
use nix::{errno::Errno, sys::stat::fstat};
use std::{collections::BTreeMap, os::fd::OwnedFd};

/// The roots of mounts, as they were opened, by their positions.
pub(super) type Opened = BTreeMap<usize, Result<Root, Errno>>;

/// That of one mount.
#[derive(Debug)]
pub(super) struct Root {
    pub file: OwnedFd,
    /// Whether it was opened without what hides it, or is mounted on it. In a user namespace that can't be taken away.
    pub is_bare: bool,
}

/// A part that is in none of the others.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// From the root of its filesystem.
    pub root: &'a [u8],
    /// What was opened of it.
    pub opened: &'a OwnedFd,
}

/// What is to be read of a mount's filesystem, so that nothing of it is missing that any mount shows in any of the tree's
/// namespaces, which are `all`.
pub(super) fn parts<'a>(all: &'a [Option<Seen>], of: &MountInfo) -> Result<Vec<Part<'a>>, Refused> {
    let mut shown: Vec<(usize, &MountInfo, &Opened)> = Vec::new();
    for seen in all.iter().flatten() {
        let mounts = seen.mounts.iter().enumerate();
        let mounts = mounts.filter(|(_, mount)| mount.device == of.device && mount.source == of.source);
        shown.extend(mounts.map(|(at, mount)| (at, mount, &seen.roots)));
    }
    let is_bare = |roots: &Opened, at: usize| matches!(roots.get(&at), Some(Ok(root)) if root.is_bare);
    // What lies in another part comes behind that; where several show the same, what can be read is before the others.
    shown.sort_by_key(|(at, mount, roots)| (mount.root.len(), !is_bare(roots, *at)));
    let mut found: Vec<Part<'a>> = Vec::new();
    for (at, mount, roots) in shown {
        let is_known = found.iter().any(|part| below(&mount.root, part.root).is_some());
        if is_known || mount.root.ends_with(b"//deleted") {
            continue;
        }
        let opened = opened(roots, at)?;
        if !is_bare(roots, at) {
            let reason =
                "what hides files of it in a user namespace can't be taken away there, and no other mount shows them";
            return Err((reason.to_owned(), UNMOUNT));
        }
        let is_directory = fstat(opened).is_ok_and(|there| there.st_mode & libc::S_IFMT == libc::S_IFDIR);
        if !is_directory {
            let reason = "it shows a file of a tmpfs that is mounted nowhere with a directory in which that is";
            return Err((reason.to_owned(), UNMOUNT));
        }
        found.push(Part {
            root: &mount.root,
            opened,
        });
    }
    Ok(found)
}

/// What one shows.
pub(super) fn opened(roots: &Opened, index: usize) -> Result<&OwnedFd, Refused> {
    match roots.get(&index) {
        Some(Ok(root)) => Ok(&root.file),
        Some(Err(error)) => Err((format!("it can't be looked into: {error}"), UNMOUNT)),
        None => Err(("it can't be looked into".to_owned(), UNMOUNT)),
    }
}
