//! Finds again what a new sandbox has by itself: also what lies below others, which no path leads to. On its place another can be, or
//! above its place, as where `ip netns add` has mounted /run/netns on itself.

use super::{
    baseline::root_of,
    make::{MountError, as_path, failed},
};
use floe_image::record::{MountRecord, MountSource};
use floe_sys::{
    descriptor::open_in_root,
    mount::{attach, is_root},
    procfs::MountInfo,
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Opens the roots of those mounts, by their positions; `now` tells what is mounted.
pub(super) fn open(
    mounts: &[MountRecord],
    root: BorrowedFd<'_>,
    now: &dyn Fn() -> Result<Vec<MountInfo>, Errno>,
) -> Result<BTreeMap<usize, OwnedFd>, MountError> {
    let mut found = BTreeMap::new();
    let Some(first) = mounts.first() else { return Ok(found) };
    let there = There::of(now().map_err(failed("read what is mounted", first))?);
    let known = there.find(mounts);
    for (index, mount) in mounts.iter().enumerate() {
        if mount.source != MountSource::Inherited {
            continue;
        }
        let changes = mount.attributes.is_some() || mount.shared != 0 || mount.master != 0 || mount.unbindable;
        let above = match known[index] {
            Some(id) if index > 0 && changes => there.above(id),
            _ => Vec::new(),
        };
        let opened = under(root, mount, &above).map_err(failed("find it among the host's mounts", mount))?;
        found.insert(index, opened);
    }
    Ok(found)
}

/// What is mounted, and on what.
struct There {
    mounts: HashMap<u32, MountInfo>,
    root: Option<u32>,
    /// Those on each, in the order in which they hide each other: what is at a shorter path before what lies below it.
    on: HashMap<u32, Vec<u32>>,
}

impl There {
    fn of(mounts: Vec<MountInfo>) -> Self {
        let root = root_of(&mounts).map(|index| mounts[index].id);
        let mounts: HashMap<u32, MountInfo> = mounts.into_iter().map(|mount| (mount.id, mount)).collect();
        let mut on: HashMap<u32, Vec<u32>> = HashMap::new();
        for mount in mounts.values().filter(|mount| Some(mount.id) != root) {
            on.entry(mount.parent).or_default().push(mount.id);
        }
        for all in on.values_mut() {
            all.sort_by_key(|id| (mounts[id].path.len(), *id));
        }
        Self { mounts, root, on }
    }

    fn on(&self, id: u32) -> impl Iterator<Item = u32> + '_ {
        self.on.get(&id).into_iter().flatten().copied()
    }

    fn path(&self, id: u32) -> &[u8] {
        &self.mounts[&id].path
    }

    /// The numbers of those in the records: at one place of a mount there is one alone.
    fn find(&self, mounts: &[MountRecord]) -> Vec<Option<u32>> {
        let mut found: Vec<Option<u32>> = vec![self.root];
        for mount in &mounts[1..] {
            let parent = found.get(mount.parent as usize).copied().flatten();
            let is_it = |id: &u32| self.path(*id) == mount.point.0;
            let same = parent.filter(|_| mount.source == MountSource::Inherited);
            found.push(same.and_then(|parent| self.on(parent).find(is_it)));
        }
        found
    }

    /// The paths of those that have to be laid aside until it can be seen, in this order.
    fn above(&self, id: u32) -> Vec<&[u8]> {
        let mut way = vec![id];
        while let Some(parent) = way.last().map(|last| self.mounts[last].parent)
            && self.mounts.contains_key(&parent)
            && way.last() != self.root.as_ref()
        {
            way.push(parent);
        }
        way.reverse();
        let mut found = Vec::new();
        for (position, at) in way.iter().enumerate() {
            let next = way.get(position + 1).copied();
            let hides = |other: u32| match next {
                Some(next) => other != next && leads_to(self.path(next), self.path(other)),
                None => self.path(other) == self.path(*at),
            };
            for other in self.on(*at).filter(|other| hides(*other)) {
                found.extend(self.stack(other));
            }
        }
        found
    }

    /// A mount's path once for each that lies there, one on the other.
    fn stack(&self, id: u32) -> Vec<&[u8]> {
        let mut found = vec![self.path(id)];
        let mut top = id;
        while let Some(next) = self.on(top).find(|other| self.path(*other) == self.path(id)) {
            found.push(self.path(next));
            top = next;
        }
        found
    }
}

/// Whether one path leads by the other.
fn leads_to(path: &[u8], by: &[u8]) -> bool {
    path == by || path.strip_prefix(by).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Lays what is above aside, on the root directory, as long as it takes to open it.
fn under(root: BorrowedFd<'_>, mount: &MountRecord, above: &[&[u8]]) -> Result<OwnedFd, Errno> {
    let place = |path: &Path| open_in_root(root, path, libc::O_PATH | libc::O_NOFOLLOW, 0);
    let top = |path: &Path| {
        let found = place(path)?;
        is_root(found.as_fd())?.then_some(found).ok_or(Errno::ENOENT)
    };
    let mut aside = Vec::with_capacity(above.len());
    for path in above {
        let path = Path::new(OsStr::from_bytes(path));
        let covering = top(path)?;
        attach(covering.as_fd(), root)?;
        aside.push((covering, place(path)?));
    }
    let found = top(as_path(&mount.point))?;
    for (covering, place) in aside.iter().rev() {
        attach(covering.as_fd(), place.as_fd())?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::There;
    use floe_sys::procfs::mounts_in;

    #[test]
    fn what_hides_a_mount_is_laid_aside_from_the_top_on() {
        let lines = [
            "1 0 0:1 / / rw - tmpfs none rw",
            "2 1 0:2 / /run rw - tmpfs none rw",
            "3 2 0:2 /netns /run/netns rw - tmpfs none rw",
            "4 3 0:4 net:[1] /run/netns/blue rw - nsfs nsfs rw",
            "5 2 0:4 net:[1] /run/netns/blue rw - nsfs nsfs rw",
            "6 1 0:6 / /run-not rw - tmpfs none rw",
            "7 2 0:7 / /run rw - tmpfs none rw",
            "8 7 0:8 / /run rw - tmpfs none rw",
        ];
        let there = There::of(mounts_in(lines.join("\n").as_bytes()));
        let above = |id| -> Vec<String> {
            let paths = there.above(id).into_iter();
            paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
        };
        assert_eq!(above(6), [""; 0]);
        assert_eq!(above(8), [""; 0]);
        assert_eq!(above(7), ["/run"]);
        assert_eq!(above(2), ["/run", "/run"]);
        assert_eq!(above(4), ["/run", "/run"]);
        assert_eq!(above(5), ["/run", "/run", "/run/netns"]);
    }
}
