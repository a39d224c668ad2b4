//! Runs of pages: which addresses hold which stored pages, and what is left to do where some are inherited.

use floe_image::record::{HUGE_PAGE, HugeRun, PageId, PageRun};
use std::ops::Range;

const PAGE: u64 = 4096;

/// What reaches from one address, or number, to another one.
pub(super) trait Span {
    fn span(&self) -> Range<u64>;
}

impl Span for Range<u64> {
    fn span(&self) -> Range<u64> {
        self.clone()
    }
}

impl Span for PageRun {
    fn span(&self) -> Range<u64> {
        self.start..self.start + self.pages * PAGE
    }
}

/// Looks for what lies somewhere in a list (lowest first, nothing overlaps), and goes on from where it was: whoever asks for places
/// in their order goes through the list once.
pub(super) struct Along<'a, S> {
    list: &'a [S],
    at: usize,
}

impl<'a, S: Span> Along<'a, S> {
    pub fn new(list: &'a [S]) -> Self {
        Self { list, at: 0 }
    }

    /// Those that end behind a place.
    pub fn from(&mut self, place: u64) -> &'a [S] {
        let is_before = |one: &S| one.span().end <= place;
        if self.at > 0 && !is_before(&self.list[self.at - 1]) {
            self.at = self.list[..self.at].partition_point(is_before);
            return &self.list[self.at..];
        }
        let mut step = 1;
        while self.list.get(self.at + step - 1).is_some_and(is_before) {
            self.at += step;
            step *= 2;
        }
        let end = self.list.len().min(self.at + step);
        self.at += self.list[self.at..end].partition_point(is_before);
        &self.list[self.at..]
    }

    /// Those of which something lies in a range.
    pub fn touching(&mut self, range: &Range<u64>) -> &'a [S] {
        let from = self.from(range.start);
        let count = from.iter().take_while(|one| one.span().start < range.end).count();
        &from[..count]
    }

    /// What of a range lies in one of the list.
    pub fn inside(&mut self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a, S> {
        let touching = self.touching(&range).iter();
        touching.map(move |one| one.span().start.max(range.start)..one.span().end.min(range.end))
    }

    /// What of a range lies in none of the list.
    pub fn gaps(&mut self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a, S> {
        let touching = self.touching(&range).iter().map(Span::span);
        let mut at = range.start;
        touching
            .chain(std::iter::once(range.end..range.end))
            .filter_map(move |one| {
                let gap = at..one.start;
                at = at.max(one.end);
                (gap.start < gap.end).then_some(gap)
            })
    }
}

/// Builds a run list out of pieces that may come in any order.
#[derive(Debug, Default)]
pub struct RunList(Vec<PageRun>);

impl RunList {
    /// Adds pages that follow each other in both places.
    pub fn push(&mut self, start: u64, pages: u64, first: PageId) {
        if let Some(last) = self.0.last_mut()
            && last.start + last.pages * PAGE == start
            && last.first.0 + last.pages == first.0
        {
            last.pages += pages;
            return;
        }
        self.0.push(PageRun { start, pages, first });
    }

    /// Adds the pages of a run between two addresses in it.
    fn push_part(&mut self, run: &PageRun, place: &Range<u64>) {
        let part = part(run, place.start, place.end);
        self.push(part.start, part.pages, part.first);
    }

    /// The runs, lowest address first, joined where they follow each other.
    #[must_use]
    pub fn into_sorted(mut self) -> Vec<PageRun> {
        if self.0.is_sorted_by_key(|run| run.start) {
            return self.0;
        }
        self.0.sort_by_key(|run| run.start);
        let mut joined = Self::default();
        for run in self.0 {
            joined.push(run.start, run.pages, run.first);
        }
        joined.0
    }
}

/// The stored page at `address`, if there is one in `runs` (sorted).
pub(super) fn page_at(runs: &[PageRun], address: u64) -> Option<PageId> {
    let index = runs.partition_point(|run| run.start <= address).checked_sub(1)?;
    let run = runs[index];
    let page = (address - run.start) / PAGE;
    (page < run.pages).then(|| PageId(run.first.0 + page))
}

/// What is to be done so that memory that holds `inherited` pages where it was kept holds `wanted` ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PageWork {
    /// Pages to write.
    pub write: Vec<PageRun>,
    /// Ranges to give back to the kernel, because the wanted memory has nothing there.
    pub drop: Vec<Range<u64>>,
}

/// Compares two run lists (both sorted) within the ranges that were `kept` (sorted); outside of them all is written.
#[must_use]
pub fn page_work(inherited: &[PageRun], wanted: &[PageRun], kept: &[Range<u64>]) -> PageWork {
    let mut write = RunList::default();
    let (mut along_kept, mut along_inherited) = (Along::new(kept), Along::new(inherited));
    for run in wanted {
        split_wanted(run, &mut along_inherited, &mut along_kept, &mut write);
    }
    let mut drop: Vec<Range<u64>> = Vec::new();
    let mut along_wanted = Along::new(wanted);
    for run in inherited {
        for piece in along_kept.inside(run.span()) {
            for gap in along_wanted.gaps(piece) {
                match drop.last_mut() {
                    Some(last) if last.end == gap.start => last.end = gap.end,
                    _ => drop.push(gap),
                }
            }
        }
    }
    PageWork {
        write: write.into_sorted(),
        drop,
    }
}

/// The runs of `wanted` that `inherited` does not have at the same addresses (both sorted).
#[must_use]
pub fn differing(inherited: &[PageRun], wanted: &[PageRun]) -> Vec<PageRun> {
    let everywhere = 0..u64::MAX;
    page_work(inherited, wanted, std::slice::from_ref(&everywhere)).write
}

/// The parts of `runs` that lie within `ranges` (both sorted).
#[must_use]
pub fn within(runs: &[PageRun], ranges: &[Range<u64>]) -> Vec<PageRun> {
    let mut inside = RunList::default();
    let mut along = Along::new(ranges);
    for run in runs {
        along.inside(run.span()).for_each(|piece| inside.push_part(run, &piece));
    }
    inside.into_sorted()
}

/// The parts of `runs` (sorted) that lie within one range.
pub(super) fn in_range(runs: &[PageRun], range: Range<u64>) -> impl Iterator<Item = PageRun> {
    let first = runs.partition_point(|run| run.start + run.pages * PAGE <= range.start);
    let touched = runs[first..].iter().take_while(move |run| run.start < range.end);
    touched.map(move |run| {
        let end = (run.start + run.pages * PAGE).min(range.end);
        part(run, run.start.max(range.start), end)
    })
}

/// The pages of a run between two addresses in it.
pub(super) fn part(run: &PageRun, from: u64, to: u64) -> PageRun {
    PageRun {
        start: from,
        pages: (to - from) / PAGE,
        first: PageId(run.first.0 + (from - run.start) / PAGE),
    }
}

/// The parts of `ranges` outside of `cut` (both sorted), joined where they touch.
pub(super) fn outside(ranges: impl Iterator<Item = Range<u64>>, cut: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut add = |part: Range<u64>| match parts.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        _ => parts.push(part),
    };
    let mut along = Along::new(cut);
    for range in ranges {
        along.gaps(range).for_each(&mut add);
    }
    parts
}

/// The parts of `runs` at whose addresses `cut` has nothing (both sorted).
#[must_use]
pub fn without(runs: &[PageRun], cut: &[PageRun]) -> Vec<PageRun> {
    let mut left = RunList::default();
    let mut along = Along::new(cut);
    for run in runs {
        along.gaps(run.span()).for_each(|gap| left.push_part(run, &gap));
    }
    left.into_sorted()
}

/// The pages of `over`, and where it has none those of `base` (both sorted).
#[must_use]
pub fn overlay(base: &[PageRun], over: &[PageRun]) -> Vec<PageRun> {
    let mut all = RunList(without(base, over));
    over.iter().for_each(|run| all.push(run.start, run.pages, run.first));
    all.into_sorted()
}

/// Parts runs (sorted) into those that fill huge pages and the rest.
#[must_use]
pub fn part_huge(runs: &[PageRun], huge: &[HugeRun]) -> (Vec<PageRun>, Vec<PageRun>) {
    const PAGES: u64 = HUGE_PAGE / PAGE;
    if huge.is_empty() {
        return (Vec::new(), runs.to_vec());
    }
    let mut along = Along::new(runs);
    let whole = huge
        .iter()
        .flat_map(|run| (0..run.count).map(|n| run.start + n * HUGE_PAGE))
        .filter(|start| along.gaps(*start..start + HUGE_PAGE).next().is_none());
    let mut areas = RunList::default();
    whole.for_each(|start| areas.push(start, PAGES, PageId(start / PAGE)));
    let rest = without(runs, &areas.into_sorted());
    (without(runs, &rest), rest)
}

fn split_wanted(
    run: &PageRun,
    inherited: &mut Along<'_, PageRun>,
    kept: &mut Along<'_, Range<u64>>,
    write: &mut RunList,
) {
    let Range { start: mut at, end } = run.span();
    while at < end {
        // The next address at which the answer may change: borders of kept ranges and of inherited runs.
        let (is_kept, kept_border) = match kept.from(at).first() {
            Some(range) if range.start <= at => (true, range.end),
            Some(range) => (false, range.start),
            None => (false, u64::MAX),
        };
        let (same, border) = match inherited.from(at).first() {
            Some(other) if other.start <= at => {
                let there = other.first.0 + (at - other.start) / PAGE;
                let here = run.first.0 + (at - run.start) / PAGE;
                (there == here, other.span().end)
            }
            Some(other) => (false, other.start),
            None => (false, u64::MAX),
        };
        let next = end.min(kept_border).min(border);
        if !(is_kept && same) {
            write.push_part(run, &(at..next));
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Along, PageWork, RunList, differing, outside, overlay, page_at, page_work, part_huge, within, without,
    };
    use floe_image::record::{HugeRun, PageId, PageRun};

    fn run(start: u64, pages: u64, first: u64) -> PageRun {
        PageRun {
            start: start * 4096,
            pages,
            first: PageId(first),
        }
    }

    #[test]
    fn joins_neighbours_in_both_places() {
        let mut list = RunList::default();
        list.push(8 * 4096, 2, PageId(2));
        list.push(4096, 1, PageId(7));
        list.push(10 * 4096, 1, PageId(4));
        assert_eq!(list.into_sorted(), [run(1, 1, 7), run(8, 3, 2)]);
        assert_eq!(page_at(&[run(8, 3, 2)], 9 * 4096), Some(PageId(3)));
        assert_eq!(page_at(&[run(8, 3, 2)], 11 * 4096), None);
    }

    #[test]
    fn writes_only_what_differs_and_drops_what_went() {
        let inherited = [run(0, 10, 0)];
        let wanted = [run(0, 4, 0), run(4, 1, 50), run(7, 5, 7)];
        let kept = 0..10 * 4096;
        let work = page_work(&inherited, &wanted, std::slice::from_ref(&kept));
        assert_eq!(work.write, [run(4, 1, 50), run(10, 2, 10)]);
        let gone = 5 * 4096..7 * 4096;
        assert_eq!(work.drop, [gone]);
    }

    #[test]
    fn goes_along_in_any_order() {
        let list = [1..3_u64, 3..4, 8..12, 20..21, 30..40, 50..60];
        let mut along = Along::new(&list);
        let parts = |all: &mut dyn Iterator<Item = std::ops::Range<u64>>| {
            all.map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert_eq!(parts(&mut along.inside(2..9)), [(2, 3), (3, 4), (8, 9)]);
        assert_eq!(parts(&mut along.gaps(35..55)), [(40, 50)]);
        assert_eq!(parts(&mut along.gaps(0..30)), [(0, 1), (4, 8), (12, 20), (21, 30)]);
        assert_eq!(parts(&mut along.gaps(3..4)), []);
        assert_eq!(parts(&mut along.gaps(2..25)), [(4, 8), (12, 20), (21, 25)]);
        assert_eq!(parts(&mut along.inside(60..70)), []);
        assert_eq!(parts(&mut along.gaps(60..70)), [(60, 70)]);
        assert_eq!(parts(&mut along.inside(0..100)).len(), list.len());
        for place in (0..70).chain((0..70).rev()) {
            let behind = list.partition_point(|one| one.end <= place);
            assert_eq!(along.from(place), &list[behind..]);
        }
    }

    #[test]
    fn nothing_kept_is_all_written() {
        let runs = [run(3, 2, 1)];
        assert_eq!(
            page_work(&runs, &runs, &[]),
            PageWork {
                write: runs.to_vec(),
                drop: vec![]
            }
        );
    }
    #[test]
    fn cuts_runs_and_ranges() {
        let runs = [run(0, 10, 5), run(20, 2, 40)];
        let (a, b, c) = (4096..3 * 4096, 9 * 4096..21 * 4096, 30 * 4096..31 * 4096);
        let ranges = [a.clone(), b.clone(), c.clone()];
        assert_eq!(within(&runs, &ranges), [run(1, 2, 6), run(9, 1, 14), run(20, 1, 40)]);
        assert_eq!(within(&runs, &[]), []);
        let (cut, left) = (2 * 4096..10 * 4096, 4096..2 * 4096);
        let rest = outside(ranges.into_iter(), std::slice::from_ref(&cut));
        assert_eq!(rest, [left, 10 * 4096..b.end, c]);
    }
    #[test]
    fn lays_runs_over_others() {
        let (base, over) = ([run(0, 10, 0), run(20, 2, 20)], [run(4, 2, 50), run(12, 1, 52)]);
        assert_eq!(without(&base, &over), [run(0, 4, 0), run(6, 4, 6), run(20, 2, 20)]);
        let both = [
            run(0, 4, 0),
            run(4, 2, 50),
            run(6, 4, 6),
            run(12, 1, 52),
            run(20, 2, 20),
        ];
        assert_eq!(overlay(&base, &over), both);
        assert_eq!(differing(&base, &both), over);
        assert_eq!(overlay(&[run(0, 4, 7)], &[run(4, 2, 11)]), [run(0, 6, 7)]);
    }
    #[test]
    fn huge_pages_are_those_that_are_filled_whole() {
        let runs = [run(0, 512, 0), run(512, 100, 900), run(1024, 700, 2000)];
        let huge = [HugeRun { start: 0, count: 3 }];
        let (large, small) = part_huge(&runs, &huge);
        assert_eq!(large, [run(0, 512, 0), run(1024, 512, 2000)]);
        assert_eq!(small, [run(512, 100, 900), run(1536, 188, 2512)]);
    }
}
