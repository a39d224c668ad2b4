//! Mounts that are not locked in a user namespace with those on them that are, as a bind mount with all below it is
//! (`mount --rbind`): of what is bound the copy alone is unlocked, and what is locked on it stays so (`__do_loopback` of
//! fs/namespace.c).
//!
//! ```text
//! a copy of the mount namespace, of the tree root's user:  the mounts, the first one on the root directory
//!   -> its copy in the user namespace, by which they are locked; whoever enters it has the first one as root directory
//!   -> that with all on it, bound, is put where it goes
//! ```
//! What is in between is thrown away: there the first one is locked, too.

use super::{
    copied::{self, Asked},
    make::{MountError, Mounting, failed},
};
use crate::ns::Known;
use floe_image::record::{MountRecord, MountSource};
use floe_sys::mount::{attach, clone_tree};
use nix::errno::Errno;
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

impl Mounting<'_> {
    /// Makes one, where it is not there and can be, with those on it that can be made locked by now.
    pub(super) fn mount_tree(
        &mut self,
        (number, top): (u32, usize),
        user: BorrowedFd<'_>,
        known: &Known,
    ) -> Result<(), MountError> {
        let mounts = &self.image.mount_namespaces()[number as usize].mounts;
        let Some(above) = self.above(number, top)? else {
            return Ok(());
        };
        let all = self.tree((number, top), known);
        if all.is_empty() {
            return self.mount_one((number, top), known);
        }
        let (tree, aside) = self.make_tree((number, top), &all, (user, known))?;
        self.attach_on((number, top), (tree.as_fd(), above.as_fd()))?;
        for (index, root) in copied::open_again(mounts, (top, &all), tree.as_fd())? {
            self.filesystems.move_to(&root, &mounts[index], (aside, number))?;
            self.done[number as usize].roots[index] = Some(root);
        }
        self.spaces.remove_aside();
        Ok(())
    }

    /// The positions of one and of those on it; none where nothing on it is to be locked.
    fn tree(&self, (number, top): (u32, usize), known: &Known) -> BTreeSet<usize> {
        let mounts = &self.image.mount_namespaces()[number as usize].mounts;
        let can_be = |mount: &MountRecord, made: &BTreeSet<usize>| {
            self.is_bindable(mount, made.iter().map(|index| &mounts[*index])) && self.can_be_copied(mount, known)
        };
        let asked = Asked {
            can_be: &can_be,
            is_bound: &|mount| self.filesystems.is_first(mount),
        };
        copied::tree(mounts, top, &asked)
    }

    /// Whether what a mount shows is whole where parts of it can be bound, or will be by those `made` before; or never.
    fn is_bindable<'m>(&self, mount: &MountRecord, mut made: impl Iterator<Item = &'m MountRecord>) -> bool {
        let MountSource::Filesystem { filesystem, root } = &mount.source else {
            return true;
        };
        let is_whole = |other: &MountRecord| match &other.source {
            MountSource::Filesystem { filesystem: its, root } => its == filesystem && root.0 == b"/",
            _ => false,
        };
        let mut all = self
            .image
            .mount_namespaces()
            .iter()
            .flat_map(|namespace| &namespace.mounts);
        root.0 == b"/" || self.filesystems.can_be_bound(*filesystem) || made.any(is_whole) || !all.any(is_whole)
    }

    /// A tree that is nowhere yet, and the number of the namespace in which it was made.
    fn make_tree(
        &mut self,
        (number, top): (u32, usize),
        all: &BTreeSet<usize>,
        (user, known): (BorrowedFd<'_>, &Known),
    ) -> Result<(OwnedFd, u32), MountError> {
        let mounts = &self.image.mount_namespaces()[number as usize].mounts;
        let first = &mounts[top];
        // Where all is locked, no layer of an overlay can be taken on which something is mounted.
        for index in all {
            if let MountSource::Filesystem { filesystem, .. } = &mounts[*index].source {
                self.filesystems.make(*filesystem, &mounts[*index], &self.spaces)?;
            }
        }
        let aside = self.spaces.add_aside();
        let aside = aside.map_err(failed("copy the namespace for it", first))?;
        for index in all {
            let mount = &mounts[*index];
            let there = self.make((number, *index), aside, known)?;
            let there = there.ok_or(Errno::ENOENT).map_err(failed("find it", mount))?;
            if *index == top {
                let root = self.spaces.root().map_err(failed("open the root", mount))?;
                attach(there.as_fd(), root.as_fd()).map_err(failed("mount it", mount))?;
            } else {
                let above = self.above(number, *index)?;
                let above = above
                    .ok_or(Errno::ENOENT)
                    .map_err(failed("find what it is on", mount))?;
                self.attach_on((number, *index), (there.as_fd(), above.as_fd()))?;
            }
            self.note((number, *index), there)?;
        }
        self.spaces.lock_aside(user).map_err(failed("have it locked", first))?;
        let root = self.spaces.root().map_err(failed("find its copy", first))?;
        let tree = clone_tree(root.as_fd()).map_err(failed("bind its copy", first))?;
        self.spaces
            .enter(number)
            .map_err(failed("enter its namespace", first))?;
        Ok((tree, aside))
    }
}
