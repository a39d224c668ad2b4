//! Which pages a process has written since they were last looked at.
//!
//! The process itself opens a userfaultfd, by a call of floe's, which is fetched and closed there again: nothing of it
//! shows but a flag of its mappings (`uw` in smaps). Pages of private anonymous memory that are there are marked, and lose
//! the mark when they are written, by whomever and however; nobody waits for anybody ([ADR 22]). Whoever has the descriptor
//! may end: when the last one is closed, the kernel takes flag and marks away.
//!
//! ```text
//! start ─► follow ─► next_round ─► … the process runs … ─► follow ─► next_round ─► …     (what was written, and marked anew)
//!                             └──► … the process runs … ─► followed ─► look              (what was written, marks stay)
//! ```
//! Only a page that is there and has its mark is unchanged. Everything else is written or unknown, and has to be read:
//!
//! - A mapping that was made since, at whatever address, and one that was moved there (mremap(2)), is not registered.
//!   [`Tracker::follow`] registers it, without marks.
//! - A child of a fork, and what a process executes, have no mapping that is registered.
//! - A page that was given back (MADV_DONTNEED), and what comes in its place, has no mark. One in swap counts as unknown.
//! - Not followed, so unknown for ever: shared memory, which others write and which write(2) reaches past all mappings;
//!   private mappings of files, where a page that is given back leaves its mark behind; pages of hugetlbfs.
//!
//! While a process runs, what a device or the kernel has pinned to write to (O_DIRECT) is not noticed between marking and
//! the end of that one transfer: the last look must be at a process that stands still.
//!
//! [ADR 22]: ../../../../docs/adr/0022-what-was-written.md

use super::look::ANONYMOUS_CONTENT;
use crate::task::HeldProcess;
use floe_sys::{
    Pid, descriptor,
    pagemap::{Category, Filter, PageRegion, Pagemap},
    procfs::{Mapping, ProcError, Status, VmFlag, descriptors},
    userfault::{OPEN_FLAGS, Userfault},
};
use floe_tracee::{CallHost, HostError};
use nix::errno::Errno;
use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// How smaps tells that a userfaultfd notes what is written.
pub const FOLLOWED_FLAG: &VmFlag = b"uw";
/// Kinds of memory that are not followed: pages of hugetlbfs, device memory, shadow stacks, droppable memory, and what
/// another userfaultfd serves.
const NOT_FOLLOWED: [&VmFlag; 7] = [b"ht", b"io", b"pf", b"ss", b"dp", b"um", b"ui"];

/// A process that can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The calls, by which it opens the userfaultfd: a filter or a limit may stand in their way.
    #[error("have process {pid} open a userfaultfd")]
    Open {
        /// Which.
        pid: Pid,
        /// Why not.
        #[source]
        source: Box<HostError>,
    },
    /// The descriptor, or the marks.
    #[error("{action} of process {pid}")]
    Userfault {
        /// What was attempted.
        action: &'static str,
        /// Whose.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
}

/// Follows what is written to the memory of one process.
#[derive(Debug)]
pub struct Tracker {
    userfault: Userfault,
}

/// What is known of followed memory: where it has content.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Pages that are as they were when they were last marked.
    pub unchanged: Vec<Range<u64>>,
    /// Pages that were written since, or are new.
    pub written: Vec<Range<u64>>,
}

impl Tracker {
    /// Has a held process open a userfaultfd, and takes that from it. Nothing is followed yet.
    ///
    /// # Errors
    /// [`TrackError`].
    pub fn start(held: &HeldProcess<'_>) -> Result<Self, TrackError> {
        let (pid, found) = (held.found.task(), held.found);
        let leader = held.threads[0];
        let calls = |source| TrackError::Open {
            pid,
            source: Box::new(source),
        };
        let host = CallHost::new(leader, found.own_pid(), held.mappings).map_err(calls)?;
        let status = Status::read(&format!("/proc/{pid}/task/{}", leader.tid()))?;
        // The process stands still, so the number is known before. Should floe die in the pause, the process closes it itself.
        let number = lowest_free(&descriptors(pid)?);
        let mut batch = host.batch();
        batch.call("open a userfaultfd", libc::SYS_userfaultfd, &[OPEN_FLAGS]);
        batch.call("close a userfaultfd", libc::SYS_close, &[number as u64]);
        let mut fetched = Err(Errno::EBADF);
        let fetch = |opened: i64| {
            if opened == i64::from(number) {
                fetched =
                    descriptor::pidfd_of_task(pid).and_then(|process| descriptor::pidfd_getfd(process.as_fd(), number));
            }
        };
        host.run_with_pause(leader, found.threads[0].own_tid(), &status, &mut batch, fetch)
            .map_err(calls)?;
        host.remove().map_err(calls)?;
        let wrap = |action| {
            move |source: Errno| TrackError::Userfault {
                action,
                pid,
                source: source.into(),
            }
        };
        let file = fetched.map_err(wrap("fetch the userfaultfd"))?;
        let userfault = Userfault::begin(file).map_err(wrap("begin with the userfaultfd"))?;
        Ok(Self { userfault })
    }

    /// Goes on with a userfaultfd of an earlier one, [`Tracker::file`].
    #[must_use]
    pub fn resume(file: OwnedFd) -> Self {
        Self {
            userfault: Userfault::resume(file),
        }
    }

    /// The userfaultfd: memory is followed as long as somebody has it open.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.userfault.as_fd()
    }

    /// Those of a process's `mappings` (with their flags) that are followed since before, by this tracker and by none of the
    /// process's own. The process must stand still, or be held to no more than what it could do by now.
    #[must_use]
    pub fn followed(&self, mappings: &[Mapping]) -> Vec<Range<u64>> {
        let is_followed = |mapping: &&Mapping| {
            mapping.has(FOLLOWED_FLAG)
                && may_be_followed(mapping)
                // The kernel refuses that for what another userfaultfd has registered, and where the address space is gone.
                && self.userfault.register(mapping.start..mapping.end).is_ok()
        };
        ranges(mappings.iter().filter(is_followed))
    }

    /// Follows all `mappings` (with their flags) of the process of `task` that can be; returns those that are, the new ones
    /// among them. Of those all pages count as written.
    ///
    /// # Errors
    /// [`TrackError`]; then this one must be dropped, as what it has registered may have marks of which nobody knows.
    pub fn follow(&self, task: Pid, mappings: &[Mapping]) -> Result<Vec<Range<u64>>, TrackError> {
        let mut followed = Vec::new();
        for mapping in mappings.iter().filter(|mapping| may_be_followed(mapping)) {
            let range = mapping.start..mapping.end;
            if self.userfault.register(range.clone()).is_err() {
                continue;
            }
            // Marks of another life of these pages would be taken for those of this one.
            if !mapping.has(FOLLOWED_FLAG) {
                let forgotten = self.userfault.forget(range.clone());
                forgotten.map_err(|error| failed("take the marks off pages", task, error))?;
            }
            followed.push(range);
        }
        Ok(followed)
    }

    /// Marks all pages of followed ranges of the process of `task`; returns those that had no mark, which are to be read: each
    /// page was marked in the instant in which it was looked at. What is not there any more is told by nobody.
    ///
    /// # Errors
    /// [`TrackError`].
    pub fn next_round(&self, task: Pid, followed: &[Range<u64>]) -> Result<Vec<Range<u64>>, TrackError> {
        let pagemap = pagemap(task)?;
        let mut regions = Vec::new();
        for range in followed {
            let marked = pagemap.protect_written(range.clone(), &WRITTEN, &mut regions);
            marked.map_err(|error| failed("mark pages", task, error))?;
        }
        let mut written = Vec::new();
        regions.iter().for_each(|region| push(&mut written, region));
        Ok(written)
    }

    /// What is known of the pages of followed ranges of the process of `task`; the marks stay.
    ///
    /// # Errors
    /// [`TrackError`].
    pub fn look(&self, task: Pid, followed: &[Range<u64>]) -> Result<Seen, TrackError> {
        let pagemap = pagemap(task)?;
        let mut seen = Seen::default();
        let mut regions: Vec<PageRegion> = Vec::new();
        for range in followed {
            regions.clear();
            let looked = pagemap.scan(range.start, range.end, &STATE, &mut regions);
            looked.map_err(|error| failed("look for written pages", task, error))?;
            for region in &regions {
                let categories = Category::from_bits_retain(region.categories);
                let is_marked = categories.contains(UNCHANGED) && !categories.contains(Category::WRITTEN);
                push(
                    if is_marked {
                        &mut seen.unchanged
                    } else {
                        &mut seen.written
                    },
                    region,
                );
            }
        }
        Ok(seen)
    }
}

/// The number that the next descriptor has, of a process that has these.
fn lowest_free(numbers: &[i32]) -> i32 {
    let taken = numbers.iter().zip(0..).take_while(|(number, place)| **number == *place);
    taken.count() as i32
}

/// A first thread that has ended shows no memory: `task` is one that lives.
fn pagemap(task: Pid) -> Result<Pagemap, TrackError> {
    Pagemap::open(task).map_err(|source| TrackError::Userfault {
        action: "open the pagemap",
        pid: task,
        source,
    })
}

fn failed(action: &'static str, pid: Pid, source: Errno) -> TrackError {
    TrackError::Userfault {
        action,
        pid,
        source: source.into(),
    }
}

/// What may be told of content: whether it is followed, marked, and there.
const STATE: Filter = Filter {
    report: UNCHANGED.union(Category::WRITTEN),
    ..ANONYMOUS_CONTENT
};
/// Without [`Category::WRITTEN`], a page that is so has its mark.
const UNCHANGED: Category = Category::FOLLOWED.union(Category::PRESENT);
/// Content that is there and has no mark. What is in swap is left without one: it counts as written all the same.
const WRITTEN: Filter = Filter {
    all: ANONYMOUS_CONTENT.all.union(Category::WRITTEN),
    any: Category::PRESENT,
    report: Category::empty(),
    ..ANONYMOUS_CONTENT
};

fn may_be_followed(mapping: &Mapping) -> bool {
    let refused = |flag: &VmFlag| NOT_FOLLOWED.contains(&flag);
    !mapping.shared && mapping.inode == 0 && !mapping.path.starts_with(b"[v") && !mapping.flags.iter().any(refused)
}

fn ranges<'a>(mappings: impl Iterator<Item = &'a Mapping>) -> Vec<Range<u64>> {
    mappings.map(|mapping| mapping.start..mapping.end).collect()
}

fn push(list: &mut Vec<Range<u64>>, region: &PageRegion) {
    match list.last_mut() {
        Some(last) if last.end == region.start => last.end = region.end,
        _ => list.push(region.start..region.end),
    }
}
