//! One image out of a chain: all its records, and those pages that they refer to, from whichever file they are in.
//!
//! Pages get new numbers, in the order of the old ones. Every chunk of the chain is read at most once, by the threads that
//! compress the new ones.

use crate::{
    checkpoint::{Output, OutputError},
    identity::{DrawError, draw_id},
    stage::{Control, StageError},
};
use floe_image::{
    ChunkScratch, FillError, Image, ImageWriter, ReadError, Summary, WriteError, WriteOptions,
    chunk::{CHUNK_PAGES, PAGE_BYTES},
    record::{IdentityRecord, PageId, PageMapRecord, PageRun, RecordKind},
};
use std::{io::Write, ops::Range, sync::Arc};

/// The names of the stages, in order.
pub const STAGES: [&str; 4] = ["open-output", "pages", "commit", "end"];

/// A chain that could not be made one image.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Reading it.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Writing it.
    #[error("write the image")]
    Write(#[from] WriteError),
    /// The output file.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The id.
    #[error(transparent)]
    Draw(#[from] DrawError),
    /// Interrupted, or made to fail.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Writes an image with all pages that it takes from its bases, so that it is based on none.
///
/// # Errors
/// [`MergeError`]; nothing is written then.
pub fn merge(image: Image, output: Output, level: i32, control: &Control<'_>) -> Result<Summary, MergeError> {
    control.enter("open-output")?;
    let file = output.open()?;
    let sink = file.sink(control.interrupted)?;
    control.enter("pages")?;
    let written = write(&Arc::new(image), sink, level, control);
    // A sink that gave up because floe was told to stop is no failure of the sink.
    let summary = written.or_else(|error| control.check("pages").map_err(MergeError::from).and(Err(error)))?;
    control.enter("commit")?;
    file.sync()?;
    control.enter("end")?;
    file.publish()?;
    Ok(summary)
}

fn write(
    image: &Arc<Image>,
    sink: Box<dyn Write + Send>,
    level: i32,
    control: &Control<'_>,
) -> Result<Summary, MergeError> {
    let options = WriteOptions {
        level: level.into(),
        ..WriteOptions::default()
    };
    let mut writer = ImageWriter::start(sink, &options)?;
    for (position, entry) in image.entries().iter().enumerate() {
        match entry.kind {
            RecordKind::Identity | RecordKind::PageMap => {}
            _ => writer.copy(entry, image.body(position)?)?,
        }
    }
    writer.record(&IdentityRecord {
        id: draw_id()?,
        base: None,
    })?;
    let wanted = Wanted::of(image.page_maps());
    let total = wanted.count() * PAGE_BYTES as u64;
    for chunk in wanted.chunks(image) {
        control.check("pages")?;
        let pages = count(&chunk);
        let from = Arc::clone(image);
        let fill = move |buffer: &mut [u8]| copy(&from, &chunk, buffer);
        let first = writer.store(pages as usize, fill)?;
        control.observer.pages((first.0 + pages) * PAGE_BYTES as u64, total);
    }
    for map in image.page_maps() {
        let runs = map.runs.iter().map(|run| wanted.renumbered(run)).collect();
        let (owner, huge) = (map.owner, map.huge.clone());
        writer.record(&PageMapRecord { owner, runs, huge })?;
    }
    let (mut sink, summary) = writer.finish()?;
    sink.flush().map_err(WriteError::from)?;
    Ok(summary)
}

/// Puts pages of an image, whose numbers ascend, one behind the other.
fn copy(image: &Image, pages: &[Range<u64>], buffer: &mut [u8]) -> Result<(), FillError> {
    let mut scratch = ChunkScratch::default();
    let mut rest = buffer;
    for range in pages {
        let mut at = range.start;
        while at < range.end {
            let chunk = image
                .chunk_of(PageId(at))
                .ok_or("the image lacks a page that it refers to")?;
            let chunk = &image.chunks()[chunk];
            let bytes = image.read_chunk(chunk, &mut scratch)?;
            let (from, to) = (at - chunk.first.0, range.end.min(chunk.end()) - chunk.first.0);
            let found = &bytes[from as usize * PAGE_BYTES..to as usize * PAGE_BYTES];
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(found.len());
            place.copy_from_slice(found);
            rest = behind;
            at = chunk.first.0 + to;
        }
    }
    Ok(())
}

/// The pages that are referred to, and their new numbers.
struct Wanted {
    /// Old numbers, sorted, none twice.
    ranges: Vec<Range<u64>>,
    /// The new number of each range's first page.
    first: Vec<u64>,
}

impl Wanted {
    fn of(maps: &[PageMapRecord]) -> Self {
        let runs = maps.iter().flat_map(|map| &map.runs);
        let mut all: Vec<Range<u64>> = runs.map(|run| run.first.0..run.first.0 + run.pages).collect();
        all.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in all {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        let mut next = 0;
        let number = |range: &Range<u64>| {
            let first = next;
            next += range.end - range.start;
            first
        };
        let first = ranges.iter().map(number).collect();
        Self { ranges, first }
    }

    fn count(&self) -> u64 {
        count(&self.ranges)
    }

    /// The run with the new number. A run lies in one of the ranges.
    fn renumbered(&self, run: &PageRun) -> PageRun {
        let index = self.ranges.partition_point(|range| range.start <= run.first.0) - 1;
        let first = PageId(self.first[index] + (run.first.0 - self.ranges[index].start));
        PageRun { first, ..*run }
    }

    /// What goes together into one chunk: no page of a chunk of the image apart from its others.
    fn chunks(&self, image: &Image) -> Vec<Vec<Range<u64>>> {
        let mut all: Vec<Vec<Range<u64>>> = Vec::new();
        let mut room = 0;
        let mut next = 0;
        for chunk in image.chunks() {
            let mut found: Vec<Range<u64>> = Vec::new();
            while let Some(range) = self.ranges.get(next).filter(|range| range.start < chunk.end()) {
                let piece = range.start.max(chunk.first.0)..range.end.min(chunk.end());
                found.extend((!piece.is_empty()).then_some(piece));
                if range.end > chunk.end() {
                    break;
                }
                next += 1;
            }
            let pages = count(&found);
            match all.last_mut().filter(|_| pages <= room) {
                Some(last) => {
                    last.append(&mut found);
                    room -= pages;
                }
                None if pages > 0 => {
                    all.push(found);
                    room = CHUNK_PAGES as u64 - pages;
                }
                None => {}
            }
        }
        all
    }
}

fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use super::Wanted;
    use floe_image::record::{ContentOwner, NsPid, PageId, PageMapRecord, PageRun};

    fn map(pid: i32, runs: &[(u64, u64)]) -> PageMapRecord {
        let run = |(first, pages): &(u64, u64)| PageRun {
            start: 0,
            pages: *pages,
            first: PageId(*first),
        };
        PageMapRecord {
            owner: ContentOwner::Process(NsPid(pid)),
            runs: runs.iter().map(run).collect(),
            huge: Vec::new(),
        }
    }

    #[test]
    fn pages_keep_their_order_and_are_there_once() {
        let wanted = Wanted::of(&[map(1, &[(10, 5), (40, 2)]), map(2, &[(12, 6), (3, 1)])]);
        assert_eq!(wanted.ranges, [3..4, 10..18, 40..42]);
        assert_eq!((wanted.count(), wanted.first.as_slice()), (11, &[0, 1, 9][..]));
        let new = |first| {
            let run = PageRun {
                start: 7,
                pages: 1,
                first: PageId(first),
            };
            wanted.renumbered(&run).first.0
        };
        assert_eq!((new(3), new(10), new(17), new(41)), (0, 1, 8, 10));
    }
}
