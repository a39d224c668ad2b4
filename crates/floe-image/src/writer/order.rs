//! The sink, and what stands where in the file.

use super::{Summary, WriteError, pack::PackedChunk};
use crate::{
    chunk::{PREFIX_BYTES, prefix},
    codec,
    envelope::{ENVELOPE_BYTES, Envelope},
    frame::{HEADER_BYTES, INDEX_VERSION, TRAILER_BYTES, header, trailer},
    record::{Chunk, IndexRecord, PageId, RecordEntry, RecordKind},
};
use std::{
    io::{BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Envelopes and small records are gathered; page contents go past this buffer.
const GATHER_BYTES: usize = 64 << 10;

/// A record as it goes into the file.
pub(super) struct EncodedRecord {
    pub kind: RecordKind,
    pub version: u16,
    pub body: Vec<u8>,
}

/// Where everything goes.
pub(super) type Sink = Box<dyn Write + Send>;

/// Writes front to back.
pub(super) struct Order {
    sink: BufWriter<Sink>,
    progress: Arc<AtomicU64>,
    at: u64,
    index: IndexRecord,
    summary: Summary,
}

impl Order {
    /// Writes the header. `progress` counts bytes of pages.
    pub fn new(sink: Sink, progress: Arc<AtomicU64>) -> Result<Self, WriteError> {
        let mut sink = BufWriter::with_capacity(GATHER_BYTES, sink);
        sink.write_all(&header())?;
        sink.flush()?;
        Ok(Self {
            sink,
            progress,
            at: HEADER_BYTES as u64,
            index: IndexRecord::default(),
            summary: Summary::default(),
        })
    }

    pub fn record(&mut self, record: &EncodedRecord) -> Result<(), WriteError> {
        let EncodedRecord {
            kind,
            version,
            ref body,
        } = *record;
        let entry = RecordEntry {
            kind,
            version,
            offset: self.at,
            length: body.len() as u64,
        };
        self.enveloped(Envelope::of(kind, version, body), &[body])?;
        self.index.records.push(entry);
        self.summary.records += 1;
        self.summary.record_bytes += body.len() as u64;
        Ok(())
    }

    pub fn pages(&mut self, chunk: &PackedChunk<'_>) -> Result<(), WriteError> {
        let PackedChunk {
            first,
            pages,
            compressed,
            envelope,
            stored,
        } = *chunk;
        let entry = Chunk {
            first: PageId(first),
            pages,
            compressed,
            offset: self.at,
            stored: (PREFIX_BYTES + stored.len()) as u32,
        };
        self.enveloped(envelope, &[&prefix(first, pages, compressed), stored])?;
        self.index.chunks.push(entry);
        self.summary.pages += u64::from(pages);
        self.summary.page_bytes += stored.len() as u64;
        if compressed {
            self.summary.compressed_chunks += 1;
        } else {
            self.summary.raw_chunks += 1;
        }
        self.progress.fetch_add(entry.page_bytes() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn enveloped(&mut self, envelope: Envelope, body: &[&[u8]]) -> Result<(), WriteError> {
        self.sink.write_all(&envelope.to_bytes())?;
        for part in body {
            self.sink.write_all(part)?;
        }
        self.at += ENVELOPE_BYTES as u64 + envelope.length;
        Ok(())
    }

    /// Writes index and trailer.
    pub fn end(mut self) -> Result<(Sink, Summary), WriteError> {
        let offset = self.at;
        let body = codec::encode(&self.index)?;
        self.enveloped(Envelope::of(RecordKind::Index, INDEX_VERSION, &body), &[&body])?;
        self.summary.bytes = self.at + TRAILER_BYTES as u64;
        self.sink.write_all(&trailer(offset, self.summary.bytes))?;
        self.sink.flush()?;
        let sink = self.sink.into_inner().map_err(|error| error.into_error())?;
        Ok((sink, self.summary))
    }
}
