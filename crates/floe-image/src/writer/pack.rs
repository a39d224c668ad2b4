//! One worker's part: sample, compress, checksum.

use crate::{
    chunk::{CHUNK_BYTES, PAGE_BYTES, prefix},
    envelope::Envelope,
    record::RecordKind,
};
use std::io;

const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 1024;
/// Stored raw unless the sample shrinks below this share, in percent.
const WORTH_PERCENT: usize = 92;
/// A level that takes half the time of level 1. On some memory (tables, logs) it does as well, on other (objects of an
/// interpreter) half as well.
const FAST_LEVEL: i32 = -10;
/// The fast level is taken where its sample is longer by no more than this share, in percent.
const AS_GOOD_PERCENT: usize = 125;

/// A chunk as the caller filled it.
pub(super) struct FilledChunk {
    pub first: u64,
    pub pages: u32,
    pub buffer: Vec<u8>,
}

/// A chunk as it goes into the file.
pub(super) struct PackedChunk {
    pub first: u64,
    pub pages: u32,
    pub compressed: bool,
    pub envelope: Envelope,
    /// A buffer of [`CHUNK_BYTES`], of which the first `stored` count.
    pub buffer: Vec<u8>,
    pub stored: usize,
}

/// How a chunk is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Raw,
    Fast,
    Full,
}

/// Packs chunks one after the other. Compressed bytes go into a spare buffer that then changes places with the
/// chunk's, so that nothing is allocated on the way.
pub(super) struct Packer {
    full: zstd::bulk::Compressor<'static>,
    /// Where the level asked for is not faster still.
    fast: Option<zstd::bulk::Compressor<'static>>,
    spare: Vec<u8>,
    sample: Vec<u8>,
    sample_out: Vec<u8>,
}

impl Packer {
    pub fn new(level: i32) -> io::Result<Self> {
        let fast = (level > FAST_LEVEL).then(|| zstd::bulk::Compressor::new(FAST_LEVEL));
        Ok(Self {
            full: zstd::bulk::Compressor::new(level)?,
            fast: fast.transpose()?,
            spare: vec![0; CHUNK_BYTES],
            sample: Vec::with_capacity(SAMPLES * SAMPLE_BYTES),
            sample_out: vec![0; SAMPLES * SAMPLE_BYTES * WORTH_PERCENT / 100],
        })
    }

    pub fn pack(&mut self, chunk: FilledChunk) -> PackedChunk {
        let FilledChunk {
            first,
            pages,
            mut buffer,
        } = chunk;
        let bytes = pages as usize * PAGE_BYTES;
        let packed = self.compress(&buffer[..bytes]);
        if packed.is_some() {
            std::mem::swap(&mut buffer, &mut self.spare);
        }
        let compressed = packed.is_some();
        let stored = packed.unwrap_or(bytes);
        let front = prefix(first, pages, compressed);
        let envelope = Envelope {
            kind: RecordKind::Pages,
            version: crate::chunk::CHUNK_VERSION,
            length: (front.len() + stored) as u64,
            checksum: crc32c::crc32c_append(crc32c::crc32c(&front), &buffer[..stored]),
        };
        PackedChunk {
            first,
            pages,
            compressed,
            envelope,
            buffer,
            stored,
        }
    }

    /// Compresses into the spare buffer; `None` where the pages are to be stored raw.
    fn compress(&mut self, pages: &[u8]) -> Option<usize> {
        let worth = self.worth(pages);
        let compressor = match (worth, &mut self.fast) {
            (Worth::Raw, _) => return None,
            (Worth::Fast, Some(fast)) => fast,
            (Worth::Fast | Worth::Full, _) => &mut self.full,
        };
        // The only thing that can go wrong is that the frame would be longer than what it is made from.
        let room = &mut self.spare[..pages.len() - 1];
        compressor.compress_to_buffer(pages, room).ok()
    }

    fn worth(&mut self, pages: &[u8]) -> Worth {
        if pages.len() <= 2 * SAMPLES * SAMPLE_BYTES {
            return Worth::Full;
        }
        self.sample.clear();
        let step = (pages.len() - SAMPLE_BYTES) / (SAMPLES - 1);
        for index in 0..SAMPLES {
            self.sample.extend_from_slice(&pages[index * step..][..SAMPLE_BYTES]);
        }
        // Fails where the sample does not shrink into the room there is.
        let Ok(full) = self.full.compress_to_buffer(&self.sample, &mut self.sample_out[..]) else {
            return Worth::Raw;
        };
        let Some(fast) = &mut self.fast else { return Worth::Full };
        match fast.compress_to_buffer(&self.sample, &mut self.sample_out[..]) {
            Ok(fast) if fast * 100 <= full * AS_GOOD_PERCENT => Worth::Fast,
            Ok(_) | Err(_) => Worth::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FilledChunk, Packer};
    use crate::chunk::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn pack(mut buffer: Vec<u8>, pages: usize) -> (bool, usize) {
        buffer.resize(CHUNK_BYTES, 0);
        let mut packer = Packer::new(1).expect("start zstd");
        let packed = packer.pack(FilledChunk {
            first: 0,
            pages: pages as u32,
            buffer,
        });
        assert_eq!(packed.buffer.len(), CHUNK_BYTES);
        assert_eq!(packer.spare.len(), CHUNK_BYTES);
        (packed.compressed, packed.stored)
    }

    #[test]
    fn noise_is_stored_raw() {
        for pages in [1, 2, 4, 5, 17, CHUNK_PAGES] {
            assert_eq!(pack(noise(pages * PAGE_BYTES), pages), (false, pages * PAGE_BYTES));
        }
    }

    #[test]
    fn what_shrinks_is_compressed() {
        for pages in [1, 4, 5, CHUNK_PAGES] {
            let (compressed, stored) = pack(vec![7; pages * PAGE_BYTES], pages);
            assert!(compressed && stored < 200, "{pages} pages became {stored} bytes");
        }
        let mut half = noise(CHUNK_BYTES / 2);
        half.resize(CHUNK_BYTES, 0);
        assert!(pack(half, CHUNK_PAGES).0);
    }
}
