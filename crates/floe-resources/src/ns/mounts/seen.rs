//! A mount namespace as seen in a private copy of it, in which what hides a mount is taken away.

use super::{
    baseline::{Baseline, parents_first},
    parts::{Opened, Root},
};
use crate::ns::{
    held::shown,
    inside::{NsError, run},
    spaces::own_mountinfo,
};
use floe_sys::{
    Pid,
    descriptor::mount_of,
    mount::{clone_mount, clone_tree, leave_times_alone},
    namespace::{Kind, known_ids},
    procfs::{MountInfo, mounts_in},
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, fstat, fstatat},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
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
    /// The PID namespaces that each proc shows, by device number; none where nobody is left in it.
    pub shown: Shown,
}

/// Inode numbers of PID namespaces, by the device numbers of what shows them.
type Shown = HashMap<u32, Option<u64>>;

/// What floe itself mounted in the tree's mount namespaces, and by what that is known.
#[derive(Debug)]
pub(super) struct Ours {
    /// The inode number of the tree's PID namespace, whose processes /proc shows.
    pub pids: u64,
    /// Device numbers of the rest, by their places; those of the tree's own namespace, once it was seen.
    devices: Option<HashMap<&'static str, u32>>,
}

impl Ours {
    /// In a sandbox whose PID namespace has this inode number.
    pub(super) fn new(pids: u64) -> Self {
        Self { pids, devices: None }
    }

    /// Notes what there is in the tree's own namespace; nothing where that is the host's.
    pub(super) fn note(&mut self, own: Option<&Seen>) {
        let found = own.into_iter().flat_map(|seen| {
            let all = seen.mounts.iter().zip(&seen.baseline.own);
            all.filter_map(|(mount, place)| Some(((*place)?, mount.device)))
        });
        self.devices = Some(found.collect());
    }

    fn is_it(&self, place: &'static str, mount: &MountInfo, shown: &Shown) -> bool {
        if mount.kind == b"proc" {
            return shown.get(&mount.device) == Some(&Some(self.pids));
        }
        let known = self.devices.as_ref();
        known.is_none_or(|known| known.get(place) == Some(&mount.device))
    }
}

/// The group of terminals, in every Linux.
const TTY: u64 = 5;

impl Seen {
    /// Looks at the mounts of a process; `host` are floe's own, `ours` what it mounts for a tree.
    pub(super) fn look(pid: Pid, host: &[MountInfo], ours: &Ours) -> Result<Self, NsError> {
        let proc = proc_directory()?;
        let groups = known_ids("gid_map").map_err(NsError::Proc)?;
        let grouped = groups.iter().any(|range| range.contains(&TTY));
        run(pid, CloneFlags::CLONE_NEWNS, || {
            // Of the namespace itself, because a copy's mounts have another order.
            let mounts = mounts_in(&own_mountinfo(&proc)?);
            let mut shown = procs_at_their_places(&mounts);
            let is_ours = |place, mount: &MountInfo| ours.is_it(place, mount, &shown);
            let baseline = Baseline::find(&mounts, host, (grouped, &is_ours));
            let is_new = |index: &usize| baseline.has[*index].is_none();
            let wanted: BTreeSet<usize> = (0..mounts.len()).filter(is_new).collect();
            let roots = if wanted.is_empty() {
                BTreeMap::new()
            } else {
                lay_bare(&mounts, wanted, &proc)?
            };
            for (index, root) in &roots {
                let mount = &mounts[*index];
                if let (b"proc", b"/", Ok(root)) = (mount.kind.as_slice(), mount.root.as_slice(), root) {
                    shown.entry(mount.device).or_insert_with(|| shown_by(root.file.as_fd()));
                }
            }
            Ok(Self {
                mounts,
                baseline,
                roots,
                shown,
            })
        })
    }
}

/// floe's own, by which a thread finds itself wherever it is.
pub(super) fn proc_directory() -> Result<OwnedFd, NsError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/proc", flags, Mode::empty()).map_err(|error| NsError::Read {
        path: "/proc".to_owned(),
        source: error.into(),
    })
}

/// What those procs show that nothing hides.
fn procs_at_their_places(mounts: &[MountInfo]) -> Shown {
    let procs = mounts
        .iter()
        .filter(|mount| mount.kind == b"proc" && mount.root == b"/");
    let mut found = Shown::new();
    for mount in procs {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(there) = open(OsStr::from_bytes(&mount.path), flags, Mode::empty()) else {
            continue;
        };
        if fstat(&there).is_ok_and(|seen| device(seen.st_dev) == mount.device) {
            found.insert(mount.device, shown_by(there.as_fd()));
        }
    }
    found
}

/// A device number as mountinfo has it.
fn device(number: u64) -> u32 {
    (libc::major(number) << 20) | libc::minor(number)
}

/// The inode number of the PID namespace that a proc shows: that of its PID 1.
fn shown_by(proc: BorrowedFd<'_>) -> Option<u64> {
    let found = fstatat(proc, "1/ns/pid", AtFlags::empty());
    found.ok().map(|found| found.st_ino)
}

/// Opens mounts; those that others hide in a copy of the namespace, what is on top first, and takes away there what hides
/// them. In a copy of one that is another user namespace's that could not be, nor could the mounts be changed.
pub(super) fn lay_bare(mounts: &[MountInfo], mut wanted: BTreeSet<usize>, proc: &OwnedFd) -> io::Result<Opened> {
    let mut roots = BTreeMap::new();
    for index in wanted.clone() {
        let path = &mounts[index].path;
        let on_top = mount_of(&CString::new(path.as_slice())?).is_ok_and(|id| id == u64::from(mounts[index].id));
        // One that may not be bound can be in the copy.
        if on_top && let Ok(root) = open_root(OsStr::from_bytes(path), &mounts[index].kind) {
            roots.insert(index, Ok(root));
            wanted.remove(&index);
        }
    }
    if wanted.is_empty() {
        return Ok(roots);
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let (above, copies) = (Above::of(mounts), Copies::read(proc)?);
    for index in parents_first(mounts).into_iter().rev() {
        let path = OsStr::from_bytes(&mounts[index].path);
        if wanted.remove(&index) {
            let is_seen = copies.are_on_top(&mounts[index])?;
            let opened = open_root(path, &mounts[index].kind);
            // What could not be unmounted is opened in the place of what it hides, which nobody there sees. None of its files
            // are the other's.
            let opened = opened.map(|root| Root {
                is_bare: root.is_bare && is_seen,
                ..root
            });
            roots.insert(index, opened);
        }
        // A copy has no mounts that keep mount namespaces (copy_tree of fs/namespace.c).
        let is_there = shown(&mounts[index]).is_none_or(|(kind, _)| kind != Kind::Mount);
        if is_there && wanted.iter().any(|other| above.hides(mounts, index, *other)) {
            // What is on it goes as well; it has been opened. What can't be unmounted here could not be there either.
            if let Err(error) = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                tracing::debug!(%error, ?path, "it stays where it hides another mount");
            }
        }
    }
    Ok(roots)
}

/// The mounts of a copy of a namespace, which the calling thread is in, by their numbers.
pub(super) struct Copies(HashMap<u64, MountInfo>);

impl Copies {
    /// `proc` is floe's own.
    pub(super) fn read(proc: &OwnedFd) -> io::Result<Self> {
        let all = mounts_in(&own_mountinfo(proc)?).into_iter();
        Ok(Self(all.map(|mount| (u64::from(mount.id), mount)).collect()))
    }

    /// Whether what is on top where a mount of that namespace is shows the same: its copy.
    pub(super) fn are_on_top(&self, of: &MountInfo) -> io::Result<bool> {
        let top = mount_of(&CString::new(of.path.as_slice())?).ok();
        let top = top.and_then(|id| self.0.get(&id));
        Ok(top.is_some_and(|top| (&top.path, &top.root, top.device) == (&of.path, &of.root, of.device)))
    }
}

fn open_root(path: &OsStr, kind: &[u8]) -> Result<Root, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // A copy is taken apart when this thread ends; what was cloned of it stays.
    let place = open(path, flags, Mode::empty())?;
    let root = match clone_mount(place.as_fd()) {
        // What is locked on it goes along, or it may not be bound at all.
        Err(Errno::EINVAL) => Root {
            file: clone_tree(place.as_fd())?,
            is_bare: false,
        },
        bound => Root {
            file: bound?,
            is_bare: true,
        },
    };
    if kind != b"tmpfs" {
        return Ok(root);
    }
    // All that is in it will be read. But not of one of the host's, of which an ordinary user may change nothing (MNT_LOCK_ATIME);
    // where it is a user namespace's that nobody else shows, reading shows in the times that files were read last.
    match leave_times_alone(root.file.as_fd()) {
        Ok(()) | Err(Errno::EPERM) => Ok(root),
        Err(error) => Err(error),
    }
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
