//! What is mounted before a mount namespace is copied into a user namespace, by which it is locked there.

use super::make::{MountError, as_path, failed};
use floe_image::record::{MountRecord, MountSource};
use floe_sys::descriptor::open_in_root;
use std::{
    collections::{BTreeSet, HashMap},
    os::fd::{BorrowedFd, OwnedFd},
};

/// Positions of mounts that are to be locked, and can be made so: what they are on is there before the copy, and they hide none
/// with which something is done in the copy, as no path would lead to it. `can_be` tells those that can be made by then, and
/// `is_bound` those of which others may be made.
pub(super) fn early(
    mounts: &[MountRecord],
    can_be: impl Fn(&MountRecord) -> bool,
    is_bound: impl Fn(&MountRecord) -> bool,
) -> BTreeSet<usize> {
    let mut early = BTreeSet::new();
    if !mounts.iter().any(|mount| mount.locked && !is_inherited(mount)) {
        return early;
    }
    for (index, mount) in mounts.iter().enumerate() {
        let above = mount.parent as usize;
        let is_there = early.contains(&above) || index > 0 && is_inherited(&mounts[above]);
        // The root of a copy is not locked, but what is on it may be.
        let wanted = index == 0 || mount.locked && is_there;
        if wanted && !is_inherited(mount) && can_be(mount) {
            early.insert(index);
        }
    }
    let needed = needed(mounts, &early, is_bound);
    let hiding = hiding(mounts, &early, needed);
    let mut without = BTreeSet::new();
    for index in early {
        let above = mounts[index].parent as usize;
        let is_there = index == 0 || without.contains(&above) || is_inherited(&mounts[above]);
        if is_there && !hiding.contains(&index) {
            without.insert(index);
        }
    }
    without
}

fn is_inherited(mount: &MountRecord) -> bool {
    mount.source == MountSource::Inherited
}

/// Those that hide others with which something is done in the copy.
fn hiding(mounts: &[MountRecord], early: &BTreeSet<usize>, needed: impl Iterator<Item = usize>) -> BTreeSet<usize> {
    // What is on a mount at a place.
    let on: HashMap<(u32, &[u8]), usize> = early
        .iter()
        .filter(|index| **index != 0)
        .map(|index| ((mounts[*index].parent, mounts[*index].point.0.as_slice()), *index))
        .collect();
    let mut found = BTreeSet::new();
    for needed in needed {
        // From the mount up to the root: what is on each of these at a place on the way to the one below.
        let (mut at, mut way) = (needed, mounts[needed].point.0.as_slice());
        let mut from = None;
        loop {
            let point = mounts[at].point.0.as_slice();
            for place in places(point, way) {
                match on.get(&(at as u32, place)) {
                    Some(other) if Some(*other) != from => {
                        found.insert(*other);
                    }
                    _ => {}
                }
            }
            if at == 0 {
                break;
            }
            (from, way, at) = (Some(at), point, mounts[at].parent as usize);
        }
    }
    found
}

/// A path and all that are above it, down to another one.
fn places<'a>(above: &'a [u8], path: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let shorter = |place: &&'a [u8]| -> Option<&'a [u8]> {
        let place = *place;
        let end = place.iter().rposition(|byte| *byte == b'/')?;
        Some(match (end, place) {
            (_, b"/") => return None,
            (0, _) => &place[..1],
            (end, _) => &place[..end],
        })
    };
    std::iter::successors(Some(path), shorter).take_while(move |place| place.len() >= above.len())
}

/// Those of which the root is used when they are there: inherited ones that are changed, such as share mounts, filesystems
/// that are bound elsewhere, and what something is mounted on afterwards.
fn needed(
    mounts: &[MountRecord],
    early: &BTreeSet<usize>,
    is_bound: impl Fn(&MountRecord) -> bool,
) -> impl Iterator<Item = usize> {
    let later = mounts.iter().enumerate();
    let later = later.filter(|(index, mount)| *index != 0 && !is_inherited(mount) && !early.contains(index));
    let held: BTreeSet<usize> = later.map(|(_, mount)| mount.parent as usize).collect();
    (0..mounts.len()).filter(move |index| {
        let mount = &mounts[*index];
        let shares = mount.shared != 0 || mount.master != 0 || mount.unbindable;
        let is_changed = is_inherited(mount) && mount.attributes.is_some();
        let is_there = is_inherited(mount) || early.contains(index);
        is_there && (shares || is_changed || is_bound(mount) || held.contains(index))
    })
}

/// The roots of those mounts in a copy, by a thread that is in it; of one that another hides, and with which nothing is done,
/// that of what hides it.
pub(super) fn open_again(
    mounts: &[MountRecord],
    early: &BTreeSet<usize>,
    root: BorrowedFd<'_>,
) -> Result<Vec<(usize, OwnedFd)>, MountError> {
    let open = |index: &usize| {
        let mount = &mounts[*index];
        let found = open_in_root(root, as_path(&mount.point), libc::O_PATH | libc::O_NOFOLLOW, 0);
        Ok((*index, found.map_err(failed("find its copy", mount))?))
    };
    early.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::{early, places};
    use floe_image::record::{MountPoint, MountRecord, MountSource};
    use std::collections::BTreeSet;

    fn mount(parent: u32, point: &str, locked: bool) -> MountRecord {
        MountRecord {
            parent,
            point: MountPoint(point.as_bytes().to_vec()),
            source: MountSource::Path {
                path: MountPoint(b"/".to_vec()),
                directory: true,
            },
            attributes: None,
            shared: 0,
            master: 0,
            unbindable: false,
            locked,
        }
    }

    fn inherited(parent: u32, point: &str) -> MountRecord {
        MountRecord {
            source: MountSource::Inherited,
            ..mount(parent, point, true)
        }
    }

    fn found(mounts: &[MountRecord]) -> Vec<usize> {
        early(mounts, |_| true, |_| false).into_iter().collect()
    }

    #[test]
    fn what_is_locked_comes_before_the_copy() {
        let all = [
            inherited(0, "/"),
            mount(0, "/a", true),
            mount(1, "/a/b", true),
            mount(0, "/c", false),
            // Moved onto one that is not locked; it can't be.
            mount(3, "/c/d", true),
        ];
        assert_eq!(found(&all), [1, 2]);
        assert_eq!(early(&all, |mount| mount.point.0 != b"/a", |_| false), BTreeSet::new());
        // A root of its own goes with what is on it; alone there is nothing to lock.
        assert_eq!(found(&[mount(0, "/", false), mount(0, "/a", true)]), [0, 1]);
        assert_eq!(found(&[mount(0, "/", false), mount(0, "/a", false)]), [] as [usize; 0]);
    }

    #[test]
    fn what_is_needed_is_not_hidden() {
        let mut all = [
            inherited(0, "/"),
            mount(0, "/a", true),
            mount(1, "/a", true),
            mount(2, "/a/b", true),
            mount(0, "/c", true),
        ];
        assert_eq!(found(&all), [1, 2, 3, 4]);
        let bound = early(&all, |_| true, |mount| mount.parent == 1);
        assert_eq!(bound, BTreeSet::from([1, 2, 3, 4]));
        let bound = early(&all, |_| true, |mount| mount.parent == 0 && mount.point.0 == b"/a");
        assert_eq!(bound, BTreeSet::from([1, 4]));
        all[1].shared = 1;
        assert_eq!(found(&all), [1, 4]);
        // What lies over a directory above it hides it, too.
        let mut all = [
            inherited(0, "/"),
            mount(0, "/a/b", true),
            mount(0, "/a", true),
            mount(2, "/a/b", true),
        ];
        assert_eq!(found(&all), [1, 2, 3]);
        all[1].master = 1;
        assert_eq!(found(&all), [1]);
        // As do those on which something will be mounted that is not locked.
        let mut all = [
            inherited(0, "/"),
            mount(0, "/a", true),
            mount(1, "/a", true),
            mount(1, "/a/c", false),
        ];
        assert_eq!(found(&all), [1]);
        all[3].parent = 2;
        assert_eq!(found(&all), [1, 2]);
    }

    #[test]
    fn places_above_a_path() {
        let all = |above: &'static str, path: &'static str| -> Vec<&str> {
            let found = places(above.as_bytes(), path.as_bytes());
            found.map(|place| std::str::from_utf8(place).expect("text")).collect()
        };
        assert_eq!(all("/", "/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(all("/a", "/a/b"), ["/a/b", "/a"]);
        assert_eq!(all("/a", "/a"), ["/a"]);
        assert_eq!(all("/", "/"), ["/"]);
    }
}
