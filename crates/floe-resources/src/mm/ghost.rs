//! Files and directories that are in use under no name, or not under the one by which they were opened.
//!
//! A regular file that has another name is found by its handle (name_to_handle_at(2)) or by that name; content and
//! attributes of one that has none go into the image.

use super::content::{ContentError, ContentPlace, ContentSource, Contents, FileIdentity, Located, MEMFD, Place};
use crate::refusal::{Refusals, Subject};
use floe_image::record::{ContentOwner, ExtendedAttribute, GhostKind, GhostRecord, MemfdRecord};
use floe_sys::{descriptor, procfs};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{stat::Mode, statfs::statfs},
};
use std::{
    ffi::OsStr,
    fs::{File, Metadata, read_dir, symlink_metadata},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

/// Why a file that is found [`Place::Elsewhere`] can't be carried, and what to do.
pub(crate) const ELSEWHERE: (&str, &str) = (
    "its path leads elsewhere: it was replaced or hidden by a mount, or another of its hard links was deleted",
    "restore the path, or let the program open the file anew",
);

/// A path of which a part leads to a file's filesystem, and type and bytes of the file's handle.
type Handle = (Vec<u8>, i32, Vec<u8>);

/// How many names are looked at for another one of a file.
const NAMES: usize = 20_000;

/// What was attempted, for errors about the file behind `magic`.
fn failed<E: Into<io::Error>>(action: &'static str, magic: &str) -> impl FnOnce(E) -> ContentError {
    let path = magic.to_owned();
    move |source| ContentError {
        action,
        path,
        source: source.into(),
    }
}

impl Contents {
    /// How the regular file or directory behind `magic`, which is in a mount namespace and whose link leads to `target`, is to
    /// be found again; `None` where it was refused, as `object`.
    pub(crate) fn locate(
        &mut self,
        magic: &str,
        (space, target): (u32, &[u8]),
        metadata: &Metadata,
        (object, (subject, refusals)): (String, (&Subject, &mut Refusals)),
    ) -> Result<Option<Located>, ContentError> {
        let path = match self.place(space, target, metadata) {
            Place::Named(path) => return Ok(Some(Located { path, ghost: None })),
            Place::Deleted(path) => path,
            Place::Elsewhere(path) => {
                let found = self.by_another_name(magic, (space, &path), metadata)?;
                if found.is_none() {
                    refusals.add(Some(subject), object, ELSEWHERE.0, ELSEWHERE.1);
                }
                return Ok(found);
            }
        };
        let path = if self.is_memfd(magic, &path, metadata)? {
            path
        } else {
            let others = self.spaces.shown_at(space, metadata.dev(), &path);
            let mut found = None;
            for path in std::iter::once(path.clone()).chain(others) {
                let is_there = self.is_filesystem_of(magic, (space, &path));
                if is_there.map_err(failed("look at the filesystem of", magic))? {
                    found = Some(path);
                    break;
                }
            }
            let Some(path) = found else {
                let reason = "its filesystem is not mounted where its path was";
                refusals.add(Some(subject), object, reason, "close and unmap it");
                return Ok(None);
            };
            path
        };
        let ghost = self.ghost(magic, (space, &path), metadata)?;
        Ok(Some(Located {
            path,
            ghost: Some(ghost),
        }))
    }

    /// A file whose name was deleted, or hidden, while it has others: by one of those that is near, or by its handle.
    fn by_another_name(
        &mut self,
        magic: &str,
        (space, path): (u32, &[u8]),
        metadata: &Metadata,
    ) -> Result<Option<Located>, ContentError> {
        if !metadata.is_file() || metadata.nlink() == 0 {
            return Ok(None);
        }
        let identity = FileIdentity::from(metadata);
        if let Some(id) = self.ghost_by.get(&identity) {
            let path = self.ghosts[*id as usize].path.clone();
            return Ok(Some(Located { path, ghost: Some(*id) }));
        }
        let name = self.near_name((space, path), identity).unwrap_or_default();
        let (path, kind, handle) = match self.handle(magic, (space, path), metadata)? {
            Some(found) => found,
            None if name.is_empty() => return Ok(None),
            None => (path.to_vec(), 0, Vec::new()),
        };
        let kind = GhostKind::Linked { name, kind, handle };
        let id = self.note((space, &path), metadata, kind, Vec::new());
        Ok(Some(Located { path, ghost: Some(id) }))
    }

    /// Files that have lost a name are found by another one, where they are on a filesystem that is made anew: what a handle
    /// names is gone with the old one.
    /// `path_of` tells that in a mount namespace.
    pub(crate) fn name_linked(&mut self, device: u64, path_of: impl Fn(u32, u64) -> Option<Vec<u8>>) {
        for (identity, id) in self.ghost_by.iter().filter(|(identity, _)| identity.device == device) {
            let Some(ghost) = self.ghosts.get_mut(*id as usize) else {
                continue;
            };
            if let GhostKind::Linked { name, kind, handle } = &mut ghost.kind
                && let Some(path) = path_of(ghost.mount_namespace, identity.inode)
            {
                (*name, *kind) = (path, 0);
                handle.clear();
            }
        }
    }

    /// Another name of a file, in the directory of `path` or in one beside that.
    fn near_name(&self, (space, path): (u32, &[u8]), identity: FileIdentity) -> Option<Vec<u8>> {
        let own = Path::new(OsStr::from_bytes(path)).parent()?.to_owned();
        let beside = own
            .parent()
            .map(|parent| self.entries(space, parent))
            .into_iter()
            .flatten();
        let folders = std::iter::once(own.clone()).chain(beside.filter(|folder| *folder != own));
        let mut names = folders.flat_map(|folder| self.entries(space, &folder)).take(NAMES);
        let is_it = |path: &PathBuf| {
            let there = symlink_metadata(self.inside(space, path.as_os_str().as_bytes()));
            there.is_ok_and(|there| FileIdentity::from(&there) == identity)
        };
        let found = names.find(is_it)?;
        Some(found.into_os_string().as_bytes().to_vec())
    }

    /// The paths, as the tree has them, of what is in a directory; none where it is none.
    fn entries(&self, space: u32, folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
        let there = self.inside(space, folder.as_os_str().as_bytes());
        let listed = read_dir(there).into_iter().flatten().flatten();
        let folder = folder.to_owned();
        listed.map(move |entry| folder.join(entry.file_name()))
    }

    /// The handle of a file; `None` where it can't be found by that.
    fn handle(
        &self,
        magic: &str,
        (space, path): (u32, &[u8]),
        metadata: &Metadata,
    ) -> Result<Option<Handle>, ContentError> {
        let file = open_path(Path::new(magic)).map_err(failed("open", magic))?;
        let Ok((kind, handle)) = descriptor::handle(file.as_fd()) else {
            return Ok(None);
        };
        let points = procfs::mount_points(&format!("/proc/{}", self.spaces.task(space)))
            .map_err(|error| failed("find a mount of", magic)(io::Error::other(error)))?;
        let paths = std::iter::once(path.to_vec()).chain(points.into_iter().map(|point| point.path));
        for path in paths {
            let Some(mount) = self.nearest_directory(space, &path) else {
                continue;
            };
            let opened = descriptor::open_by_handle(mount.as_fd(), kind, &handle, libc::O_PATH);
            let found = opened.ok().and_then(|opened| File::from(opened).metadata().ok());
            if found.is_some_and(|found| FileIdentity::from(&found) == FileIdentity::from(metadata)) {
                return Ok(Some((path, kind, handle)));
            }
        }
        Ok(None)
    }

    /// The longest part of `path` that is a directory, opened for reading, as open_by_handle_at(2) demands.
    fn nearest_directory(&self, space: u32, path: &[u8]) -> Option<File> {
        let (whole, root) = (self.inside(space, path), self.spaces.root(space));
        let parts = whole.ancestors().take_while(|part| part.starts_with(root));
        let mut folders = parts.filter(|part| part.is_dir());
        folders.find_map(|folder| File::open(folder).ok())
    }

    /// Whether the deleted file behind `magic` that had `path` is a memfd. A file of such a name may as well lie in the root
    /// directory, but that is not hugetlbfs.
    fn is_memfd(&mut self, magic: &str, path: &[u8], metadata: &Metadata) -> Result<bool, ContentError> {
        if !path.starts_with(MEMFD) || !metadata.is_file() {
            return Ok(false);
        }
        let internal = self
            .kernel_tmpfs()
            .map_err(failed("compare the filesystem of", magic))?;
        Ok(metadata.dev() == internal || self.huge_page(magic)? != 0)
    }

    /// Whether the nearest directory of `path` that there is lies on the filesystem of the file behind `magic`. That of
    /// internal files, such as memfd_secret's, is mounted nowhere.
    fn is_filesystem_of(&self, magic: &str, (space, path): (u32, &[u8])) -> Result<bool, Errno> {
        let file = statfs(magic)?;
        let (mut directory, root) = (self.inside(space, path), self.spaces.root(space));
        loop {
            match directory.parent() {
                Some(parent) if parent.starts_with(root) => directory = parent.to_owned(),
                _ => return Ok(false),
            }
            match statfs(&directory) {
                Ok(there) => {
                    let same = (there.filesystem_type(), there.filesystem_id());
                    return Ok(same == (file.filesystem_type(), file.filesystem_id()));
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The number of the deleted file or directory behind `magic`, which had `path`.
    fn ghost(&mut self, magic: &str, (space, path): (u32, &[u8]), metadata: &Metadata) -> Result<u32, ContentError> {
        if let Some(id) = self.ghost_by.get(&FileIdentity::from(metadata)) {
            return Ok(*id);
        }
        let is_memfd = self.is_memfd(magic, path, metadata)?;
        let kind = match path.strip_prefix(MEMFD) {
            _ if metadata.is_dir() => GhostKind::Directory,
            Some(name) if is_memfd => GhostKind::Memfd(MemfdRecord {
                name: name.to_vec(),
                seals: seals(magic)?,
                huge_page: self.huge_page(magic)?,
            }),
            _ => GhostKind::File,
        };
        let has_content = kind != GhostKind::Directory;
        let id = self.note((space, path), metadata, kind, attributes(magic)?);
        if has_content {
            self.sources.push(ContentSource {
                owner: ContentOwner::Ghost(id),
                place: ContentPlace::Link(magic.into()),
                size: metadata.size(),
            });
        }
        Ok(id)
    }

    fn note(
        &mut self,
        (space, path): (u32, &[u8]),
        metadata: &Metadata,
        kind: GhostKind,
        attributes: Vec<ExtendedAttribute>,
    ) -> u32 {
        let id = self.ghosts.len() as u32;
        let nanos = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
        self.ghosts.push(GhostRecord {
            id,
            path: path.to_vec(),
            mount_namespace: space,
            size: if metadata.is_file() { metadata.size() } else { 0 },
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            times: [
                nanos(metadata.atime(), metadata.atime_nsec()),
                nanos(metadata.mtime(), metadata.mtime_nsec()),
            ],
            kind,
            attributes,
        });
        self.ghost_by.insert(FileIdentity::from(metadata), id);
        id
    }
}

fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

fn attributes(magic: &str) -> Result<Vec<ExtendedAttribute>, ContentError> {
    let path = Path::new(magic);
    let names = descriptor::extended_attributes(path).map_err(failed("list the attributes of", magic))?;
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let value = descriptor::extended_attribute(path, name).map_err(failed("read an attribute of", magic))?;
            Ok(ExtendedAttribute {
                name: name.to_vec(),
                value,
            })
        })
        .collect()
}

fn seals(magic: &str) -> Result<u32, ContentError> {
    let file = File::open(magic).map_err(failed("read the seals of", magic))?;
    fcntl(&file, FcntlArg::F_GET_SEALS)
        .map(|seals| seals as u32)
        .map_err(failed("read the seals of", magic))
}
