//! Reads the mappings of processes that stand still.

use floe_resources::tree::FoundProcess;
use floe_sys::{
    Pid,
    kernel::VmaFlags,
    parallel,
    procfs::{Mapping, ProcError, Stat},
};
use std::collections::BTreeMap;

/// From so many pages on it takes longer to read smaps, which walks through all of them, than to ask the kernel's memory.
const LARGE: u64 = 16 << 20 >> 12;
/// Processes whose mappings take longer to read than a thread to begin.
const WORTH_A_THREAD: usize = 8;

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

    /// Reads those of all of these, which stand still, by the task of each.
    pub(super) fn read_all(&self, processes: &[&FoundProcess]) -> Result<BTreeMap<Pid, Vec<Mapping>>, ProcError> {
        let read = |process: &&FoundProcess| Ok((process.task(), self.read(process)?));
        parallel::map(processes, WORTH_A_THREAD, read).into_iter().collect()
    }

    /// Reads those of one that stands still.
    fn read(&self, process: &FoundProcess) -> Result<Vec<Mapping>, ProcError> {
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
