//! Finds again what a new sandbox has by itself: also what lies below others at one place, which no path leads to.

use super::make::{MountError, as_path, failed};
use floe_image::record::{MountRecord, MountSource};
use floe_sys::{
    descriptor::open_in_root,
    mount::{attach, is_root},
    procfs::MountInfo,
};
use nix::errno::Errno;
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Opens the roots of those mounts, by their positions; `now` tells what is mounted.
pub(super) fn open(
    mounts: &[MountRecord],
    root: BorrowedFd<'_>,
    now: &dyn Fn() -> Result<Vec<MountInfo>, Errno>,
) -> Result<BTreeMap<usize, OwnedFd>, MountError> {
    let mut found = BTreeMap::new();
    let Some(first) = mounts.first() else { return Ok(found) };
    let there = now().map_err(failed("read what is mounted", first))?;
    for (index, mount) in mounts.iter().enumerate() {
        if mount.source != MountSource::Inherited {
            continue;
        }
        let changes = mount.attributes.is_some() || mount.shared != 0 || mount.master != 0 || mount.unbindable;
        let above = if index > 0 && changes {
            above(mounts, index, &there)
        } else {
            0
        };
        let opened = under(root, mount, above).map_err(failed("find it among the host's mounts", mount))?;
        found.insert(index, opened);
    }
    Ok(found)
}

/// How many lie on top of it at its place.
fn above(mounts: &[MountRecord], index: usize, there: &[MountInfo]) -> usize {
    let point = &mounts[index].point;
    let all = there.iter().filter(|mount| mount.path == point.0).count();
    let (mut level, mut at) = (1, mounts[index].parent as usize);
    while at != 0 && mounts[at].point == *point {
        (level, at) = (level + 1, mounts[at].parent as usize);
    }
    all.saturating_sub(level)
}

/// Lays what is above aside, on the root directory, as long as it takes to open it.
fn under(root: BorrowedFd<'_>, mount: &MountRecord, above: usize) -> Result<OwnedFd, Errno> {
    let top = || {
        let found = open_in_root(root, as_path(&mount.point), libc::O_PATH | libc::O_NOFOLLOW, 0)?;
        is_root(found.as_fd())?.then_some(found).ok_or(Errno::ENOENT)
    };
    let mut aside = Vec::with_capacity(above);
    for _ in 0..above {
        let covering = top()?;
        attach(covering.as_fd(), root)?;
        aside.push(covering);
    }
    let found = top()?;
    let mut below = found.as_fd();
    for covering in aside.iter().rev() {
        attach(covering.as_fd(), below)?;
        below = covering.as_fd();
    }
    Ok(found)
}
