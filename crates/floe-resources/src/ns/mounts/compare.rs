//! Compares the mounts that a restored tree has with those of the image.

use super::baseline::root_of;
use crate::ns::held::shown;
use floe_image::{
    Image,
    record::{MountRecord, MountSource, NamespaceKind},
};
use floe_sys::procfs::MountInfo;
use std::collections::{BTreeMap, BTreeSet};

/// What differs, for people; `found` are the mounts of each namespace, by number, and `namespaces` the inode numbers of
/// those that mounts keep.
#[must_use]
pub fn differences(image: &Image, found: &[Vec<MountInfo>], namespaces: &InodeOf<'_>) -> Vec<String> {
    let mut comparison = Comparison {
        image,
        namespaces,
        found: &[],
        differences: Vec::new(),
        groups: BTreeMap::from([(0, 0)]),
        back: BTreeMap::from([(0, 0)]),
    };
    for (namespace, found) in image.mount_namespaces().iter().zip(found) {
        comparison.found = found;
        comparison.namespace(&namespace.mounts);
    }
    comparison.differences
}

/// The inode number of a namespace.
pub type InodeOf<'a> = dyn Fn(NamespaceKind, u32) -> Option<u64> + 'a;

struct Comparison<'a> {
    image: &'a Image,
    namespaces: &'a InodeOf<'a>,
    found: &'a [MountInfo],
    differences: Vec<String>,
    /// Groups by the numbers that they had, and by those that they have.
    groups: BTreeMap<u32, u32>,
    back: BTreeMap<u32, u32>,
}

impl Comparison<'_> {
    fn namespace(&mut self, mounts: &[MountRecord]) {
        let found = self.found;
        let mut places: Vec<Option<usize>> = Vec::with_capacity(mounts.len());
        for (number, mount) in mounts.iter().enumerate() {
            let place = match number {
                0 => root_of(found),
                _ => places[mount.parent as usize].and_then(|parent| {
                    let parent = found[parent].id;
                    let is_it =
                        |other: &MountInfo| other.parent == parent && other.path == mount.point.0 && other.id != parent;
                    found.iter().position(is_it)
                }),
            };
            match place {
                Some(index) => self.one(mount, &found[index]),
                None => self.note(mount, "it is not there"),
            }
            places.push(place);
        }
        self.others(mounts, &places);
    }

    fn note(&mut self, mount: &MountRecord, what: &str) {
        let point = String::from_utf8_lossy(&mount.point.0);
        self.differences.push(format!("mount {point}: {what}"));
    }

    fn one(&mut self, mount: &MountRecord, is: &MountInfo) {
        if mount.attributes.is_some_and(|wanted| wanted != is.attributes) {
            let wanted = mount.attributes.unwrap_or_default();
            self.note(mount, &format!("flags are {:#x}, should be {wanted:#x}", is.attributes));
        }
        if mount.unbindable != is.unbindable {
            self.note(mount, "whether it may be bound differs");
        }
        for (before, now) in [(mount.shared, is.shared), (mount.master, is.master)] {
            let forth = *self.groups.entry(before).or_insert(now);
            let back = *self.back.entry(now).or_insert(before);
            if (forth, back) != (now, before) {
                self.note(mount, "it shares mounts with others than it did");
            }
        }
        if let MountSource::Cgroup { place, source } = &mount.source {
            let kind: &[u8] = if place.hierarchy.is_empty() {
                b"cgroup2"
            } else {
                b"cgroup"
            };
            if (is.kind.as_slice(), &is.source) != (kind, source) || !is.root.ends_with(&place.path) {
                self.note(mount, "it shows something else");
            }
        }
        if let MountSource::Namespace { kind, number } = mount.source {
            let wanted = (self.namespaces)(kind, number).map(|inode| (kind, inode));
            let found = shown(is).and_then(|(kind, inode)| Some((NamespaceKind::named(kind.name())?, inode)));
            if wanted.is_none() || wanted != found {
                self.note(mount, "it shows something else");
            }
        }
        if let MountSource::Filesystem { filesystem, root } = &mount.source {
            let record = &self.image.filesystems()[*filesystem as usize];
            let shows = (is.kind.as_slice(), &is.root, &is.source);
            if shows != (record.kind.name().as_bytes(), &root.0, &record.source) {
                self.note(mount, "it shows something else");
            }
            if is.filesystem_is_read_only() != record.read_only {
                self.note(mount, "whether its filesystem can be written differs");
            }
        }
    }

    /// Nothing else is on what only the tree has.
    fn others(&mut self, mounts: &[MountRecord], places: &[Option<usize>]) {
        let known: BTreeSet<usize> = places.iter().copied().flatten().collect();
        let made = mounts
            .iter()
            .zip(places)
            .filter(|(mount, _)| mount.source != MountSource::Inherited);
        let ids: BTreeSet<u32> = made.filter_map(|(_, place)| Some(self.found[(*place)?].id)).collect();
        for (index, mount) in self.found.iter().enumerate() {
            if !known.contains(&index) && ids.contains(&mount.parent) {
                let point = String::from_utf8_lossy(&mount.path);
                self.differences.push(format!("mount {point}: it was not there"));
            }
        }
    }
}
