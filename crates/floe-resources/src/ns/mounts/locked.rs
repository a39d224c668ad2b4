//! Which mounts of a user namespace's are locked: what is copied into one nobody there can unmount or move, by which what lies
//! below would show (mount_namespaces(7)). No file and no call tells; so it is tried, in a copy.

use super::{
    make::errno,
    seen::{Above, Copies},
};
use crate::ns::{held::shown, inside::NsError};
use floe_sys::{
    Pid,
    namespace::{Kind, beside_in_user, owner},
    procfs::MountInfo,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
};
use std::{
    collections::BTreeSet,
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
};

/// Positions of those mounts that are, of the mount namespace that a process is in; `mounts` are all that there are, the oldest
/// first.
///
/// # Errors
/// [`NsError`].
pub(super) fn find(task: Pid, mounts: &[MountInfo]) -> Result<BTreeSet<usize>, NsError> {
    let path = format!("/proc/{task}/ns/mnt");
    let failed = |error: Errno| NsError::Read {
        path: path.clone(),
        source: error.into(),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = open(path.as_str(), flags, Mode::empty()).map_err(failed)?;
    let user = owner(namespace.as_fd()).map_err(failed)?;
    let proc = open(
        "/proc",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let look = || {
        setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        // A copy of the same user namespace's: what is locked is as it was.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        try_each(mounts, &proc)
    };
    beside_in_user(Some(user.as_fd()), look).map_err(failed)
}

/// Unmounts all that can be, what came last first.
fn try_each(mounts: &[MountInfo], proc: &OwnedFd) -> Result<BTreeSet<usize>, Errno> {
    let copies = Copies::read(proc).map_err(|error| errno(&error))?;
    let above = Above::of(mounts);
    let (mut locked, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for index in (0..mounts.len()).rev() {
        let (mount, Some(parent)) = (&mounts[index], above.parent(index)) else {
            continue;
        };
        // A copy has no mounts that keep mount namespaces (copy_tree of fs/namespace.c), so none of them is locked.
        if shown(mount).is_some_and(|(kind, _)| kind == Kind::Mount) {
            continue;
        }
        // With what it was on it was unmounted: it had been moved there, which no locked one can be.
        if gone.contains(&parent) {
            gone.insert(index);
            continue;
        }
        let path = CString::new(mount.path.as_slice()).map_err(|_| Errno::EINVAL)?;
        let is_it = copies.are_on_top(mount).map_err(|error| errno(&error))?;
        // What hides it could not be unmounted: that is locked, and came later.
        if !is_it {
            locked.insert(index);
            continue;
        }
        match umount2(path.as_c_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => gone.insert(index),
            Err(Errno::EINVAL) => locked.insert(index),
            Err(error) => return Err(error),
        };
    }
    Ok(locked)
}
