//! What open files hold.

use super::{
    KernelMemory, bpf_map, connections, datagrams, dnotify, errors, gathered, hidden, inotify, mqueue, tasks,
    unaccepted,
};
use std::io;

/// The kernel's memory, to be read for what open files hold.
pub struct FileMemory(pub(super) KernelMemory);

impl FileMemory {
    /// Loads what reads it.
    ///
    /// # Errors
    /// Those of [`aio_contexts`](super::aio_contexts).
    pub fn open() -> io::Result<Self> {
        let structures = [
            &inotify::STRUCTURES[..],
            &mqueue::STRUCTURES,
            &connections::STRUCTURES,
            &unaccepted::STRUCTURES,
            &dnotify::STRUCTURES,
            &bpf_map::STRUCTURES,
            &tasks::STRUCTURES,
            &datagrams::STRUCTURES,
            &hidden::STRUCTURES,
            &gathered::STRUCTURES,
            &errors::STRUCTURES,
        ];
        KernelMemory::open(&structures.concat()).map(Self)
    }
}
