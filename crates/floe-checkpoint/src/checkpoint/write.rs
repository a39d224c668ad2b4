//! Writes the records and pages of an inspected tree.

use super::{background::Copies, following::Following, inspect::Inspected, seize::HeldTree};
use crate::{
    identity::{DrawError, draw_id},
    stage::{Control, StageError},
};
use floe_image::{
    ImageWriter, Level, Summary, WriteError, WriteOptions,
    record::{ContentOwner, IdentityRecord, ImageId, NsPid, OwnerRecord, PageMapRecord},
};
use floe_resources::mm::{self, Base, ContentError, Earlier, PagesError, PagesOf, PrivatePages, Seen, SharedPages};
use floe_sys::{Pid, procfs::Mapping};
use std::{collections::HashMap, io::Write};

/// An image that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteStageError {
    /// The container.
    #[error("write the image")]
    Write(#[from] WriteError),
    /// The pages.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// Where they are.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A copy of memory.
    #[error(
        "the copy of process {0}'s memory was ended before it was saved: by the end of its PID namespace, by SIGKILL, or for want of memory"
    )]
    Ended(i32),
    /// The image's id.
    #[error(transparent)]
    Draw(#[from] DrawError),
    /// Told to stop.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// The image that a new one is based on, and what is known of what the tree wrote since.
pub struct Since<'a> {
    base: Option<&'a Base>,
    /// By process.
    seen: HashMap<i32, Seen>,
}

impl<'a> Since<'a> {
    /// Looks for what is known.
    pub fn find(base: Option<&'a Base>, following: &Following, held: &HeldTree) -> Self {
        let seen = base.map(|base| following.seen(held, base.image().identity().id));
        Self {
            base,
            seen: seen.unwrap_or_default(),
        }
    }
}

/// An image that is being written.
pub struct Writing<'a> {
    control: &'a Control<'a>,
    id: ImageId,
    since: &'a Since<'a>,
    writer: ImageWriter,
    /// Pages so far.
    stored: u64,
    /// Bytes of all pages.
    bytes: u64,
}

impl<'a> Writing<'a> {
    /// Writes all records but page maps.
    pub fn start(
        (inspected, owner): (&Inspected, Option<&OwnerRecord>),
        sink: Box<dyn Write + Send>,
        (level, since): (&Level, &'a Since<'a>),
        control: &'a Control<'a>,
    ) -> Result<Self, WriteStageError> {
        let identity = IdentityRecord {
            id: draw_id()?,
            base: since.base.map(Base::record),
        };
        let options = WriteOptions {
            level: level.clone(),
            first_page: identity.first_page(),
            ..WriteOptions::default()
        };
        let writer = ImageWriter::start(sink, &options)?;
        let mut writing = Self {
            control,
            id: identity.id,
            since,
            writer,
            stored: 0,
            bytes: inspected.bytes,
        };
        writing.or_told_to_stop(|writing| {
            write_records(inspected, &identity, &mut writing.writer)?;
            Ok(owner.map_or(Ok(()), |owner| writing.writer.record(owner))?)
        })?;
        Ok(writing)
    }

    /// The image's id.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// A sink that gave up because floe was told to stop is no failure of the sink.
    fn or_told_to_stop<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, WriteStageError>,
    ) -> Result<T, WriteStageError> {
        write(self).or_else(|error| {
            self.control.check("pages")?;
            Err(error)
        })
    }

    /// Writes that there are no pages, for whoever looks at the records alone.
    pub fn no_pages(&mut self, inspected: &Inspected) -> Result<(), WriteStageError> {
        self.or_told_to_stop(|writing| {
            let contents = inspected.contents.sources.iter().map(|source| source.owner);
            let spaces = inspected.spaces.iter().map(|space| ContentOwner::Process(space.pid));
            for owner in contents.chain(spaces) {
                let (runs, huge) = (Vec::new(), Vec::new());
                writing.writer.record(&PageMapRecord { owner, runs, huge })?;
            }
            Ok(())
        })
    }

    /// Writes the pages of a tree that stands still, but for what `copies` have.
    pub fn pages(
        &mut self,
        held: &HeldTree,
        inspected: &Inspected,
        copies: &mut Copies,
    ) -> Result<(), WriteStageError> {
        self.or_told_to_stop(|writing| writing.write_pages(held, inspected, copies))
    }

    fn write_pages(
        &mut self,
        held: &HeldTree,
        inspected: &Inspected,
        copies: &mut Copies,
    ) -> Result<(), WriteStageError> {
        for source in &inspected.contents.sources {
            self.control.check("pages")?;
            let map = mm::dump_content(source, self.since.base, &mut self.writer)?;
            self.add(map.runs.iter().map(|run| run.pages).sum());
            self.writer.record(&map)?;
        }
        let owners = copies.owners(inspected);
        let mut shared = match owners.len() {
            1 => SharedPages::of_one(),
            _ => SharedPages::default(),
        };
        let hosts: HashMap<i32, Pid> = held.tree.living().map(|found| (found.ns_pid, found.task())).collect();
        for found in held.tree.living() {
            self.control.check("pages")?;
            if !owners.contains(&found.ns_pid) {
                // It has its parent's.
                continue;
            }
            let process = held.process(found);
            let of = PagesOf {
                pid: found.task(),
                parent: hosts.get(&found.ns_ppid).copied(),
                mappings: process.mappings,
                seen: inspected.seen.get(&found.ns_pid),
                earlier: self.earlier(found.ns_pid),
            };
            let mut pages = PrivatePages::default();
            let copy = copies.of(found.ns_pid);
            let is_left = |mapping: &Mapping| copy.is_none() || !mm::is_copied_by_fork(mapping);
            pages.store(of, is_left, &mut shared, &mut self.writer)?;
            self.add(pages.count());
            match copy {
                Some(copy) => copy.stored_before = pages,
                None => self.writer.record(&pages.into_record(NsPid(found.ns_pid)))?,
            }
        }
        Ok(())
    }

    /// Waits until all that was to be read of the tree is: it may run on.
    pub fn settle(&mut self) -> Result<(), WriteStageError> {
        self.or_told_to_stop(|writing| Ok(writing.writer.settle()?))
    }

    /// Writes what copies of memory hold.
    pub fn copied_pages(&mut self, copies: &mut Copies) -> Result<(), WriteStageError> {
        self.or_told_to_stop(|writing| {
            // Pages are looked up by where they are now, so only among copies, which keep them.
            let mut shared = match copies.all().len() {
                1 => SharedPages::of_one(),
                _ => SharedPages::by_parents_alone(),
            };
            let pids: HashMap<i32, Pid> = copies
                .all()
                .iter()
                .map(|copy| (copy.process, copy.memory.pid()))
                .collect();
            for copy in copies.all() {
                writing.control.check("pages")?;
                let seen = mm::look_at_copied_pages(copy.memory.pid(), &copy.mappings, &mut copy.space);
                seen.map_err(|error| copy.why_not(error.into()))?;
                writing.writer.record(&copy.space)?;
                let mut pages = std::mem::take(&mut copy.stored_before);
                let before = pages.count();
                let of = PagesOf {
                    pid: copy.memory.pid(),
                    parent: pids.get(&copy.parent).copied(),
                    mappings: &copy.mappings,
                    seen: None,
                    earlier: writing.earlier(copy.process),
                };
                let stored = pages.store(of, mm::is_copied_by_fork, &mut shared, &mut writing.writer);
                stored.map_err(|error| copy.why_not(error.into()))?;
                writing.add(pages.count() - before);
                writing.writer.record(&pages.into_record(NsPid(copy.process)))?;
            }
            Ok(())
        })
    }

    /// Bytes of pages so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored * 4096
    }

    /// Writes the end.
    pub fn finish(self) -> Result<Summary, WriteStageError> {
        let control = self.control;
        let finished = self.writer.finish().and_then(|(mut sink, summary)| {
            sink.flush()?;
            Ok(summary)
        });
        finished.or_else(|error| {
            control.check("pages")?;
            Err(error.into())
        })
    }

    /// What the base has of a process.
    fn earlier(&self, process: i32) -> Option<Earlier<'a>> {
        let of = |base| Earlier {
            base,
            process: NsPid(process),
            seen: self.since.seen.get(&process),
        };
        self.since.base.map(of)
    }

    fn add(&mut self, pages: u64) {
        self.stored += pages;
        self.control.observer.pages(self.stored * 4096, self.bytes);
    }
}

fn write_records(inspected: &Inspected, identity: &IdentityRecord, writer: &mut ImageWriter) -> Result<(), WriteError> {
    writer.record(&inspected.header)?;
    writer.record(&inspected.machine)?;
    writer.record(identity)?;
    writer.record(&inspected.sandbox)?;
    let mounts = &inspected.mounts;
    mounts.namespaces.iter().try_for_each(|record| writer.record(record))?;
    mounts.filesystems.iter().try_for_each(|record| writer.record(record))?;
    inspected.networks.iter().try_for_each(|record| writer.record(record))?;
    inspected
        .processes
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected.spaces.iter().try_for_each(|record| writer.record(record))?;
    inspected
        .contents
        .mapped
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .contents
        .shmems
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .contents
        .ghosts
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .files
        .files
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .files
        .objects
        .iter()
        .try_for_each(|record| writer.record(record))?;
    inspected
        .files
        .tables
        .iter()
        .try_for_each(|record| writer.record(record))
}
