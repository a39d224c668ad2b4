//! Reading everything: each chunk's checksum and that it unpacks to what it must. The records were checked at open.

use super::{ChunkScratch, Image, ReadError};
use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread::Builder,
};

/// What was found whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bytes of its own file.
    pub bytes: u64,
    /// Records, without the index.
    pub records: usize,
    /// Chunks of pages, in its bases too.
    pub chunks: usize,
    /// Pages in them.
    pub pages: u64,
}

impl Image {
    /// Reads and checks every chunk, of its bases too, on all cores; `progress` is told the bytes of pages done so far.
    ///
    /// # Errors
    /// [`ReadError`] of the damaged chunk that stands first in the file.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<VerifyReport, ReadError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let mut first: Option<(usize, ReadError)> = None;
        std::thread::scope(|scope| {
            let (results, checked) = channel();
            for started in 0..cores.min(self.chunks().len()) {
                let results = results.clone();
                let next = &next;
                let thread = Builder::new().spawn_scoped(scope, move || self.check_chunks(next, &results));
                match thread {
                    Ok(_) => {}
                    // Those that did start do all the work.
                    Err(_) if started > 0 => break,
                    Err(error) => return Err(ReadError::Threads(error)),
                }
            }
            drop(results);
            let mut done = 0;
            for (index, result) in checked {
                match result {
                    Ok(bytes) => {
                        done += bytes as u64;
                        progress(done);
                    }
                    Err(error) if first.as_ref().is_none_or(|(earlier, _)| index < *earlier) => {
                        // Chunks before this one are in the hands of other threads already.
                        next.store(self.chunks().len(), Ordering::Relaxed);
                        first = Some((index, error));
                    }
                    Err(_) => {}
                }
            }
            Ok(())
        })?;
        match first {
            Some((_, error)) => Err(error),
            None => Ok(VerifyReport {
                bytes: self.bytes(),
                records: self.entries().len(),
                chunks: self.chunks().len(),
                pages: self.stored_pages(),
            }),
        }
    }

    fn check_chunks(&self, next: &AtomicUsize, results: &Sender<(usize, Result<usize, ReadError>)>) {
        let mut scratch = ChunkScratch::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = self.chunks().get(index) else {
                return;
            };
            let result = self.read_chunk(chunk, &mut scratch).map(<[u8]>::len);
            if results.send((index, result)).is_err() {
                return;
            }
        }
    }
}
