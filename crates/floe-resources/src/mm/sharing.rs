//! Which pages several processes have: a physical page is stored once, whatever relative has it.
//!
//! What is kept for it is one entry for each shared page that a parent does not explain, and the runs of each process. That
//! a page is the one that was noted is looked up again before it counts: the kernel may have moved pages meanwhile.

use super::runs::page_at;
use floe_image::record::{PageId, PageRun};
use floe_sys::{
    Pid,
    pagemap::{Entry, Pagemap},
};
use std::{collections::HashMap, io, ops::Range};

const PAGE: u64 = 4096;

/// The pages of the processes that were stored so far.
#[derive(Debug, Default)]
pub struct SharedPages {
    by_parents_alone: bool,
    of_one: bool,
    stored: Vec<Stored>,
    by_pid: HashMap<Pid, usize>,
    /// Where shared pages were seen first, by their frames.
    seen: HashMap<u64, Seen>,
}

#[derive(Debug)]
struct Stored {
    pid: Pid,
    runs: Vec<PageRun>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    process: usize,
    address: u64,
}

impl SharedPages {
    /// Looks for pages only where a parent has them, and notes none: of copies of memory every page is shared, with its maker.
    #[must_use]
    pub fn by_parents_alone() -> Self {
        Self {
            by_parents_alone: true,
            ..Self::default()
        }
    }

    /// Of a tree in which one process alone has memory of its own, which shares it with nobody.
    #[must_use]
    pub fn of_one() -> Self {
        Self {
            by_parents_alone: true,
            of_one: true,
            ..Self::default()
        }
    }

    /// Adds a process whose pages are stored; `noted` are frames and addresses of those that it shares with others than
    /// the processes before.
    pub(super) fn add(&mut self, pid: Pid, runs: &[PageRun], noted: Vec<(u64, u64)>) {
        let process = self.stored.len();
        for (frame, address) in noted {
            self.seen.entry(frame).or_insert(Seen { process, address });
        }
        self.by_pid.insert(pid, process);
        let runs = runs.to_vec();
        self.stored.push(Stored { pid, runs });
    }

    /// The processes as one that is being stored sees them; its parent is the first that is asked.
    pub(super) fn relatives(&self, parent: Option<Pid>) -> Relatives<'_> {
        Relatives {
            shared: self,
            parent: parent.and_then(|pid| self.by_pid.get(&pid).copied()),
            open: None,
        }
    }
}

/// Answers where pages of one process are stored already.
pub(super) struct Relatives<'a> {
    shared: &'a SharedPages,
    parent: Option<usize>,
    /// The pagemap that was read last, which is mostly the next one too.
    open: Option<(usize, Pagemap)>,
}

/// What relatives have in one range, as far as it was read.
pub(super) struct Block {
    range: Range<u64>,
    read: HashMap<usize, Vec<Entry>>,
}

impl Relatives<'_> {
    /// Begins with a range; reads the parent's part, where it has any.
    pub(super) fn block(&mut self, range: Range<u64>) -> io::Result<Block> {
        let mut block = Block {
            range,
            read: HashMap::new(),
        };
        let overlaps = |runs: &[PageRun]| {
            let first = runs.partition_point(|run| run.start + run.pages * PAGE <= block.range.start);
            runs.get(first).is_some_and(|run| run.start < block.range.end)
        };
        if let Some(parent) = self.parent.filter(|index| overlaps(&self.shared.stored[*index].runs)) {
            self.read(&mut block, parent)?;
        }
        Ok(block)
    }

    /// Whether there are any, or will be.
    pub(super) fn may_be(&self) -> bool {
        !self.shared.of_one
    }

    /// Whether shared pages are to be noted.
    pub(super) fn notes(&self) -> bool {
        !self.shared.by_parents_alone
    }

    /// Where the page `frame` at `address` is stored, if a process before has it.
    pub(super) fn find(&mut self, block: &mut Block, address: u64, frame: u64) -> io::Result<Option<PageId>> {
        let page = ((address - block.range.start) / PAGE) as usize;
        if let Some(parent) = self.parent
            && block
                .read
                .get(&parent)
                .is_some_and(|entries| entries[page].frame() == Some(frame))
            && let Some(id) = page_at(&self.shared.stored[parent].runs, address)
        {
            return Ok(Some(id));
        }
        let Some(seen) = self.shared.seen.get(&frame).copied() else {
            return Ok(None);
        };
        let still = if seen.address == address {
            self.read(block, seen.process)?[page].frame()
        } else {
            self.pagemap(seen.process)?.entries(seen.address, 1)?[0].frame()
        };
        Ok(page_at(&self.shared.stored[seen.process].runs, seen.address).filter(|_| still == Some(frame)))
    }

    fn read<'b>(&mut self, block: &'b mut Block, process: usize) -> io::Result<&'b [Entry]> {
        if !block.read.contains_key(&process) {
            let count = ((block.range.end - block.range.start) / PAGE) as usize;
            let entries = self.pagemap(process)?.entries(block.range.start, count)?;
            block.read.insert(process, entries);
        }
        Ok(&block.read[&process])
    }

    fn pagemap(&mut self, process: usize) -> io::Result<&Pagemap> {
        let open = match self.open.take() {
            Some((index, pagemap)) if index == process => pagemap,
            _ => Pagemap::open(self.shared.stored[process].pid)?,
        };
        Ok(&self.open.insert((process, open)).1)
    }
}
