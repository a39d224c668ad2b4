//! Chunks of pages.
//!
//! Body of a `Pages` envelope: number of the first page u64, pages u32, 1 if zstd-compressed or 0 if raw u32, then the
//! bytes. A chunk is stored raw where a sample says that compressing it would not pay.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages a chunk holds at most.
pub const CHUNK_PAGES: usize = 256;
/// Bytes of a full chunk.
pub const CHUNK_BYTES: usize = PAGE_BYTES * CHUNK_PAGES;
/// Bytes before the pages.
pub const PREFIX_BYTES: usize = 16;

const SAMPLE_BYTES: usize = 2048;
const SAMPLES: usize = 4;
/// Stored raw unless the sample shrinks below this share, in percent.
const WORTH_PERCENT: usize = 92;

/// The bytes before the pages.
#[must_use]
pub fn prefix(first: u64, pages: u32, compressed: bool) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..12].copy_from_slice(&pages.to_le_bytes());
    bytes[12..].copy_from_slice(&u32::from(compressed).to_le_bytes());
    bytes
}

/// Compresses chunks one after the other.
pub(crate) struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    quick: zstd::bulk::Compressor<'static>,
}

impl Compressor {
    pub fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self {
            context: zstd::bulk::Compressor::new(level)?,
            quick: zstd::bulk::Compressor::new(1)?,
        })
    }

    /// The compressed pages, or `None` where they are to be stored raw.
    pub fn compress(&mut self, pages: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        if !self.is_worth_it(pages)? {
            return Ok(None);
        }
        let packed = self.context.compress(pages)?;
        Ok((packed.len() < pages.len()).then_some(packed))
    }

    fn is_worth_it(&mut self, pages: &[u8]) -> std::io::Result<bool> {
        if pages.len() <= SAMPLE_BYTES * SAMPLES {
            return Ok(true);
        }
        let mut sample = Vec::with_capacity(SAMPLE_BYTES * SAMPLES);
        let step = (pages.len() - SAMPLE_BYTES) / (SAMPLES - 1);
        for index in 0..SAMPLES {
            sample.extend_from_slice(&pages[index * step..][..SAMPLE_BYTES]);
        }
        let packed = self.quick.compress(&sample)?;
        Ok(packed.len() * 100 < sample.len() * WORTH_PERCENT)
    }
}
