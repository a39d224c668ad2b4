//! Writes an image front to back.
//!
//! ```text
//! caller: says what to store -> workers: read, sample, compress, checksum, and write when it is their turn
//! ```
//! Each worker has two buffers of one chunk, which bounds the memory, whatever the size of the tree: with 2 workers 4 MiB and
//! zstd's own 2 MiB.

mod effort;
mod order;
mod pack;
mod turns;

pub use effort::{Effort, Efforts, Level};
pub use pack::FillError;

use crate::{
    chunk::{CHUNK_BYTES, CHUNK_PAGES},
    codec::{self, EncodeError},
    frame::RECORDS_LIMIT,
    record::{PageId, Record, RecordEntry, RecordKind},
};
use crossbeam_channel::{Receiver, Sender, bounded};
use order::{EncodedRecord, Order, Sink};
use pack::{Packer, WantedChunk};
use std::{
    io,
    sync::{Arc, atomic::AtomicU64},
    thread::{Builder, JoinHandle},
};
use turns::{Alarm, Turns};

/// Pieces that wait for a worker.
const PIECES: usize = 16;
/// Records are gathered until they make a piece of as many bytes.
const GATHER_BYTES: usize = 64 << 10;
/// A piece of more bytes is waited for, so that not many of them are in memory at once.
const WAIT_BYTES: usize = 2 * GATHER_BYTES;
/// Threads that compress unless the caller says otherwise; more would only wait for the output.
const DEFAULT_WORKERS: usize = 8;

/// An image that could not be written. Once there was an error every further call is one.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink.
    #[error("write to the output")]
    Io(#[from] io::Error),
    /// What was to fill a chunk said this.
    #[error(transparent)]
    Fill(FillError),
    /// A record.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// More records than a reader takes.
    #[error("the records of the image would take more than {RECORDS_LIMIT} bytes")]
    TooMuch,
    /// A chunk of another size.
    #[error("store {0} pages as one chunk, which holds 1 to {CHUNK_PAGES}")]
    ChunkPages(usize),
    /// The threads or zstd's memory.
    #[error("start the threads that compress and write")]
    Start(#[source] io::Error),
    /// A thread ended early, which only a bug or a sink that panics can cause.
    #[error("a thread of the image writer ended early")]
    Thread,
    /// An error was reported before.
    #[error("the image was given up after an earlier error")]
    GivenUp,
}

/// How to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// How much work goes into making pages small; that of level 1 is the default.
    pub level: Level,
    /// Threads that compress, at least one; the default is one for each core, at most 8.
    pub workers: usize,
    /// Number of the first page that is stored: as many pages are in the bases of the image.
    pub first_page: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            level: Level::Fixed(1),
            workers: cores.min(DEFAULT_WORKERS),
            first_page: 0,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the whole image.
    pub bytes: u64,
    /// Records written, without the index.
    pub records: u64,
    /// Bytes that the records' bodies take.
    pub record_bytes: u64,
    /// Pages stored.
    pub pages: u64,
    /// Bytes that the pages take.
    pub page_bytes: u64,
    /// Chunks stored raw.
    pub raw_chunks: u64,
    /// Chunks stored compressed.
    pub compressed_chunks: u64,
}

/// What follows what in the file.
enum Piece {
    Records(Vec<EncodedRecord>),
    Pages(WantedChunk),
    /// Index and trailer.
    End,
}

/// Writes an image. Dropped without [`ImageWriter::finish`], it leaves an output that no reader takes for an image.
pub struct ImageWriter {
    turns: Arc<Turns>,
    /// Numbered pieces; `None` once there will be no more.
    pieces: Option<Sender<(u64, Piece)>>,
    workers: Vec<JoinHandle<()>>,
    progress: Arc<AtomicU64>,
    next_piece: u64,
    next_page: u64,
    gathered: Vec<EncodedRecord>,
    gathered_bytes: usize,
    record_bytes: u64,
}

impl ImageWriter {
    /// Writes the header and starts the threads.
    ///
    /// # Errors
    /// [`WriteError::Io`], [`WriteError::Start`].
    pub fn start(sink: Sink, options: &WriteOptions) -> Result<Self, WriteError> {
        let progress = Arc::new(AtomicU64::new(0));
        let turns = Arc::new(Turns::new(Order::new(sink, Arc::clone(&progress))?));
        let (pieces, queue) = bounded(PIECES);
        let mut writer = Self {
            turns,
            pieces: Some(pieces),
            workers: Vec::new(),
            progress,
            next_piece: 0,
            next_page: options.first_page,
            gathered: Vec::new(),
            gathered_bytes: 0,
            record_bytes: 0,
        };
        for _ in 0..options.workers.max(1) {
            let mut packer = Packer::new(options.level.clone()).map_err(WriteError::Start)?;
            let (turns, queue) = (Arc::clone(&writer.turns), queue.clone());
            let work = move || work(&mut packer, &queue, &turns);
            let worker = Builder::new().name("floe-pack".to_owned()).spawn(work);
            writer.workers.push(worker.map_err(WriteError::Start)?);
        }
        Ok(writer)
    }

    /// Counts the bytes of pages that are written (before compression); readable from any thread.
    #[must_use]
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`WriteError`], also of what was appended before.
    pub fn record<R: Record>(&mut self, record: &R) -> Result<(), WriteError> {
        let body = codec::encode(record).map_err(|error| self.give_up(error.into()))?;
        self.encoded(R::KIND, R::VERSION, body)
    }

    /// Appends a record of another image as it is, see [`Image::body`](crate::Image::body).
    ///
    /// # Errors
    /// [`WriteError`], also of what was appended before.
    pub fn copy(&mut self, entry: &RecordEntry, body: Vec<u8>) -> Result<(), WriteError> {
        self.encoded(entry.kind, entry.version, body)
    }

    fn encoded(&mut self, kind: RecordKind, version: u16, body: Vec<u8>) -> Result<(), WriteError> {
        self.record_bytes += body.len() as u64;
        if self.record_bytes > RECORDS_LIMIT {
            return Err(self.give_up(WriteError::TooMuch));
        }
        if self.pieces.is_none() {
            return Err(WriteError::GivenUp);
        }
        self.gathered_bytes += body.len();
        self.gathered.push(EncodedRecord { kind, version, body });
        if self.gathered_bytes >= GATHER_BYTES {
            self.send_records()?;
        }
        Ok(())
    }

    /// Appends a chunk of `pages` pages (at least one, at most 256), which `fill` will put into the buffer it is given;
    /// returns the first one's number. `fill` is called later, on another thread, but not after [`ImageWriter::finish`]
    /// returned or the writer was dropped. Waits while much is on its way.
    ///
    /// # Errors
    /// [`WriteError`], also of what was appended before.
    pub fn store<F>(&mut self, pages: usize, fill: F) -> Result<PageId, WriteError>
    where
        F: FnOnce(&mut [u8]) -> Result<(), FillError> + Send + 'static,
    {
        if !(1..=CHUNK_PAGES).contains(&pages) {
            return Err(self.give_up(WriteError::ChunkPages(pages)));
        }
        self.send_records()?;
        let first = self.next_page;
        self.send(Piece::Pages(WantedChunk {
            first,
            pages: pages as u32,
            fill: Box::new(fill),
        }))?;
        self.next_page += pages as u64;
        Ok(PageId(first))
    }

    /// Waits until all that was appended is written: what fills chunks is called no more for them.
    ///
    /// # Errors
    /// [`WriteError`], of what was appended before.
    pub fn settle(&mut self) -> Result<(), WriteError> {
        self.send_records()?;
        match self.next_piece.checked_sub(1) {
            Some(last) if !self.turns.wait_past(last) => Err(self.failure()),
            _ => Ok(()),
        }
    }

    /// Writes index and trailer; returns the sink.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn finish(mut self) -> Result<(Sink, Summary), WriteError> {
        self.send_records()?;
        self.send(Piece::End)?;
        self.close();
        self.turns.take_written().unwrap_or(Err(WriteError::GivenUp))
    }

    fn send_records(&mut self) -> Result<(), WriteError> {
        let bytes = std::mem::take(&mut self.gathered_bytes);
        let records = std::mem::take(&mut self.gathered);
        if records.is_empty() {
            return Ok(());
        }
        let number = self.send(Piece::Records(records))?;
        if bytes > WAIT_BYTES && !self.turns.wait_past(number) {
            return Err(self.failure());
        }
        Ok(())
    }

    /// Returns the piece's number.
    fn send(&mut self, piece: Piece) -> Result<u64, WriteError> {
        let pieces = self.pieces.as_ref().ok_or(WriteError::GivenUp)?;
        let number = self.next_piece;
        // Nobody takes it once all workers have ended.
        if pieces.send((number, piece)).is_err() {
            return Err(self.failure());
        }
        self.next_piece += 1;
        Ok(number)
    }

    fn give_up(&mut self, error: WriteError) -> WriteError {
        self.turns.close(WriteError::GivenUp);
        self.close();
        error
    }

    /// Why the workers ended; it is told once.
    fn failure(&mut self) -> WriteError {
        self.close();
        match self.turns.take_written() {
            Some(Err(error)) => error,
            Some(Ok(_)) | None => WriteError::GivenUp,
        }
    }

    /// Ends the queue, and with it the workers.
    fn close(&mut self) {
        self.pieces = None;
        for worker in self.workers.drain(..) {
            // One that panicked has said so.
            drop(worker.join());
        }
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        // Given up or finished: there is nobody left to tell.
        self.turns.close(WriteError::GivenUp);
        self.close();
    }
}

impl std::fmt::Debug for ImageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageWriter")
            .field("next_page", &self.next_page)
            .finish_non_exhaustive()
    }
}

fn work(packer: &mut Packer, pieces: &Receiver<(u64, Piece)>, turns: &Turns) {
    let _alarm = Alarm(turns);
    for (number, piece) in pieces {
        let goes_on = match piece {
            // The rest of the queue is not wanted.
            _ if turns.are_over() => false,
            Piece::Records(records) => turns.write(number, |order| {
                records.iter().try_for_each(|record| order.record(record))
            }),
            Piece::Pages(wanted) => {
                let packed = packer.pack(wanted);
                turns.write(number, |order| order.pages(&packed.map_err(WriteError::Fill)?))
            }
            Piece::End => {
                turns.finish(number);
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

const _: () = assert!(CHUNK_BYTES <= u32::MAX as usize, "Chunk::stored is a u32");
