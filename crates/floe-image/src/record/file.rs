//! Open files and descriptor tables. What is particular to a kind of file is a body that only that kind's folder reads.

use super::NsPid;
use serde::{Deserialize, Serialize};

/// An open file description: what dup(2) and fork(2) share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFileRecord {
    /// Number of this description in the image.
    pub id: u32,
    /// Name of its kind, e.g. `regular`, `pipe`.
    pub kind: String,
    /// Version of the body's shape.
    pub version: u16,
    /// open(2) flags: access mode and status flags, without O_CLOEXEC.
    pub flags: u32,
    /// Byte position.
    pub position: u64,
    /// Number of the mount namespace that its paths count from.
    pub mount_namespace: u32,
    /// Number of the network namespace that it is of, if it is a socket or the like.
    pub network: u32,
    /// Who gets signals about it, where that or the signal was set.
    pub signals: Option<FileSignals>,
    /// The kind's own record, encoded.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// Signals about a file, fcntl(2). Whether any are sent the flags say (O_ASYNC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSignals {
    /// Who gets them (F_SETOWN_EX).
    pub owner: Option<SignalOwner>,
    /// Which (F_SETSIG); 0 for SIGIO without information.
    pub signal: i32,
}

/// Who gets signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalOwner {
    /// What the number is one of.
    pub target: SignalTarget,
    /// Thread, process or process group of the image.
    pub id: NsPid,
    /// Real and effective user of who set it.
    pub users: [u32; 2],
}

/// What a number of [`SignalOwner`] is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalTarget {
    /// F_OWNER_TID.
    Thread,
    /// F_OWNER_PID.
    Process,
    /// F_OWNER_PGRP.
    Group,
}

/// Something several open files share, e.g. the buffer behind both ends of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Name of the kind that owns it.
    pub kind: String,
    /// Number of this object among those of its kind.
    pub id: u32,
    /// Version of the body's shape.
    pub version: u16,
    /// The kind's own record, encoded.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// Stands for the process of the table of open files that none has, and that are on their way through sockets.
pub const IN_FLIGHT: NsPid = NsPid(0);

/// The descriptors of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTableRecord {
    /// Its process, or [`IN_FLIGHT`].
    pub pid: NsPid,
    /// Descriptors, lowest number first.
    pub descriptors: Vec<DescriptorRecord>,
    /// Locks on files that are taken through them.
    pub locks: Vec<FileLock>,
    /// Directories that tell the process of what happens in them.
    pub notices: Vec<DirectoryNotice>,
}

/// That a directory tells of something by a signal: F_NOTIFY of fcntl(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryNotice {
    /// The number of the descriptor that the signal names.
    pub number: i32,
    /// DN_*.
    pub events: u32,
}

/// A lock on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    /// The number of the descriptor.
    pub number: i32,
    /// Whose it is.
    pub kind: LockKind,
    /// Whether nobody else may have one; else others may that are like it.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// How many bytes; 0 for all that follow.
    pub length: u64,
}

/// Whose a lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LockKind {
    /// Of the open file, on the whole of it: flock(2).
    Flock,
    /// Of the process: F_SETLK of fcntl(2).
    Process,
    /// Of the open file: F_OFD_SETLK.
    OpenFile,
    /// A lease of the open file, on the whole of it: F_SETLEASE.
    Lease,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorRecord {
    /// Its number.
    pub number: i32,
    /// Id of an [`OpenFileRecord`].
    pub file: u32,
    /// FD_CLOEXEC.
    pub close_on_exec: bool,
}
