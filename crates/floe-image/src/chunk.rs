//! Chunks of pages.
//!
//! Body of a `Pages` envelope: number of the first page u64, pages u32, 1 if zstd-compressed or 0 if raw u32, then the
//! bytes. A chunk is stored raw where a sample says that compressing it would not pay.

use crate::{envelope::ENVELOPE_BYTES, record::Chunk};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages a chunk holds at most.
pub const CHUNK_PAGES: usize = 256;
/// Bytes of a full chunk.
pub const CHUNK_BYTES: usize = PAGE_BYTES * CHUNK_PAGES;
/// Bytes before the pages.
pub const PREFIX_BYTES: usize = 16;
/// Version of this shape, as the envelope states it.
pub const CHUNK_VERSION: u16 = 1;

/// The bytes before the pages.
pub(crate) fn prefix(first: u64, pages: u32, compressed: bool) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..12].copy_from_slice(&pages.to_le_bytes());
    bytes[12..].copy_from_slice(&u32::from(compressed).to_le_bytes());
    bytes
}

impl Chunk {
    /// The number of the page behind its last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first.0.saturating_add(u64::from(self.pages))
    }

    /// Where it stands in its file, with its envelope: the first byte, and how many.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        (self.offset, ENVELOPE_BYTES as u64 + u64::from(self.stored))
    }

    /// Bytes of its pages, unpacked.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.pages as usize * PAGE_BYTES
    }
}
