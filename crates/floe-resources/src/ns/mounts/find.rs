//! Finds what was mounted in a tree, and all of it that can't be made again.

use super::{
    baseline::{Baseline, parents_first},
    groups, locked,
    nodes::Nodes,
    options::{Ids, options},
    parts::{opened, parts},
    seen::{Above, Ours, Seen},
    shape::{PRIVATE, Refused, UNMOUNT, below, is_view, joined, kind_of, refuse_shape, title},
};
use crate::{
    cgroup::FoundCgroups,
    mm::Contents,
    ns::{Others, held, inside::NsError},
    refusal::Refusals,
    tree::FoundTree,
};
use floe_image::record::{
    FilesystemKind, FilesystemOption, FilesystemRecord, MountNamespaceRecord, MountPoint, MountRecord, MountSource,
    NamespaceKind, NamespaceOrigin, NodeRecord,
};
use floe_sys::{
    mount,
    namespace::Kind,
    procfs::{self, MountInfo},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::stat::{FileStat, fstat, lstat},
};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// What a tree's mount namespaces are.
#[derive(Debug, Default)]
pub struct FoundMounts {
    /// Whether it has a devpts of its own where floe mounts one.
    pub has_devpts: bool,
    /// The mounts of each, by number; none at all where there is but the host's.
    pub namespaces: Vec<MountNamespaceRecord>,
    /// Filesystems that are made anew.
    pub filesystems: Vec<FilesystemRecord>,
    /// By these contents are read.
    _roots: Vec<OwnedFd>,
}

/// Where processes are shown.
const PROC: &[u8] = b"/proc";

/// Looks at the mounts of a tree. Where contents are to be read goes to `contents`.
///
/// # Errors
/// [`NsError`].
pub fn find(
    (tree, others, cgroups): (&FoundTree, &Others, &FoundCgroups),
    contents: &mut Contents,
    refusals: &mut Refusals,
) -> Result<FoundMounts, NsError> {
    let host = procfs::mount_points("/proc/self").map_err(NsError::Proc)?;
    let mut ours = Ours::new(tree.pid_namespaces.first().map_or(0, |own| own.inode));
    let mut all: Vec<Option<Seen>> = Vec::new();
    for number in contents.spaces.numbers() {
        let task = contents.spaces.task(number);
        let is_hosts = crate::ns::origin(task, "mnt")? == NamespaceOrigin::Host;
        let seen = (!is_hosts).then(|| Seen::look(task, &host, &ours)).transpose()?;
        if number == 0 {
            ours.note(seen.as_ref());
        }
        all.push(seen);
    }
    if all.iter().all(Option::is_none) {
        return Ok(FoundMounts::default());
    }
    let mounts: Vec<MountInfo> = all.iter().flatten().flat_map(|seen| seen.mounts.clone()).collect();
    groups::refuse(&mounts, &host, refusals);
    let mut found = Found {
        host: &host,
        tree,
        others,
        cgroups,
        ids: Ids::read().map_err(NsError::Proc)?,
        pids_are_hosts: inode("/proc/self/ns/pid")? == ours.pids,
        all: &all,
        known: HashMap::new(),
        mounts: FoundMounts::default(),
    };
    for (number, seen) in (0..).zip(&all) {
        let record = match seen {
            Some(seen) => found.namespace(number, seen, contents, refusals)?,
            None => MountNamespaceRecord::default(),
        };
        found.mounts.namespaces.push(record);
    }
    let mut mounts = found.mounts;
    mounts._roots = (all.into_iter().flatten())
        .flat_map(|seen| seen.roots.into_values().flatten())
        .map(|root| root.file)
        .collect();
    Ok(mounts)
}

fn inode(path: &str) -> Result<u64, NsError> {
    let found = std::fs::metadata(path).map_err(|source| NsError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(found.ino())
}

/// What was found so far, in all namespaces.
struct Found<'a> {
    host: &'a [MountInfo],
    tree: &'a FoundTree,
    others: &'a Others,
    cgroups: &'a FoundCgroups,
    ids: Ids,
    /// Whether the tree has no PID namespace of its own, so that the host's /proc shows its processes.
    pids_are_hosts: bool,
    all: &'a [Option<Seen>],
    /// Filesystems that are made anew, by device and by what they say that they were made of.
    known: HashMap<(u32, Vec<u8>), u32>,
    mounts: FoundMounts,
}

impl Found<'_> {
    /// The mounts of one namespace.
    fn namespace(
        &mut self,
        number: u32,
        seen: &Seen,
        contents: &mut Contents,
        refusals: &mut Refusals,
    ) -> Result<MountNamespaceRecord, NsError> {
        let (mounts, baseline) = (seen.mounts.as_slice(), &seen.baseline);
        if number == 0 {
            self.mounts.has_devpts = baseline.has_devpts();
        }
        let mut finder = Finder {
            number,
            seen,
            mounts,
            above: Above::of(mounts),
            baseline,
            placed: BTreeSet::new(),
            found: self,
        };
        let wanted = finder.wanted();
        let locked = match finder.found.others.owner_of_mounts(number as usize) {
            0 => BTreeSet::new(),
            _ => locked::find(contents.spaces.task(number), mounts)?,
        };
        let (mut numbers, mut records) = (HashMap::new(), Vec::new());
        for index in parents_first(mounts).into_iter().filter(|index| wanted.contains(index)) {
            let mount = &mounts[index];
            let source = match baseline.has[index] {
                Some(_) => finder.refuse_hidden(index).map(|()| MountSource::Inherited),
                None => finder.source(index, contents)?,
            };
            let source = match source {
                Ok(source) => source,
                Err((reason, advice)) => {
                    refusals.add(None, title(mount), reason, advice);
                    // What is on it has a place all the same, so that it can be judged by itself.
                    MountSource::Inherited
                }
            };
            finder.placed.insert(index);
            let usual = baseline.has[index] == Some(mount.attributes);
            let parent = (finder.above.parent(index)).and_then(|above| numbers.get(&above).copied());
            let mut record = MountRecord {
                parent: parent.unwrap_or(0),
                point: MountPoint(mount.path.clone()),
                source,
                attributes: (!usual).then_some(mount.attributes),
                shared: mount.shared,
                master: mount.master,
                unbindable: mount.unbindable,
                locked: locked.contains(&index),
            };
            if finder.stands_for_private_proc(index) {
                // In a new sandbox it lies on the host's.
                let below = records.len() as u32;
                records.push(MountRecord {
                    attributes: None,
                    shared: 0,
                    master: 0,
                    unbindable: false,
                    ..record.clone()
                });
                record.parent = below;
            }
            numbers.insert(index, records.len() as u32);
            records.push(record);
        }
        let mut unmounted = baseline.unmounted.clone();
        if self.pids_are_hosts {
            unmounted.retain(|point| point.0 != PROC);
        }
        Ok(MountNamespaceRecord {
            owner: 0,
            unmounted,
            mounts: records,
        })
    }
}

/// Looks at the mounts of one namespace.
struct Finder<'a, 'f> {
    number: u32,
    seen: &'a Seen,
    mounts: &'a [MountInfo],
    above: Above,
    baseline: &'a Baseline,
    /// Those that come before, when all are made again.
    placed: BTreeSet<usize>,
    found: &'a mut Found<'f>,
}

impl Finder<'_, '_> {
    /// Whether it is the host's /proc in a tree without a PID namespace of its own.
    fn stands_for_private_proc(&self, index: usize) -> bool {
        let mount = &self.mounts[index];
        let is_proc = mount.kind == b"proc" && mount.path == PROC && mount.root == b"/";
        self.found.pids_are_hosts && is_proc && self.baseline.has[index].is_some() && self.baseline.own[index].is_none()
    }

    /// Those that differ from a new sandbox's, and what they are on.
    fn wanted(&self) -> BTreeSet<usize> {
        let differs = |index: &usize| {
            let mount = &self.mounts[*index];
            let shares = mount.shared != 0 || mount.master != 0 || mount.unbindable;
            shares || self.baseline.has[*index] != Some(mount.attributes)
        };
        let mut wanted = BTreeSet::new();
        for index in (0..self.mounts.len()).filter(differs) {
            let mut next = Some(index);
            while let Some(index) = next.filter(|index| wanted.insert(*index)) {
                next = self.above.parent(index);
            }
        }
        wanted
    }

    /// What a new sandbox has by itself is in the way there from the start.
    fn refuse_hidden(&self, index: usize) -> Result<(), Refused> {
        let is_there = |other: &usize| *other != index && self.baseline.has[*other].is_some();
        let mut there = (0..self.mounts.len()).filter(is_there);
        let above = self.above.parent(index);
        let mount = &self.mounts[index];
        let is_usual = self.baseline.has[index] == Some(mount.attributes);
        let shares = mount.shared != 0 || mount.master != 0 || mount.unbindable;
        // What lies below others at its own place is found again.
        let is_stacked = |other: usize| self.baseline.has[index].is_some() && self.mounts[other].path == mount.path;
        let hides = |other| self.above.hides(self.mounts, other, index) && Some(other) != above && !is_stacked(other);
        // One that nothing is done to may be hidden.
        if is_usual && !shares {
            return Ok(());
        }
        if there.any(hides) {
            return Err(("a mount of the host hides it".to_owned(), UNMOUNT));
        }
        // In a user namespace's what lies above is locked, so that it can't be laid aside meanwhile.
        let is_users = self.found.others.owner_of_mounts(self.number as usize) != 0;
        let lies_below = |other| self.above.hides(self.mounts, other, index);
        let mut all = (0..self.mounts.len()).filter(is_there);
        if is_users && self.baseline.has[index].is_some() && all.any(lies_below) {
            let reason = "it shares mounts, or was changed, and lies below another one that is locked there";
            return Err((reason.to_owned(), PRIVATE));
        }
        Ok(())
    }

    /// A sysfs shows the network devices of one network namespace, and is made again for that of the tree's root. `number` is
    /// its device.
    fn refuse_devices_of_others(&self, number: u64) -> Result<Option<Refused>, NsError> {
        let all: Vec<_> = self.found.others.networks().collect();
        if all.len() < 2 {
            return Ok(None);
        }
        for (place, network) in all.iter().enumerate() {
            let shows = network.run(|| sysfs().map(|device| device.map(|device| device == number)))?;
            match shows {
                Some(true) if place == 0 => return Ok(None),
                // The host's, of which an ordinary user may make no sysfs; and others than this.
                None => {}
                Some(false) if place != 0 => {}
                Some(_) => {
                    let reason = "it shows the devices of another network namespace than the tree root's";
                    return Ok(Some((reason.to_owned(), UNMOUNT)));
                }
            }
        }
        Ok(None)
    }

    /// What a mount shows that a new sandbox has not.
    fn source(&mut self, index: usize, contents: &mut Contents) -> Result<Result<MountSource, Refused>, NsError> {
        let mount = &self.mounts[index];
        if let Err(refused) = self.refuse_hidden(index).and_then(|()| refuse_shape(mount)) {
            return Ok(Err(refused));
        }
        if let Some(shown) = held::shown(mount) {
            return Ok(self.namespace(shown));
        }
        let key = (mount.device, mount.source.clone());
        if let Some(filesystem) = self.found.known.get(&key) {
            return Ok(Ok(MountSource::Filesystem {
                filesystem: *filesystem,
                root: MountPoint(mount.root.clone()),
            }));
        }
        let root = match opened(&self.seen.roots, index) {
            Ok(root) => root,
            Err(refused) => return Ok(Err(refused)),
        };
        let there = fstat(root).map_err(|error| NsError::Read {
            path: String::from_utf8_lossy(&mount.path).into_owned(),
            source: error.into(),
        })?;
        if let Some(place) = self.found.cgroups.place((there.st_dev, there.st_ino)) {
            if place
                .find(&self.found.cgroups.records)
                .is_some_and(|cgroup| cgroup.threaded)
            {
                return Ok(Err(("it shows a cgroup that has threads alone".to_owned(), UNMOUNT)));
            }
            return Ok(Ok(MountSource::Cgroup {
                place: place.clone(),
                source: mount.source.clone(),
            }));
        }
        if matches!(mount.kind.as_slice(), b"cgroup" | b"cgroup2") && mount.root != b"/" {
            let reason = "it shows a cgroup that is not the tree's, or a file of one";
            return Ok(Err((reason.to_owned(), UNMOUNT)));
        }
        let outside = (!is_view(mount)).then(|| self.path_outside(mount, &there)).flatten();
        if let Some(path) = outside {
            let directory = there.st_mode & libc::S_IFMT == libc::S_IFDIR;
            return Ok(Ok(MountSource::Path { path, directory }));
        }
        let kind = match kind_of(mount) {
            Ok(kind) => kind,
            Err(refused) => return Ok(Err(refused)),
        };
        let options = match options(kind, &mount.options, &self.found.ids) {
            Ok(options) => options,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Some(refused) = self.refuse_layers(index, &options, contents) {
            return Ok(Err(refused));
        }
        let pid_namespace = match self.shown_by(mount) {
            Ok(shown) => shown,
            Err(refused) => return Ok(Err(refused)),
        };
        if kind == FilesystemKind::Sysfs
            && let Some(refused) = self.refuse_devices_of_others(there.st_dev)?
        {
            return Ok(Err(refused));
        }
        let ipc_namespace = match kind {
            FilesystemKind::Mqueue => contents.ipc.shown_by(there.st_dev),
            _ => Some(0),
        };
        let Some(ipc_namespace) = ipc_namespace else {
            let reason =
                "it shows message queues of the host's IPC namespace, or of one that no task of the tree is in";
            return Ok(Err((reason.to_owned(), UNMOUNT)));
        };
        let id = self.found.mounts.filesystems.len() as u32;
        let mut record = FilesystemRecord {
            id,
            kind,
            source: mount.source.clone(),
            options,
            pid_namespace,
            ipc_namespace,
            read_only: mount.filesystem_is_read_only(),
            nodes: Vec::new(),
        };
        if kind == FilesystemKind::Tmpfs {
            match self.nodes(index, (id, there.st_dev), contents)? {
                Ok(nodes) => record.nodes = nodes,
                Err(refused) => return Ok(Err(refused)),
            }
        }
        self.found.known.insert(key, id);
        self.found.mounts.filesystems.push(record);
        Ok(Ok(MountSource::Filesystem {
            filesystem: id,
            root: MountPoint(mount.root.clone()),
        }))
    }

    /// A namespace that a mount keeps.
    fn namespace(&self, (kind, inode): (Kind, u64)) -> Result<MountSource, Refused> {
        let Some(number) = self.found.others.number(kind, inode) else {
            return Err((self.found.others.why_not((kind, inode)).to_owned(), UNMOUNT));
        };
        // A copy comes behind what it is a copy of.
        if kind == Kind::Mount && number <= self.number {
            let reason = "it keeps a mount namespace that a new sandbox has before the one that it is in";
            return Err((reason.to_owned(), UNMOUNT));
        }
        // Its names are the kernel's, as floe's are.
        let kind =
            NamespaceKind::named(kind.name()).ok_or_else(|| (format!("it keeps a {kind} namespace"), UNMOUNT))?;
        Ok(MountSource::Namespace { kind, number })
    }

    /// The files of a filesystem.
    fn nodes(
        &self,
        index: usize,
        (id, device): (u32, u64),
        contents: &mut Contents,
    ) -> Result<Result<Vec<NodeRecord>, Refused>, NsError> {
        let mount = &self.mounts[index];
        let parts = match parts(self.found.all, mount) {
            Ok(parts) => parts,
            Err(refused) => return Ok(Err(refused)),
        };
        Ok(Nodes::read(&parts, id)?.map(|found| {
            contents.name_linked(device, |space, inode| {
                let path = found.path_of(inode)?;
                let mounts = self.found.all.get(space as usize)?.as_ref()?.mounts.iter();
                let mut shows_it = mounts.filter(|other| other.device == mount.device);
                shows_it.find_map(|mount| Some(joined(&mount.path, below(&path, &mount.root)?).0))
            });
            contents.sources.extend(found.sources);
            found.records
        }))
    }

    /// The number of the PID namespace that a proc shows; 0 of others.
    fn shown_by(&self, mount: &MountInfo) -> Result<u32, Refused> {
        if mount.kind != b"proc" {
            return Ok(0);
        }
        let mut known = self.found.tree.pid_namespaces.iter();
        let shown = self
            .found
            .all
            .iter()
            .flatten()
            .find_map(|seen| *seen.shown.get(&mount.device)?);
        let number = shown.and_then(|inode| known.position(|known| known.inode == inode));
        let outside = || {
            let reason = "it shows processes of a PID namespace that is not the tree's, or in which nobody is left";
            (reason.to_owned(), UNMOUNT)
        };
        number.map(|number| number as u32).ok_or_else(outside)
    }

    /// Layers of an overlay must be where they were, on what is mounted before it; those of another root than the host's are
    /// the host's.
    fn refuse_layers(&self, index: usize, options: &[FilesystemOption], contents: &Contents) -> Option<Refused> {
        let layers = options.iter().filter(|option| option.is_layer());
        let mut paths = layers.filter_map(|option| option.value.as_deref());
        let is_new = |index: &usize| self.baseline.has[*index].is_none() && !self.placed.contains(index);
        let later: Vec<&MountInfo> = (0..self.mounts.len())
            .filter(is_new)
            .map(|index| &self.mounts[index])
            .collect();
        let is_outside = self.above.parent(index).is_none();
        let is_there = |path: &[u8]| {
            if is_outside {
                return Path::new(OsStr::from_bytes(path)).is_dir();
            }
            let hidden = later.iter().any(|mount| below(path, &mount.path).is_some());
            !hidden && contents.inside(self.number, path).is_dir()
        };
        let lost = paths.find(|path| !is_there(path))?;
        let reason = format!("a layer of it is not at {} any more", String::from_utf8_lossy(lost));
        Some((reason, UNMOUNT))
    }

    /// Where a new sandbox has the same, before anything is mounted in it.
    fn path_outside(&self, mount: &MountInfo, there: &FileStat) -> Option<MountPoint> {
        let own = (self.baseline.own.iter().enumerate()).filter_map(|(index, place)| Some((index, (*place)?)));
        for (index, place) in own {
            let same = self.mounts[index].device == mount.device;
            if let Some(rest) = below(&mount.root, &self.mounts[index].root).filter(|_| same) {
                return Some(joined(place.as_bytes(), rest));
            }
        }
        let paths = self
            .found
            .host
            .iter()
            .filter(|outer| outer.device == mount.device)
            .filter_map(|outer| {
                let path = joined(&outer.path, below(&mount.root, &outer.root)?);
                (below(&path.0, b"/proc").is_none() || path.0.len() < b"/proc".len()).then_some(path)
            });
        let is_same = |path: &MountPoint| {
            let found = lstat(OsStr::from_bytes(&path.0));
            found.is_ok_and(|found| (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino))
        };
        paths.into_iter().find(is_same)
    }
}

/// The device of the sysfs of the calling thread's network namespace; none where it may make none.
fn sysfs() -> io::Result<Option<u64>> {
    // Who may not mount here may do it in a mount namespace of its own.
    unshare(CloneFlags::CLONE_NEWNS)?;
    match mount::file_system(c"sysfs") {
        Ok(root) => Ok(Some(fstat(&root)?.st_dev)),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
