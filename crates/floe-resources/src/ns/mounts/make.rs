//! Makes a tree's mounts in the mount namespace of the calling thread, which is that of a new sandbox.

use super::{
    given::{Given, mount_of},
    groups, inherited,
};
use floe_image::{
    Image,
    record::{FilesystemRecord, MountPoint, MountRecord, MountSource},
};
use floe_sys::{
    descriptor::{open_in_root, open_on_mount},
    mount::{
        NewFilesystem, Propagation, attach, clone_mount, make_filesystem_read_only, set_attributes, set_propagation,
    },
    procfs::MountInfo,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, umount2},
    sys::stat::{Mode, fstat},
    unistd::{chdir, fchdir, pivot_root},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{CString, OsStr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
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

/// What of the host's is not there, or given in vain, as seen by a thread as for [`make`]: object and reason.
#[must_use]
pub fn missing(image: &Image, given: &Given, root: BorrowedFd<'_>) -> Vec<(String, String)> {
    let namespace = image.mount_namespaces().first();
    let mut found: Vec<(String, String)> = (given.unused(namespace))
        .map(|name| {
            (
                format!("mount {name}"),
                "the image has no such mount of the host's (--mount)".to_owned(),
            )
        })
        .collect();
    let mounts = namespace.into_iter().flat_map(|record| &record.mounts);
    for mount in mounts {
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

/// Makes the tree's mounts. `made` are filesystems that are there already, by number; `now` tells what is mounted.
///
/// # Errors
/// [`MountError`] of the first that can't be made.
pub fn make(
    image: &Image,
    made: HashMap<u32, OwnedFd>,
    given: &Given,
    now: &dyn Fn() -> Result<Vec<MountInfo>, Errno>,
) -> Result<(), MountError> {
    let Some(namespace) = image.mount_namespaces().first() else {
        return Ok(());
    };
    let mounts = namespace.mounts.as_slice();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let of_root = |action: &str| {
        let action = action.to_owned();
        move |source| MountError {
            object: "mount /".to_owned(),
            action,
            source,
        }
    };
    let root = open("/", flags, Mode::empty()).map_err(of_root("open it"))?;
    let before = now().map_err(of_root("read what is mounted"))?;
    // All of the host's is found while nothing hides it.
    let mut shown = sources(mounts, given, root.as_fd())?;
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
    let mut inherited = inherited::open(mounts, root.as_fd(), now)?;
    let mut filesystems = Filesystems {
        image,
        made,
        attached: BTreeSet::new(),
    };
    let mut roots: Vec<OwnedFd> = Vec::with_capacity(mounts.len());
    let is_another_root = mounts
        .first()
        .is_some_and(|first| first.source != MountSource::Inherited);
    for (index, mount) in mounts.iter().enumerate() {
        // Where paths lead from: the tree's root, as far as it is there.
        let top = roots.first().filter(|_| is_another_root).unwrap_or(&root).as_fd();
        let there = match &mount.source {
            MountSource::Inherited => inherited.remove(&index),
            MountSource::Path { .. } => shown.remove(&index),
            MountSource::Filesystem { filesystem, root } => Some(filesystems.mount(*filesystem, root, (mount, top))?),
        };
        // All of both kinds are in these lists.
        let there = there.ok_or(Errno::ENOENT).map_err(failed("find it", mount))?;
        if let Some(attributes) = mount.attributes {
            set_attributes(there.as_fd(), attributes).map_err(failed("set its flags", mount))?;
        }
        if index == 0 && is_another_root {
            // On top of the one that it takes the place of, where paths of the host still lead from.
            attach(there.as_fd(), root.as_fd()).map_err(failed("mount it", mount))?;
        } else if mount.source != MountSource::Inherited {
            // Checked when the image was opened: parents come first, and it lies below.
            let parent = &mounts[mount.parent as usize];
            let rest = Path::new(OsStr::from_bytes(mount.point.below(&parent.point).unwrap_or_default()));
            let place = open_on_mount(roots[mount.parent as usize].as_fd(), rest);
            let place = place.map_err(failed("open the place that it is mounted on", mount))?;
            attach(there.as_fd(), place.as_fd()).map_err(failed("mount it", mount))?;
        }
        roots.push(there);
    }
    if let (true, Some(new)) = (is_another_root, roots.first()) {
        enter_root(new.as_fd()).map_err(failed("make it the root", &mounts[0]))?;
    }
    for (mount, root) in mounts.iter().zip(&roots) {
        if let MountSource::Filesystem { filesystem, .. } = mount.source
            && image.filesystems()[filesystem as usize].read_only
        {
            make_filesystem_read_only(root.as_fd()).map_err(failed("make its filesystem read-only", mount))?;
        }
    }
    groups::make(mounts, &roots)
}

/// Takes the old root away, pivot_root(2): from under all who have it as their root directory.
fn enter_root(new: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(new)?;
    pivot_root(".", ".")?;
    // Which lies on top of the new one now.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Mounts, which are nowhere yet, of what the host has.
fn sources(
    mounts: &[MountRecord],
    given: &Given,
    root: BorrowedFd<'_>,
) -> Result<BTreeMap<usize, OwnedFd>, MountError> {
    let mut found = BTreeMap::new();
    for (index, mount) in mounts.iter().enumerate() {
        let MountSource::Path { path, .. } = &mount.source else {
            continue;
        };
        let made = match given.path(&mount.point) {
            // The user's word, so links of the host's are followed.
            Some(path) => mount_of(path),
            None => open_in_root(root, as_path(path), libc::O_PATH, 0).and_then(|place| clone_mount(place.as_fd())),
        };
        let made = made.map_err(failed("bind what it shows", mount))?;
        set_propagation(made.as_fd(), Propagation::Private).map_err(failed("make it private", mount))?;
        found.insert(index, made);
    }
    Ok(found)
}

/// Filesystems that are made anew.
struct Filesystems<'a> {
    image: &'a Image,
    made: HashMap<u32, OwnedFd>,
    attached: BTreeSet<u32>,
}

impl Filesystems<'_> {
    /// A mount of a part of one, which is nowhere yet; its layers are below `top`.
    fn mount(
        &mut self,
        id: u32,
        root: &MountPoint,
        (mount, top): (&MountRecord, BorrowedFd<'_>),
    ) -> Result<OwnedFd, MountError> {
        if !self.made.contains_key(&id) {
            let made = new_filesystem(&self.image.filesystems()[id as usize], top);
            self.made
                .insert(id, made.map_err(failed("make its filesystem", mount))?);
        }
        let whole = &self.made[&id];
        let part = if root.0 == b"/" && self.attached.insert(id) {
            whole
                .try_clone()
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE)))
        } else {
            let rest = root.0.strip_prefix(b"/").unwrap_or_default();
            open_on_mount(whole.as_fd(), Path::new(OsStr::from_bytes(rest))).and_then(|part| clone_mount(part.as_fd()))
        };
        part.map_err(failed("bind a part of its filesystem", mount))
    }
}

/// A filesystem that is mounted nowhere yet, in the namespaces of the calling thread; `root` is where its layers are.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2), fsmount(2).
pub fn new_filesystem(record: &FilesystemRecord, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let kind = CString::new(record.kind.name()).map_err(|_| Errno::EINVAL)?;
    let new = NewFilesystem::new(&kind)?;
    if !record.source.is_empty() {
        new.set(b"source", &record.source)?;
    }
    for option in &record.options {
        let key = option.key.as_bytes();
        match &option.value {
            Some(path) if option.is_layer() => {
                let flags = libc::O_PATH | libc::O_DIRECTORY;
                let layer = open_in_root(root, Path::new(OsStr::from_bytes(path)), flags, 0)?;
                new.set_file(key, layer.as_fd())?;
            }
            Some(value) => new.set(key, value)?,
            None => new.set_flag(key)?,
        }
    }
    new.mount()
}
