//! Objects of an IPC namespace of a tree's own: those of System V, and POSIX message queues.

use super::NsPid;
use serde::{Deserialize, Serialize};

/// All of them; those of System V by identifier in their kind, lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcRecord {
    /// Shared memory.
    pub segments: Vec<SegmentRecord>,
    /// Semaphore sets.
    pub semaphores: Vec<SemaphoreSetRecord>,
    /// What is added to semaphores when processes end (SEM_UNDO).
    pub adjustments: Vec<AdjustmentRecord>,
    /// Message queues.
    pub queues: Vec<QueueRecord>,
    /// POSIX message queues, known by their place here.
    pub posix: Vec<PosixQueueRecord>,
}

impl IpcRecord {
    /// The segment with this identifier.
    #[must_use]
    pub fn segment(&self, id: i32) -> Option<&SegmentRecord> {
        let place = self.segments.binary_search_by_key(&id, |segment| segment.permission.id);
        place.ok().map(|index| &self.segments[index])
    }
}

/// What every object has: `struct ipc_perm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcPermission {
    /// Its identifier.
    pub id: i32,
    /// The key it is found by; 0 (IPC_PRIVATE) for none.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Creator.
    pub creator_uid: u32,
    /// The creator's group.
    pub creator_gid: u32,
}

/// A shared memory segment; its content is in the page store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Identifier, key, owners.
    pub permission: IpcPermission,
    /// Bytes.
    pub size: u64,
    /// Whether it goes when nobody has it attached any more (IPC_RMID).
    pub removed: bool,
    /// Whether it is kept in memory (SHM_LOCK).
    pub locked: bool,
    /// Bytes of a page from hugetlbfs (SHM_HUGETLB); 0 for ordinary pages.
    pub huge_page: u64,
}

impl SegmentRecord {
    /// Bytes of all its pages.
    #[must_use]
    pub fn whole(&self) -> u64 {
        const PAGE: u64 = 4096;
        self.size.next_multiple_of(self.huge_page.max(PAGE))
    }
}

/// A set of semaphores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSetRecord {
    /// Identifier, key, owners.
    pub permission: IpcPermission,
    /// Their values.
    pub values: Vec<u16>,
}

/// What is added to the semaphores of a set when a process ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdjustmentRecord {
    /// The process, or a thread of it that is in the namespace where the process is not.
    pub task: NsPid,
    /// Identifier of the set.
    pub set: i32,
    /// For each of its semaphores.
    pub values: Vec<i16>,
}

/// A message queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// Identifier, key, owners.
    pub permission: IpcPermission,
    /// How many bytes may wait in it (msg_qbytes).
    pub capacity: u64,
    /// What waits, first message first.
    pub messages: Vec<MessageRecord>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// Its type, which is positive.
    pub kind: i64,
    /// Its text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// A POSIX message queue (mq_overview(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixQueueRecord {
    /// Its name, without the slash.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Whether its name was taken away (mq_unlink), so that it goes with the last who has it open.
    pub unlinked: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// How many messages may wait in it.
    pub most_messages: u32,
    /// Bytes of the longest message.
    pub message_bytes: u32,
    /// What waits, in the order in which it will be received.
    pub messages: Vec<PosixMessageRecord>,
    /// Who is told when a message comes to the empty queue (mq_notify).
    pub notice: Option<NoticeRecord>,
}

/// A message of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixMessageRecord {
    /// The higher the earlier.
    pub priority: u32,
    /// Its text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// How a process is told of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeRecord {
    /// The process.
    pub pid: NsPid,
    /// The signal; none where it only holds the place (SIGEV_NONE).
    pub signal: Option<i32>,
    /// What comes with the signal (sigev_value).
    pub value: u64,
}
