//! Which parts of a filesystem a tree's mounts show: after pivot_root(2) often none shows all of it.

use super::find::{Refused, UNMOUNT, below, joined};
use floe_image::record::MountPoint;
use floe_sys::procfs::MountInfo;
use nix::{errno::Errno, sys::stat::fstat};
use std::{collections::BTreeMap, os::fd::OwnedFd};

/// The roots of mounts, as they were opened, by their positions.
pub(super) type Opened = BTreeMap<usize, Result<OwnedFd, Errno>>;

/// A part that is in none of the others.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// From the root of its filesystem.
    pub root: &'a [u8],
    /// What was opened of it.
    pub opened: &'a OwnedFd,
    /// Where it is mounted.
    point: &'a [u8],
}

impl Part<'_> {
    /// Where in the tree a file is that has this path from the root of the filesystem; `None` where it is in another part.
    pub(super) fn place_of(&self, path: &[u8]) -> Option<MountPoint> {
        Some(joined(self.point, below(path, self.root)?))
    }
}

/// What is to be read of a mount's filesystem, so that nothing of it is missing that any mount shows.
pub(super) fn parts<'a>(mounts: &'a [MountInfo], roots: &'a Opened, index: usize) -> Result<Vec<Part<'a>>, Refused> {
    let of = &mounts[index];
    let shown = mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| mount.device == of.device && mount.source == of.source);
    let mut shown: Vec<(usize, &MountInfo)> = shown.collect();
    // What lies in another part comes behind that.
    shown.sort_by_key(|(at, mount)| (mount.root.len(), *at));
    let mut found: Vec<Part<'a>> = Vec::new();
    for (at, mount) in shown {
        let is_known = found.iter().any(|part| below(&mount.root, part.root).is_some());
        if is_known || mount.root.ends_with(b"//deleted") {
            continue;
        }
        let opened = opened(roots, at)?;
        let is_directory = fstat(opened).is_ok_and(|there| there.st_mode & libc::S_IFMT == libc::S_IFDIR);
        if !is_directory {
            let reason = "it shows a file of a tmpfs that is mounted nowhere with a directory in which that is";
            return Err((reason.to_owned(), UNMOUNT));
        }
        found.push(Part {
            root: &mount.root,
            opened,
            point: &mount.path,
        });
    }
    Ok(found)
}

/// What one shows.
pub(super) fn opened(roots: &Opened, index: usize) -> Result<&OwnedFd, Refused> {
    match roots.get(&index) {
        Some(Ok(root)) => Ok(root),
        Some(Err(error)) => Err((format!("it can't be looked into: {error}"), UNMOUNT)),
        None => Err(("it can't be looked into".to_owned(), UNMOUNT)),
    }
}
