//! The pool of page buffers: a fixed number of them goes round between the workers and the writing thread.

use crate::chunk::CHUNK_BYTES;
use crossbeam_channel::{Receiver, Sender, bounded, select};

/// The end of the pool where buffers are taken.
#[derive(Clone)]
pub(super) struct Pool {
    free: Receiver<Vec<u8>>,
    /// Disconnected when the writing thread has ended.
    ended: Receiver<()>,
}

impl Pool {
    /// `buffers` of [`CHUNK_BYTES`]; and where they go back to, which has room for all.
    pub fn new(buffers: usize, ended: Receiver<()>) -> (Self, Sender<Vec<u8>>) {
        let (home, free) = bounded(buffers);
        for _ in 0..buffers {
            home.try_send(vec![0; CHUNK_BYTES])
                .expect("the channel was made with room for all");
        }
        (Self { free, ended }, home)
    }

    /// Waits for a buffer; `None` once the writing thread has ended.
    pub fn take(&self) -> Option<Vec<u8>> {
        select! {
            recv(self.ended) -> _ => None,
            recv(self.free) -> bytes => bytes.ok(),
        }
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
