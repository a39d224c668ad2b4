//! The index at the end of an image: where every record and every chunk of pages stands.

use super::{PageId, RecordKind};
use serde::{Deserialize, Serialize};

/// The index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRecord {
    /// Records, in the order of the file.
    pub records: Vec<RecordEntry>,
    /// Chunks of pages, in the order of the file.
    pub chunks: Vec<Chunk>,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEntry {
    /// Its kind.
    pub kind: RecordKind,
    /// Its version.
    pub version: u16,
    /// Byte offset of its envelope.
    pub offset: u64,
    /// Bytes of its body.
    pub length: u64,
}

/// Where a chunk of pages stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its first page.
    pub first: PageId,
    /// How many pages it holds.
    pub pages: u32,
    /// Whether it is a zstd frame.
    pub compressed: bool,
    /// Byte offset of its envelope.
    pub offset: u64,
    /// Bytes of its body.
    pub stored: u32,
}
