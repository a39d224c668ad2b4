//! The thread that writes: it takes pieces in the order in which the caller gave them and is the only one that knows the
//! sink.

use super::{
    Summary, WriteError,
    pack::{FillError, PackedChunk},
};
use crate::{
    chunk::{PREFIX_BYTES, prefix},
    codec,
    envelope::{ENVELOPE_BYTES, Envelope},
    frame::{HEADER_BYTES, INDEX_VERSION, TRAILER_BYTES, header, trailer},
    record::{Chunk, IndexRecord, PageId, RecordEntry, RecordKind},
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    io::{BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Envelopes and small records are gathered; page contents go past this buffer.
const GATHER_BYTES: usize = 64 << 10;

/// What follows what in the file.
pub(super) enum Piece {
    /// A record's body, and whom to tell when it is out.
    Record {
        kind: RecordKind,
        version: u16,
        body: Vec<u8>,
        done: Option<Sender<()>>,
    },
    /// A chunk that a worker will hand over.
    Pages(Receiver<Result<PackedChunk, FillError>>),
    /// Index and trailer.
    End,
}

/// Where everything goes.
pub(super) type Sink = Box<dyn Write + Send>;

/// The state of the thread.
pub(super) struct Order {
    sink: BufWriter<Sink>,
    free: Sender<Vec<u8>>,
    progress: Arc<AtomicU64>,
    at: u64,
    index: IndexRecord,
    summary: Summary,
}

impl Order {
    /// Writes the header. `free` takes back the buffers, `progress` counts bytes of pages.
    pub fn new(sink: Sink, free: Sender<Vec<u8>>, progress: Arc<AtomicU64>) -> Result<Self, WriteError> {
        let mut sink = BufWriter::with_capacity(GATHER_BYTES, sink);
        sink.write_all(&header())?;
        sink.flush()?;
        Ok(Self {
            sink,
            free,
            progress,
            at: HEADER_BYTES as u64,
            index: IndexRecord::default(),
            summary: Summary::default(),
        })
    }

    /// Writes pieces until the end; an image that is given up has none, and no index either.
    pub fn run(mut self, pieces: &Receiver<Piece>, given_up: &AtomicBool) -> Result<(Sink, Summary), WriteError> {
        for piece in pieces {
            if given_up.load(Ordering::Relaxed) {
                break;
            }
            match piece {
                Piece::Record {
                    kind,
                    version,
                    body,
                    done,
                } => {
                    self.record(kind, version, &body)?;
                    // Nobody waits any more where the caller gave up.
                    if let Some(done) = done {
                        done.send(()).ok();
                    }
                }
                Piece::Pages(packed) => {
                    let packed = packed.recv().map_err(|_| WriteError::Thread)?;
                    self.pages(packed.map_err(WriteError::Fill)?)?;
                }
                Piece::End => return self.end(),
            }
        }
        Err(WriteError::GivenUp)
    }

    fn record(&mut self, kind: RecordKind, version: u16, body: &[u8]) -> Result<(), WriteError> {
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

    fn pages(&mut self, chunk: PackedChunk) -> Result<(), WriteError> {
        let PackedChunk {
            first,
            pages,
            compressed,
            envelope,
            buffer,
            stored,
        } = chunk;
        let entry = Chunk {
            first: PageId(first),
            pages,
            compressed,
            offset: self.at,
            stored: (PREFIX_BYTES + stored) as u32,
        };
        self.enveloped(envelope, &[&prefix(first, pages, compressed), &buffer[..stored]])?;
        self.index.chunks.push(entry);
        self.summary.pages += u64::from(pages);
        self.summary.page_bytes += stored as u64;
        if compressed {
            self.summary.compressed_chunks += 1;
        } else {
            self.summary.raw_chunks += 1;
        }
        self.progress.fetch_add(entry.page_bytes() as u64, Ordering::Relaxed);
        // The pool has room for every buffer there is; the workers may be gone.
        self.free.try_send(buffer).ok();
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

    fn end(mut self) -> Result<(Sink, Summary), WriteError> {
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
