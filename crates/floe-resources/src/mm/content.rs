//! What mappings and descriptors of several tasks may share: files by path, shared anonymous memory, deleted files.
//!
//! Each is found by device and inode number, gets a number in the image, and where its content goes into the image the
//! link of /proc to read that from.

use super::{build_id, hidden::Hidden, links::MappedLinks};
use crate::{
    ipc::IpcSpaces,
    ns::MountSpaces,
    refusal::{Refusals, Subject},
};
use floe_image::record::{ContentOwner, DirectoryRecord, GhostRecord, MappedFileRecord, ShmemRecord};
use floe_sys::{Pid, memfd, memory::HUGETLBFS, procfs::Mapping, sysv::Attachment};
use nix::sys::{stat::makedev, statfs::statfs};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, Metadata, OpenOptions},
    io,
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt},
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
    /// Where to read it.
    pub place: ContentPlace,
    /// Bytes.
    pub size: u64,
}

/// Where content is to be read.
#[derive(Debug)]
pub enum ContentPlace {
    /// In the file behind a link in /proc of a held task. There may be more of them than floe may have files open.
    Link(PathBuf),
    /// In memory of held tasks that have it mapped.
    Memory(Vec<MappedPart>),
}

/// A part of shared memory, as a task has it mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedPart {
    /// Which bytes of the object.
    pub range: Range<u64>,
    /// Whose memory.
    pub pid: Pid,
    /// Where the first of them is there.
    pub address: u64,
}

/// All that was found so far.
#[derive(Debug)]
pub struct Contents {
    /// The tree's mount namespaces.
    pub spaces: MountSpaces,
    /// Mapped and executed files.
    pub mapped: Vec<MappedFileRecord>,
    /// Shared anonymous memory.
    pub shmems: Vec<ShmemRecord>,
    /// Deleted files.
    pub ghosts: Vec<GhostRecord>,
    /// The tree's IPC namespaces.
    pub ipc: IpcSpaces,
    /// System V segments that are attached, by namespace and identifier.
    pub(crate) segments: BTreeMap<(u32, i32), AttachedSegment>,
    /// System V segments that floe itself has attached to read them.
    pub(crate) attachments: Vec<Attachment>,
    /// Contents to be stored.
    pub sources: Vec<ContentSource>,
    /// By mount namespace, too.
    mapped_by: HashMap<(FileIdentity, bool), BTreeMap<u32, Option<u32>>>,
    shmem_by: HashMap<FileIdentity, u32>,
    /// The number and the position among sources of those that are read where they are mapped, by device and inode number.
    mapped_shmem: HashMap<((u32, u32), u64), (u32, usize)>,
    pub(super) ghost_by: HashMap<FileIdentity, u32>,
    /// Mapped files by number, and links to those whose first bytes are still to be read.
    unread: Vec<(usize, String)>,
    /// Links to what is mapped.
    pub(super) links: MappedLinks,
    /// What guards hide of memory that is read where it is mapped.
    pub(super) hidden: Vec<Hidden>,
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

impl Contents {
    /// Nothing found yet. Links of /proc count from the root directory of the mount namespace that a file is in.
    #[must_use]
    pub fn new(spaces: MountSpaces) -> Self {
        Self {
            spaces,
            mapped: Vec::new(),
            shmems: Vec::new(),
            ghosts: Vec::new(),
            ipc: IpcSpaces::default(),
            segments: BTreeMap::new(),
            attachments: Vec::new(),
            sources: Vec::new(),
            mapped_by: HashMap::new(),
            shmem_by: HashMap::new(),
            mapped_shmem: HashMap::new(),
            ghost_by: HashMap::new(),
            unread: Vec::new(),
            links: MappedLinks::default(),
            hidden: Vec::new(),
            kernel_tmpfs: None,
        }
    }

    /// A path in a mount namespace of the tree's, as floe can open it.
    #[must_use]
    pub fn inside(&self, space: u32, path: &[u8]) -> PathBuf {
        under(self.spaces.root(space), path)
    }

    /// Where the file with this `metadata` is, which is in mount namespace `space`, and whose link in /proc leads to `target`.
    /// The kernel marks deleted files by a suffix that may as well be part of a name.
    pub(crate) fn place(&self, space: u32, target: &[u8], metadata: &Metadata) -> Place {
        let identity = FileIdentity::from(metadata);
        let is_it = |path: &[u8]| {
            let there = std::fs::symlink_metadata(self.inside(space, path));
            there.is_ok_and(|there| FileIdentity::from(&there) == identity)
        };
        if is_it(target) {
            return Place::Named(target.to_vec());
        }
        if let Some(path) = (self.spaces.shown_at(space, identity.device, target).into_iter()).find(|path| is_it(path))
        {
            return Place::Named(path);
        }
        let is_directory = metadata.is_dir();
        match target.strip_suffix(DELETED) {
            // Some filesystems count no links of directories.
            Some(path) if metadata.nlink() == 0 || is_directory => Place::Deleted(path.to_vec()),
            Some(path) => Place::Elsewhere(path.to_vec()),
            None => Place::Elsewhere(target.to_vec()),
        }
    }

    /// How the directory behind `magic`, a link in /proc of a task such as `/proc/PID/cwd`, is found again; `None` where it
    /// was refused, as `what` with its path.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn directory(
        &mut self,
        (task, magic): (Pid, &str),
        what: &str,
        findings: (&Subject, &mut Refusals),
    ) -> Result<Option<DirectoryRecord>, ContentError> {
        let wrap = |action| {
            move |source| ContentError {
                action,
                path: magic.to_owned(),
                source,
            }
        };
        let metadata = std::fs::metadata(magic).map_err(wrap("stat"))?;
        let target = std::fs::read_link(magic).map_err(wrap("read the link"))?;
        let object = format!("{what} {}", target.display());
        let space = self.spaces.of_link(magic, task).map_err(wrap("find the mount of"))?;
        let place = (space, target.as_os_str().as_bytes());
        let found = self.locate(magic, place, &metadata, (object, findings))?;
        Ok(found.map(|Located { path, ghost }| DirectoryRecord {
            path,
            mount_namespace: space,
            ghost,
        }))
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
            place: ContentPlace::Link(magic.into()),
            size: metadata.size(),
        });
        self.shmem_by.insert(identity, id);
        Ok(id)
    }

    /// The number of the shared anonymous memory object of a mapping that floe has no link to: it is read where it is mapped,
    /// and is as large as its mappings reach.
    pub(super) fn shmem_in_memory(&mut self, pid: Pid, mapping: &Mapping) -> u32 {
        let key = (mapping.device, mapping.inode);
        let end = mapping.offset + mapping.len();
        let (id, source) = match self.mapped_shmem.get(&key) {
            Some(known) => *known,
            None => {
                let made = (self.shmems.len() as u32, self.sources.len());
                self.shmems.push(ShmemRecord {
                    id: made.0,
                    size: 0,
                    huge_page: 0,
                });
                self.sources.push(ContentSource {
                    owner: ContentOwner::Shmem(made.0),
                    place: ContentPlace::Memory(Vec::new()),
                    size: 0,
                });
                self.mapped_shmem.insert(key, made);
                made
            }
        };
        let size = end.max(self.shmems[id as usize].size);
        self.shmems[id as usize].size = size;
        self.sources[source].size = size;
        if let ContentPlace::Memory(parts) = &mut self.sources[source].place {
            parts.push(MappedPart {
                range: mapping.offset..end,
                pid,
                address: mapping.start,
            });
        }
        id
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

    /// Whether restoring needs the file open besides where the tree has it: because it is mapped, or has no name.
    #[must_use]
    pub(crate) fn keeps_open(&self, file: FileIdentity) -> bool {
        let mapped = [false, true].map(|writable| self.mapped_by.contains_key(&(file, writable)));
        mapped.contains(&true) || self.ghost_by.contains_key(&file)
    }

    /// Notes a mapping of a System V segment, by namespace and identifier, whose memory is behind `magic`.
    pub(super) fn segment(&mut self, known: (u32, i32), magic: &str) {
        let found = self.segments.entry(known).or_insert_with(|| AttachedSegment {
            mappings: 0,
            link: magic.to_owned(),
        });
        found.mappings += 1;
    }

    /// The number of the mapped file behind `magic`, a link in /proc of a task such as `/proc/PID/exe`. `None` where it was
    /// refused.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn mapped_file(
        &mut self,
        (task, magic): (Pid, &str),
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
        let space = self.spaces.of_link(magic, task).map_err(wrap("find the mount of"))?;
        if let Some(id) = self.mapped_by.get(&key).and_then(|known| known.get(&space)) {
            return Ok(*id);
        }
        let target = std::fs::read_link(magic).map_err(wrap("read the link"))?;
        let object = format!("mapped file {}", target.display());
        if !metadata.is_file() && metadata.rdev() != ZERO_DEVICE {
            let reason = "memory of a device can't be carried";
            findings.1.add(Some(findings.0), object, reason, "unmap it");
            return Ok(None);
        }
        let place = (space, target.as_os_str().as_bytes());
        let found = self.locate(magic, place, &metadata, (object, findings))?;
        let id = match found {
            Some(Located { path, ghost }) => {
                let id = self.mapped.len() as u32;
                if ghost.is_none() {
                    self.unread.push((self.mapped.len(), magic.to_owned()));
                }
                self.mapped.push(MappedFileRecord {
                    id,
                    path,
                    mount_namespace: space,
                    ghost,
                    writable,
                    size: metadata.size(),
                    mtime: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                    head_checksum: 0,
                    identity: [metadata.dev(), metadata.ino()],
                    build_id: Vec::new(),
                });
                Some(id)
            }
            None => None,
        };
        self.mapped_by.entry(key).or_default().insert(space, id);
        Ok(id)
    }

    /// Reads by what mapped files are known again: how they begin, and their build-ids. To open one would ask for the end of
    /// a lease for writing; such of the tree's were refused with the descriptors that have them, before this.
    ///
    /// # Errors
    /// [`ContentError`]; EWOULDBLOCK for a lease that no descriptor of the tree has.
    pub fn read_heads(&mut self) -> Result<(), ContentError> {
        for (index, magic) in std::mem::take(&mut self.unread) {
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(&magic);
            let read = file.and_then(|file| Ok((head_checksum(&file)?, build_id(&file)?)));
            let (head, id) = read.map_err(|source| ContentError {
                action: "read",
                path: magic,
                source,
            })?;
            let record = &mut self.mapped[index];
            (record.head_checksum, record.build_id) = (head, id);
        }
        Ok(())
    }

    /// The device number of the kernel's own tmpfs.
    pub(super) fn kernel_tmpfs(&mut self) -> io::Result<u64> {
        match self.kernel_tmpfs {
            Some(device) => Ok(device),
            None => Ok(*self.kernel_tmpfs.insert(memfd::kernel_tmpfs()?)),
        }
    }
}

/// How a regular file or a directory is found again.
pub(crate) struct Located {
    /// Its path, also where it was deleted.
    pub path: Vec<u8>,
    /// Its number among the deleted files.
    pub ghost: Option<u32>,
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
