//! Reading one chunk of pages: one pread, one checksum, and for a compressed one a pass through zstd.

use super::{Fault, Image, Place, ReadError, load::read_at};
use crate::{
    chunk::{CHUNK_BYTES, CHUNK_VERSION, PREFIX_BYTES, prefix},
    envelope::{ENVELOPE_BYTES, Envelope, is_intact},
    record::{Chunk, RecordKind},
};
use std::{fmt, fs::File, ops::RangeInclusive};

/// What a chunk may take in the file, without its envelope.
const STORED_BYTES: RangeInclusive<usize> = PREFIX_BYTES..=PREFIX_BYTES + CHUNK_BYTES;

/// Memory that reading chunks reuses; one for each thread that reads.
#[derive(Default)]
pub struct ChunkScratch {
    stored: Vec<u8>,
    pages: Vec<u8>,
    unpacker: Option<zstd::bulk::Decompressor<'static>>,
}

impl fmt::Debug for ChunkScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkScratch").finish_non_exhaustive()
    }
}

impl Image {
    /// The pages of a chunk, checked and unpacked. Waits for one that is to come.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_chunk<'a>(&self, chunk: &Chunk, scratch: &'a mut ChunkScratch) -> Result<&'a [u8], ReadError> {
        self.await_chunk(chunk, true, None)?;
        let layer = self.layer_of(chunk);
        read_from(layer.file(), chunk, scratch).map_err(|error| layer.blamed(error))
    }
}

fn read_from<'a>(file: &File, chunk: &Chunk, scratch: &'a mut ChunkScratch) -> Result<&'a [u8], ReadError> {
    let damaged = |fault| ReadError::Damaged {
        place: Place::Chunk(*chunk),
        fault,
    };
    let ChunkScratch {
        stored,
        pages,
        unpacker,
    } = scratch;
    let length = chunk.stored as usize;
    let wanted = chunk.page_bytes();
    if !STORED_BYTES.contains(&length) || wanted > CHUNK_BYTES {
        return Err(damaged(Fault::TooLong(u64::from(chunk.stored))));
    }
    let stored = at_least(stored, ENVELOPE_BYTES + length);
    read_at(file, stored, chunk.offset)?;
    let bytes = check_stored(chunk, stored)?;
    if !chunk.compressed {
        return match bytes.len() == wanted {
            true => Ok(bytes),
            false => Err(damaged(Fault::PageCount)),
        };
    }
    let unpacker = match unpacker {
        Some(unpacker) => unpacker,
        None => unpacker.insert(zstd::bulk::Decompressor::new().map_err(ReadError::Unpacker)?),
    };
    let pages = at_least(pages, wanted);
    match unpacker.decompress_to_buffer(bytes, pages) {
        Ok(got) if got == wanted => Ok(pages),
        Ok(_) => Err(damaged(Fault::PageCount)),
        Err(_) => Err(damaged(Fault::Unpack)),
    }
}

/// The first `bytes` bytes of a buffer that grows where it is too short.
fn at_least(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    &mut buffer[..bytes]
}

/// The bytes behind envelope and prefix, after both and the checksum were checked.
fn check_stored<'a>(chunk: &Chunk, stored: &'a [u8]) -> Result<&'a [u8], ReadError> {
    let place = Place::Chunk(*chunk);
    let damaged = |fault| ReadError::Damaged { place, fault };
    let (envelope, body) = stored
        .split_first_chunk::<ENVELOPE_BYTES>()
        .ok_or(damaged(Fault::Outside))?;
    let envelope = Envelope::from_bytes(envelope).map_err(|error| damaged(error.into()))?;
    if envelope.kind != RecordKind::Pages || envelope.length != body.len() as u64 {
        return Err(damaged(Fault::Mismatch));
    }
    if envelope.version != CHUNK_VERSION {
        return Err(ReadError::Version {
            place,
            version: envelope.version,
            known: CHUNK_VERSION,
        });
    }
    if !is_intact(body, envelope.checksum) {
        return Err(damaged(Fault::Checksum));
    }
    let (front, bytes) = body.split_at(PREFIX_BYTES);
    if front != prefix(chunk.first.0, chunk.pages, chunk.compressed) {
        return Err(damaged(Fault::Mismatch));
    }
    Ok(bytes)
}
