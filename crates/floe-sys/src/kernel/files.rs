//! What open files hold.

use super::{KernelMemory, inotify, mqueue};
use std::io;

/// The kernel's memory, to be read for what open files hold.
pub struct FileMemory(pub(super) KernelMemory);

impl FileMemory {
    /// Loads what reads it.
    ///
    /// # Errors
    /// Those of [`aio_contexts`](super::aio_contexts).
    pub fn open() -> io::Result<Self> {
        KernelMemory::open(&[&inotify::STRUCTURES[..], &mqueue::STRUCTURES].concat()).map(Self)
    }
}
