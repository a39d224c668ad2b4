//! Has a puppet's memory looked after. Behind this nothing of floe's may touch what has not come: it would wait for ever.

use super::super::{
    fill::Filler,
    new_memory::{OpenError, open},
    runs::without,
};
use super::choose::can_be_looked_after;
use crate::mm::FillError;
use floe_image::record::{AddressSpaceRecord, PageId, PageRun};
use floe_sys::{
    pagemap::{Category, Filter, Pagemap},
    pager::{Pager, Purpose},
};
use floe_tracee::Puppet;
use nix::errno::Errno;
use std::{io, ops::Range};

const PAGE: u64 = 4096;

/// Memory that can't be looked after.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The task may not open a userfaultfd.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something else.
    #[error("{0}")]
    System(&'static str, #[source] Errno),
    /// Which pages are there already.
    #[error("look at the pages that are there")]
    Pages(#[source] io::Error),
    /// Pages that are there already.
    #[error(transparent)]
    Fill(#[from] FillError),
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> BeginError {
    move |error| BeginError::System(what, error)
}

/// Has the mappings looked after that `later` lie in, whole ones; returns what is still to come: where the kernel has put
/// pages since, they are filled now.
///
/// # Errors
/// [`BeginError`]; nothing is looked after then.
pub fn begin(
    puppet: &Puppet,
    space: &AddressSpaceRecord,
    later: &[PageRun],
    filler: &Filler<'_>,
) -> Result<(Pager, Vec<PageRun>), BeginError> {
    let userfault = open(puppet, Purpose::Serve)?;
    for vma in space.vmas.iter().filter(|vma| can_be_looked_after(vma)) {
        let range = vma.start..vma.end;
        let at = later.partition_point(|run| run.start + run.pages * PAGE <= range.start);
        if later.get(at).is_some_and(|run| run.start < range.end) {
            userfault
                .register(&range)
                .map_err(system("register memory with a userfaultfd"))?;
        }
    }
    let there = there_already(puppet, later)?;
    let left = without(later, &there);
    let early = without(later, &left);
    filler.process(puppet.tid(), &early, Vec::new())?;
    Ok((userfault, left))
}

/// Pages at these places that are there.
fn there_already(puppet: &Puppet, later: &[PageRun]) -> Result<Vec<PageRun>, BeginError> {
    let filter = Filter {
        all: Category::empty(),
        any: Category::PRESENT | Category::SWAPPED,
        inverted: Category::empty(),
        report: Category::PRESENT | Category::SWAPPED,
    };
    let pagemap = Pagemap::open(puppet.tid()).map_err(BeginError::Pages)?;
    let mut found = Vec::new();
    for range in joined(later) {
        let scanned = pagemap.scan(range.start, range.end, &filter, &mut found);
        scanned.map_err(|error| BeginError::Pages(error.into()))?;
    }
    Ok(found
        .iter()
        .map(|region| PageRun {
            start: region.start,
            pages: (region.end - region.start) / PAGE,
            first: PageId(0),
        })
        .collect())
}

/// Ranges that hold the runs, with small gaps between them.
fn joined(runs: &[PageRun]) -> Vec<Range<u64>> {
    const GAP: u64 = 1 << 20;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for run in runs {
        let end = run.start + run.pages * PAGE;
        match ranges.last_mut() {
            Some(last) if run.start <= last.end.saturating_add(GAP) => last.end = end,
            _ => ranges.push(run.start..end),
        }
    }
    ranges
}
