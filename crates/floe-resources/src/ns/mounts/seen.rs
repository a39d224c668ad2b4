//! A mount namespace as seen in a private copy of it, in which what hides a mount is taken away.

use super::{
    baseline::{Baseline, parents_first},
    parts::Opened,
};
use crate::ns::{
    inside::{NsError, run},
    spaces::own_mountinfo,
};
use floe_sys::{
    Pid,
    mount::{clone_mount, leave_times_alone},
    namespace::known_ids,
    procfs::{MountInfo, mounts_in},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// All mounts, as the kernel orders them: the oldest first.
    pub mounts: Vec<MountInfo>,
    /// How they differ from a new sandbox's.
    pub baseline: Baseline,
    /// What each of those shows that a new sandbox has not, without what is mounted on it; or why that can't be seen.
    pub roots: Opened,
}

/// The group of terminals, in every Linux.
const TTY: u64 = 5;

impl Seen {
    /// Looks at the mounts of a process; `host` are floe's own.
    pub(super) fn look(pid: Pid, host: &[MountInfo]) -> Result<Self, NsError> {
        let proc = proc_directory()?;
        let groups = known_ids("gid_map").map_err(NsError::Proc)?;
        let grouped = groups.iter().any(|range| range.contains(&TTY));
        run(pid, CloneFlags::CLONE_NEWNS, || {
            // Of the namespace itself, because a copy's mounts have another order.
            let mounts = mounts_in(&own_mountinfo(&proc)?);
            let baseline = Baseline::find(&mounts, host, grouped);
            let is_new = |index: &usize| baseline.has[*index].is_none();
            let wanted: BTreeSet<usize> = (0..mounts.len()).filter(is_new).collect();
            let roots = if wanted.is_empty() {
                BTreeMap::new()
            } else {
                lay_bare(&mounts, wanted)?
            };
            Ok(Self {
                mounts,
                baseline,
                roots,
            })
        })
    }
}

/// floe's own, by which a thread finds itself wherever it is.
fn proc_directory() -> Result<OwnedFd, NsError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/proc", flags, Mode::empty()).map_err(|error| NsError::Read {
        path: "/proc".to_owned(),
        source: error.into(),
    })
}

/// Opens mounts in a copy of the namespace, what is on top first, and takes away there what hides others.
fn lay_bare(mounts: &[MountInfo], mut wanted: BTreeSet<usize>) -> io::Result<Opened> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let above = Above::of(mounts);
    let mut roots = BTreeMap::new();
    for index in parents_first(mounts).into_iter().rev() {
        let path = OsStr::from_bytes(&mounts[index].path);
        if wanted.remove(&index) {
            roots.insert(index, open_root(path, &mounts[index].kind));
        }
        if wanted.iter().any(|other| above.hides(mounts, index, *other)) {
            // What is on it goes as well; it has been opened. What can't be unmounted here could not be there either.
            if let Err(error) = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                tracing::debug!(%error, ?path, "it stays where it hides another mount");
            }
        }
    }
    Ok(roots)
}

fn open_root(path: &OsStr, kind: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // The copy is taken apart when this thread ends; what was cloned of it stays.
    let root = clone_mount(open(path, flags, Mode::empty())?.as_fd())?;
    // All that is in it will be read.
    if kind == b"tmpfs" {
        leave_times_alone(root.as_fd())?;
    }
    Ok(root)
}

/// Which mounts a mount is on.
pub(super) struct Above(Vec<Option<usize>>);

impl Above {
    pub(super) fn of(mounts: &[MountInfo]) -> Self {
        let by_id: HashMap<u32, usize> = mounts.iter().zip(0..).map(|(mount, index)| (mount.id, index)).collect();
        let parent =
            |(index, mount): (usize, &MountInfo)| by_id.get(&mount.parent).copied().filter(|above| *above != index);
        Self(mounts.iter().enumerate().map(parent).collect())
    }

    /// The one that it is on.
    pub(super) fn parent(&self, index: usize) -> Option<usize> {
        self.0[index]
    }

    /// Whether one mount is in the way of all paths to another one.
    pub(super) fn hides(&self, mounts: &[MountInfo], index: usize, other: usize) -> bool {
        let below = |path: &[u8], top: &[u8]| {
            let rest = path.strip_prefix(top);
            top == b"/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let on = std::iter::successors(Some(other), |index| self.0[*index]);
        below(&mounts[other].path, &mounts[index].path) && !on.take(mounts.len()).any(|it| it == index)
    }
}

#[cfg(test)]
mod tests {
    use super::Above;
    use floe_sys::procfs::mounts_in;

    #[test]
    fn what_hides_another_one_is_known() {
        let lines = [
            "1 0 0:1 / / rw - tmpfs none rw",
            "2 1 0:2 / /a rw - tmpfs none rw",
            "3 2 0:3 / /a rw - tmpfs none rw",
            "4 2 0:4 / /a/b rw - tmpfs none rw",
            "5 1 0:5 / /ab rw - tmpfs none rw",
        ];
        let mounts = mounts_in(lines.join("\n").as_bytes());
        let above = Above::of(&mounts);
        let hidden = |by: usize| {
            (0..5)
                .filter(|other| above.hides(&mounts, by, *other))
                .collect::<Vec<_>>()
        };
        // By the root and by what they are on none are; by the one on top what is below it at its place, and on that.
        assert_eq!(
            [0, 1, 2, 3, 4].map(hidden),
            [vec![], vec![], vec![1, 3], vec![], vec![]]
        );
    }
}
