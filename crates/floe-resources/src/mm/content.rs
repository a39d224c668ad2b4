//! What mappings and descriptors of several tasks may share: files by path, shared anonymous memory, deleted files.
//!
//! Each is found by device and inode number, gets a number in the image, and where its content goes into the image the
//! link of /proc to read that from.

use crate::refusal::{Refusals, Subject};
use floe_image::record::{ContentOwner, GhostRecord, MappedFileRecord, MemfdRecord, ShmemRecord};
use floe_sys::{descriptor, memfd, memory::HUGETLBFS, sysv::Attachment};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::{stat::makedev, statfs::statfs},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

const DELETED: &[u8] = b" (deleted)";
/// How the names of memfds begin.
pub(crate) const MEMFD: &[u8] = b"/memfd:";
/// /dev/zero: its private mappings are anonymous memory.
const ZERO_DEVICE: u64 = makedev(1, 5);

/// A file that could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct ContentError {
    /// What was attempted.
    pub action: &'static str,
    /// On which file.
    pub path: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// What makes two open files the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl From<&Metadata> for FileIdentity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Content that goes into the page store.
#[derive(Debug)]
pub struct ContentSource {
    /// Whose pages they will be.
    pub owner: ContentOwner,
    /// Where to read it: a link in /proc of a held task. There may be more of them than floe may have files open.
    pub link: String,
    /// Bytes.
    pub size: u64,
}

/// All that was found so far.
#[derive(Debug)]
pub struct Contents {
    /// The root directory of the tree's mount namespace, as a path.
    root: PathBuf,
    _root: OwnedFd,
    /// Mapped and executed files.
    pub mapped: Vec<MappedFileRecord>,
    /// Shared anonymous memory.
    pub shmems: Vec<ShmemRecord>,
    /// Deleted files.
    pub ghosts: Vec<GhostRecord>,
    /// System V segments that are attached, by identifier.
    pub(crate) segments: BTreeMap<i32, AttachedSegment>,
    /// System V segments that floe itself has attached to read them.
    pub(crate) attachments: Vec<Attachment>,
    /// Contents to be stored.
    pub sources: Vec<ContentSource>,
    mapped_by: HashMap<(FileIdentity, bool), Option<u32>>,
    shmem_by: HashMap<FileIdentity, u32>,
    ghost_by: HashMap<FileIdentity, u32>,
    /// Device number of the filesystem that memfds lie on, once it was needed.
    kernel_tmpfs: Option<u64>,
}

/// A System V segment as mappings show it.
#[derive(Debug)]
pub(crate) struct AttachedSegment {
    /// How many mappings of it there are.
    pub mappings: u64,
    /// A link in /proc that opens its memory.
    pub link: String,
}

/// Where a file of the tree is found, by what a link of /proc says and by looking there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Under this path.
    Named(Vec<u8>),
    /// It has no name any more; it had this one.
    Deleted(Vec<u8>),
    /// Its path leads to something else, or to nothing.
    Elsewhere(Vec<u8>),
}

/// Why a file that is found [`Place::Elsewhere`] can't be carried, and what to do.
pub(crate) const ELSEWHERE: (&str, &str) = (
    "its path leads elsewhere: it was replaced or hidden by a mount, or another of its hard links was deleted",
    "restore the path, or let the program open the file anew",
);

impl Contents {
    /// Nothing found yet. `root` is the root directory of the tree's mount namespace, which links of /proc count from.
    #[must_use]
    pub fn new(root: OwnedFd) -> Self {
        Self {
            root: PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())),
            _root: root,
            mapped: Vec::new(),
            shmems: Vec::new(),
            ghosts: Vec::new(),
            segments: BTreeMap::new(),
            attachments: Vec::new(),
            sources: Vec::new(),
            mapped_by: HashMap::new(),
            shmem_by: HashMap::new(),
            ghost_by: HashMap::new(),
            kernel_tmpfs: None,
        }
    }

    /// Where the file with this `metadata` is, whose link in /proc leads to `target`. The kernel marks deleted files by a
    /// suffix that may as well be part of a name.
    pub(crate) fn place(&self, target: &[u8], metadata: &Metadata) -> Place {
        let there = std::fs::symlink_metadata(under(&self.root, target));
        if there.is_ok_and(|there| FileIdentity::from(&there) == FileIdentity::from(metadata)) {
            return Place::Named(target.to_vec());
        }
        let is_directory = metadata.is_dir();
        match target.strip_suffix(DELETED) {
            // Some filesystems count no links of directories.
            Some(path) if metadata.nlink() == 0 || is_directory => Place::Deleted(path.to_vec()),
            Some(path) => Place::Elsewhere(path.to_vec()),
            None => Place::Elsewhere(target.to_vec()),
        }
    }

    /// The directory behind `magic`, a link in /proc such as `/proc/PID/cwd`.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn directory(&self, magic: &str) -> Result<FoundDirectory, ContentError> {
        let wrap = |action| {
            move |source| ContentError {
                action,
                path: magic.to_owned(),
                source,
            }
        };
        let metadata = std::fs::metadata(magic).map_err(wrap("stat"))?;
        let target = std::fs::read_link(magic).map_err(wrap("read the link"))?;
        Ok(match self.place(target.as_os_str().as_bytes(), &metadata) {
            Place::Named(path) => FoundDirectory { path, found: Ok(()) },
            Place::Deleted(path) => FoundDirectory {
                path,
                found: Err("a deleted directory can't be carried yet"),
            },
            Place::Elsewhere(path) => FoundDirectory {
                path,
                found: Err(ELSEWHERE.0),
            },
        })
    }

    /// The number of the shared anonymous memory object behind `magic`, a link in /proc/PID/map_files.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn shmem(&mut self, magic: &str) -> Result<u32, ContentError> {
        let wrap = |action| {
            move |source| ContentError {
                action,
                path: magic.to_owned(),
                source,
            }
        };
        let metadata = std::fs::metadata(magic).map_err(wrap("stat"))?;
        let identity = FileIdentity::from(&metadata);
        if let Some(id) = self.shmem_by.get(&identity) {
            return Ok(*id);
        }
        let id = self.shmems.len() as u32;
        let huge_page = self.huge_page(magic)?;
        self.shmems.push(ShmemRecord {
            id,
            size: metadata.size(),
            huge_page,
        });
        self.sources.push(ContentSource {
            owner: ContentOwner::Shmem(id),
            link: magic.to_owned(),
            size: metadata.size(),
        });
        self.shmem_by.insert(identity, id);
        Ok(id)
    }

    /// Bytes of a page of the file behind `magic` where it lies on hugetlbfs, else 0.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn huge_page(&self, magic: &str) -> Result<u64, ContentError> {
        let found = statfs(magic).map_err(|source| ContentError {
            action: "statfs",
            path: magic.to_owned(),
            source: source.into(),
        })?;
        let huge = found.filesystem_type().0 == HUGETLBFS;
        Ok(if huge { found.block_size() as u64 } else { 0 })
    }

    /// Notes a mapping of the System V segment `id`, whose memory is behind `magic`.
    pub(super) fn segment(&mut self, id: i32, magic: &str) {
        let found = self.segments.entry(id).or_insert_with(|| AttachedSegment {
            mappings: 0,
            link: magic.to_owned(),
        });
        found.mappings += 1;
    }

    /// The number of the mapped file behind `magic`, a link in /proc such as `/proc/PID/exe`. `None` where it was refused.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn mapped_file(
        &mut self,
        magic: &str,
        writable: bool,
        findings: (&Subject, &mut Refusals),
    ) -> Result<Option<u32>, ContentError> {
        let wrap = |action| {
            move |source| ContentError {
                action,
                path: magic.to_owned(),
                source,
            }
        };
        let metadata = std::fs::metadata(magic).map_err(wrap("stat"))?;
        let key = (FileIdentity::from(&metadata), writable);
        if let Some(id) = self.mapped_by.get(&key) {
            return Ok(*id);
        }
        let target = std::fs::read_link(magic).map_err(wrap("read the link"))?;
        let object = format!("mapped file {}", target.display());
        if !metadata.is_file() && metadata.rdev() != ZERO_DEVICE {
            let reason = "memory of a device can't be carried";
            findings.1.add(Some(findings.0), object, reason, "unmap it");
            return Ok(None);
        }
        let found = self.locate(magic, target.as_os_str().as_bytes(), &metadata, (object, findings))?;
        let id = match found {
            Some(Located { path, ghost }) => {
                let head_checksum = match ghost {
                    Some(_) => 0,
                    None => File::open(magic)
                        .and_then(|file| head_checksum(&file))
                        .map_err(wrap("read"))?,
                };
                let id = self.mapped.len() as u32;
                self.mapped.push(MappedFileRecord {
                    id,
                    path,
                    ghost,
                    writable,
                    size: metadata.size(),
                    mtime: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                    head_checksum,
                });
                Some(id)
            }
            None => None,
        };
        self.mapped_by.insert(key, id);
        Ok(id)
    }

    /// How the regular file behind `magic` is to be found again; `None` where it was refused, as `object`.
    pub(crate) fn locate(
        &mut self,
        magic: &str,
        target: &[u8],
        metadata: &Metadata,
        (object, (subject, refusals)): (String, (&Subject, &mut Refusals)),
    ) -> Result<Option<Located>, ContentError> {
        let path = match self.place(target, metadata) {
            Place::Named(path) => return Ok(Some(Located { path, ghost: None })),
            Place::Deleted(path) => path,
            Place::Elsewhere(_) => {
                refusals.add(Some(subject), object, ELSEWHERE.0, ELSEWHERE.1);
                return Ok(None);
            }
        };
        if let Some((reason, advice)) = self.ghost_trouble(magic, &path, metadata)? {
            refusals.add(Some(subject), object, reason, advice);
            return Ok(None);
        }
        let ghost = self.ghost(magic, &path, metadata)?;
        Ok(Some(Located {
            path,
            ghost: Some(ghost),
        }))
    }

    /// What of the deleted file behind `magic` can't be carried.
    fn ghost_trouble(
        &mut self,
        magic: &str,
        path: &[u8],
        metadata: &Metadata,
    ) -> Result<Option<(&'static str, &'static str)>, ContentError> {
        let wrap = |action| {
            move |source: Errno| ContentError {
                action,
                path: magic.to_owned(),
                source: source.into(),
            }
        };
        let memfd = self.is_memfd(magic, path, metadata)?;
        if !memfd && !self.is_filesystem_of(magic, path).map_err(wrap("statfs"))? {
            return Ok(Some((
                "a deleted file whose filesystem is not mounted where its path was",
                "close and unmap it",
            )));
        }
        let attributes = descriptor::extended_attributes(Path::new(magic)).map_err(wrap("list the attributes of"))?;
        Ok((!attributes.is_empty()).then_some((
            "a deleted file with extended attributes or an access list can't be carried yet",
            "close and unmap it, or remove them (setfattr -x, setfacl -b)",
        )))
    }

    /// Whether the deleted file behind `magic` that had `path` is a memfd. A file of such a name may as well lie in the root
    /// directory, but that is not hugetlbfs.
    fn is_memfd(&mut self, magic: &str, path: &[u8], metadata: &Metadata) -> Result<bool, ContentError> {
        if !path.starts_with(MEMFD) {
            return Ok(false);
        }
        let internal = self.kernel_tmpfs().map_err(|source| ContentError {
            action: "compare the filesystem of",
            path: magic.to_owned(),
            source,
        })?;
        Ok(metadata.dev() == internal || self.huge_page(magic)? != 0)
    }

    /// The device number of the kernel's own tmpfs.
    pub(super) fn kernel_tmpfs(&mut self) -> io::Result<u64> {
        match self.kernel_tmpfs {
            Some(device) => Ok(device),
            None => Ok(*self.kernel_tmpfs.insert(memfd::kernel_tmpfs()?)),
        }
    }

    /// Whether the nearest directory of `path` that there is lies on the filesystem of the file behind `magic`. That of
    /// internal files, such as memfd_secret's, is mounted nowhere.
    fn is_filesystem_of(&self, magic: &str, path: &[u8]) -> Result<bool, Errno> {
        let file = statfs(magic)?;
        let mut directory = under(&self.root, path);
        loop {
            match directory.parent() {
                Some(parent) if parent.starts_with(&self.root) => directory = parent.to_owned(),
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

    /// The number of the deleted file behind `magic`, which had `path`.
    fn ghost(&mut self, magic: &str, path: &[u8], metadata: &Metadata) -> Result<u32, ContentError> {
        let identity = FileIdentity::from(metadata);
        if let Some(id) = self.ghost_by.get(&identity) {
            return Ok(*id);
        }
        let is_memfd = self.is_memfd(magic, path, metadata)?;
        let memfd = match path.strip_prefix(MEMFD) {
            Some(name) if is_memfd => Some(MemfdRecord {
                name: name.to_vec(),
                seals: seals(magic)?,
                huge_page: self.huge_page(magic)?,
            }),
            _ => None,
        };
        let id = self.ghosts.len() as u32;
        let nanos = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
        self.ghosts.push(GhostRecord {
            id,
            path: path.to_vec(),
            size: metadata.size(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            times: [
                nanos(metadata.atime(), metadata.atime_nsec()),
                nanos(metadata.mtime(), metadata.mtime_nsec()),
            ],
            memfd,
        });
        self.sources.push(ContentSource {
            owner: ContentOwner::Ghost(id),
            link: magic.to_owned(),
            size: metadata.size(),
        });
        self.ghost_by.insert(identity, id);
        Ok(id)
    }
}

/// A directory that a task is in.
#[derive(Debug)]
pub struct FoundDirectory {
    /// Its path.
    pub path: Vec<u8>,
    /// Why it can't be found again, where that is so.
    pub found: Result<(), &'static str>,
}

/// How a regular file is found again.
pub(crate) struct Located {
    /// Its path, also where it was deleted.
    pub path: Vec<u8>,
    /// Its number among the deleted files.
    pub ghost: Option<u32>,
}

fn seals(magic: &str) -> Result<u32, ContentError> {
    let wrap = |source| ContentError {
        action: "read the seals of",
        path: magic.to_owned(),
        source,
    };
    let file = File::open(magic).map_err(wrap)?;
    fcntl(&file, FcntlArg::F_GET_SEALS)
        .map(|seals| seals as u32)
        .map_err(|error| wrap(error.into()))
}

/// `path`, which is absolute, below `root`.
pub(crate) fn under(root: &Path, path: &[u8]) -> PathBuf {
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    root.join(std::ffi::OsStr::from_bytes(relative))
}

/// crc32c of a file's first page; an ELF file's build-id note lies there.
///
/// # Errors
/// Those of pread(2).
pub fn head_checksum(file: &File) -> io::Result<u32> {
    let mut head = vec![0; 4096];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(crc32c::crc32c(&head[..filled]))
}
