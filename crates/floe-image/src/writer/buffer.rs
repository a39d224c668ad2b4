//! The pool of page buffers: a fixed number of them goes round between caller, workers and the writing thread.

use crate::chunk::CHUNK_BYTES;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use std::ops::{Deref, DerefMut};

/// A buffer of one chunk. Dropped, it goes back to its writer.
#[derive(Debug)]
pub struct PageBuffer {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl PageBuffer {
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            // The pool has room for every buffer there is; the writer may be gone.
            self.home.try_send(std::mem::take(&mut self.bytes)).ok();
        }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// The caller's end of the pool.
pub(super) struct Pool {
    free: Receiver<Vec<u8>>,
    home: Sender<Vec<u8>>,
    /// Disconnected when the writing thread has ended.
    ended: Receiver<()>,
}

impl Pool {
    pub fn new(buffers: usize, ended: Receiver<()>) -> Self {
        let (home, free) = bounded(buffers);
        for _ in 0..buffers {
            home.try_send(vec![0; CHUNK_BYTES])
                .expect("the channel was made with room for all");
        }
        Self { free, home, ended }
    }

    /// Where buffers go back to.
    pub fn returns(&self) -> Sender<Vec<u8>> {
        self.home.clone()
    }

    /// Waits for a buffer; `None` once the writing thread has ended.
    pub fn take(&self) -> Option<PageBuffer> {
        let bytes = select! {
            recv(self.ended) -> _ => return None,
            recv(self.free) -> bytes => bytes.ok()?,
        };
        let home = self.home.clone();
        Some(PageBuffer { bytes, home })
    }

    /// Waits for the writing thread to tell something; false once it has ended without. What it has not taken out of its
    /// queue by then stays there, so that the other end of `told` alone would not show it.
    pub fn is_told(&self, told: &Receiver<()>) -> bool {
        select! {
            recv(told) -> told => told.is_ok(),
            recv(self.ended) -> _ => told.try_recv().is_ok(),
        }
    }
}
