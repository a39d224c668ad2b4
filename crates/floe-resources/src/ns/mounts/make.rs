//! Makes a tree's mounts, by a thread that is in the mount namespace of a new sandbox.

use super::{
    copied::{self, Asked},
    filesystems::{Filesystems, new_filesystem},
    given::{Given, mount_of},
    groups::{self, There},
    inherited,
    leaders::{At, leaders},
    namespaces::Spaces,
};
use crate::{
    cgroup,
    ns::{Known, Roots, inside::apart},
};
use floe_image::{
    Image,
    record::{CgroupPlace, FilesystemKind, FilesystemRecord, MountPoint, MountRecord, MountSource, NamespaceKind},
};
use floe_sys::{
    descriptor::{open_in_root, open_on_mount},
    mount::{
        Propagation, attach, clone_mount, make_filesystem_read_only, replace_root, set_attributes, set_propagation,
    },
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
    sys::stat::{Mode, fstat},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// A mount that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{object}: {action}")]
pub struct MountError {
    /// Which.
    pub object: String,
    /// What was attempted.
    pub action: String,
    /// Why it failed.
    #[source]
    pub source: Errno,
}

pub(super) fn failed(action: &str, mount: &MountRecord) -> impl FnOnce(Errno) -> MountError + use<> {
    let (object, action) = (title(&mount.point), action.to_owned());
    move |source| MountError { object, action, source }
}

fn title(point: &MountPoint) -> String {
    format!("mount {}", String::from_utf8_lossy(&point.0))
}

pub(super) fn as_path(point: &MountPoint) -> &Path {
    Path::new(OsStr::from_bytes(&point.0))
}

/// By what a cgroup of the tree's that mounts show is mounted.
#[derive(Debug)]
pub enum CgroupView {
    /// A cgroup namespace that begins there.
    Inside(OwnedFd),
    /// Where nothing is made yet: a path of floe's that stands for it.
    At(PathBuf),
}

/// All of them.
pub type CgroupViews = BTreeMap<CgroupPlace, CgroupView>;

/// What of the host's is not there, or given in vain, as seen by a thread as for [`Mounting::begin`]: object and reason.
#[must_use]
pub fn missing(image: &Image, (given, cgroups): (&Given, &CgroupViews), root: BorrowedFd<'_>) -> Vec<(String, String)> {
    let namespaces = image.mount_namespaces();
    let mut found: Vec<(String, String)> = (given.unused(namespaces))
        .map(|name| {
            (
                format!("mount {name}"),
                "the image has no such mount of the host's (--mount)".to_owned(),
            )
        })
        .collect();
    let mounts = namespaces.iter().flat_map(|record| &record.mounts);
    for mount in mounts {
        if let MountSource::Cgroup { place, .. } = &mount.source
            && !cgroups.contains_key(place)
        {
            let name = match place.hierarchy.as_str() {
                "" => "version 2".to_owned(),
                controllers => format!("version 1 with {controllers}"),
            };
            let reason = format!("it shows a cgroup of {name}, which is not mounted here");
            found.push((title(&mount.point), reason));
        }
        let MountSource::Path { path, directory } = &mount.source else {
            continue;
        };
        let place = String::from_utf8_lossy(&mount.point.0);
        let is_directory = |file: &OwnedFd| fstat(file).map(|found| found.st_mode & libc::S_IFMT == libc::S_IFDIR);
        let there = match given.path(&mount.point) {
            Some(path) => open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()),
            None => open_in_root(root, as_path(path), libc::O_PATH, 0),
        };
        let shown = given.path(&mount.point).unwrap_or(as_path(path)).display();
        let reason = match there.and_then(|file| is_directory(&file)) {
            Err(error) => format!("it shows {shown}, which is not here: {error}; --mount {place}=PATH gives another"),
            Ok(is) if is != *directory => {
                format!("it shows {shown}, which is another kind of file here; --mount {place}=PATH gives another")
            }
            Ok(_) => continue,
        };
        found.push((title(&mount.point), reason));
    }
    found
}

/// Mounts that are being made.
pub struct Mounting<'a> {
    pub(super) image: &'a Image,
    pub(super) filesystems: Filesystems<'a>,
    pub(super) spaces: Spaces,
    /// Whether mount namespaces that mounts keep are all as they stay.
    settled: bool,
    /// Those mounts that others join.
    leaders: BTreeSet<At>,
    /// By the number of the namespace.
    pub(super) done: Vec<Done>,
}

/// The mounts of a namespace, by position.
#[derive(Default)]
pub(super) struct Done {
    /// Mounts of what the host has that are nowhere yet.
    shown: BTreeMap<usize, OwnedFd>,
    /// The roots of those that are there.
    pub(super) roots: Vec<Option<OwnedFd>>,
    /// Mounts that show the same as some of these, are nowhere and have nothing on them.
    doubles: BTreeMap<usize, OwnedFd>,
}

impl<'a> Mounting<'a> {
    /// Makes all mounts, but for procs of PID namespaces below the tree's, in which nobody is yet, those that keep namespaces
    /// which are not there yet, and what is on these. `made` are filesystems that are there already, by number; namespaces are those of user namespaces that are `known`;
    /// `proc` is floe's own /proc.
    ///
    /// # Errors
    /// [`MountError`] of the first that can't be made.
    pub fn begin(
        image: &'a Image,
        made: HashMap<u32, OwnedFd>,
        (given, known, cgroups): (&Given, &Known, &CgroupViews),
        proc: OwnedFd,
    ) -> Result<Self, MountError> {
        let filesystems = Filesystems::new(image, made);
        let spaces = Spaces::make(image, proc, filesystems.needs_place_apart());
        let spaces = spaces.map_err(of_root("copy its namespace"))?;
        let mut mounting = Self {
            image,
            filesystems,
            spaces,
            settled: false,
            leaders: leaders(image.mount_namespaces()),
            done: Vec::new(),
        };
        mounting.make_views_of_devices()?;
        let keeps = |mount: &MountRecord| {
            matches!(
                mount.source,
                MountSource::Namespace {
                    kind: NamespaceKind::Mount,
                    ..
                }
            )
        };
        let mut all = image.mount_namespaces().iter().flat_map(|namespace| &namespace.mounts);
        let ordered = all.any(keeps);
        mounting.make_views_of_queues(known)?;
        for (number, namespace) in (0..).zip(image.mount_namespaces()) {
            mounting.spaces.enter(number).map_err(of_root("enter its namespace"))?;
            let mut done = mounting.prepare(number, (given, cgroups))?;
            let user = known.made(namespace.owner);
            if number > 0 && (ordered || user.is_some()) {
                done = mounting.renew((number, done), user, known)?;
            }
            mounting.done.push(done);
            mounting.mount_all(number, known)?;
        }
        Ok(mounting)
    }

    /// In a user namespace only who sees a sysfs may make one, and the host's is gone with its root.
    fn make_views_of_devices(&mut self) -> Result<(), MountError> {
        let root = self.spaces.root().map_err(of_root("open it"))?;
        let is_sysfs = |record: &&FilesystemRecord| record.kind == FilesystemKind::Sysfs;
        for record in self.image.filesystems().iter().filter(is_sysfs) {
            let made = new_filesystem(record, root.as_fd()).map_err(|source| MountError {
                object: format!("sysfs {}", record.id),
                action: "make it".to_owned(),
                source,
            })?;
            self.filesystems.made.insert(record.id, made);
        }
        Ok(())
    }

    /// Those of other IPC namespaces than the tree root's are made in there. Where these are not there yet, any does.
    fn make_views_of_queues(&mut self, known: &Known) -> Result<(), MountError> {
        let root = self.spaces.root().map_err(of_root("open it"))?;
        let filesystems = self.image.filesystems().iter();
        for record in filesystems.filter(|record| record.ipc_namespace != 0) {
            let enter = |namespace| setns(namespace, CloneFlags::CLONE_NEWIPC);
            let make = || {
                let both = known.made(record.ipc_namespace).zip(known.ipc(0));
                both.map_or(Ok(()), |(there, _)| enter(there))?;
                let made = new_filesystem(record, root.as_fd());
                both.map_or(Ok(()), |(_, own)| enter(own))?;
                made
            };
            let made = make().map_err(|source| MountError {
                object: format!("mqueue {}", record.id),
                action: "make it".to_owned(),
                source,
            })?;
            self.filesystems.made.insert(record.id, made);
        }
        Ok(())
    }

    /// Numbers of the filesystems that are still to be made.
    pub fn lacks(&self) -> impl Iterator<Item = &'a FilesystemRecord> {
        let made = &self.filesystems.made;
        let lacking = |record: &&FilesystemRecord| is_of_others(record) && !made.contains_key(&record.id);
        self.image.filesystems().iter().filter(lacking)
    }

    /// The root directories of all namespaces, and these themselves.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn roots(&self) -> Result<Roots, MountError> {
        let numbers = 0..self.image.mount_namespaces().len().max(1) as u32;
        let places = numbers.map(|number| {
            self.spaces.enter(number)?;
            Ok((self.spaces.root()?, self.spaces.duplicate(number)?))
        });
        let places = places.collect::<Result<_, Errno>>().map_err(of_root("open it"))?;
        Ok(Roots::new(places))
    }

    /// Has the calling thread be in the tree's own namespace.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn go_home(&self) -> Result<(), MountError> {
        self.spaces.enter(0).map_err(of_root("enter its namespace"))
    }

    /// Makes what was waited for, when filesystems that it lacked were `made`, and PID namespaces are `known`, on a thread that
    /// is in the tree's own namespace.
    ///
    /// # Errors
    /// [`MountError`] of the first that can't be made.
    pub fn complete(&mut self, made: HashMap<u32, OwnedFd>, known: &Known) -> Result<(), MountError> {
        self.spaces.begin_anew();
        self.settled = true;
        self.filesystems.made.extend(made);
        for number in 0..self.done.len() as u32 {
            self.spaces.enter(number).map_err(of_root("enter its namespace"))?;
            self.mount_all(number, known)?;
        }
        Ok(())
    }

    /// Makes the rest, when all namespaces are `known`, on such a thread; then the groups in which mounts share others.
    ///
    /// # Errors
    /// [`MountError`] of the first that can't be made.
    pub fn finish(mut self, known: &Known) -> Result<(), MountError> {
        self.complete(HashMap::new(), known)?;
        let mut all = Vec::new();
        for (space, (namespace, done)) in (0..).zip(self.image.mount_namespaces().iter().zip(&self.done)) {
            for (index, (mount, root)) in namespace.mounts.iter().zip(&done.roots).enumerate() {
                let root = root.as_ref().ok_or(Errno::ENOENT).map_err(failed("mount it", mount))?;
                let (root, double) = (root.as_fd(), done.doubles.get(&index).map(AsFd::as_fd));
                all.push(There {
                    space,
                    mount,
                    root,
                    double,
                });
            }
        }
        // Not by those roots: of a mount that another hides there may be another's (`copied::open_again`).
        for record in self.image.filesystems().iter().filter(|record| record.read_only) {
            let whole = self.filesystems.made.get(&record.id).ok_or(Errno::ENOENT);
            let made = whole.and_then(|whole| make_filesystem_read_only(whole.as_fd()));
            made.map_err(|source| MountError {
                object: format!("filesystem {}", record.id),
                action: "make it read-only".to_owned(),
                source,
            })?;
        }
        groups::make(&all, &self.spaces)
    }

    /// Replaces the namespace that the thread is in by a copy, of a user namespace's where there is one. What is locked there is
    /// mounted before.
    fn renew(
        &mut self,
        (number, done): (u32, Done),
        user: Option<BorrowedFd<'_>>,
        known: &Known,
    ) -> Result<Done, MountError> {
        let mounts = &self.image.mount_namespaces()[number as usize].mounts;
        let early = match user {
            Some(_) => copied::early(
                mounts,
                &Asked {
                    can_be: &|mount, _| self.can_be_copied(mount, known),
                    is_bound: &|mount| self.filesystems.is_first(mount),
                },
            ),
            None => BTreeSet::new(),
        };
        self.done.push(done);
        for index in &early {
            self.mount_one((number, *index), known)?;
        }
        let mut done = self.done.pop().unwrap_or_default();
        self.spaces.renew(user).map_err(of_root("copy its namespace"))?;
        let root = self.spaces.root().map_err(of_root("open it"))?;
        let mut found = inherited::open(mounts, root.as_fd(), &|| self.spaces.mounts())?;
        for (index, copy) in copied::open_again(mounts, (0, &early), root.as_fd())? {
            self.filesystems.move_to(&copy, &mounts[index], (number, number))?;
            found.insert(index, copy);
        }
        done.roots = (0..mounts.len()).map(|index| found.remove(&index)).collect();
        Ok(done)
    }

    /// Whether a mount can be made by now where it is to be copied.
    pub(super) fn can_be_copied(&self, mount: &MountRecord, known: &Known) -> bool {
        match &mount.source {
            MountSource::Filesystem { filesystem, .. } => {
                let is_of_others = is_of_others(&self.image.filesystems()[*filesystem as usize]);
                !is_of_others || self.filesystems.made.contains_key(filesystem)
            }
            // Copies have no mounts that keep mount namespaces (copy_tree of fs/namespace.c).
            MountSource::Namespace { kind, number } => {
                *kind != NamespaceKind::Mount && known.one(*kind, *number).is_some()
            }
            MountSource::Inherited | MountSource::Path { .. } | MountSource::Cgroup { .. } => true,
        }
    }

    /// Takes away what is not wanted in the namespace that the thread is in, and finds what is.
    fn prepare(&self, number: u32, outside: (&Given, &CgroupViews)) -> Result<Done, MountError> {
        let namespace = &self.image.mount_namespaces()[number as usize];
        let mounts = namespace.mounts.as_slice();
        let root = self.spaces.root().map_err(of_root("open it"))?;
        let before = self.spaces.mounts().map_err(of_root("read what is mounted"))?;
        // All of the host's is found while nothing hides it.
        let shown = sources(mounts, outside, root.as_fd())?;
        for point in &namespace.unmounted {
            // Another host may not have it.
            if before.iter().any(|mount| mount.path == point.0) {
                let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
                umount2(as_path(point), flags).map_err(|source| MountError {
                    object: title(point),
                    action: "unmount it".to_owned(),
                    source,
                })?;
            }
        }
        let roots = self.inherited(mounts)?;
        let mut doubles = BTreeMap::new();
        for (index, (there, mount)) in roots.iter().zip(mounts).enumerate() {
            let Some(there) = there else { continue };
            if let Some(attributes) = mount.attributes {
                set_attributes(there.as_fd(), attributes).map_err(failed("set its flags", mount))?;
            }
            doubles.extend(self.double((number, index), there)?.map(|double| (index, double)));
        }
        Ok(Done { shown, roots, doubles })
    }

    /// By position, those mounts that are there by themselves in the namespace that the thread is in.
    fn inherited(&self, mounts: &[MountRecord]) -> Result<Vec<Option<OwnedFd>>, MountError> {
        let root = self.spaces.root().map_err(of_root("open it"))?;
        let mut found = inherited::open(mounts, root.as_fd(), &|| self.spaces.mounts())?;
        Ok((0..mounts.len()).map(|index| found.remove(&index)).collect())
    }

    /// Makes those mounts of a namespace, which the thread is in, that are not there and can be; in one of a user namespace's
    /// with those that are locked on them.
    fn mount_all(&mut self, number: u32, known: &Known) -> Result<(), MountError> {
        let namespace = &self.image.mount_namespaces()[number as usize];
        let user = known.made(namespace.owner);
        let below_locked = copied::below_locked(&namespace.mounts);
        for index in 0..namespace.mounts.len() {
            match user.filter(|_| below_locked.contains(&index)) {
                Some(user) => self.mount_tree((number, index), user, known)?,
                None => self.mount_one((number, index), known)?,
            }
        }
        Ok(())
    }

    /// Makes one, where it is not there and can be.
    pub(super) fn mount_one(&mut self, (number, index): (u32, usize), known: &Known) -> Result<(), MountError> {
        let mount = &self.image.mount_namespaces()[number as usize].mounts[index];
        let Some(above) = self.above(number, index)? else {
            return Ok(());
        };
        let Some(there) = self.make((number, index), number, known)? else {
            return Ok(());
        };
        if index == 0 {
            attach(there.as_fd(), above.as_fd()).map_err(failed("mount it", mount))?;
            replace_root(there.as_fd()).map_err(failed("make it the root", mount))?;
        } else {
            self.attach_on((number, index), (there.as_fd(), above.as_fd()))?;
        }
        self.note((number, index), there)
    }

    /// Notes one that is there, while nothing is on it.
    pub(super) fn note(&mut self, (number, index): (u32, usize), there: OwnedFd) -> Result<(), MountError> {
        let double = self.double((number, index), &there)?;
        let done = &mut self.done[number as usize];
        done.doubles.extend(double.map(|double| (index, double)));
        done.roots[index] = Some(there);
        Ok(())
    }

    /// Another mount of what one shows that others join, by a thread that is where it is. Later none can be made, where something
    /// is locked on it.
    fn double(&self, (number, index): (u32, usize), there: &OwnedFd) -> Result<Option<OwnedFd>, MountError> {
        let namespace = &self.image.mount_namespaces()[number as usize];
        if namespace.owner == 0 || !self.leaders.contains(&(number, index)) {
            return Ok(None);
        }
        let double = clone_mount(there.as_fd());
        double
            .map(Some)
            .map_err(failed("bind it once more", &namespace.mounts[index]))
    }

    /// The root of what one is to be on that is not there yet; none where that is not there either.
    pub(super) fn above(&self, number: u32, index: usize) -> Result<Option<OwnedFd>, MountError> {
        let mount = &self.image.mount_namespaces()[number as usize].mounts[index];
        let roots = &self.done[number as usize].roots;
        if roots[index].is_some() {
            return Ok(None);
        }
        // Checked when the image was opened: parents come first, and it lies below.
        match &roots[mount.parent as usize] {
            Some(above) => {
                let above = above.try_clone();
                above
                    .map(Some)
                    .map_err(|error| failed("find what it is on", mount)(errno(&error)))
            }
            None if index == 0 => self.spaces.root().map(Some).map_err(failed("open the root", mount)),
            None => Ok(None),
        }
    }

    /// A mount that is nowhere yet, by a thread that is in the namespace `space`; none where it can't be yet.
    pub(super) fn make(
        &mut self,
        (number, index): (u32, usize),
        space: u32,
        known: &Known,
    ) -> Result<Option<OwnedFd>, MountError> {
        let mount = &self.image.mount_namespaces()[number as usize].mounts[index];
        let there = match &mount.source {
            MountSource::Inherited => None,
            MountSource::Path { .. } | MountSource::Cgroup { .. } => self.done[number as usize].shown.remove(&index),
            MountSource::Filesystem { filesystem, root } => {
                let here = (&self.spaces, space);
                match self.filesystems.mount((*filesystem, root), mount, here)? {
                    Some(there) => Some(there),
                    None => return Ok(None),
                }
            }
            MountSource::Namespace { kind, number } => {
                let namespace = match kind {
                    NamespaceKind::Mount => self.settled.then(|| self.spaces.of(*number)),
                    _ => known.one(*kind, *number),
                };
                let Some(namespace) = namespace else { return Ok(None) };
                Some(clone_mount(namespace).map_err(failed("bind the namespace that it keeps", mount))?)
            }
        };
        // All of both kinds are in these lists.
        let there = there.ok_or(Errno::ENOENT).map_err(failed("find it", mount))?;
        if let Some(attributes) = mount.attributes {
            set_attributes(there.as_fd(), attributes).map_err(failed("set its flags", mount))?;
        }
        Ok(Some(there))
    }

    /// Puts a mount at its place on what it is on.
    pub(super) fn attach_on(
        &self,
        (number, index): (u32, usize),
        (there, above): (BorrowedFd<'_>, BorrowedFd<'_>),
    ) -> Result<(), MountError> {
        let mounts = &self.image.mount_namespaces()[number as usize].mounts;
        let mount = &mounts[index];
        let parent = &mounts[mount.parent as usize];
        let rest = Path::new(OsStr::from_bytes(mount.point.below(&parent.point).unwrap_or_default()));
        let place = open_on_mount(above, rest);
        let place = place.map_err(failed("open the place that it is mounted on", mount))?;
        attach(there, place.as_fd()).map_err(failed("mount it", mount))
    }
}

/// Whether a task of another PID namespace than the tree's has to make it.
pub(super) fn is_of_others(record: &FilesystemRecord) -> bool {
    record.pid_namespace != 0
}

fn of_root(action: &str) -> impl FnOnce(Errno) -> MountError + use<> {
    let action = action.to_owned();
    move |source| MountError {
        object: "mount /".to_owned(),
        action,
        source,
    }
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE))
}

/// Mounts, which are nowhere yet, of what the host has.
fn sources(
    mounts: &[MountRecord],
    (given, cgroups): (&Given, &CgroupViews),
    root: BorrowedFd<'_>,
) -> Result<BTreeMap<usize, OwnedFd>, MountError> {
    let mut found = BTreeMap::new();
    let bind = |path: &Path| open_in_root(root, path, libc::O_PATH, 0).and_then(|place| clone_mount(place.as_fd()));
    for (index, mount) in mounts.iter().enumerate() {
        let made = match (&mount.source, given.path(&mount.point)) {
            // The user's word, so links of the host's are followed.
            (MountSource::Path { .. }, Some(path)) => mount_of(path),
            (MountSource::Path { path, .. }, None) => bind(as_path(path)),
            (MountSource::Cgroup { place, source }, _) => match cgroups.get(place) {
                Some(CgroupView::Inside(namespace)) => {
                    // floe's privileges count there; in this mount namespace /proc does not know the thread.
                    let made = apart(|| {
                        setns(namespace, CloneFlags::CLONE_NEWCGROUP)?;
                        Ok(cgroup::mount(&place.hierarchy, source)?)
                    });
                    made.map_err(|error| errno(&error))
                }
                Some(CgroupView::At(path)) => bind(path),
                None => Err(Errno::ENOENT),
            },
            (MountSource::Inherited | MountSource::Filesystem { .. } | MountSource::Namespace { .. }, _) => continue,
        };
        let made = made.map_err(failed("bind what it shows", mount))?;
        set_propagation(made.as_fd(), Propagation::Private).map_err(failed("make it private", mount))?;
        found.insert(index, made);
    }
    Ok(found)
}
