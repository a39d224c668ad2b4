//! What mappings and descriptors of several tasks may share: files by path, shared anonymous memory, deleted files.
//!
//! Each is found by device and inode number, gets a number in the image, and where its content goes into the image an
//! open descriptor to read that from.

use crate::refusal::{Refusals, Subject};
use floe_image::record::{ContentOwner, GhostRecord, MappedFileRecord, ShmemRecord};
use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

const DELETED: &[u8] = b" (deleted)";
const MEMFD: &[u8] = b"/memfd:";

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
    /// Where to read it.
    pub file: File,
    /// Bytes.
    pub size: u64,
}

/// All that was found so far.
#[derive(Debug, Default)]
pub struct Contents {
    /// Mapped and executed files.
    pub mapped: Vec<MappedFileRecord>,
    /// Shared anonymous memory.
    pub shmems: Vec<ShmemRecord>,
    /// Deleted files.
    pub ghosts: Vec<GhostRecord>,
    /// Contents to be stored.
    pub sources: Vec<ContentSource>,
    mapped_by: HashMap<(FileIdentity, bool), Option<u32>>,
    shmem_by: HashMap<FileIdentity, u32>,
    ghost_by: HashMap<FileIdentity, u32>,
}

/// What a link of /proc says about a file.
pub(crate) struct Link {
    /// Path inside the sandbox.
    pub path: Vec<u8>,
    /// Whether the kernel says it was deleted.
    pub deleted: bool,
}

/// Splits the kernel's mark from the target of a link in /proc.
pub(crate) fn parse_link(target: &[u8]) -> Link {
    match target.strip_suffix(DELETED) {
        Some(path) => Link {
            path: path.to_vec(),
            deleted: true,
        },
        None => Link {
            path: target.to_vec(),
            deleted: false,
        },
    }
}

impl Contents {
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
        let file = File::open(magic).map_err(wrap("open"))?;
        let id = self.shmems.len() as u32;
        self.shmems.push(ShmemRecord {
            id,
            size: metadata.size(),
        });
        self.sources.push(ContentSource {
            owner: ContentOwner::Shmem(id),
            file,
            size: metadata.size(),
        });
        self.shmem_by.insert(identity, id);
        Ok(id)
    }

    /// The number of the mapped file behind `magic`, a link in /proc such as `/proc/PID/exe`; `root` is `/proc/PID/root`
    /// of a task that sees its path. `None` where it was refused.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn mapped_file(
        &mut self,
        magic: &str,
        root: &Path,
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
        let link = parse_link(target.as_os_str().as_bytes());
        let found = self.locate(magic, root, &link, &metadata, findings)?;
        let id = found.map(|ghost| {
            let id = self.mapped.len() as u32;
            self.mapped.push(MappedFileRecord {
                id,
                path: link.path,
                ghost,
                writable,
                size: metadata.size(),
                mtime: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                head_checksum: 0,
            });
            id
        });
        if let Some(id) = id
            && self.mapped[id as usize].ghost.is_none()
        {
            let file = File::open(magic).map_err(wrap("open"))?;
            self.mapped[id as usize].head_checksum = head_checksum(&file).map_err(wrap("read"))?;
        }
        self.mapped_by.insert(key, id);
        Ok(id)
    }

    /// Whether the file is found under its path (`Some(None)`), must travel as a ghost (`Some(Some(id))`), or was
    /// refused (`None`).
    pub(crate) fn locate(
        &mut self,
        magic: &str,
        root: &Path,
        link: &Link,
        metadata: &Metadata,
        (subject, refusals): (&Subject, &mut Refusals),
    ) -> Result<Option<Option<u32>>, ContentError> {
        let identity = FileIdentity::from(metadata);
        if link.path.starts_with(MEMFD) || metadata.nlink() == 0 {
            return self.ghost(magic, link, metadata).map(|id| Some(Some(id)));
        }
        let place = under(root, &link.path);
        match std::fs::symlink_metadata(&place) {
            Ok(there) if FileIdentity::from(&there) == identity && !link.deleted => Ok(Some(None)),
            _ => {
                refusals.add(
                    Some(subject),
                    format!("file {}", String::from_utf8_lossy(&link.path)),
                    "it was renamed or replaced, or is reached by another of its hard links; its path leads elsewhere now",
                    "restore the path, or let the program open the file anew",
                );
                Ok(None)
            }
        }
    }

    /// The number of the deleted file behind `magic`.
    ///
    /// # Errors
    /// [`ContentError`].
    pub(crate) fn ghost(&mut self, magic: &str, link: &Link, metadata: &Metadata) -> Result<u32, ContentError> {
        let identity = FileIdentity::from(metadata);
        if let Some(id) = self.ghost_by.get(&identity) {
            return Ok(*id);
        }
        let file = File::open(magic).map_err(|source| ContentError {
            action: "open",
            path: magic.to_owned(),
            source,
        })?;
        let id = self.ghosts.len() as u32;
        let nanos = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
        self.ghosts.push(GhostRecord {
            id,
            path: link.path.clone(),
            size: metadata.size(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            times: [
                nanos(metadata.atime(), metadata.atime_nsec()),
                nanos(metadata.mtime(), metadata.mtime_nsec()),
            ],
            memfd: link.path.strip_prefix(MEMFD).map(<[u8]>::to_vec),
        });
        self.sources.push(ContentSource {
            owner: ContentOwner::Ghost(id),
            file,
            size: metadata.size(),
        });
        self.ghost_by.insert(identity, id);
        Ok(id)
    }
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
