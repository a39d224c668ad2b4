//! What is mounted before a mount namespace is copied into a user namespace, by which it is locked there.

use super::make::{MountError, failed};
use floe_image::record::{MountRecord, MountSource};
use floe_sys::descriptor::open_in_root;
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// What is asked of mounts, for those to be chosen that are copied into a user namespace together.
pub(super) struct Asked<'a> {
    /// Whether one can be made by then, where those at these positions are made with it.
    pub can_be: &'a dyn Fn(&MountRecord, &BTreeSet<usize>) -> bool,
    /// Whether others may be made of it.
    pub is_bound: &'a dyn Fn(&MountRecord) -> bool,
}

/// Positions of mounts that are to be locked, and can be made so: what they are on is there before the namespace is copied, and
/// they hide none with which something is done in the copy, as no path would lead to it.
pub(super) fn early(mounts: &[MountRecord], asked: &Asked<'_>) -> BTreeSet<usize> {
    if !mounts.iter().any(|mount| mount.locked && !is_inherited(mount)) {
        return BTreeSet::new();
    }
    together(mounts, 0, asked)
}

/// Positions of a mount, which need not be locked, and of those on it that are to be, as those of [`early`]; none where there
/// are no such ones on it.
pub(super) fn tree(mounts: &[MountRecord], top: usize, asked: &Asked<'_>) -> BTreeSet<usize> {
    let found = together(mounts, top, asked);
    if found.len() > 1 { found } else { BTreeSet::new() }
}

/// Positions of those that have some on them which are to be locked.
pub(super) fn below_locked(mounts: &[MountRecord]) -> BTreeSet<usize> {
    let locked = mounts.iter().filter(|mount| mount.locked && !is_inherited(mount));
    locked.map(|mount| mount.parent as usize).collect()
}

/// Those that are copied with the first one.
fn together(mounts: &[MountRecord], top: usize, asked: &Asked<'_>) -> BTreeSet<usize> {
    let all = chosen(mounts, (top, &BTreeSet::new()), asked);
    let laid = Laid::of(mounts, (top, &all));
    // With these something is done in the copy.
    let needed = needed(mounts, (top, &all), asked.is_bound);
    let hiding = needed.flat_map(|index| laid.hiding(index)).collect();
    chosen(mounts, (top, &hiding), asked)
}

fn chosen(mounts: &[MountRecord], (top, without): (usize, &BTreeSet<usize>), asked: &Asked<'_>) -> BTreeSet<usize> {
    let mut chosen = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate().skip(top) {
        let above = mount.parent as usize;
        let is_there = chosen.contains(&above) || is_in_copy(mounts, top, above);
        // The root of a copy is not locked, but what is on it may be.
        let wanted = index == top || mount.locked && is_there;
        let is_free = !is_inherited(mount) && !without.contains(&index);
        if wanted && is_free && (asked.can_be)(mount, &chosen) {
            chosen.insert(index);
        }
    }
    chosen
}

/// Whether one is in the copy by itself.
fn is_in_copy(mounts: &[MountRecord], top: usize, index: usize) -> bool {
    top == 0 && is_inherited(&mounts[index])
}

fn is_inherited(mount: &MountRecord) -> bool {
    mount.source == MountSource::Inherited
}

/// Those that are copied together, as they lie on each other.
struct Laid<'a> {
    mounts: &'a [MountRecord],
    top: usize,
    /// What is on a mount at a place.
    on: HashMap<(u32, &'a [u8]), usize>,
}

impl<'a> Laid<'a> {
    fn of(mounts: &'a [MountRecord], (top, all): (usize, &BTreeSet<usize>)) -> Self {
        let on = all
            .iter()
            .filter(|index| **index != top)
            .map(|index| ((mounts[*index].parent, mounts[*index].point.0.as_slice()), *index))
            .collect();
        Self { mounts, top, on }
    }

    /// Those that hide one.
    fn hiding(&self, index: usize) -> BTreeSet<usize> {
        let mounts = self.mounts;
        let mut found = BTreeSet::new();
        // From the mount up to the root: what is on each of these at a place on the way to the one below.
        let (mut at, mut way) = (index, mounts[index].point.0.as_slice());
        let mut from = None;
        loop {
            let point = mounts[at].point.0.as_slice();
            for place in places(point, way) {
                match self.on.get(&(at as u32, place)) {
                    Some(other) if Some(*other) != from => {
                        found.insert(*other);
                    }
                    _ => {}
                }
            }
            if at == self.top {
                break;
            }
            (from, way, at) = (Some(at), point, mounts[at].parent as usize);
        }
        found
    }
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

/// Those of which the root is used when they are there: the root of a tree, inherited ones that are changed, such as share
/// mounts, filesystems that are bound elsewhere, and what something is mounted on afterwards.
fn needed(
    mounts: &[MountRecord],
    (top, all): (usize, &BTreeSet<usize>),
    is_bound: &dyn Fn(&MountRecord) -> bool,
) -> impl Iterator<Item = usize> {
    let later = mounts.iter().enumerate();
    let later = later.filter(|(index, mount)| *index != 0 && !is_inherited(mount) && !all.contains(index));
    let held: BTreeSet<usize> = later.map(|(_, mount)| mount.parent as usize).collect();
    (0..mounts.len()).filter(move |index| {
        let mount = &mounts[*index];
        let shares = mount.shared != 0 || mount.master != 0 || mount.unbindable;
        let is_changed = is_inherited(mount) && mount.attributes.is_some();
        let is_top = *index == top && top != 0;
        let is_there = is_in_copy(mounts, top, *index) || all.contains(index);
        is_there && (is_top || shares || is_changed || is_bound(mount) || held.contains(index))
    })
}

/// The roots of those mounts in a copy, of which `root` is the first one's; of one that another hides, and with which nothing is
/// done, the same.
pub(super) fn open_again(
    mounts: &[MountRecord],
    (top, all): (usize, &BTreeSet<usize>),
    root: BorrowedFd<'_>,
) -> Result<Vec<(usize, OwnedFd)>, MountError> {
    let laid = Laid::of(mounts, (top, all));
    let open = |index: &usize| {
        let mount = &mounts[*index];
        let below = mount.point.below(&mounts[top].point).filter(|below| !below.is_empty());
        let place = below.filter(|_| laid.hiding(*index).is_empty()).unwrap_or(b".");
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let found = open_in_root(root, Path::new(OsStr::from_bytes(place)), flags, 0);
        Ok((*index, found.map_err(failed("find its copy", mount))?))
    };
    all.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::{Asked, early, places, tree};
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
        early(mounts, &ASKED).into_iter().collect()
    }

    fn tree_on(mounts: &[MountRecord], top: usize) -> Vec<usize> {
        tree(mounts, top, &ASKED).into_iter().collect()
    }

    /// All can be made, none is bound.
    const ASKED: Asked<'_> = Asked {
        can_be: &|_, _| true,
        is_bound: &|_| false,
    };

    fn without(can_be: &dyn Fn(&MountRecord, &BTreeSet<usize>) -> bool) -> Asked<'_> {
        Asked { can_be, ..ASKED }
    }

    fn bound(is_bound: &dyn Fn(&MountRecord) -> bool) -> Asked<'_> {
        Asked { is_bound, ..ASKED }
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
        assert_eq!(
            early(&all, &without(&|mount, _| mount.point.0 != b"/a")),
            BTreeSet::new()
        );
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
        let found_where = |is_bound: &dyn Fn(&MountRecord) -> bool| early(&all, &bound(is_bound));
        assert_eq!(found_where(&|mount| mount.parent == 1), BTreeSet::from([1, 2, 3, 4]));
        let is_below = |mount: &MountRecord| mount.parent == 0 && mount.point.0 == b"/a";
        assert_eq!(found_where(&is_below), BTreeSet::from([1, 4]));
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
    fn what_is_locked_on_one_that_is_not_goes_with_it() {
        let mut all = [
            inherited(0, "/"),
            mount(0, "/a", false),
            mount(1, "/a/b", true),
            mount(2, "/a/b/c", true),
            mount(1, "/a/d", false),
            // Two trees, one on the other.
            mount(2, "/a/b/e", false),
            mount(5, "/a/b/e/f", true),
        ];
        assert_eq!(found(&all), [] as [usize; 0]);
        let trees: Vec<_> = (1..all.len()).map(|top| tree_on(&all, top)).collect();
        let none = Vec::new();
        let lone = vec![2, 3];
        assert_eq!(
            trees,
            [vec![1, 2, 3], lone, none.clone(), none.clone(), vec![5, 6], none]
        );
        // One that can't be made then takes along what is on it; without the first there is no tree.
        let later = |late: u8| move |mount: &MountRecord, _: &BTreeSet<usize>| mount.point.0.last() != Some(&late);
        assert_eq!(tree(&all, 1, &without(&later(b'c'))), BTreeSet::from([1, 2]));
        assert_eq!(tree(&all, 1, &without(&later(b'b'))), BTreeSet::new());
        assert_eq!(tree(&all, 1, &without(&later(b'a'))), BTreeSet::new());
        // What is made with it is told: a part comes behind all of its filesystem.
        let behind = |mount: &MountRecord, made: &BTreeSet<usize>| mount.parent != 2 || made.contains(&2);
        assert_eq!(tree(&all, 1, &without(&behind)), BTreeSet::from([1, 2, 3]));
        all[5].locked = true;
        assert_eq!(tree_on(&all, 1), [1, 2, 3, 5, 6]);
    }

    #[test]
    fn what_is_needed_of_a_tree_is_not_hidden() {
        let mut all = [
            inherited(0, "/"),
            mount(0, "/a", false),
            mount(1, "/a", true),
            mount(1, "/a/b/c", true),
            mount(1, "/a/b", true),
            mount(4, "/a/b/c", true),
        ];
        // The first one is found by its root.
        assert_eq!(tree_on(&all, 1), [1, 3, 4, 5]);
        let is_deep = |mount: &MountRecord| mount.parent == 1 && mount.point.0 == b"/a/b/c";
        assert_eq!(tree(&all, 1, &bound(&is_deep)), BTreeSet::from([1, 3]));
        all[3].master = 1;
        assert_eq!(tree_on(&all, 1), [1, 3]);
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
