//! The filesystems that are made anew for a tree's mounts, and where they are mounted by now: of what is mounted, parts are bound.

use super::{
    copied,
    make::{MountError, errno, failed, is_of_others},
    namespaces::Spaces,
};
use floe_image::{
    Image,
    record::{FilesystemRecord, MountPoint, MountRecord, MountSource},
};
use floe_sys::{
    descriptor::{open_in_root, open_on_mount},
    mount::{NewFilesystem, Propagation, attach, clone_mount, set_propagation},
};
use nix::errno::Errno;
use std::{
    collections::{BTreeSet, HashMap},
    ffi::{CString, OsStr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Filesystems that are made anew.
pub(super) struct Filesystems<'a> {
    image: &'a Image,
    /// Those that are there, by number.
    pub made: HashMap<u32, OwnedFd>,
    /// The namespaces in which they are mounted as a whole.
    homes: HashMap<u32, u32>,
    /// Those that are mounted for once where nothing is on them, and bound from there alone: of a mount that has locked ones on
    /// it no other can be made (`has_locked_children` of fs/namespace.c).
    apart: BTreeSet<u32>,
    /// Parts of these, opened before anything was mounted on them.
    parts: HashMap<(u32, MountPoint), OwnedFd>,
}

impl<'a> Filesystems<'a> {
    /// Those of an image, of which some are there already.
    pub(super) fn new(image: &'a Image, made: HashMap<u32, OwnedFd>) -> Self {
        Self {
            image,
            made,
            homes: HashMap::new(),
            apart: apart(image),
            parts: HashMap::new(),
        }
    }

    /// Whether some are mounted apart.
    pub(super) fn needs_place_apart(&self) -> bool {
        !self.apart.is_empty()
    }

    /// Makes one that is not there yet, by a thread that is where its layers are; `false` where it waits for tasks.
    pub(super) fn make(&mut self, id: u32, mount: &MountRecord, spaces: &Spaces) -> Result<bool, MountError> {
        if !self.made.contains_key(&id) {
            let record = &self.image.filesystems()[id as usize];
            if is_of_others(record) {
                return Ok(false);
            }
            let made = spaces.root().and_then(|top| new_filesystem(record, top.as_fd()));
            self.made
                .insert(id, made.map_err(failed("make its filesystem", mount))?);
        }
        Ok(true)
    }

    /// A mount of a part of one, which is nowhere yet, by a thread that is in the namespace `space`; `None` where the
    /// filesystem waits for tasks.
    pub(super) fn mount(
        &mut self,
        (id, root): (u32, &MountPoint),
        mount: &MountRecord,
        (spaces, space): (&Spaces, u32),
    ) -> Result<Option<OwnedFd>, MountError> {
        if !self.make(id, mount, spaces)? {
            return Ok(None);
        }
        if self.apart.contains(&id) && !self.homes.contains_key(&id) {
            let put = self.put_apart(id, (spaces, space));
            put.map_err(failed("mount its filesystem apart", mount))?;
        }
        let whole = &self.made[&id];
        let part = match self.homes.get(&id) {
            None if root.0 == b"/" => {
                self.homes.insert(id, space);
                self.parts.extend(open_parts(self.image, (id, whole)));
                let again = whole.try_clone();
                again.map_err(|error| errno(&error))
            }
            home => {
                // Where a mount is, it can be bound.
                let bound = spaces.enter(home.copied().unwrap_or(space)).and_then(|()| {
                    let part = match self.parts.get(&(id, root.clone())) {
                        Some(part) => part.try_clone().map_err(|error| errno(&error))?,
                        None => open_on_mount(whole.as_fd(), below_root(root))?,
                    };
                    let part = clone_mount(part.as_fd())?;
                    set_propagation(part.as_fd(), Propagation::Private).map(|()| part)
                });
                spaces.enter(space).and(bound)
            }
        };
        part.map(Some).map_err(failed("bind a part of its filesystem", mount))
    }

    fn put_apart(&mut self, id: u32, (spaces, space): (&Spaces, u32)) -> Result<(), Errno> {
        let whole = &self.made[&id];
        let place = spaces.apart();
        spaces.enter(place)?;
        attach(whole.as_fd(), spaces.root()?.as_fd())?;
        spaces.enter(space)?;
        self.parts.extend(open_parts(self.image, (id, whole)));
        self.homes.insert(id, place);
        Ok(())
    }

    /// Whether a filesystem is as a whole where this mount is to be, and nowhere else so far.
    pub(super) fn is_first(&self, mount: &MountRecord) -> bool {
        match &mount.source {
            MountSource::Filesystem { filesystem, root } => root.0 == b"/" && !self.can_be_bound(*filesystem),
            _ => false,
        }
    }

    /// Whether one is somewhere as a whole, so that parts of it can be bound, or will be before.
    pub(super) fn can_be_bound(&self, id: u32) -> bool {
        self.homes.contains_key(&id) || self.apart.contains(&id)
    }

    /// Notes where a filesystem is now that was mounted as a whole in a namespace, of which there is a copy instead in another
    /// one, or in what came in its place.
    pub(super) fn move_to(
        &mut self,
        copy: &OwnedFd,
        mount: &MountRecord,
        (before, now): (u32, u32),
    ) -> Result<(), MountError> {
        match &mount.source {
            MountSource::Filesystem { filesystem, root }
                if root.0 == b"/" && self.homes.get(filesystem) == Some(&before) =>
            {
                let copy = copy.try_clone();
                let copy = copy.map_err(|error| failed("find its copy", mount)(errno(&error)))?;
                self.parts.extend(open_parts(self.image, (*filesystem, &copy)));
                self.made.insert(*filesystem, copy);
                self.homes.insert(*filesystem, now);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Those that several mounts show, one of which has locked ones on it.
fn apart(image: &Image) -> BTreeSet<u32> {
    let (mut once, mut several, mut below) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for namespace in image.mount_namespaces() {
        let below_locked = copied::below_locked(&namespace.mounts);
        for (index, mount) in namespace.mounts.iter().enumerate() {
            let MountSource::Filesystem { filesystem, .. } = &mount.source else {
                continue;
            };
            if !once.insert(*filesystem) {
                several.insert(*filesystem);
            }
            if below_locked.contains(&index) {
                below.insert(*filesystem);
            }
        }
    }
    &several & &below
}

/// Opens the parts of a filesystem that mounts show, before others hide them. Where one can't be opened, that is told by who
/// needs it.
fn open_parts(image: &Image, (id, whole): (u32, &OwnedFd)) -> impl Iterator<Item = ((u32, MountPoint), OwnedFd)> {
    parts_of(image, id).filter_map(move |part| {
        let opened = open_on_mount(whole.as_fd(), below_root(part));
        Some(((id, part.clone()), opened.ok()?))
    })
}

/// Parts of a filesystem that mounts show.
fn parts_of(image: &Image, id: u32) -> impl Iterator<Item = &MountPoint> {
    let mounts = image.mount_namespaces().iter().flat_map(|namespace| &namespace.mounts);
    mounts.filter_map(move |mount| match &mount.source {
        MountSource::Filesystem { filesystem, root } if *filesystem == id && root.0 != b"/" => Some(root),
        _ => None,
    })
}

fn below_root(part: &MountPoint) -> &Path {
    Path::new(OsStr::from_bytes(part.0.strip_prefix(b"/").unwrap_or_default()))
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
