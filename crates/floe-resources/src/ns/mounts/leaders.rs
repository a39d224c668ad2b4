//! By which mounts groups come about: the others of a group in which mounts share what is mounted, and those that get it from
//! them, join one that shows all that they do.

use floe_image::record::{MountNamespaceRecord, MountRecord, MountSource};
use std::collections::{BTreeMap, BTreeSet};

/// The number of a mount namespace, and a position in it.
pub(super) type At = (u32, usize);

/// One of each group that others join; where none is known to show all that they do, all that are in it.
pub(super) fn leaders(namespaces: &[MountNamespaceRecord]) -> BTreeSet<At> {
    let mut groups: BTreeMap<u32, Vec<Placed<'_>>> = BTreeMap::new();
    for (space, namespace) in (0..).zip(namespaces) {
        for (index, mount) in namespace.mounts.iter().enumerate() {
            let at = (space, index);
            for group in BTreeSet::from([mount.shared, mount.master]) {
                groups.entry(group).or_default().push(Placed { at, mount });
            }
        }
    }
    // That of no group.
    groups.remove(&0);
    let several = groups.iter().filter(|(_, concerned)| concerned.len() > 1);
    several.flat_map(|(group, concerned)| of(*group, concerned)).collect()
}

/// One that is in a group, or gets what is mounted there.
struct Placed<'a> {
    at: At,
    mount: &'a MountRecord,
}

fn of(group: u32, concerned: &[Placed<'_>]) -> Vec<At> {
    let members = || concerned.iter().filter(|placed| placed.mount.shared == group);
    let shows_all = |placed: &&Placed<'_>| {
        let mut others = concerned.iter().filter(|other| other.at != placed.at);
        others.all(|other| covers(placed.mount, other.mount))
    };
    match members().find(shows_all) {
        Some(placed) => vec![placed.at],
        None => members().map(|placed| placed.at).collect(),
    }
}

/// Whether one mount is known to show all that another one does.
fn covers(mount: &MountRecord, other: &MountRecord) -> bool {
    match (&mount.source, &other.source) {
        (
            MountSource::Filesystem { filesystem, root },
            MountSource::Filesystem {
                filesystem: others,
                root: part,
            },
        ) => filesystem == others && part.below(root).is_some(),
        (MountSource::Path { path, .. }, MountSource::Path { path: part, .. }) => part.below(path).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::leaders;
    use floe_image::record::{MountNamespaceRecord, MountPoint, MountRecord, MountSource};

    /// Shows a part of the host's.
    fn mount(part: &str, (shared, master): (u32, u32)) -> MountRecord {
        MountRecord {
            parent: 0,
            point: MountPoint(b"/".to_vec()),
            source: MountSource::Path {
                path: MountPoint(part.as_bytes().to_vec()),
                directory: true,
            },
            attributes: None,
            shared,
            master,
            unbindable: false,
            locked: false,
        }
    }

    fn found(namespaces: &[&[MountRecord]]) -> Vec<(u32, usize)> {
        let namespaces = namespaces.iter().map(|mounts| MountNamespaceRecord {
            owner: 1,
            unmounted: Vec::new(),
            mounts: mounts.to_vec(),
        });
        leaders(&namespaces.collect::<Vec<_>>()).into_iter().collect()
    }

    #[test]
    fn one_of_each_group_shows_all() {
        assert_eq!(found(&[&[mount("/", (0, 0)), mount("/a", (1, 0))]]), []);
        let parts = [mount("/a/b", (1, 0)), mount("/a", (1, 0)), mount("/a", (1, 0))];
        assert_eq!(found(&[&parts]), [(0, 1)]);
        let apart = [mount("/a", (1, 0)), mount("/b", (1, 0))];
        assert_eq!(found(&[&apart]), [(0, 0), (0, 1)]);
    }

    #[test]
    fn others_get_what_is_mounted_from_one_that_is_joined() {
        let (above, below) = ([mount("/a", (1, 0))], [mount("/a", (2, 1)), mount("/a", (0, 1))]);
        assert_eq!(found(&[&above, &below]), [(0, 0)]);
        assert_eq!(found(&[&above, &below, &[mount("/a/b", (0, 2))]]), [(0, 0), (1, 0)]);
    }
}
