//! One worker's part: have a buffer filled, sample, compress, checksum.

use super::effort::{Effort, Level};
use crate::{
    chunk::{CHUNK_BYTES, PAGE_BYTES, prefix},
    envelope::Envelope,
    record::RecordKind,
};
use std::{io, time::Instant};

const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 1024;
/// A chunk of no more than this is not worth a sample.
const SHORT_BYTES: usize = 2 * SAMPLES * SAMPLE_BYTES;
/// Stored raw unless the sample shrinks below this share, in percent.
const WORTH_PERCENT: usize = 92;
/// A level that takes half the time of level 1. On some memory (tables, logs) it does nearly as well, on other (objects of an
/// interpreter, libraries) it leaves half as much again.
const FAST_LEVEL: i32 = -4;
/// How far back the fast level looks, as a power of two: what it searches stays in a core's cache.
const FAST_WINDOW_LOG: u32 = 18;
/// The level of one who is not asked yet.
const FIRST_LEVEL: i32 = 1;
/// The fast level is taken where its sample is longer by no more than this share, in percent.
const AS_GOOD_PERCENT: usize = 125;

/// A chunk that is to be filled and packed.
pub(super) struct WantedChunk {
    pub first: u64,
    pub pages: u32,
    pub fill: Box<Fill>,
}

/// Puts the content of a chunk's pages into the buffer it is given.
pub(super) type Fill = dyn FnOnce(&mut [u8]) -> Result<(), FillError> + Send;

/// Why pages could not be had: an error of whoever reads them.
pub type FillError = Box<dyn std::error::Error + Send + Sync>;

/// A chunk as it goes into the file.
pub(super) struct PackedChunk<'a> {
    pub first: u64,
    pub pages: u32,
    pub compressed: bool,
    pub envelope: Envelope,
    pub stored: &'a [u8],
}

/// Memory is alike over many chunks: what the sample of one says holds for so many more, as long as they shrink.
const HOLDS_CHUNKS: u32 = 7;

/// How a chunk is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Raw,
    Fast,
    Full,
}

/// Packs chunks one after the other, in two buffers of its own: pages are read into one and compressed into the other.
pub(super) struct Packer {
    level: Level,
    /// What was asked for last; `full` has its level.
    effort: Effort,
    full: zstd::bulk::Compressor<'static>,
    fast: zstd::bulk::Compressor<'static>,
    pages: Vec<u8>,
    packed: Vec<u8>,
    /// What the last sample said, and for how many more chunks it holds.
    holds: (Worth, u32),
    sample: Vec<u8>,
    sample_out: Vec<u8>,
}

impl Packer {
    pub fn new(level: Level) -> io::Result<Self> {
        let mut fast = zstd::bulk::Compressor::new(FAST_LEVEL)?;
        fast.window_log(FAST_WINDOW_LOG)?;
        let first = match level {
            Level::Fixed(level) => level,
            Level::Asked(_) => FIRST_LEVEL,
        };
        Ok(Self {
            level,
            effort: Effort::Level(first),
            full: zstd::bulk::Compressor::new(first)?,
            fast,
            pages: vec![0; CHUNK_BYTES],
            packed: vec![0; CHUNK_BYTES],
            holds: (Worth::Raw, 0),
            sample: Vec::with_capacity(SAMPLES * SAMPLE_BYTES),
            sample_out: vec![0; SAMPLES * SAMPLE_BYTES * WORTH_PERCENT / 100],
        })
    }

    pub fn pack(&mut self, wanted: WantedChunk) -> Result<PackedChunk<'_>, FillError> {
        let WantedChunk { first, pages, fill } = wanted;
        let bytes = pages as usize * PAGE_BYTES;
        fill(&mut self.pages[..bytes])?;
        self.ask(bytes)?;
        let begin = Instant::now();
        let packed = self.compress(bytes);
        self.level.packed(self.effort, [bytes, packed.unwrap_or(bytes)], begin);
        let compressed = packed.is_some();
        let stored = match packed {
            Some(stored) => &self.packed[..stored],
            None => &self.pages[..bytes],
        };
        let front = prefix(first, pages, compressed);
        let envelope = Envelope {
            kind: RecordKind::Pages,
            version: crate::chunk::CHUNK_VERSION,
            length: (front.len() + stored.len()) as u64,
            checksum: crc32c::crc32c_append(crc32c::crc32c(&front), stored),
        };
        Ok(PackedChunk {
            first,
            pages,
            compressed,
            envelope,
            stored,
        })
    }

    /// Asks how much work the next chunk is worth.
    fn ask(&mut self, bytes: usize) -> io::Result<()> {
        let effort = self.level.effort(bytes);
        if effort == self.effort {
            return Ok(());
        }
        if let Effort::Level(level) | Effort::Exactly(level) = effort {
            self.full.set_compression_level(level)?;
        }
        // What samples said was about another one.
        (self.effort, self.holds) = (effort, (Worth::Raw, 0));
        Ok(())
    }

    /// Compresses the first `bytes` of the pages; `None` where they are to be stored raw.
    fn compress(&mut self, bytes: usize) -> Option<usize> {
        let worth = match self.holds {
            _ if self.effort == Effort::Raw => return None,
            _ if bytes <= SHORT_BYTES => return Self::frame(&mut self.packed, &mut self.full, &self.pages[..bytes]),
            (worth, 1..) => worth,
            (_, 0) => self.worth(bytes),
        };
        let compressor = match worth {
            Worth::Raw => return None,
            Worth::Fast => &mut self.fast,
            Worth::Full => &mut self.full,
        };
        let packed = Self::frame(&mut self.packed, compressor, &self.pages[..bytes]);
        let shrank = packed.is_some_and(|stored| stored * 100 < bytes * WORTH_PERCENT);
        self.holds = match self.holds {
            _ if !shrank => (Worth::Raw, 0),
            (_, 0) => (worth, HOLDS_CHUNKS),
            (_, left) => (worth, left - 1),
        };
        packed
    }

    /// The length of the frame; `None` where it would be longer than what it is made from, all that can go wrong.
    fn frame(packed: &mut [u8], compressor: &mut zstd::bulk::Compressor<'_>, pages: &[u8]) -> Option<usize> {
        compressor
            .compress_to_buffer(pages, &mut packed[..pages.len() - 1])
            .ok()
    }

    fn worth(&mut self, bytes: usize) -> Worth {
        let pages = &self.pages[..bytes];
        self.sample.clear();
        let step = (pages.len() - SAMPLE_BYTES) / (SAMPLES - 1);
        for index in 0..SAMPLES {
            self.sample.extend_from_slice(&pages[index * step..][..SAMPLE_BYTES]);
        }
        // Fails where the sample does not shrink into the room there is.
        let Ok(full) = self.full.compress_to_buffer(&self.sample, &mut self.sample_out[..]) else {
            return Worth::Raw;
        };
        match self.effort {
            Effort::Level(level) if level > FAST_LEVEL => {}
            _ => return Worth::Full,
        }
        match self.fast.compress_to_buffer(&self.sample, &mut self.sample_out[..]) {
            Ok(fast) if fast * 100 <= full * AS_GOOD_PERCENT => Worth::Fast,
            Ok(_) | Err(_) => Worth::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Effort, HOLDS_CHUNKS, Level, Packer, WantedChunk};
    use crate::{
        chunk::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES},
        writer::effort::Efforts,
    };
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

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

    fn pack(content: Vec<u8>, pages: usize) -> (bool, usize) {
        pack_by(&mut Packer::new(Level::Fixed(1)).expect("start zstd"), content, pages)
    }

    fn pack_by(packer: &mut Packer, content: Vec<u8>, pages: usize) -> (bool, usize) {
        let wanted = WantedChunk {
            first: 0,
            pages: pages as u32,
            fill: Box::new(move |buffer| {
                buffer.copy_from_slice(&content[..buffer.len()]);
                Ok(())
            }),
        };
        let packed = packer.pack(wanted).expect("fill");
        (packed.compressed, packed.stored.len())
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

    /// What a sample says holds for a while, but for no chunk of another kind.
    #[test]
    fn kinds_of_chunks_may_change_at_any_time() {
        let mut packer = Packer::new(Level::Fixed(1)).expect("start zstd");
        for run in [1, 2, HOLDS_CHUNKS, HOLDS_CHUNKS + 1, HOLDS_CHUNKS + 2] {
            for number in 0..run {
                let (compressed, _) = pack_by(&mut packer, vec![7; CHUNK_BYTES], CHUNK_PAGES);
                assert!(compressed, "chunk {number} of {run} alike");
            }
            for _ in 0..run {
                let raw = (false, CHUNK_BYTES);
                assert_eq!(pack_by(&mut packer, noise(CHUNK_BYTES), CHUNK_PAGES), raw);
            }
        }
    }

    #[derive(Debug)]
    struct Said(Mutex<Effort>);

    impl Efforts for Said {
        fn next(&self, _: usize) -> Effort {
            *self.0.lock().expect("nobody panics")
        }

        fn packed(&self, effort: Effort, [bytes, stored]: [usize; 2], _: Duration) {
            assert_eq!(effort, *self.0.lock().expect("nobody panics"));
            assert!(stored <= bytes);
        }
    }

    #[test]
    fn how_much_work_it_is_worth_may_change_at_any_time() {
        let said = Arc::new(Said(Mutex::new(Effort::Raw)));
        let mut packer = Packer::new(Level::Asked(Arc::clone(&said) as _)).expect("start zstd");
        // Words of a few thousand, in no order.
        let words = noise(CHUNK_BYTES);
        let words = words
            .chunks_exact(2)
            .map(|two| u32::from(two[0] & 15) << 8 | u32::from(two[1]));
        let text: Vec<u8> = words
            .flat_map(|word| format!("{:x} ", word * 7919).into_bytes())
            .collect();
        let mut by = |effort| {
            *said.0.lock().expect("nobody panics") = effort;
            pack_by(&mut packer, text.clone(), CHUNK_PAGES).1
        };
        for _ in 0..2 {
            let efforts = [Effort::Raw, Effort::Exactly(1), Effort::Exactly(9), Effort::Level(-16)];
            let [raw, one, nine, fast] = efforts.map(&mut by);
            assert!(nine < one && one < raw && fast <= raw, "{raw} {fast} {one} {nine}");
            assert_eq!(raw, CHUNK_BYTES);
        }
    }
}
