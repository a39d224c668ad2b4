//! Mounts: each behind the one that it is on and below it, paths that lead nowhere else, filesystems with no options but
//! those that floe knows, trees of files that are trees.

use super::{ensure, is_path};
use crate::{
    Image,
    record::{
        FilesystemKind, FilesystemRecord, MountNamespaceRecord, MountPoint, MountRecord, MountSource, NamespaceKind,
        NamespaceOrigin, NodeKind, NodeRecord,
    },
};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The usual limit of mounts in a namespace, fs.mount-max.
const MOUNTS: usize = 100_000;
/// NAME_MAX, XATTR_NAME_MAX, XATTR_SIZE_MAX of linux/limits.h.
const NAME_BYTES: usize = 255;
const VALUE_BYTES: usize = 65_536;
/// MOUNT_ATTR_* of linux/mount.h that a mount can have: no mapping of users.
const ATTRIBUTES: u32 = 0x20_00bf;
const ATTRIBUTES_OF_TIME: u32 = 0x30;
/// How much fsconfig(2) takes.
const OPTION_BYTES: usize = 256;

/// Mounts that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountFault {
    /// More of them than there may be, or some where there can be none.
    #[error("it has {0}")]
    Count(&'static str),
    /// A mount.
    #[error("mount {number} of mount namespace {namespace} {fault}")]
    Mount {
        /// Whose.
        namespace: usize,
        /// Its position.
        number: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A filesystem.
    #[error("filesystem {id} {fault}")]
    Filesystem {
        /// Which.
        id: u32,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A path that counts from a mount namespace that is not there.
    #[error("{what} {id} is in mount namespace {namespace}, which is missing")]
    Namespace {
        /// What it is a path of.
        what: &'static str,
        /// Its number.
        id: u32,
        /// The namespace's.
        namespace: u32,
    },
    /// A file of one.
    #[error("file {node} of filesystem {id} {fault}")]
    Node {
        /// Which filesystem.
        id: u32,
        /// Its position.
        node: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

pub(super) fn check(image: &Image) -> Result<(), MountFault> {
    let namespaces = image.mount_namespaces();
    let own = image.sandbox().mount == NamespaceOrigin::Own;
    ensure(own || namespaces.first().is_none_or(is_empty), || {
        MountFault::Count("mounts of a mount namespace that is not the tree's own")
    })?;
    for record in image.filesystems() {
        let sound = filesystem(record).and_then(|()| shows_queues(image, record));
        sound.map_err(|fault| MountFault::Filesystem { id: record.id, fault })?;
        nodes(record)?;
    }
    users(image, namespaces.len().max(1) as u32)?;
    let filesystems = image.filesystems().len();
    let mut shown = BTreeSet::new();
    for (namespace, record) in namespaces.iter().enumerate() {
        let count = record.mounts.len().max(record.unmounted.len());
        ensure(count <= MOUNTS, || MountFault::Count("more mounts than there may be"))?;
        ensure(record.unmounted.iter().all(is_below_root), || {
            MountFault::Count("something unmounted where nothing can have been")
        })?;
        for (number, mount) in record.mounts.iter().enumerate() {
            let kept = keeps(image, namespace, &mount.source).and_then(|()| shows_cgroup(image, mount));
            let sound = kept.and_then(|()| {
                let fault = || "is locked in a namespace of the tree root's user namespace";
                ensure(record.owner != 0 || !mount.locked, fault)?;
                one(&record.mounts, number, filesystems)
            });
            sound.map_err(|fault| MountFault::Mount {
                namespace,
                number,
                fault,
            })?;
            if let MountSource::Filesystem { filesystem, .. } = mount.source {
                shown.insert(filesystem);
            }
        }
    }
    groups(namespaces).map_err(|((namespace, number), fault)| MountFault::Mount {
        namespace,
        number,
        fault,
    })?;
    let unseen = image.filesystems().iter().find(|record| !shown.contains(&record.id));
    unseen.map_or(Ok(()), |record| {
        let fault = "is mounted nowhere";
        Err(MountFault::Filesystem { id: record.id, fault })
    })
}

/// A namespace that a mount keeps is there. That of a mount namespace is in an older one, which comes before it.
fn keeps(image: &Image, namespace: usize, source: &MountSource) -> Result<(), &'static str> {
    let MountSource::Namespace { kind, number } = source else {
        return Ok(());
    };
    let number = *number as usize;
    let exists = match kind {
        NamespaceKind::Mount => {
            let known = number < image.mount_namespaces().len();
            ensure(
                known && number > namespace,
                || "keeps a mount namespace that is missing, or is not behind its own",
            )?;
            known
        }
        NamespaceKind::Pid => number <= image.sandbox().pid_namespaces.len(),
        _ => number.checked_sub(1).is_none_or(|place| {
            let found = image.sandbox().namespaces.get(place);
            found.is_some_and(|record| record.contents.kind() == *kind)
        }),
    };
    ensure(exists, || "keeps a namespace that is missing")
}

/// All that is in a mount namespace is in one of so many.
fn users(image: &Image, namespaces: u32) -> Result<(), MountFault> {
    let processes = image.processes().iter().flat_map(|process| {
        let all = [
            process.mount_namespace,
            process.cwd.mount_namespace,
            process.root.mount_namespace,
        ];
        all.map(|namespace| ("process", process.pid.0 as u32, namespace))
    });
    let mapped = image.mapped_files().iter();
    let ghosts = image.ghosts().iter();
    let files = image.open_files().iter();
    let mut all = processes
        .chain(mapped.map(|record| ("mapped file", record.id, record.mount_namespace)))
        .chain(ghosts.map(|record| ("deleted file", record.id, record.mount_namespace)))
        .chain(files.map(|record| ("open file", record.id, record.mount_namespace)));
    let missing = all.find(|(_, _, namespace)| *namespace >= namespaces);
    missing.map_or(Ok(()), |(what, id, namespace)| {
        Err(MountFault::Namespace { what, id, namespace })
    })
}

fn one(mounts: &[MountRecord], number: usize, filesystems: usize) -> Result<(), &'static str> {
    let mount = &mounts[number];
    let inherited = mount.source == MountSource::Inherited;
    if number == 0 {
        let is_root = mount.parent == 0 && mount.point.0 == b"/";
        ensure(is_root, || "is the first and not the root")?;
    } else {
        let above = mounts[..number].get(mount.parent as usize);
        let above = above.ok_or("is not behind the one that it is on")?;
        ensure(is_plain(&mount.point), || "has a mount point that is no plain path")?;
        ensure(
            mount.point.below(&above.point).is_some(),
            || "is not below the one that it is on",
        )?;
        ensure(
            !inherited || above.source == MountSource::Inherited,
            || "can't be what every sandbox has, on what not every one has",
        )?;
    }
    match &mount.source {
        MountSource::Inherited | MountSource::Namespace { .. } => {}
        MountSource::Path { path, .. } => ensure(is_plain(path), || "shows a path that is no plain one")?,
        MountSource::Filesystem { filesystem, root } => {
            ensure(
                (*filesystem as usize) < filesystems,
                || "shows a filesystem that is missing",
            )?;
            ensure(is_plain(root), || "shows a path that is no plain one")?;
        }
        // Looked for where all cgroups are known.
        MountSource::Cgroup { .. } => {}
    }
    match mount.attributes {
        None => ensure(inherited, || "does not say what it allows"),
        Some(bits) => {
            let known = bits & !ATTRIBUTES == 0 && bits & ATTRIBUTES_OF_TIME != ATTRIBUTES_OF_TIME;
            ensure(known, || "allows what can't be")
        }
    }?;
    ensure(
        !mount.unbindable || mount.shared == 0 && mount.master == 0,
        || "can't be unbindable and share mounts",
    )
}

fn is_empty(record: &MountNamespaceRecord) -> bool {
    record.mounts.is_empty() && record.unmounted.is_empty()
}

/// Each group's mounts come from one other group at most, and going from group to group that way ends. A mount is named by
/// its namespace and its position there.
fn groups(namespaces: &[MountNamespaceRecord]) -> Result<(), ((usize, usize), &'static str)> {
    let mut masters: BTreeMap<u32, u32> = BTreeMap::new();
    let of = |(namespace, record): (usize, &'_ MountNamespaceRecord)| {
        (0..record.mounts.len()).map(move |at| (namespace, at))
    };
    let places: Vec<(usize, usize)> = namespaces.iter().enumerate().flat_map(of).collect();
    let mounts = || {
        places
            .iter()
            .map(|place| (*place, &namespaces[place.0].mounts[place.1]))
    };
    let members: BTreeSet<u32> = mounts()
        .map(|(_, mount)| mount.shared)
        .filter(|group| *group != 0)
        .collect();
    for (number, mount) in mounts() {
        let known = mount.master == 0 || members.contains(&mount.master);
        ensure(known, || (number, "gets the mounts of a group that has no members"))?;
        if mount.shared != 0 {
            let master = *masters.entry(mount.shared).or_insert(mount.master);
            ensure(master == mount.master, || {
                (number, "gets other mounts than its group does")
            })?;
        }
    }
    let mut sound = BTreeSet::from([0]);
    for (number, mount) in mounts() {
        let (mut group, mut way) = (mount.master, BTreeSet::new());
        while !sound.contains(&group) {
            ensure(way.insert(group), || (number, "gets its own mounts"))?;
            group = masters.get(&group).copied().unwrap_or(0);
        }
        sound.append(&mut way);
    }
    Ok(())
}

/// An absolute path in which nothing leads anywhere else.
fn is_plain(point: &MountPoint) -> bool {
    point.0 == b"/" || is_below_root(point)
}

fn is_below_root(point: &MountPoint) -> bool {
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    let parts = point.0.strip_prefix(b"/").unwrap_or_default();
    is_path(&point.0) && parts.split(|byte| *byte == b'/').all(plain)
}

fn filesystem(record: &FilesystemRecord) -> Result<(), &'static str> {
    ensure(
        record.source.len() < OPTION_BYTES && !record.source.contains(&0),
        || "can't have been made of what it says",
    )?;
    for option in &record.options {
        ensure(record.kind.knows(&option.key), || "has an option that it can't have")?;
        if option.is_layer() {
            let path = MountPoint(option.value.clone().unwrap_or_default());
            ensure(is_plain(&path), || "has a layer that is no plain path")?;
            continue;
        }
        let value = option.value.as_deref().unwrap_or_default();
        ensure(
            value.len() < OPTION_BYTES && !value.contains(&0),
            || "has an option with a value that can't be",
        )?;
    }
    let holds = record.kind == FilesystemKind::Tmpfs;
    ensure(
        holds != record.nodes.is_empty(),
        || "has files and can't, or has none and must",
    )
}

/// A cgroup that is shown is one of the tree's, which a cgroup namespace can begin at.
fn shows_cgroup(image: &Image, mount: &MountRecord) -> Result<(), &'static str> {
    let MountSource::Cgroup { place, source } = &mount.source else {
        return Ok(());
    };
    let cgroup = place.find(&image.sandbox().cgroups);
    ensure(
        cgroup.is_some_and(|found| !found.threaded),
        || "shows a cgroup that is missing, or that has threads alone",
    )?;
    ensure(
        source.len() < OPTION_BYTES && !source.contains(&0),
        || "can't have been made of what it says",
    )
}

/// Those of an IPC namespace are queues.
fn shows_queues(image: &Image, record: &FilesystemRecord) -> Result<(), &'static str> {
    let number = record.ipc_namespace;
    let possible =
        number == 0 || record.kind == FilesystemKind::Mqueue && image.sandbox().ipc_namespace(number).is_some();
    ensure(
        possible,
        || "shows queues of an IPC namespace that is missing, or no queues",
    )
}

fn nodes(record: &FilesystemRecord) -> Result<(), MountFault> {
    let mut names = HashSet::new();
    for (number, node) in record.nodes.iter().enumerate() {
        let fault = |fault| MountFault::Node {
            id: record.id,
            node: number,
            fault,
        };
        self::node(&record.nodes, number).map_err(fault)?;
        ensure(names.insert((node.parent, &node.name)), || {
            fault("has the name of another one")
        })?;
    }
    Ok(())
}

fn node(nodes: &[NodeRecord], number: usize) -> Result<(), &'static str> {
    let node = &nodes[number];
    if number == 0 {
        let is_root = node.parent == 0 && node.name.is_empty() && node.kind == NodeKind::Directory;
        ensure(is_root, || "is the first and not the root")?;
    } else {
        let above = nodes[..number].get(node.parent as usize);
        let in_directory = above.is_some_and(|above| above.kind == NodeKind::Directory);
        ensure(in_directory, || "is not behind a directory that it is in")?;
        let name = node.name.as_slice();
        let plain = !name.is_empty() && name.len() <= NAME_BYTES && name != b"." && name != b"..";
        ensure(
            plain && !name.contains(&b'/') && !name.contains(&0),
            || "has a name that can't be",
        )?;
    }
    match &node.kind {
        NodeKind::Link { to } => {
            let first = nodes[..number].get(*to as usize);
            let fits = first.is_some_and(|first| !matches!(first.kind, NodeKind::Directory | NodeKind::Link { .. }));
            ensure(fits, || "is another name of what can't have any")?;
        }
        NodeKind::File { size } => ensure(i64::try_from(*size).is_ok(), || "can't have so many bytes")?,
        NodeKind::Symlink { target } => ensure(is_path(target), || "leads to what is no path")?,
        NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket | NodeKind::Device { .. } => {}
    }
    let attributes = node.attributes.iter();
    let mut fine = attributes.map(|attribute| {
        let name = attribute.name.len();
        (1..=NAME_BYTES).contains(&name) && !attribute.name.contains(&0) && attribute.value.len() <= VALUE_BYTES
    });
    ensure(fine.all(|fine| fine), || "has an extended attribute that can't be")
}
