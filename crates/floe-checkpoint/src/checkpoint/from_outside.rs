//! What is read of living processes from outside alone, of several at once.

use super::{inspect::InspectError, seize::HeldTree};
use floe_resources::{
    mm::{self, PageTables},
    task::{ProcFiles, Sharing},
    tree::FoundProcess,
};
use floe_sys::{Pid, parallel, procfs::Mapping};
use std::collections::BTreeMap;

/// A process with fewer pages of its own is read while it stands still, which takes no longer than a fork.
pub(super) const WORTH_COPYING: u64 = 256;

/// When the page tables of processes are looked at, which takes some 10 ms for a GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PagesLookedAt {
    /// At once.
    Now,
    /// In copies of their memory, where that is [worth](WORTH_COPYING) it.
    InCopies,
}

impl PagesLookedAt {
    /// Whether most of a process's are looked at in its copy.
    pub(super) fn is_later(self, found: &FoundProcess) -> bool {
        self == Self::InCopies && own_pages(found) >= WORTH_COPYING
    }
}

/// How many pages of its own a process has by the kernel's count.
pub(super) fn own_pages(found: &FoundProcess) -> u64 {
    found.threads.first().map_or(0, |thread| thread.status.anonymous) / 4096
}

/// What is read of a living process from outside alone, so that several can be read at once.
pub(super) struct FromOutside {
    pub(super) files: ProcFiles,
    /// None of one that has the memory of its parent.
    pub(super) page_tables: Option<PageTables>,
}

impl FromOutside {
    /// Processes that take longer to read than a thread to begin.
    const WORTH_A_THREAD: usize = 8;

    /// Reads all living processes, in their order.
    pub(super) fn read_all(
        held: &HeldTree,
        sharing: &Sharing,
        pages_looked_at: PagesLookedAt,
    ) -> impl Iterator<Item = Result<Self, InspectError>> {
        let living: Vec<&FoundProcess> = held.tree.living().collect();
        let mappings = &held.mappings;
        let read = |found: &&FoundProcess| {
            let is_later = pages_looked_at.is_later(found);
            let wanted = |mapping: &Mapping| !(is_later && mm::shows_in_a_copy(mapping));
            let own = !sharing.shares(found, libc::CLONE_VM);
            let tables = own.then(|| PageTables::read(found.task(), mappings_of(mappings, found), wanted));
            Ok(Self {
                files: ProcFiles::read(found)?,
                page_tables: tables.transpose()?,
            })
        };
        parallel::map(&living, Self::WORTH_A_THREAD, read).into_iter()
    }
}

/// Those of a process.
pub(super) fn mappings_of<'a>(all: &'a BTreeMap<Pid, Vec<Mapping>>, found: &FoundProcess) -> &'a [Mapping] {
    all.get(&found.task()).map_or(&[], Vec::as_slice)
}
