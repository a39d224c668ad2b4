//! Reads an image: all records at once, pages when they are wanted, from any thread.

mod ahead;
mod chain;
mod chunks;
mod coming;
mod load;
mod place;
mod spool;
mod verify;

pub use chain::{ChainError, ImageFiles, MAX_BASES};
pub use chunks::ChunkScratch;
pub use coming::Coming;
pub use load::ReadError;
pub use place::{Fault, Place};
pub use spool::spool;
pub use verify::VerifyReport;

use chain::Layer;

use crate::record::{
    AddressSpaceRecord, Chunk, DescriptorTableRecord, FilesystemRecord, GhostRecord, HeaderRecord, IdentityRecord,
    IndexRecord, MachineRecord, MappedFileRecord, MountNamespaceRecord, NetworkRecord, ObjectRecord, OpenFileRecord,
    OwnerRecord, PageId, PageMapRecord, ProcessRecord, ProcessState, RecordEntry, SandboxRecord, ShmemRecord,
};
use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// An image, its records read and checked.
#[derive(Debug)]
pub struct Image {
    /// Itself last, before it its base, and so on.
    layers: Vec<Layer>,
    /// Who brings what its own file has not got yet.
    coming: Option<Arc<dyn Coming>>,
    /// Of all of these, by first page.
    chunks: Vec<Chunk>,
    /// Position of its own first chunk.
    own_chunks: usize,
    bytes: u64,
    /// Its chunks stand above.
    index: IndexRecord,
    identity: IdentityRecord,
    header: HeaderRecord,
    sandbox: SandboxRecord,
    owner: Option<OwnerRecord>,
    machine: Option<MachineRecord>,
    records: Records,
}

#[derive(Debug, Default)]
struct Records {
    processes: Vec<ProcessRecord>,
    address_spaces: Vec<AddressSpaceRecord>,
    mapped_files: Vec<MappedFileRecord>,
    shmems: Vec<ShmemRecord>,
    ghosts: Vec<GhostRecord>,
    open_files: Vec<OpenFileRecord>,
    objects: Vec<ObjectRecord>,
    descriptor_tables: Vec<DescriptorTableRecord>,
    page_maps: Vec<PageMapRecord>,
    mount_namespaces: Vec<MountNamespaceRecord>,
    filesystems: Vec<FilesystemRecord>,
    networks: Vec<NetworkRecord>,
}

macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident: $record:ty),+ $(,)?) => {
        $($(#[$doc])* #[must_use] pub fn $name(&self) -> &[$record] { &self.records.$name })+
    };
}

impl Image {
    lists! {
        /// Processes.
        processes: ProcessRecord,
        /// Address spaces, one for each living process that does not share its parent's.
        address_spaces: AddressSpaceRecord,
        /// Mapped files; a file's id is its position.
        mapped_files: MappedFileRecord,
        /// Shared anonymous memory; an object's id is its position.
        shmems: ShmemRecord,
        /// Deleted files; a file's id is its position.
        ghosts: GhostRecord,
        /// Mount namespaces, the tree's own first.
        mount_namespaces: MountNamespaceRecord,
        /// Filesystems that are made anew; a filesystem's id is its position.
        filesystems: FilesystemRecord,
        /// Network namespaces that are the tree's own, that of its root first.
        networks: NetworkRecord,
        /// Open file descriptions; a description's id is its position.
        open_files: OpenFileRecord,
        /// What open files share.
        objects: ObjectRecord,
        /// Descriptor tables, one for each living process that does not share its parent's.
        descriptor_tables: DescriptorTableRecord,
        /// Page maps, one for each address space, shared memory object and deleted file.
        page_maps: PageMapRecord,
    }

    /// For every living process the one whose memory (CLONE_VM), descriptors (CLONE_FILES) or other things it has, by the
    /// clone flag of what is shared: itself, or a process further up.
    #[must_use]
    pub fn owners(&self, flag: u32) -> HashMap<i32, i32> {
        let mut owners = HashMap::new();
        let alive = |process: &&ProcessRecord| !matches!(process.state, ProcessState::Zombie { .. });
        let parents: HashMap<i32, i32> = (self.processes().iter().filter(alive))
            .map(|process| {
                let shares = process.shared & flag != 0;
                (process.pid.0, if shares { process.ppid.0 } else { process.pid.0 })
            })
            .collect();
        for start in parents.keys().copied() {
            let mut path = vec![start];
            let mut at = start;
            let owner = loop {
                match owners.get(&at).or_else(|| parents.get(&at)).copied() {
                    Some(next) if next != at => {
                        at = next;
                        path.push(at);
                    }
                    _ => break at,
                }
            };
            owners.extend(path.into_iter().map(|pid| (pid, owner)));
        }
        owners
    }

    /// Reads all records and checks that they fit together. Chunks of pages are only located.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(files: impl Into<ImageFiles>) -> Result<Self, ReadError> {
        chain::open(files.into())
    }

    /// Which image it is, and what it is based on.
    #[must_use]
    pub fn identity(&self) -> &IdentityRecord {
        &self.identity
    }

    /// How many images it is based on, one on the other.
    #[must_use]
    pub fn bases(&self) -> usize {
        self.layers.len() - 1
    }

    /// The body of a record, by its position in [`Image::entries`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn body(&self, position: usize) -> Result<Vec<u8>, ReadError> {
        load::body(self, position)
    }

    fn file(&self) -> &File {
        &self.layers.last().expect("its own file is the last one").file
    }

    /// Its files, its own and those of its bases, which pages are read from when they are wanted; and what brings those that
    /// come later.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let files = self.layers.iter().map(|layer| layer.file().as_fd());
        files.chain(self.coming.as_deref().map(Coming::file))
    }

    /// Where the image was made.
    #[must_use]
    pub fn header(&self) -> &HeaderRecord {
        &self.header
    }

    /// Whose user namespace the tree was in, where that was an ordinary user's.
    #[must_use]
    pub fn owner(&self) -> Option<&OwnerRecord> {
        self.owner.as_ref()
    }

    /// What of a processor and a kernel the tree's programs depend on; `None` where floe did not yet write it down.
    #[must_use]
    pub fn machine(&self) -> Option<&MachineRecord> {
        self.machine.as_ref()
    }

    /// Changes the address spaces, as a restore under another kernel needs them.
    pub fn change_address_spaces(&mut self, change: impl FnMut(&mut AddressSpaceRecord)) {
        self.records.address_spaces.iter_mut().for_each(change);
    }

    /// The sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxRecord {
        &self.sandbox
    }

    /// Bytes of its own file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where each record stands, and how long its body is.
    #[must_use]
    pub fn entries(&self) -> &[RecordEntry] {
        &self.index.records
    }

    /// Chunks of pages, by first page, those of its bases too.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunks in its own file.
    #[must_use]
    pub fn own_chunks(&self) -> &[Chunk] {
        &self.chunks[self.own_chunks..]
    }

    /// How many pages are stored, in its bases too.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.own_chunks().last().map_or(self.identity.first_page(), Chunk::end)
    }

    /// Position in [`Image::chunks`] of the chunk that holds a page.
    #[must_use]
    pub fn chunk_of(&self, page: PageId) -> Option<usize> {
        let chunks = &self.chunks;
        let index = chunks.partition_point(|chunk| chunk.first <= page).checked_sub(1)?;
        (page.0 < chunks[index].end()).then_some(index)
    }
}
