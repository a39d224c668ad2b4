//! Stores private pages of processes.

use super::{
    base::Base,
    look::{SeenPages, content_of},
    pages::{CHUNK_PAGES, PagesError},
    runs::{RunList, page_at},
    sharing::{Relatives, SharedPages},
    track::Seen,
};
use floe_image::{
    FillError, ImageWriter,
    record::{ContentOwner, HUGE_PAGE, HugeRun, NsPid, PageId, PageMapRecord, PageRun},
};
use floe_sys::{
    Pid,
    memory::{self, MAX_RANGES, MemoryFile, RemoteRange},
    pagemap::{Category, Entry, PageRegion, Pagemap},
    procfs::{Mapping, VmFlag},
};
use std::{io, ops::Range, sync::Arc};

const PAGE: u64 = 4096;
/// How many pagemap entries are compared at once.
const COMPARE_PAGES: u64 = 4096;
/// So many are read at least, if there are: single pages that were written among others need no call each.
const AHEAD_PAGES: u64 = 128;

/// Where private pages are read: a process, or a copy of its memory.
#[derive(Debug, Clone, Copy)]
pub struct PagesOf<'a> {
    /// Whose memory is read, until the image is finished.
    pub pid: Pid,
    /// The likeliest to have the same pages, the same physical ones: its parent.
    pub parent: Option<Pid>,
    /// The process's mappings.
    pub mappings: &'a [Mapping],
    /// Where they are, if that is known already, and the process stands still since.
    pub seen: Option<&'a SeenPages>,
    /// What an earlier image has of them, on which the new one is based.
    pub earlier: Option<Earlier<'a>>,
}

/// What an earlier image has of a process's pages.
#[derive(Debug, Clone, Copy)]
pub struct Earlier<'a> {
    /// The image.
    pub base: &'a Base,
    /// The process.
    pub process: NsPid,
    /// What is known of what it wrote since, where that was followed.
    pub seen: Option<&'a Seen>,
}

/// What is stored of a process's private pages so far.
#[derive(Debug, Default)]
pub struct PrivatePages {
    runs: Vec<PageRun>,
    huge: Vec<HugeRun>,
}

impl PrivatePages {
    /// How many pages these are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }

    /// What the image says of them.
    #[must_use]
    pub fn into_record(mut self, process: NsPid) -> PageMapRecord {
        let mut runs = RunList::default();
        self.runs
            .iter()
            .for_each(|run| runs.push(run.start, run.pages, run.first));
        self.huge.sort_by_key(|run| run.start);
        PageMapRecord {
            owner: ContentOwner::Process(process),
            runs: runs.into_sorted(),
            huge: self.huge,
        }
    }

    /// Stores the pages of those private mappings that are `wanted`. Pages that one of `shared` has too, the same physical
    /// ones, are not stored again.
    ///
    /// # Errors
    /// [`PagesError`].
    pub fn store(
        &mut self,
        of: PagesOf<'_>,
        wanted: impl Fn(&Mapping) -> bool,
        shared: &mut SharedPages,
        writer: &mut ImageWriter,
    ) -> Result<(), PagesError> {
        let pid = of.pid;
        let unread = |address, source| PagesError::Read { pid, address, source };
        let mut gather = Gather {
            pid,
            memory: Arc::new(MemoryFile::open(pid).map_err(|source| unread(0, source))?),
            pending: Vec::new(),
            pending_pages: 0,
            runs: RunList::default(),
            writer,
        };
        let pagemap = Pagemap::open(pid).map_err(|source| unread(0, source))?;
        let mut found: Vec<(&Mapping, PageRegion)> = Vec::new();
        let mut regions: Vec<PageRegion> = Vec::new();
        let has_pages = |mapping: &&Mapping| !mapping.shared && !mapping.path.starts_with(b"[v") && wanted(mapping);
        for mapping in of.mappings.iter().filter(has_pages) {
            if let Some(seen) = of.seen.and_then(|seen| seen.of(mapping)) {
                found.extend(seen.iter().map(|region| (mapping, *region)));
                continue;
            }
            pagemap
                .scan(mapping.start, mapping.end, &content_of(mapping), &mut regions)
                .map_err(|error| unread(mapping.start, error.into()))?;
            found.extend(regions.drain(..).map(|region| (mapping, region)));
        }
        let mut sharing = Sharing {
            own: &pagemap,
            read: (0, Vec::new()),
            relatives: shared.relatives(of.parent),
            noted: Vec::new(),
            unchanged: of.unchanged(&found, &gather.memory)?,
        };
        for (mapping, region) in &found {
            if region.categories & Category::HUGE.bits() != 0 {
                add_huge(&mut self.huge, region.start..region.end);
            }
            let mut at = region.start;
            while at < region.end {
                let mut end = region.end.min(at + COMPARE_PAGES * PAGE);
                if !sharing.relatives.may_be() {
                    // Then nothing else is to be known of what is in the base.
                    match sharing.unchanged_from(at) {
                        Some(run) if run.start <= at => {
                            end = region.end.min(run.start + run.pages * PAGE);
                            let first = PageId(run.first.0 + (at - run.start) / PAGE);
                            gather.piece(mapping, at..end, How::Stored(first))?;
                            at = end;
                            continue;
                        }
                        next => end = next.map_or(end, |run| end.min(run.start)),
                    }
                }
                let pieces = sharing
                    .split(at..end, region.end)
                    .map_err(|source| unread(at, source))?;
                for (range, how) in pieces {
                    gather.piece(mapping, range, how)?;
                }
                at = end;
            }
        }
        gather.flush()?;
        let noted = sharing.noted;
        let runs = gather.runs.into_sorted();
        shared.add(pid, &runs, noted);
        self.runs.extend(runs);
        Ok(())
    }
}

impl PagesOf<'_> {
    /// Those of the pages found that are as in the earlier image.
    fn unchanged(&self, found: &[(&Mapping, PageRegion)], memory: &MemoryFile) -> Result<Vec<PageRun>, PagesError> {
        let Some(earlier) = &self.earlier else {
            return Ok(Vec::new());
        };
        let mut content: Vec<Range<u64>> = Vec::new();
        for (_, region) in found {
            match content.last_mut() {
                Some(last) if last.end == region.start => last.end = region.end,
                _ => content.push(region.start..region.end),
            }
        }
        let owner = ContentOwner::Process(earlier.process);
        // Through the file, which pins no page: see [`How::Shared`].
        let read = |address: u64, buffer: &mut [u8]| memory.read(address, buffer);
        Ok(earlier.base.unchanged(owner, &content, earlier.seen, &read)?)
    }
}

/// Mappings that a child does not get by fork as they are: left out (MADV_DONTFORK) or emptied (MADV_WIPEONFORK).
const NOT_COPIED: [&VmFlag; 2] = [b"dc", b"wf"];

/// Whether a child has a private mapping with all its pages by fork.
#[must_use]
pub fn is_copied_by_fork(mapping: &Mapping) -> bool {
    !mapping.flags.iter().any(|flag| NOT_COPIED.contains(&flag))
}

fn add_huge(huge: &mut Vec<HugeRun>, range: Range<u64>) {
    let (start, end) = (
        range.start.next_multiple_of(HUGE_PAGE),
        range.end / HUGE_PAGE * HUGE_PAGE,
    );
    if start >= end {
        return;
    }
    let count = (end - start) / HUGE_PAGE;
    match huge.last_mut() {
        Some(last) if last.start + last.count * HUGE_PAGE == start => last.count += count,
        _ => huge.push(HugeRun { start, count }),
    }
}

/// How a page is come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// A relative has the same page, or the base does, and it is stored.
    Stored(PageId),
    /// Other address spaces have it too. process_vm_readv pins pages, and before the kernel pins a page that is shared
    /// copy-on-write it makes a copy: relatives that still share after fork would not after a checkpoint. A read of
    /// /proc/PID/mem pins nothing.
    Shared,
    /// This address space alone has it.
    Exclusive,
}

impl How {
    /// Whether a page `distance` pages further on continues what begins with this one.
    fn continues(self, other: Self, distance: u64) -> bool {
        match (self, other) {
            (Self::Stored(first), Self::Stored(page)) => page.0 == first.0 + distance,
            _ => self == other,
        }
    }
}

/// Tells which pages a process shares, and which of them are stored already.
struct Sharing<'a> {
    own: &'a Pagemap,
    /// Entries that were read of it last, from this address on.
    read: (u64, Vec<Entry>),
    relatives: Relatives<'a>,
    /// Frames and addresses of shared pages that this process is the first to have.
    noted: Vec<(u64, u64)>,
    /// Pages that are as in the base.
    unchanged: Vec<PageRun>,
}

impl Sharing<'_> {
    /// The pages that are as in the base, from those at an address on.
    fn unchanged_from(&self, address: u64) -> Option<PageRun> {
        let behind = self
            .unchanged
            .partition_point(|run| run.start + run.pages * PAGE <= address);
        self.unchanged.get(behind).copied()
    }

    /// Has the entries of a range read, and with them those of what lies behind it, up to `limit`. Returns where they are.
    fn read(&mut self, range: &Range<u64>, limit: u64) -> io::Result<Range<usize>> {
        let (start, entries) = &mut self.read;
        if range.start < *start || *start + entries.len() as u64 * PAGE < range.end {
            let end = limit.min(range.start + AHEAD_PAGES * PAGE).max(range.end);
            *entries = self.own.entries(range.start, ((end - range.start) / PAGE) as usize)?;
            *start = range.start;
        }
        let index = |address: u64| ((address - *start) / PAGE) as usize;
        Ok(index(range.start)..index(range.end))
    }

    /// Cuts a range into pieces that are come by in one way; more is looked at up to `limit`.
    fn split(&mut self, range: Range<u64>, limit: u64) -> io::Result<Vec<(Range<u64>, How)>> {
        let read = self.read(&range, limit)?;
        let own = &self.read.1[read];
        let mut block = self.relatives.block(range.clone())?;
        let mut pieces: Vec<(Range<u64>, How)> = Vec::new();
        for (index, mine) in own.iter().enumerate() {
            let address = range.start + index as u64 * PAGE;
            let in_base = page_at(&self.unchanged, address).map(How::Stored);
            let how = match mine.frame() {
                _ if mine.exclusive() => in_base.unwrap_or(How::Exclusive),
                Some(frame) => match self.relatives.find(&mut block, address, frame)? {
                    Some(page) => How::Stored(page),
                    None => {
                        if self.relatives.notes() {
                            self.noted.push((frame, address));
                        }
                        in_base.unwrap_or(How::Shared)
                    }
                },
                None => in_base.unwrap_or(How::Shared),
            };
            match pieces.last_mut() {
                Some((piece, first)) if first.continues(how, (address - piece.start) / PAGE) => {
                    piece.end = address + PAGE;
                }
                _ => pieces.push((address..address + PAGE, how)),
            }
        }
        Ok(pieces)
    }
}

/// Puts pages together until they make a chunk.
struct Gather<'a> {
    pid: Pid,
    memory: Arc<MemoryFile>,
    /// Ranges of the chunk that is being gathered, and whether they must be read through /proc/PID/mem.
    pending: Vec<(RemoteRange, bool)>,
    pending_pages: usize,
    runs: RunList,
    writer: &'a mut ImageWriter,
}

impl Gather<'_> {
    fn piece(&mut self, mapping: &Mapping, range: Range<u64>, how: How) -> Result<(), PagesError> {
        if let How::Stored(first) = how {
            self.runs.push(range.start, (range.end - range.start) / PAGE, first);
            return Ok(());
        }
        let by_file = how == How::Shared || mapping.prot & libc::PROT_READ as u32 == 0;
        let mut at = range.start;
        while at < range.end {
            let room = (CHUNK_PAGES - self.pending_pages) as u64 * PAGE;
            let bytes = room.min(range.end - at) as usize;
            self.pending.push((RemoteRange { start: at, bytes }, by_file));
            self.pending_pages += bytes / PAGE as usize;
            at += bytes as u64;
            if self.pending_pages == CHUNK_PAGES || self.pending.len() == MAX_RANGES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PagesError> {
        if self.pending_pages == 0 {
            return Ok(());
        }
        let chunk = Chunk {
            pid: self.pid,
            memory: Arc::clone(&self.memory),
            ranges: self.pending.clone(),
        };
        let read = move |buffer: &mut [u8]| chunk.read(buffer).map_err(FillError::from);
        let mut next = self.writer.store(self.pending_pages, read)?;
        for (range, _) in self.pending.drain(..) {
            let pages = range.bytes as u64 / PAGE;
            self.runs.push(range.start, pages, next);
            next.0 += pages;
        }
        self.pending_pages = 0;
        Ok(())
    }
}

/// What a chunk is read from.
struct Chunk {
    pid: Pid,
    memory: Arc<MemoryFile>,
    /// Ranges, and whether they must be read through /proc/PID/mem.
    ranges: Vec<(RemoteRange, bool)>,
}

impl Chunk {
    fn read(&self, buffer: &mut [u8]) -> Result<(), PagesError> {
        let mut at = 0;
        for group in self.ranges.chunk_by(|(_, one), (_, other)| one == other) {
            let bytes: usize = group.iter().map(|(range, _)| range.bytes).sum();
            self.read_group(group, &mut buffer[at..at + bytes])?;
            at += bytes;
        }
        Ok(())
    }

    /// Reads ranges that are to be read in one way.
    fn read_group(&self, group: &[(RemoteRange, bool)], buffer: &mut [u8]) -> Result<(), PagesError> {
        if group.first().is_some_and(|(_, by_file)| !by_file) {
            let ranges: Vec<RemoteRange> = group.iter().map(|(range, _)| *range).collect();
            if memory::read_ranges(self.pid, &ranges, buffer) == Ok(buffer.len()) {
                return Ok(());
            }
        }
        let mut at = 0;
        for (range, _) in group {
            self.memory
                .read(range.start, &mut buffer[at..at + range.bytes])
                .map_err(|source| PagesError::Read {
                    pid: self.pid,
                    address: range.start,
                    source,
                })?;
            at += range.bytes;
        }
        Ok(())
    }
}

/// Whether who writes a private mapping that a child has too may find no page for it: one of hugetlbfs.
#[must_use]
pub fn may_not_be_shared(mapping: &Mapping) -> bool {
    !mapping.shared && mapping.flags.contains(b"ht")
}
