//! Chunks that come while the image is read, from whoever has them still.

use super::{Image, Place, ReadError};
use crate::record::Chunk;
use std::{fmt::Debug, io, os::fd::BorrowedFd};

/// Brings chunks of an image's own file that are not there yet.
pub trait Coming: Debug + Send + Sync {
    /// Waits until the chunk is there that begins at this byte of the file; whether it is. One that is `urgent` is asked for, so
    /// that it comes before others. Gives up where `goes_on` says no, which it is asked from time to time, and never before it has
    /// waited for a moment; without that as long as the process is not told to stop.
    ///
    /// # Errors
    /// Where it will never come, or the process is told to stop.
    fn wait(&self, offset: u64, urgent: bool, goes_on: Option<&dyn Fn() -> bool>) -> io::Result<bool>;

    /// What it needs open.
    fn file(&self) -> BorrowedFd<'_>;
}

impl Image {
    /// Waits until a chunk is there, see [`Coming::wait`]. All are that nobody brings.
    ///
    /// # Errors
    /// [`ReadError::Awaited`].
    pub fn await_chunk(
        &self,
        chunk: &Chunk,
        urgent: bool,
        goes_on: Option<&dyn Fn() -> bool>,
    ) -> Result<bool, ReadError> {
        match &self.coming {
            Some(coming) if !self.layer_of(chunk).is_base() => {
                coming
                    .wait(chunk.offset, urgent, goes_on)
                    .map_err(|source| ReadError::Awaited {
                        place: Place::Chunk(*chunk),
                        source,
                    })
            }
            _ => Ok(true),
        }
    }
}
