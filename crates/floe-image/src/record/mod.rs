//! Records: plain serde structs, one kind of state each, without a word about how it is read from or put into a kernel.
//!
//! bincode is positional, so a struct that has shipped never changes: a new shape is a new version beside the old one.

mod cgroups;
mod file;
mod huge;
mod identity;
mod index;
mod ipc;
mod machine;
mod memory;
mod mounts;
mod namespaces;
mod network;
mod owner;
mod packet_filter;
mod pids;
mod process;
mod sandbox;
mod seccomp;
mod switches;
mod sysctl;
mod terminal;
mod time;
mod vma_details;

pub use cgroups::{CgroupAccess, CgroupPlace, CgroupRecord, HierarchyRecord};
pub use file::{
    DescriptorRecord, DescriptorTableRecord, DirectoryNotice, FileLock, FileSignals, IN_FLIGHT, LockKind, ObjectRecord,
    OpenFileRecord, SignalOwner, SignalTarget,
};
pub use huge::{HUGE_PAGE, HugeRun};
pub use identity::{BaseRecord, IdentityRecord, ImageId};
pub use index::{Chunk, IndexRecord, RecordEntry};
pub use ipc::{
    AdjustmentRecord, IpcPermission, IpcRecord, MessageRecord, NoticeRecord, PosixMessageRecord, PosixQueueRecord,
    QueueRecord, SegmentRecord, SemaphoreSetRecord,
};
pub use machine::{ComponentRecord, MachineRecord};
pub use memory::{
    AddressSpaceRecord, AioEvent, AioRing, ContentOwner, ExtendedAttribute, GhostKind, GhostRecord, MappedFileRecord,
    MemfdRecord, MmLayout, PageMapRecord, PageRun, ShmemRecord, VmaRecord, VmaSource,
};
pub use mounts::{
    FilesystemKind, FilesystemOption, FilesystemRecord, MountNamespaceRecord, MountPoint, MountRecord, MountSource,
    NodeKind, NodeRecord,
};
pub use namespaces::{IdRange, NamespaceContents, NamespaceKind, NamespaceRecord, TaskNamespaces, UserNamespaceRecord};
pub use network::{NetworkDeviceRecord, NetworkRecord, NetworkSetting, OuterEndRecord, TrafficRecord};
pub use owner::OwnerRecord;
pub use packet_filter::{
    FilterPartKind, FilterPartRecord, FilterTableRecord, IpSetRecord, LegacyTableRecord, PacketFilterRecord,
    TrackedRecord,
};
pub use pids::{EndedLeaderRecord, PidNamespaceRecord, PidsOfChildren};
pub use process::{
    AlternateStack, Credentials, DirectoryRecord, IntervalTimer, ProcessRecord, ProcessState, Registers, ResourceLimit,
    RobustList, RseqRegistration, Scheduling, SignalAction, TerminalLink, ThreadRecord,
};
pub use sandbox::{
    ConsoleRecord, HeaderRecord, InputRecord, LinkRecord, NamespaceOrigin, PublishedRecord, SandboxRecord, VdsoRecord,
};
pub use seccomp::{SeccompFilter, SeccompRecord};
pub use switches::{CallDispatch, MemoryPolicy, ProcessSwitches, ThreadSwitches};
pub use sysctl::{SysctlKind, SysctlRecord};
pub use terminal::{OutputStop, TerminalInput, TerminalRecord};
pub use time::{ClocksRecord, PosixTimerRecord, TimerExpiry};
pub use vma_details::{RangePolicy, VmaDetails};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A PID or TID in the PID namespace of the saved tree's root. Tasks in namespaces below it have others there, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NsPid(pub i32);

impl std::fmt::Display for NsPid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a page in the image's page store; pages are numbered in the order they were stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageId(pub u64);

/// The kind of a record, as its envelope states it. Unknown numbers are errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u16)]
pub enum RecordKind {
    /// [`HeaderRecord`], the first record of every image.
    Header = 1,
    /// [`SandboxRecord`].
    Sandbox = 2,
    /// [`ProcessRecord`].
    Process = 3,
    /// [`AddressSpaceRecord`].
    AddressSpace = 4,
    /// [`MappedFileRecord`].
    MappedFile = 5,
    /// [`ShmemRecord`].
    Shmem = 6,
    /// [`GhostRecord`].
    Ghost = 7,
    /// [`OpenFileRecord`].
    OpenFile = 8,
    /// [`ObjectRecord`].
    Object = 9,
    /// [`DescriptorTableRecord`].
    DescriptorTable = 10,
    /// A chunk of pages; not a bincode body.
    Pages = 11,
    /// [`PageMapRecord`].
    PageMap = 12,
    /// The index at the end of the file.
    Index = 13,
    /// [`MountNamespaceRecord`].
    MountNamespace = 14,
    /// [`FilesystemRecord`].
    Filesystem = 15,
    /// [`NetworkRecord`].
    Network = 16,
    /// [`IdentityRecord`].
    Identity = 17,
    /// [`OwnerRecord`].
    Owner = 18,
    /// [`MachineRecord`].
    Machine = 19,
}

impl RecordKind {
    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        const ALL: [RecordKind; 19] = [
            RecordKind::Header,
            RecordKind::Sandbox,
            RecordKind::Process,
            RecordKind::AddressSpace,
            RecordKind::MappedFile,
            RecordKind::Shmem,
            RecordKind::Ghost,
            RecordKind::OpenFile,
            RecordKind::Object,
            RecordKind::DescriptorTable,
            RecordKind::Pages,
            RecordKind::PageMap,
            RecordKind::Index,
            RecordKind::MountNamespace,
            RecordKind::Filesystem,
            RecordKind::Network,
            RecordKind::Identity,
            RecordKind::Owner,
            RecordKind::Machine,
        ];
        ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// A struct that stands in an image as one envelope.
pub trait Record: Serialize + DeserializeOwned {
    /// The kind its envelope states.
    const KIND: RecordKind;
    /// The version of this shape.
    const VERSION: u16;
}

macro_rules! records {
    ($($record:ident = $kind:ident v $version:literal),+ $(,)?) => {
        $(impl Record for $record {
            const KIND: RecordKind = RecordKind::$kind;
            const VERSION: u16 = $version;
        })+
    };
}

records! {
    HeaderRecord = Header v 1,
    SandboxRecord = Sandbox v 1,
    ProcessRecord = Process v 1,
    AddressSpaceRecord = AddressSpace v 1,
    MappedFileRecord = MappedFile v 1,
    ShmemRecord = Shmem v 1,
    GhostRecord = Ghost v 1,
    OpenFileRecord = OpenFile v 1,
    ObjectRecord = Object v 1,
    DescriptorTableRecord = DescriptorTable v 1,
    PageMapRecord = PageMap v 1,
    MountNamespaceRecord = MountNamespace v 1,
    FilesystemRecord = Filesystem v 1,
    NetworkRecord = Network v 1,
    IdentityRecord = Identity v 1,
    OwnerRecord = Owner v 1,
    MachineRecord = Machine v 1,
}
