//! Writes an image front to back.
//!
//! ```text
//! caller: fills buffers -> workers: sample, compress, checksum -> one thread: writes in order
//!            ^------------------------ empty buffers -----------------------'
//! ```
//! The number of buffers bounds the memory, whatever the size of the tree.

use crate::{
    chunk::{CHUNK_BYTES, Compressor, PAGE_BYTES, PREFIX_BYTES, prefix},
    codec::{self, EncodeError},
    envelope::{ENVELOPE_BYTES, Envelope, HEADER_BYTES, TRAILER_BYTES, header, trailer},
    record::{Chunk, IndexRecord, PageId, Record, RecordEntry, RecordKind},
};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

/// Buffers in flight.
const BUFFERS: usize = 12;

/// An image that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink.
    #[error("write to the output")]
    Io(#[from] io::Error),
    /// A record.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A worker ended early, which only a bug can cause.
    #[error("a thread of the image writer ended early")]
    Thread,
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// zstd level.
    pub level: i32,
    /// Threads that compress.
    pub workers: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            level: 1,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the whole image.
    pub bytes: u64,
    /// Pages stored.
    pub pages: u64,
    /// Bytes that the pages take.
    pub page_bytes: u64,
    /// Chunks stored raw.
    pub raw_chunks: u64,
    /// Chunks stored compressed.
    pub compressed_chunks: u64,
}

/// An empty buffer of one chunk.
#[derive(Debug)]
pub struct PageBuffer(Vec<u8>);

impl Deref for PageBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

struct Job {
    sequence: u64,
    first: u64,
    pages: u32,
    buffer: Vec<u8>,
}

enum Piece {
    Record {
        kind: RecordKind,
        version: u16,
        body: Vec<u8>,
    },
    Pages {
        first: u64,
        pages: u32,
        packed: io::Result<Option<Vec<u8>>>,
        buffer: Vec<u8>,
        checksum: u32,
    },
}

/// What the writing thread returns.
type Written = Result<(Box<dyn Write + Send>, Summary), io::Error>;

/// Writes an image.
pub struct ImageWriter {
    buffers: Receiver<Vec<u8>>,
    jobs: Option<Sender<Job>>,
    pieces: Option<Sender<(u64, Piece)>>,
    workers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<Written>>,
    failure: Arc<Mutex<Option<io::Error>>>,
    sequence: u64,
    next_page: u64,
}

impl ImageWriter {
    /// Starts the threads and writes the header.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn start(mut sink: Box<dyn Write + Send>, options: &WriteOptions) -> Result<Self, WriteError> {
        sink.write_all(&header())?;
        let (free, buffers) = bounded(BUFFERS);
        let (jobs, job_queue) = bounded::<Job>(BUFFERS);
        let (pieces, piece_queue) = unbounded();
        let failure = Arc::new(Mutex::new(None));
        for _ in 0..BUFFERS {
            // Room for all of them was made above.
            free.send(vec![0; CHUNK_BYTES]).map_err(|_| WriteError::Thread)?;
        }
        let mut workers = Vec::new();
        for _ in 0..options.workers.max(1) {
            let mut compressor = Compressor::new(options.level)?;
            let (queue, out) = (job_queue.clone(), pieces.clone());
            workers.push(std::thread::spawn(move || compress_all(&mut compressor, &queue, &out)));
        }
        let order = Order {
            sink,
            free,
            failure: Arc::clone(&failure),
            at: HEADER_BYTES as u64,
            index: IndexRecord::default(),
            summary: Summary::default(),
        };
        let writer = std::thread::spawn(move || order.run(&piece_queue));
        Ok(Self {
            buffers,
            jobs: Some(jobs),
            pieces: Some(pieces),
            workers,
            writer: Some(writer),
            failure,
            sequence: 0,
            next_page: 0,
        })
    }

    fn check(&self) -> Result<(), WriteError> {
        let mut failure = self.failure.lock().map_err(|_| WriteError::Thread)?;
        failure.take().map_or(Ok(()), |error| Err(error.into()))
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`WriteError`], also of what was appended before.
    pub fn record<R: Record>(&mut self, record: &R) -> Result<(), WriteError> {
        self.check()?;
        let piece = Piece::Record {
            kind: R::KIND,
            version: R::VERSION,
            body: codec::encode(record)?,
        };
        let sequence = self.next_sequence();
        self.pieces
            .as_ref()
            .ok_or(WriteError::Thread)?
            .send((sequence, piece))
            .map_err(|_| WriteError::Thread)
    }

    /// An empty buffer; waits while all are in flight.
    ///
    /// # Errors
    /// [`WriteError`] of what was appended before.
    pub fn buffer(&mut self) -> Result<PageBuffer, WriteError> {
        self.check()?;
        self.buffers.recv().map(PageBuffer).map_err(|_| WriteError::Thread)
    }

    /// Appends the first `pages` pages of a buffer (at least one, at most 256); returns the first one's number.
    ///
    /// # Errors
    /// [`WriteError`] of what was appended before.
    pub fn store(&mut self, buffer: PageBuffer, pages: usize) -> Result<PageId, WriteError> {
        self.check()?;
        let first = self.next_page;
        let job = Job {
            sequence: self.next_sequence(),
            first,
            pages: pages as u32,
            buffer: buffer.0,
        };
        self.next_page += pages as u64;
        self.jobs
            .as_ref()
            .ok_or(WriteError::Thread)?
            .send(job)
            .map_err(|_| WriteError::Thread)?;
        Ok(PageId(first))
    }

    /// Writes index and trailer; returns the sink.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn finish(mut self) -> Result<(Box<dyn Write + Send>, Summary), WriteError> {
        self.join_workers()?;
        let writer = self.writer.take().ok_or(WriteError::Thread)?;
        let written = writer.join().map_err(|_| WriteError::Thread)?;
        self.check()?;
        Ok(written?)
    }

    fn join_workers(&mut self) -> Result<(), WriteError> {
        self.jobs = None;
        self.pieces = None;
        self.workers
            .drain(..)
            .try_for_each(|worker| worker.join().map_err(|_| WriteError::Thread))
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        // Given up: the threads end when their queues do. A panic of theirs was reported by itself.
        if self.join_workers().is_ok()
            && let Some(writer) = self.writer.take()
        {
            drop(writer.join());
        }
    }
}

fn compress_all(compressor: &mut Compressor, jobs: &Receiver<Job>, out: &Sender<(u64, Piece)>) {
    for Job {
        sequence,
        first,
        pages,
        buffer,
    } in jobs
    {
        let bytes = &buffer[..pages as usize * PAGE_BYTES];
        let packed = compressor.compress(bytes);
        let compressed = matches!(packed, Ok(Some(_)));
        let stored = packed.as_ref().ok().and_then(Option::as_deref).unwrap_or(bytes);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&prefix(first, pages, compressed)), stored);
        let piece = Piece::Pages {
            first,
            pages,
            packed,
            buffer,
            checksum,
        };
        if out.send((sequence, piece)).is_err() {
            return;
        }
    }
}

/// The thread that puts pieces into order and writes them.
struct Order {
    sink: Box<dyn Write + Send>,
    free: Sender<Vec<u8>>,
    failure: Arc<Mutex<Option<io::Error>>>,
    at: u64,
    index: IndexRecord,
    summary: Summary,
}

impl Order {
    fn run(mut self, pieces: &Receiver<(u64, Piece)>) -> Written {
        let mut early = BTreeMap::new();
        let mut next = 0;
        let mut failed = false;
        for (sequence, piece) in pieces {
            early.insert(sequence, piece);
            while let Some(piece) = early.remove(&next) {
                next += 1;
                if let Err(error) = self.piece(piece, failed) {
                    failed = true;
                    if let Ok(mut failure) = self.failure.lock() {
                        failure.get_or_insert(error);
                    }
                }
            }
        }
        if failed {
            return Ok((self.sink, self.summary));
        }
        self.end()
    }

    fn piece(&mut self, piece: Piece, failed: bool) -> io::Result<()> {
        match piece {
            Piece::Record { .. } if failed => Ok(()),
            Piece::Record { kind, version, body } => self.record(kind, version, &body),
            Piece::Pages {
                first,
                pages,
                packed,
                buffer,
                checksum,
            } => {
                let done = match packed {
                    _ if failed => Ok(()),
                    Err(error) => Err(error),
                    Ok(Some(packed)) => self.pages(first, pages, true, &packed, checksum),
                    Ok(None) => self.pages(first, pages, false, &buffer[..pages as usize * PAGE_BYTES], checksum),
                };
                // The caller may be gone already.
                drop(self.free.try_send(buffer));
                done
            }
        }
    }

    fn record(&mut self, kind: RecordKind, version: u16, body: &[u8]) -> io::Result<()> {
        let entry = RecordEntry {
            kind,
            version,
            offset: self.at,
            length: body.len() as u64,
        };
        self.envelope(kind, version, body.len(), crc32c::crc32c(body))?;
        self.sink.write_all(body)?;
        self.at += body.len() as u64;
        self.index.records.push(entry);
        Ok(())
    }

    fn envelope(&mut self, kind: RecordKind, version: u16, length: usize, checksum: u32) -> io::Result<()> {
        self.sink.write_all(
            &Envelope {
                kind,
                version,
                length: length as u64,
                checksum,
            }
            .to_bytes(),
        )?;
        self.at += ENVELOPE_BYTES as u64;
        Ok(())
    }

    fn pages(&mut self, first: u64, pages: u32, compressed: bool, bytes: &[u8], checksum: u32) -> io::Result<()> {
        let stored = (PREFIX_BYTES + bytes.len()) as u64;
        let chunk = Chunk {
            first: PageId(first),
            pages,
            compressed,
            offset: self.at,
            stored: stored as u32,
        };
        self.envelope(RecordKind::Pages, 1, stored as usize, checksum)?;
        self.sink.write_all(&prefix(first, pages, compressed))?;
        self.sink.write_all(bytes)?;
        self.at += stored;
        self.index.chunks.push(chunk);
        self.summary.pages += u64::from(pages);
        self.summary.page_bytes += bytes.len() as u64;
        if compressed {
            self.summary.compressed_chunks += 1;
        } else {
            self.summary.raw_chunks += 1;
        }
        Ok(())
    }

    fn end(mut self) -> Written {
        let offset = self.at;
        let index = std::mem::take(&mut self.index);
        let body = codec::encode(&index).map_err(io::Error::other)?;
        self.envelope(RecordKind::Index, 1, body.len(), crc32c::crc32c(&body))?;
        self.sink.write_all(&body)?;
        self.at += body.len() as u64 + TRAILER_BYTES as u64;
        self.sink.write_all(&trailer(offset, self.at))?;
        self.sink.flush()?;
        self.summary.bytes = self.at;
        Ok((self.sink, self.summary))
    }
}
