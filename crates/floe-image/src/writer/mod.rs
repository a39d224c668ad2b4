//! Writes an image front to back.
//!
//! ```text
//! caller: says what to store -> workers: read, sample, compress, checksum -> one thread: writes in the caller's order
//!                                  ^------------- empty buffers ----------------'
//! ```
//! The number of buffers bounds the memory, whatever the size of the tree: with 2 workers 12 MiB and zstd's own 2 MiB.

mod buffer;
mod order;
mod pack;

pub use pack::FillError;

use crate::{
    chunk::{CHUNK_BYTES, CHUNK_PAGES},
    codec::{self, EncodeError},
    frame::RECORDS_LIMIT,
    record::{PageId, Record},
};
use buffer::Pool;
use crossbeam_channel::{Receiver, Sender, bounded};
use order::{Order, Piece, Sink};
use pack::{Job, PackedChunk, Packer};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{Builder, JoinHandle},
};

/// Page buffers on their way to the sink; each worker has two more.
const BUFFERS: usize = 8;
/// Chunks that wait for a worker.
const JOBS: usize = 16;
/// Pieces on their way to the thread that writes.
const PIECES: usize = 64;
/// A record of more bytes is waited for, so that not many of them are in memory at once.
const WAIT_BYTES: usize = 64 << 10;
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
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// zstd level, as zstd(1) counts them; 1 is the default.
    pub level: i32,
    /// Threads that compress, at least one; the default is one for each core, at most 8.
    pub workers: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            level: 1,
            workers: cores.min(DEFAULT_WORKERS),
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

/// What the writing thread ends with.
type Written = Result<(Sink, Summary), WriteError>;

/// A job, and to whom its result goes.
type Assigned = (Job, Sender<Result<PackedChunk, FillError>>);

/// Writes an image. Dropped without [`ImageWriter::finish`], it leaves an output that no reader takes for an image.
pub struct ImageWriter {
    pool: Pool,
    jobs: Option<Sender<Assigned>>,
    pieces: Option<Sender<Piece>>,
    workers: Vec<JoinHandle<()>>,
    order: Option<JoinHandle<Written>>,
    given_up: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    next_page: u64,
    record_bytes: u64,
}

impl ImageWriter {
    /// Writes the header and starts the threads.
    ///
    /// # Errors
    /// [`WriteError::Io`], [`WriteError::Start`].
    pub fn start(sink: Sink, options: &WriteOptions) -> Result<Self, WriteError> {
        let workers = options.workers.max(1);
        let (alive, ended) = bounded(0);
        let (pool, home) = Pool::new(BUFFERS + 2 * workers, ended);
        let progress = Arc::new(AtomicU64::new(0));
        let order = Order::new(sink, home, Arc::clone(&progress))?;
        let (pieces, piece_queue) = bounded(PIECES);
        let (jobs, job_queue) = bounded(JOBS);
        let given_up = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&given_up);
        let order = spawn("floe-write", move || {
            let written = order.run(&piece_queue, &stop);
            drop::<Sender<()>>(alive);
            written
        })?;
        let mut writer = Self {
            pool,
            jobs: Some(jobs),
            pieces: Some(pieces),
            workers: Vec::with_capacity(workers),
            order: Some(order),
            given_up,
            progress,
            next_page: 0,
            record_bytes: 0,
        };
        for _ in 0..workers {
            let mut packer = Packer::new(options.level).map_err(WriteError::Start)?;
            let (pool, queue) = (writer.pool.clone(), job_queue.clone());
            let stop = Arc::clone(&writer.given_up);
            let work = move || pack_all(&mut packer, &pool, &queue, &stop);
            writer.workers.push(spawn("floe-pack", work)?);
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
        self.record_bytes += body.len() as u64;
        if self.record_bytes > RECORDS_LIMIT {
            return Err(self.give_up(WriteError::TooMuch));
        }
        let (done, written) = if body.len() > WAIT_BYTES {
            let (done, written) = bounded(1);
            (Some(done), Some(written))
        } else {
            (None, None)
        };
        self.piece(Piece::Record {
            kind: R::KIND,
            version: R::VERSION,
            body,
            done,
        })?;
        match written {
            Some(written) if !self.pool.is_told(&written) => Err(self.failure()),
            Some(_) | None => Ok(()),
        }
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
        let first = self.next_page;
        let job = Job {
            first,
            pages: pages as u32,
            fill: Box::new(fill),
        };
        let (packed, hand_over) = bounded(1);
        let jobs = self.jobs.as_ref().ok_or(WriteError::GivenUp)?;
        if jobs.send((job, packed)).is_err() {
            return Err(self.failure());
        }
        self.piece(Piece::Pages(hand_over))?;
        self.next_page += pages as u64;
        Ok(PageId(first))
    }

    /// Writes index and trailer; returns the sink.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn finish(mut self) -> Result<(Sink, Summary), WriteError> {
        self.piece(Piece::End)?;
        self.close();
        self.join_order().unwrap_or(Err(WriteError::GivenUp))
    }

    fn piece(&mut self, piece: Piece) -> Result<(), WriteError> {
        let pieces = self.pieces.as_ref().ok_or(WriteError::GivenUp)?;
        pieces.send(piece).map_err(|_| self.failure())
    }

    fn give_up(&mut self, error: WriteError) -> WriteError {
        self.given_up.store(true, Ordering::Relaxed);
        self.close();
        error
    }

    /// Why the writing thread ended; it is told once.
    fn failure(&mut self) -> WriteError {
        self.close();
        match self.join_order() {
            Some(Err(error)) => error,
            Some(Ok(_)) | None => WriteError::GivenUp,
        }
    }

    fn join_order(&mut self) -> Option<Written> {
        let order = self.order.take()?;
        Some(order.join().unwrap_or(Err(WriteError::Thread)))
    }

    /// Ends the queues, and with them the workers.
    fn close(&mut self) {
        self.jobs = None;
        self.pieces = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked did not hand its chunk over, which the writing thread has noticed.
            drop(worker.join());
        }
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.close();
        // Given up or finished: there is nobody left to tell.
        drop(self.join_order());
    }
}

impl std::fmt::Debug for ImageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageWriter")
            .field("next_page", &self.next_page)
            .finish_non_exhaustive()
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(WriteError::Start)
}

fn pack_all(packer: &mut Packer, pool: &Pool, jobs: &Receiver<Assigned>, given_up: &AtomicBool) {
    while packer.supply(pool) {
        let Ok((job, hand_over)) = jobs.recv() else { return };
        // The writing thread may have ended with an error; then the rest of the queue is not wanted.
        if given_up.load(Ordering::Relaxed) || hand_over.send(packer.pack(job)).is_err() {
            return;
        }
    }
}

const _: () = assert!(CHUNK_BYTES <= u32::MAX as usize, "Chunk::stored is a u32");
