//! Reads the mappings of processes that stand still.

use floe_resources::tree::FoundProcess;
use floe_sys::{
    Pid,
    kernel::VmaFlags,
    procfs::{Mapping, ProcError, Stat},
};

/// From so many pages on it takes longer to read smaps, which walks through all of them, than to ask the kernel's memory.
const LARGE: u64 = 16 << 20 >> 12;

/// How mappings are read.
#[derive(Default)]
pub(super) struct MappingsReader {
    flags: Option<VmaFlags>,
}

impl MappingsReader {
    /// Prepares for reading those of these processes, while they still run.
    pub(super) fn prepare(processes: impl IntoIterator<Item = Pid>) -> Self {
        let is_large = |pid: Pid| Stat::of(pid).is_ok_and(|stat| stat.rss >= LARGE);
        if !processes.into_iter().any(is_large) {
            return Self::default();
        }
        let flags = VmaFlags::learn();
        if let Err(error) = &flags {
            tracing::debug!(%error, "mappings are read from smaps");
        }
        Self { flags: flags.ok() }
    }

    /// Reads those of one that stands still.
    pub(super) fn read(&self, process: &FoundProcess) -> Result<Vec<Mapping>, ProcError> {
        let task = process.task();
        if let Some(flags) = self.flags.as_ref().filter(|_| process.stat.rss >= LARGE) {
            match flags.mappings(task) {
                Ok(Some(mappings)) => return Ok(mappings),
                Ok(None) => tracing::debug!(%task, "some mapping has a flag that is not known"),
                Err(error) => tracing::debug!(%task, %error, "its mappings are read from smaps"),
            }
        }
        Mapping::read_all(task)
    }
}
