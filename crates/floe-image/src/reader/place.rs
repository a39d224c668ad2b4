//! Names for places in the file and for what may be wrong there.

use crate::{
    envelope::EnvelopeError,
    record::{Chunk, RecordEntry, RecordKind},
};
use std::fmt;

/// A part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A record.
    Record {
        /// Its number among the records, from 1.
        number: usize,
        /// Its kind.
        kind: RecordKind,
        /// Byte offset of its envelope.
        offset: u64,
    },
    /// A chunk of pages.
    Chunk(Chunk),
    /// The index.
    Index {
        /// Byte offset of its envelope.
        offset: u64,
    },
}

impl Place {
    /// The place of the record that is at a position in the index.
    pub(super) fn of(position: usize, entry: &RecordEntry) -> Self {
        Self::Record {
            number: position + 1,
            kind: entry.kind,
            offset: entry.offset,
        }
    }

    /// Byte offset of the envelope.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self {
            Self::Record { offset, .. } | Self::Index { offset } => *offset,
            Self::Chunk(chunk) => chunk.offset,
        }
    }

    /// The kind that its envelope states.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match self {
            Self::Record { kind, .. } => *kind,
            Self::Chunk(_) => RecordKind::Pages,
            Self::Index { .. } => RecordKind::Index,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record { number, kind, offset } => {
                write!(f, "record {number} ({}) at byte {offset}", name(*kind))
            }
            Self::Chunk(chunk) => {
                let last = chunk.end().saturating_sub(1);
                write!(
                    f,
                    "the chunk of pages {} to {last} at byte {}",
                    chunk.first.0, chunk.offset
                )
            }
            Self::Index { offset } => write!(f, "the index at byte {offset}"),
        }
    }
}

fn name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Header => "header",
        RecordKind::Sandbox => "sandbox",
        RecordKind::Process => "process",
        RecordKind::AddressSpace => "address space",
        RecordKind::MappedFile => "mapped file",
        RecordKind::Shmem => "shared memory",
        RecordKind::Ghost => "deleted file",
        RecordKind::OpenFile => "open file",
        RecordKind::Object => "object",
        RecordKind::DescriptorTable => "descriptor table",
        RecordKind::Pages => "pages",
        RecordKind::PageMap => "page map",
        RecordKind::Index => "index",
        RecordKind::MountNamespace => "mount namespace",
        RecordKind::Filesystem => "filesystem",
        RecordKind::Network => "network",
        RecordKind::Identity => "identity",
        RecordKind::Owner => "owner",
        RecordKind::Machine => "machine",
    }
}

/// What is wrong with a part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Its body.
    #[error("checksum differs")]
    Checksum,
    /// It would reach beyond what the file holds before the index, or before the trailer.
    #[error("it lies outside of the file")]
    Outside,
    /// Its envelope says something else than the index.
    #[error("the index describes another one")]
    Mismatch,
    /// Its envelope gives a length that no such part has.
    #[error("{0} bytes are more than it may have")]
    TooLong(u64),
    /// A chunk's bytes are no zstd frame.
    #[error("its pages can't be unpacked")]
    Unpack,
    /// A chunk's pages are more or fewer than its prefix says.
    #[error("its pages have another length")]
    PageCount,
}
