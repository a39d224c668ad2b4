//! Stores contents of shared memory and deleted files.

use super::{
    base::Base,
    content::{ContentPlace, ContentSource, MappedPart},
    fill::FillError,
    runs::{RunList, outside},
};
use floe_image::{
    ImageWriter, WriteError,
    record::{ContentOwner, PageMapRecord},
};
use floe_sys::{
    Pid,
    memory::{HUGETLBFS, MemoryFile},
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
pub(super) const CHUNK_PAGES: usize = 256;

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
    /// The image that the new one is based on.
    #[error("compare with the image that the new one is based on")]
    Base(#[from] FillError),
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

/// Stores the content of shared memory or of a deleted file, which is read until the image is finished; holes stay holes,
/// and what is as in the base is not stored.
///
/// # Errors
/// [`PagesError`].
pub fn dump_content(
    source: &ContentSource,
    base: Option<&Base>,
    writer: &mut ImageWriter,
) -> Result<PageMapRecord, PagesError> {
    let owner = source.owner;
    let wrap = move |source| PagesError::Content { owner, source };
    let link = match &source.place {
        ContentPlace::Link(link) => link,
        ContentPlace::Memory(parts) => return dump_mapped(owner, parts, writer),
    };
    let file = Arc::new(File::open(link).map_err(wrap)?);
    let filesystem = fstatfs(&file).map_err(|error| wrap(error.into()))?;
    let hides_holes = filesystem.filesystem_type().0 == HUGETLBFS;
    let mut content: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(&file, at, source.size).map_err(wrap)? {
        let (start, end) = (data.start / PAGE * PAGE, data.end.next_multiple_of(PAGE));
        content.push(start..end);
        at = end;
    }
    let read = |offset: u64, buffer: &mut [u8]| read_padded(&file, offset, buffer);
    let unchanged = match base {
        Some(base) => base.unchanged(owner, &content, None, &read)?,
        None => Vec::new(),
    };
    let same: Vec<Range<u64>> = unchanged
        .iter()
        .map(|run| run.start..run.start + run.pages * PAGE)
        .collect();
    let mut runs = RunList::default();
    unchanged
        .iter()
        .for_each(|run| runs.push(run.start, run.pages, run.first));
    let mut gather = Gather {
        file: Arc::clone(&file),
        owner,
        pending: Vec::new(),
        pending_pages: 0,
        runs,
        writer,
    };
    for data in outside(content.into_iter(), &same) {
        let mut from = data.start;
        while from < data.end {
            let bytes = (data.end - from).min((CHUNK_PAGES as u64) * PAGE) as usize;
            if !(hides_holes && is_empty(&file, from, bytes).map_err(wrap)?) {
                gather.piece(from, bytes)?;
            }
            from += bytes as u64;
        }
    }
    gather.flush()?;
    Ok(PageMapRecord {
        owner,
        runs: gather.runs.into_sorted(),
        huge: Vec::new(),
    })
}

/// Puts pages of a file together until they make a chunk.
struct Gather<'a> {
    file: Arc<File>,
    owner: ContentOwner,
    /// Offsets and bytes.
    pending: Vec<(u64, usize)>,
    pending_pages: usize,
    runs: RunList,
    writer: &'a mut ImageWriter,
}

impl Gather<'_> {
    fn piece(&mut self, mut from: u64, mut bytes: usize) -> Result<(), PagesError> {
        while bytes > 0 {
            let some = bytes.min((CHUNK_PAGES - self.pending_pages) * PAGE as usize);
            self.pending.push((from, some));
            self.pending_pages += some / PAGE as usize;
            if self.pending_pages == CHUNK_PAGES {
                self.flush()?;
            }
            from += some as u64;
            bytes -= some;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PagesError> {
        if self.pending_pages == 0 {
            return Ok(());
        }
        let (file, owner, pieces) = (Arc::clone(&self.file), self.owner, self.pending.clone());
        let read = move |mut buffer: &mut [u8]| {
            for (from, bytes) in pieces {
                let (piece, rest) = buffer.split_at_mut(bytes);
                read_padded(&file, from, piece).map_err(|source| PagesError::Content { owner, source })?;
                buffer = rest;
            }
            Ok(())
        };
        let mut next = self.writer.store(self.pending_pages, read)?;
        for (from, bytes) in self.pending.drain(..) {
            let pages = bytes as u64 / PAGE;
            self.runs.push(from, pages, next);
            next.0 += pages;
        }
        self.pending_pages = 0;
        Ok(())
    }
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
