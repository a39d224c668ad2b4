//! Stores page contents: private pages of a process, contents of shared memory and deleted files.

use super::{
    classify::CONTENT,
    content::{ContentPlace, ContentSource, MappedPart},
    runs::RunList,
    sharing::{Relatives, SharedPages},
};
use crate::task::HeldProcess;
use floe_image::{
    FillError, ImageWriter, WriteError,
    record::{ContentOwner, HUGE_PAGE, HugeRun, NsPid, PageId, PageMapRecord},
};
use floe_sys::{
    Pid,
    memory::{self, HUGETLBFS, MAX_RANGES, MemoryFile, RemoteRange},
    pagemap::{Category, Filter, PageRegion, Pagemap},
    procfs::Mapping,
};
use nix::sys::statfs::fstatfs;
use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Arc,
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

/// Stores the private pages of a process, which are read until the image is finished. Pages that a process before has
/// too, the same physical ones, are not stored again; `parent` is the likeliest to have them.
///
/// # Errors
/// [`PagesError`].
pub fn dump_process_pages(
    held: &HeldProcess<'_>,
    parent: Option<Pid>,
    shared: &mut SharedPages,
    writer: &mut ImageWriter,
) -> Result<PageMapRecord, PagesError> {
    let pid = held.found.task();
    let open = |source| PagesError::Read {
        pid,
        address: 0,
        source,
    };
    let mut gather = Gather {
        pid,
        memory: Arc::new(MemoryFile::open(pid).map_err(open)?),
        pending: Vec::new(),
        pending_pages: 0,
        runs: RunList::default(),
        writer,
    };
    let pagemap = Pagemap::open(pid).map_err(open)?;
    let mut sharing = Sharing {
        own: &pagemap,
        relatives: shared.relatives(parent),
        noted: Vec::new(),
    };
    let mut huge: Vec<HugeRun> = Vec::new();
    let mut regions: Vec<PageRegion> = Vec::new();
    for mapping in held.mappings.iter().filter(|m| !m.shared && !m.path.starts_with(b"[v")) {
        regions.clear();
        let wrap = |source| PagesError::Read {
            pid,
            address: mapping.start,
            source,
        };
        pagemap
            .scan(mapping.start, mapping.end, &CONTENT_AND_SIZE, &mut regions)
            .map_err(|error| wrap(error.into()))?;
        for region in &regions {
            if region.categories & Category::HUGE.bits() != 0 {
                add_huge(&mut huge, region.start..region.end);
            }
            let mut at = region.start;
            while at < region.end {
                let end = region.end.min(at + COMPARE_PAGES * PAGE);
                for (range, how) in sharing.split(at..end).map_err(wrap)? {
                    gather.piece(mapping, range, how)?;
                }
                at = end;
            }
        }
    }
    gather.flush()?;
    let noted = sharing.noted;
    let runs = gather.runs.into_sorted();
    shared.add(pid, &runs, noted);
    Ok(PageMapRecord {
        owner: ContentOwner::Process(NsPid(held.found.ns_pid)),
        runs,
        huge,
    })
}

/// As [`CONTENT`], and tells huge pages from others.
const CONTENT_AND_SIZE: Filter = Filter {
    report: Category::HUGE,
    ..CONTENT
};

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
    /// A relative has the same page, and it is stored.
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
    relatives: Relatives<'a>,
    /// Frames and addresses of shared pages that this process is the first to have.
    noted: Vec<(u64, u64)>,
}

impl Sharing<'_> {
    /// Cuts a range into pieces that are come by in one way.
    fn split(&mut self, range: Range<u64>) -> io::Result<Vec<(Range<u64>, How)>> {
        let count = ((range.end - range.start) / PAGE) as usize;
        let own = self.own.entries(range.start, count)?;
        let mut block = self.relatives.block(range.clone())?;
        let mut pieces: Vec<(Range<u64>, How)> = Vec::new();
        for (index, mine) in own.iter().enumerate() {
            let address = range.start + index as u64 * PAGE;
            let how = match mine.frame() {
                _ if mine.exclusive() => How::Exclusive,
                Some(frame) => match self.relatives.find(&mut block, address, frame)? {
                    Some(page) => How::Stored(page),
                    None => {
                        self.noted.push((frame, address));
                        How::Shared
                    }
                },
                None => How::Shared,
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

/// Stores the content of shared memory or of a deleted file, which is read until the image is finished; holes stay holes.
///
/// # Errors
/// [`PagesError`].
pub fn dump_content(source: &ContentSource, writer: &mut ImageWriter) -> Result<PageMapRecord, PagesError> {
    let owner = source.owner;
    let wrap = move |source| PagesError::Content { owner, source };
    let link = match &source.place {
        ContentPlace::Link(link) => link,
        ContentPlace::Memory(parts) => return dump_mapped(owner, parts, writer),
    };
    let file = Arc::new(File::open(link).map_err(wrap)?);
    let filesystem = fstatfs(&file).map_err(|error| wrap(error.into()))?;
    let hides_holes = filesystem.filesystem_type().0 == HUGETLBFS;
    let mut runs = RunList::default();
    let mut at = 0;
    while let Some(data) = next_data(&file, at, source.size).map_err(wrap)? {
        let mut from = data.start / PAGE * PAGE;
        let end = data.end.next_multiple_of(PAGE);
        while from < end {
            let bytes = (end - from).min((CHUNK_PAGES as u64) * PAGE) as usize;
            if hides_holes && is_empty(&file, from, bytes).map_err(wrap)? {
                from += bytes as u64;
                continue;
            }
            let (file, at) = (Arc::clone(&file), from);
            let read = move |buffer: &mut [u8]| read_padded(&file, at, buffer).map_err(|error| wrap(error).into());
            let first = writer.store(bytes / PAGE as usize, read)?;
            runs.push(from, bytes as u64 / PAGE, first);
            from += bytes as u64;
        }
        at = end;
    }
    Ok(PageMapRecord {
        owner,
        runs: runs.into_sorted(),
        huge: Vec::new(),
    })
}

/// Stores shared memory that is read where it is mapped; what is all zero is left out.
fn dump_mapped(
    owner: ContentOwner,
    parts: &[MappedPart],
    writer: &mut ImageWriter,
) -> Result<PageMapRecord, PagesError> {
    let wrap = move |source| PagesError::Content { owner, source };
    let mut parts: Vec<&MappedPart> = parts.iter().collect();
    parts.sort_by_key(|part| part.range.start);
    let mut runs = RunList::default();
    let mut stored = 0;
    for part in parts {
        let memory = Arc::new(MemoryFile::open(part.pid).map_err(wrap)?);
        let mut from = part.range.start.max(stored);
        while from < part.range.end {
            let bytes = (part.range.end - from).min((CHUNK_PAGES as u64) * PAGE);
            let address = part.address + (from - part.range.start);
            let mut content = vec![0; bytes as usize];
            memory.read(address, &mut content).map_err(wrap)?;
            if content.iter().any(|byte| *byte != 0) {
                let read = move |buffer: &mut [u8]| {
                    buffer.copy_from_slice(&content);
                    Ok(())
                };
                let first = writer.store((bytes / PAGE) as usize, read)?;
                runs.push(from, bytes / PAGE, first);
            }
            from += bytes;
        }
        stored = stored.max(part.range.end);
    }
    Ok(PageMapRecord {
        owner,
        runs: runs.into_sorted(),
        huge: Vec::new(),
    })
}

fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<Range<u64>>> {
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

/// Whether these bytes of a file are all zero. hugetlbfs does not tell where its holes are, and a page of it is dear.
fn is_empty(file: &File, at: u64, bytes: usize) -> io::Result<bool> {
    let mut buffer = vec![0; bytes];
    read_padded(file, at, &mut buffer)?;
    Ok(buffer.iter().all(|byte| *byte == 0))
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
