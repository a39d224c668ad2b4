//! Address spaces, the objects they map, and which pages hold what.

use super::{HugeRun, NsPid, PageId, VmaDetails};
use serde::{Deserialize, Serialize};

/// The address space of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSpaceRecord {
    /// Its process.
    pub pid: NsPid,
    /// Mappings, lowest address first.
    pub vmas: Vec<VmaRecord>,
    /// Code, data, heap, stack, arguments: `struct prctl_mm_map`.
    pub layout: MmLayout,
    /// The auxiliary vector's bytes.
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    /// The executable: the id of a [`MappedFileRecord`].
    pub exe: u32,
    /// How mappings to come are locked: MCL_FUTURE and MCL_ONFAULT of mlockall(2), or 0.
    pub lock_future: u32,
}

/// The addresses of PR_SET_MM_MAP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "field names are those of struct prctl_mm_map, prctl(2)")]
pub struct MmLayout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// A mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmaRecord {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// PROT_* bits.
    pub prot: u32,
    /// The two-letter names of `VmFlags:` in /proc/PID/smaps that floe restores, e.g. `gd`, `dc`.
    pub flags: Vec<[u8; 2]>,
    /// Name of anonymous memory (PR_SET_VMA_ANON_NAME), where it has one.
    #[serde(with = "serde_bytes")]
    pub name: Option<Vec<u8>>,
    /// What it maps.
    pub source: VmaSource,
    /// What few mappings have.
    pub details: VmaDetails,
}

/// What a mapping maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmaSource {
    /// Private anonymous memory.
    Anonymous,
    /// Shared anonymous memory.
    Shmem {
        /// Id of a [`ShmemRecord`].
        object: u32,
        /// Byte offset in the object.
        offset: u64,
    },
    /// A file.
    File {
        /// Id of a [`MappedFileRecord`].
        file: u32,
        /// Byte offset in the file.
        offset: u64,
        /// MAP_SHARED.
        shared: bool,
    },
    /// A mapping of the kernel's own: `[vvar]`, `[vvar_vclock]`, `[vdso]`.
    Special {
        /// Its name.
        name: String,
    },
    /// A System V shared memory segment that is attached.
    Segment {
        /// The IPC namespace that it is of; 0 is that of the tree's root.
        namespace: u32,
        /// Identifier of a [`SegmentRecord`](super::SegmentRecord).
        id: i32,
        /// Byte offset in the segment.
        offset: u64,
        /// Whether it was not attached by SHM_RDONLY.
        writable: bool,
    },
    /// A ring of asynchronous I/O.
    AioRing(AioRing),
}

/// A ring of asynchronous I/O, io_setup(2), which is whole in its mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AioRing {
    /// How many requests were asked for.
    pub most: u32,
    /// How many events it has room for.
    pub events: u32,
    /// Which place the first event is taken from.
    pub head: u32,
    /// The events that wait, the first one first.
    pub waiting: Vec<AioEvent>,
}

/// `struct io_event`, linux/aio_abi.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "field names are those of struct io_event")]
pub struct AioEvent {
    pub data: u64,
    pub obj: u64,
    pub res: i64,
    pub res2: i64,
}

/// A file that is mapped or executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedFileRecord {
    /// Number of this file in the image.
    pub id: u32,
    /// Path inside the sandbox (at the time of the checkpoint, also for a deleted file).
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Number of the mount namespace that its path counts from.
    pub mount_namespace: u32,
    /// Id of a [`GhostRecord`] where the file was deleted.
    pub ghost: Option<u32>,
    /// Whether some mapping writes to it (then it must be opened for writing).
    pub writable: bool,
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime: i64,
    /// crc32c of the first page.
    pub head_checksum: u32,
    /// Device and inode number on the host that the image was made on.
    pub identity: [u64; 2],
    /// NT_GNU_BUILD_ID of an ELF file; empty where it has none.
    #[serde(with = "serde_bytes")]
    pub build_id: Vec<u8>,
}

/// A shared anonymous memory object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmemRecord {
    /// Number of this object in the image.
    pub id: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes of a page from hugetlbfs; 0 for ordinary pages.
    pub huge_page: u64,
}

/// A file that is in use under no name; the content of one that was deleted is in the page store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GhostRecord {
    /// Number of this file in the image.
    pub id: u32,
    /// Path it had.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Number of the mount namespace that its path counts from.
    pub mount_namespace: u32,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access and modification time, nanoseconds since 1970.
    pub times: [i64; 2],
    /// What it is.
    pub kind: GhostKind,
    /// Extended attributes, access lists among them.
    pub attributes: Vec<ExtendedAttribute>,
}

impl GhostRecord {
    /// Whether its content is in the page store.
    #[must_use]
    pub fn has_content(&self) -> bool {
        match self.kind {
            GhostKind::File | GhostKind::Memfd(_) => true,
            GhostKind::Directory | GhostKind::Linked { .. } => false,
        }
    }
}

/// What a file without a name is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GhostKind {
    /// A regular file of some filesystem.
    File,
    /// A memfd.
    Memfd(MemfdRecord),
    /// A directory, which is empty.
    Directory,
    /// A regular file that has lost the name by which it was opened, but has others. Its content is where it is.
    Linked {
        /// One of those; empty where none was found.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Type of its handle (name_to_handle_at(2)), by which it is found first; 0 where its filesystem knows none.
        kind: i32,
        /// The handle.
        #[serde(with = "serde_bytes")]
        handle: Vec<u8>,
    },
}

/// An extended attribute, xattr(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtendedAttribute {
    /// Its name, with its namespace.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// What a memfd has besides what every file has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemfdRecord {
    /// Its name.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// F_GET_SEALS.
    pub seals: u32,
    /// Bytes of a page from hugetlbfs (MFD_HUGETLB); 0 for ordinary pages.
    pub huge_page: u64,
}

/// Whose pages a page map lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContentOwner {
    /// The private pages of the process with this PID, by address.
    Process(NsPid),
    /// A [`ShmemRecord`], by byte offset.
    Shmem(u32),
    /// A [`GhostRecord`], by byte offset.
    Ghost(u32),
    /// The sandbox's log, by byte offset.
    Log,
    /// A System V segment, by byte offset.
    Segment {
        /// Its IPC namespace.
        namespace: u32,
        /// Its identifier.
        id: i32,
    },
    /// A file of a [`FilesystemRecord`](super::FilesystemRecord), by byte offset.
    Node {
        /// Id of the filesystem.
        filesystem: u32,
        /// Position in its list.
        node: u32,
    },
}

/// The pages of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageMapRecord {
    /// Whose.
    pub owner: ContentOwner,
    /// Runs, lowest address first, not overlapping.
    pub runs: Vec<PageRun>,
    /// Where a process's pages were huge ones, lowest address first.
    pub huge: Vec<HugeRun>,
}

/// Pages that follow each other in an owner and in the page store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Address or byte offset of the first page.
    pub start: u64,
    /// How many pages.
    pub pages: u64,
    /// Where the first is stored.
    pub first: PageId,
}
