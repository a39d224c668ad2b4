//! Writes stored pages to their places: chunks are read, checked and unpacked on all cores, straight towards the tasks.

use floe_image::{
    ChunkScratch, Image, ReadError,
    record::{PageId, PageRun},
};
use floe_sys::{
    Pid,
    memory::{self, MAX_RANGES, MemoryFile, RemoteRange},
    sched,
};
use std::{
    cell::RefCell,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

const PAGE: u64 = 4096;
/// Below this many chunks a second thread costs more than it brings.
const PARALLEL_CHUNKS: usize = 4;

/// Pages that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The image.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The task's memory.
    #[error("write the memory of process {pid} at {address:#x}")]
    Write {
        /// Whose.
        pid: Pid,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file.
    #[error("write the content of a deleted file or of shared memory")]
    File(#[source] io::Error),
    /// What is to be compared.
    #[error("read what pages of the base are compared with, at {address:#x}")]
    Compared {
        /// Address or byte offset.
        address: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The image refers to pages that it does not hold.
    #[error("the image holds no page {0:?}")]
    NoPage(PageId),
}

/// A piece of one chunk and where it goes.
#[derive(Debug, Clone, Copy)]
struct Piece {
    chunk: usize,
    /// Page within the chunk.
    page: u64,
    pages: u64,
    address: u64,
}

fn pieces(image: &Image, runs: &[PageRun]) -> Result<Vec<Piece>, FillError> {
    let mut found = Vec::with_capacity(runs.len());
    for run in runs {
        let mut done = 0;
        while done < run.pages {
            let id = PageId(run.first.0 + done);
            let chunk = image.chunk_of(id).ok_or(FillError::NoPage(id))?;
            let entry = &image.chunks()[chunk];
            let page = id.0 - entry.first.0;
            let pages = (u64::from(entry.pages) - page).min(run.pages - done);
            found.push(Piece {
                chunk,
                page,
                pages,
                address: run.start + done * PAGE,
            });
            done += pages;
        }
    }
    found.sort_by_key(|piece| (piece.chunk, piece.page));
    Ok(found)
}

/// Where pages go.
pub(super) trait Target: Sync {
    /// Whether bytes for both addresses can go out in one call.
    fn same_way(&self, one: u64, other: u64) -> bool;
    /// Writes bytes that go to several places, all of which can be written in the same way.
    fn scatter(&self, places: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError>;
}

struct ProcessTarget {
    pid: Pid,
    file: MemoryFile,
    /// Mappings that process_vm_writev can write, lowest first.
    writable: Vec<Range<u64>>,
}

impl ProcessTarget {
    fn is_writable(&self, address: u64) -> bool {
        let index = self.writable.partition_point(|range| range.end <= address);
        self.writable.get(index).is_some_and(|range| range.start <= address)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), FillError> {
        self.file.write(address, bytes).map_err(|source| FillError::Write {
            pid: self.pid,
            address,
            source,
        })
    }
}

impl Target for ProcessTarget {
    fn same_way(&self, one: u64, other: u64) -> bool {
        self.is_writable(one) == self.is_writable(other)
    }

    fn scatter(&self, places: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError> {
        if places.first().is_some_and(|place| self.is_writable(place.start))
            && memory::write_ranges(self.pid, places, bytes) == Ok(bytes.len())
        {
            return Ok(());
        }
        let mut at = 0;
        for place in places {
            self.write(place.start, &bytes[at..at + place.bytes])?;
            at += place.bytes;
        }
        Ok(())
    }
}

struct FileTarget<'a> {
    file: &'a File,
    size: u64,
}

impl FileTarget<'_> {
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), FillError> {
        let inside = (self.size.saturating_sub(address)).min(bytes.len() as u64) as usize;
        self.file
            .write_all_at(&bytes[..inside], address)
            .map_err(FillError::File)
    }
}

impl Target for FileTarget<'_> {
    fn same_way(&self, _one: u64, _other: u64) -> bool {
        true
    }

    fn scatter(&self, places: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError> {
        let mut at = 0;
        for place in places {
            self.write(place.start, &bytes[at..at + place.bytes])?;
            at += place.bytes;
        }
        Ok(())
    }
}

/// Writes pages of an image. Its memory goes from one task to the next.
#[derive(Debug)]
pub struct Filler<'a> {
    image: &'a Image,
    done: AtomicU64,
    scratch: RefCell<ChunkScratch>,
    /// Where the threads may run, wherever the calling one is kept by then.
    processors: Vec<u32>,
}

impl<'a> Filler<'a> {
    /// One that has written nothing yet. Uses the processors on which the calling thread may run now.
    #[must_use]
    pub fn new(image: &'a Image) -> Self {
        Self {
            image,
            done: AtomicU64::new(0),
            scratch: RefCell::default(),
            processors: sched::affinity(Pid::new(0)).unwrap_or_default(),
        }
    }

    /// Bytes of pages written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Writes pages into a process. `writable` are its mappings with PROT_WRITE, lowest first.
    ///
    /// # Errors
    /// [`FillError`].
    pub fn process(&self, pid: Pid, runs: &[PageRun], writable: Vec<Range<u64>>) -> Result<(), FillError> {
        if runs.is_empty() {
            return Ok(());
        }
        let file = MemoryFile::open(pid).map_err(|source| FillError::Write {
            pid,
            address: 0,
            source,
        })?;
        self.fill(&pieces(self.image, runs)?, &ProcessTarget { pid, file, writable })
    }

    /// Writes pages into a file of `size` bytes.
    ///
    /// # Errors
    /// [`FillError`].
    pub fn file(&self, file: &File, size: u64, runs: &[PageRun]) -> Result<(), FillError> {
        self.fill(&pieces(self.image, runs)?, &FileTarget { file, size })
    }

    /// Brings pages to a target of another kind.
    pub(super) fn to(&self, target: &impl Target, runs: &[PageRun]) -> Result<(), FillError> {
        self.fill(&pieces(self.image, runs)?, target)
    }

    fn fill(&self, pieces: &[Piece], target: &impl Target) -> Result<(), FillError> {
        let jobs: Vec<&[Piece]> = pieces.chunk_by(|a, b| a.chunk == b.chunk).collect();
        let cores = self.processors.len();
        if jobs.len() < PARALLEL_CHUNKS || cores < 2 {
            let mut scratch = self.scratch.borrow_mut();
            return jobs
                .iter()
                .try_for_each(|job| fill_chunk(self.image, job, target, &mut scratch, &self.done));
        }
        let (image, done, processors) = (self.image, &self.done, &self.processors);
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(jobs.len()) {
                scope.spawn(|| {
                    if let Err(error) = sched::set_affinity(Pid::new(0), processors) {
                        tracing::debug!(%error, "threads that unpack share a processor");
                    }
                    let mut scratch = ChunkScratch::default();
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = fill_chunk(image, job, target, &mut scratch, done) {
                            next.store(jobs.len(), Ordering::Relaxed);
                            failure
                                .lock()
                                .expect("no thread panics with the lock held")
                                .get_or_insert(error);
                        }
                    }
                });
            }
        });
        failure
            .into_inner()
            .expect("no thread panics with the lock held")
            .map_or(Ok(()), Err)
    }
}

/// Writes the pieces of one chunk. Those that lie one behind the other in the chunk go out in one call.
fn fill_chunk(
    image: &Image,
    job: &[Piece],
    target: &impl Target,
    scratch: &mut ChunkScratch,
    done: &AtomicU64,
) -> Result<(), FillError> {
    let bytes = image.read_chunk(&image.chunks()[job[0].chunk], scratch)?;
    let span = |piece: &Piece| (piece.page * PAGE) as usize..((piece.page + piece.pages) * PAGE) as usize;
    let together = |a: &Piece, b: &Piece| a.page + a.pages == b.page && target.same_way(a.address, b.address);
    for group in job.chunk_by(together) {
        for part in group.chunks(MAX_RANGES) {
            let places: Vec<RemoteRange> = part
                .iter()
                .map(|piece| RemoteRange {
                    start: piece.address,
                    bytes: (piece.pages * PAGE) as usize,
                })
                .collect();
            let range = span(&part[0]).start..span(&part[part.len() - 1]).end;
            done.fetch_add(range.len() as u64, Ordering::Relaxed);
            target.scatter(&places, &bytes[range])?;
        }
    }
    Ok(())
}
