//! Stores page contents: private pages of a process, contents of shared memory and deleted files.

use super::{
    classify::CONTENT,
    content::ContentSource,
    runs::{RunList, page_at},
};
use crate::task::HeldProcess;
use floe_image::{
    ImageWriter, WriteError,
    record::{ContentOwner, NsPid, PageMapRecord, PageRun},
};
use floe_sys::{
    Pid,
    memory::{self, MAX_RANGES, MemoryFile, RemoteRange},
    pagemap::{PageRegion, Pagemap},
    procfs::Mapping,
};
use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

const PAGE: u64 = 4096;
const CHUNK_PAGES: usize = 256;
/// How many pagemap entries are compared at once.
const COMPARE_PAGES: u64 = 4096;

/// Pages that could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// The image.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The process's memory.
    #[error("read the memory of process {pid} at {address:#x}")]
    Read {
        /// Whose.
        pid: Pid,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content of a file or shared memory.
    #[error("read the content of {owner:?}")]
    Content {
        /// Whose.
        owner: ContentOwner,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Stores the private pages of a process. Pages that are the same physical ones as its `parent`'s at the same addresses
/// are not stored again.
///
/// # Errors
/// [`PagesError`].
pub fn dump_process_pages(
    held: &HeldProcess<'_>,
    parent: Option<(Pid, &PageMapRecord)>,
    writer: &mut ImageWriter,
) -> Result<PageMapRecord, PagesError> {
    let pid = held.found.pid;
    let open = |source| PagesError::Read {
        pid,
        address: 0,
        source,
    };
    let mut reader = Reader {
        pid,
        memory: MemoryFile::open(pid).map_err(open)?,
        pending: Vec::new(),
        pending_pages: 0,
        runs: RunList::default(),
        writer,
    };
    let pagemap = Pagemap::open(pid).map_err(open)?;
    let shared = match parent {
        Some((parent, map)) if !map.runs.is_empty() => Some(SharedPages {
            own: &pagemap,
            parent: Pagemap::open(parent).map_err(open)?,
            runs: &map.runs,
        }),
        _ => None,
    };
    let mut regions: Vec<PageRegion> = Vec::new();
    for mapping in held.mappings.iter().filter(|m| !m.shared && !m.path.starts_with(b"[v")) {
        regions.clear();
        pagemap
            .scan(mapping.start, mapping.end, &CONTENT, &mut regions)
            .map_err(|error| PagesError::Read {
                pid,
                address: mapping.start,
                source: error.into(),
            })?;
        for region in &regions {
            match &shared {
                Some(shared) => shared.split(region, |piece, stored| reader.piece(mapping, piece, stored))?,
                None => reader.piece(mapping, region.start..region.end, None)?,
            }
        }
    }
    reader.flush()?;
    Ok(PageMapRecord {
        owner: ContentOwner::Process(NsPid(held.found.ns_pid)),
        runs: reader.runs.into_sorted(),
    })
}

/// Finds pages that parent and child still share after fork.
struct SharedPages<'a> {
    own: &'a Pagemap,
    parent: Pagemap,
    runs: &'a [PageRun],
}

impl SharedPages<'_> {
    /// Cuts a region into pieces that are the parent's page (given with it) and pieces that are not.
    fn split(
        &self,
        region: &PageRegion,
        mut each: impl FnMut(std::ops::Range<u64>, Option<floe_image::record::PageId>) -> Result<(), PagesError>,
    ) -> Result<(), PagesError> {
        let mut at = region.start;
        while at < region.end {
            let end = region.end.min(at + COMPARE_PAGES * PAGE);
            let overlap = self.runs.partition_point(|run| run.start + run.pages * PAGE <= at);
            if self.runs.get(overlap).is_none_or(|run| run.start >= end) {
                each(at..end, None)?;
            } else {
                self.compare(at..end, &mut each)?;
            }
            at = end;
        }
        Ok(())
    }

    fn compare(
        &self,
        range: std::ops::Range<u64>,
        each: &mut impl FnMut(std::ops::Range<u64>, Option<floe_image::record::PageId>) -> Result<(), PagesError>,
    ) -> Result<(), PagesError> {
        let count = ((range.end - range.start) / PAGE) as usize;
        let owner = ContentOwner::Process(NsPid(0));
        let wrap = |source| PagesError::Content { owner, source };
        let own = self.own.entries(range.start, count).map_err(wrap)?;
        let theirs = self.parent.entries(range.start, count).map_err(wrap)?;
        let mut piece = range.start;
        let mut stored = None;
        for (index, (mine, other)) in own.iter().zip(&theirs).enumerate() {
            let address = range.start + index as u64 * PAGE;
            let same = !mine.exclusive() && mine.frame().is_some() && mine.frame() == other.frame();
            let page = if same { page_at(self.runs, address) } else { None };
            let continues = match (stored, page) {
                (None, None) => true,
                (Some(first), Some(page)) => {
                    let first: floe_image::record::PageId = first;
                    page.0 == first.0 + (address - piece) / PAGE
                }
                _ => false,
            };
            if !continues || index == 0 {
                if address > piece {
                    each(piece..address, stored)?;
                }
                piece = address;
                stored = page;
            }
        }
        each(piece..range.end, stored)
    }
}

struct Reader<'a> {
    pid: Pid,
    memory: MemoryFile,
    /// Ranges of the chunk that is being gathered, and whether they must be read in spite of their protection.
    pending: Vec<(RemoteRange, bool)>,
    pending_pages: usize,
    runs: RunList,
    writer: &'a mut ImageWriter,
}

impl Reader<'_> {
    fn piece(
        &mut self,
        mapping: &Mapping,
        range: std::ops::Range<u64>,
        stored: Option<floe_image::record::PageId>,
    ) -> Result<(), PagesError> {
        if let Some(first) = stored {
            self.runs.push(range.start, (range.end - range.start) / PAGE, first);
            return Ok(());
        }
        let unreadable = mapping.prot & libc::PROT_READ as u32 == 0;
        let mut at = range.start;
        while at < range.end {
            let room = (CHUNK_PAGES - self.pending_pages) as u64 * PAGE;
            let bytes = room.min(range.end - at) as usize;
            self.pending.push((RemoteRange { start: at, bytes }, unreadable));
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
        let mut buffer = self.writer.buffer()?;
        let bytes = self.pending_pages * PAGE as usize;
        self.read_pending(&mut buffer[..bytes])?;
        let mut next = self.writer.store(buffer, self.pending_pages)?;
        for (range, _) in self.pending.drain(..) {
            let pages = range.bytes as u64 / PAGE;
            self.runs.push(range.start, pages, next);
            next.0 += pages;
        }
        self.pending_pages = 0;
        Ok(())
    }

    fn read_pending(&self, buffer: &mut [u8]) -> Result<(), PagesError> {
        if self.pending.iter().all(|(_, unreadable)| !unreadable) {
            let ranges: Vec<RemoteRange> = self.pending.iter().map(|(range, _)| *range).collect();
            if memory::read_ranges(self.pid, &ranges, buffer) == Ok(buffer.len()) {
                return Ok(());
            }
        }
        let mut at = 0;
        for (range, _) in &self.pending {
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

/// Stores the content of shared memory or of a deleted file; holes stay holes.
///
/// # Errors
/// [`PagesError`].
pub fn dump_content(source: &ContentSource, writer: &mut ImageWriter) -> Result<PageMapRecord, PagesError> {
    let owner = source.owner;
    let wrap = |source| PagesError::Content { owner, source };
    let file = File::open(&source.link).map_err(wrap)?;
    let mut runs = RunList::default();
    let mut at = 0;
    while let Some(data) = next_data(&file, at, source.size).map_err(wrap)? {
        let mut from = data.start / PAGE * PAGE;
        let end = data.end.next_multiple_of(PAGE);
        while from < end {
            let bytes = (end - from).min((CHUNK_PAGES as u64) * PAGE) as usize;
            let mut buffer = writer.buffer()?;
            read_padded(&file, from, &mut buffer[..bytes]).map_err(wrap)?;
            let first = writer.store(buffer, bytes / PAGE as usize)?;
            runs.push(from, bytes as u64 / PAGE, first);
            from += bytes as u64;
        }
        at = end;
    }
    Ok(PageMapRecord {
        owner,
        runs: runs.into_sorted(),
    })
}

fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    use nix::unistd::{Whence, lseek};
    if at >= size {
        return Ok(None);
    }
    let start = match lseek(file.as_fd(), at as i64, Whence::SeekData) {
        Ok(start) => start,
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = lseek(file.as_fd(), start, Whence::SeekHole)?;
    Ok(Some(start as u64..(end as u64).min(size)))
}

/// Reads to the end of `buffer`; what lies behind the end of the file is zeros.
fn read_padded(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}
