//! What is still to come in one address space, and where, as its owner moves and drops it. Pure.

use floe_image::record::{PageId, PageRun};
use std::{collections::BTreeMap, ops::Range};

const PAGE: u64 = 4096;

/// Pages that have not come yet. No page stands at two addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// By address: pages, the first one's number.
    by_address: BTreeMap<u64, (u64, u64)>,
    /// By the number of the first page: pages, address.
    by_page: BTreeMap<u64, (u64, u64)>,
}

impl Layout {
    /// All of these, which don't overlap.
    #[must_use]
    pub fn new(runs: &[PageRun]) -> Self {
        // Made of all at once, for which nobody looks through the tree for each.
        let by_address = runs.iter().map(|run| (run.start, (run.pages, run.first.0)));
        let by_page = runs.iter().map(|run| (run.first.0, (run.pages, run.start)));
        Self {
            by_address: by_address.collect(),
            by_page: by_page.collect(),
        }
    }

    /// Whether all have come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// The runs, lowest address first.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> {
        self.by_address.iter().map(|(start, (pages, first))| PageRun {
            start: *start,
            pages: *pages,
            first: PageId(*first),
        })
    }

    /// The page that is to come to an address.
    #[must_use]
    pub fn page_at(&self, address: u64) -> Option<PageId> {
        let (start, (pages, first)) = self.by_address.range(..=address).next_back()?;
        let page = (address - start) / PAGE;
        (page < *pages).then(|| PageId(first + page))
    }

    /// Where pages of a range of numbers are to come, lowest number first.
    #[must_use]
    pub fn places(&self, pages: &Range<u64>) -> Vec<PageRun> {
        let mut found = Vec::new();
        let before = self.by_page.range(..pages.start).next_back();
        for (first, (count, start)) in before.into_iter().chain(self.by_page.range(pages.clone())) {
            let (from, to) = ((*first).max(pages.start), (first + count).min(pages.end));
            if from < to {
                found.push(PageRun {
                    start: start + (from - first) * PAGE,
                    pages: to - from,
                    first: PageId(from),
                });
            }
        }
        found
    }

    /// Whether something is to come to a range.
    #[must_use]
    pub fn is_wanted(&self, range: &Range<u64>) -> bool {
        !self.touched(range).is_empty()
    }

    /// These have come.
    pub fn came(&mut self, run: &PageRun) {
        let pages = run.first.0..run.first.0 + run.pages;
        for place in self.places(&pages) {
            self.take(&(place.start..place.start + place.pages * PAGE));
        }
    }

    /// Nothing is to come to a range any more.
    pub fn drop_range(&mut self, range: &Range<u64>) {
        self.take(range);
    }

    /// What was to come to a range comes elsewhere; what was to come there does not.
    pub fn move_range(&mut self, from: u64, to: u64, bytes: u64) {
        let moved = self.take(&(from..from.saturating_add(bytes)));
        self.take(&(to..to.saturating_add(bytes)));
        for run in moved {
            self.insert(PageRun {
                start: run.start - from + to,
                ..run
            });
        }
    }

    fn insert(&mut self, run: PageRun) {
        self.by_address.insert(run.start, (run.pages, run.first.0));
        self.by_page.insert(run.first.0, (run.pages, run.start));
    }

    /// Takes out what lies in a range.
    fn take(&mut self, range: &Range<u64>) -> Vec<PageRun> {
        let touched = self.touched(range);
        let mut taken = Vec::with_capacity(touched.len());
        for run in touched {
            self.by_address.remove(&run.start);
            self.by_page.remove(&run.first.0);
            if run.start < range.start {
                self.insert(part(&run, &(run.start..range.start)));
            }
            if range.end < end(&run) {
                self.insert(part(&run, &(range.end..end(&run))));
            }
            taken.push(part(&run, range));
        }
        taken
    }

    /// Whole runs of which something lies in a range.
    fn touched(&self, range: &Range<u64>) -> Vec<PageRun> {
        let before = self.by_address.range(..range.start).next_back();
        (before.into_iter().chain(self.by_address.range(range.clone())))
            .map(|(start, (pages, first))| PageRun {
                start: *start,
                pages: *pages,
                first: PageId(*first),
            })
            .filter(|run| end(run) > range.start)
            .collect()
    }
}

fn end(run: &PageRun) -> u64 {
    run.start + run.pages * PAGE
}

/// The part of a run that lies in a range.
fn part(run: &PageRun, range: &Range<u64>) -> PageRun {
    let (from, to) = (run.start.max(range.start), end(run).min(range.end));
    PageRun {
        start: from,
        pages: (to - from) / PAGE,
        first: PageId(run.first.0 + (from - run.start) / PAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, PAGE};
    use floe_image::record::{PageId, PageRun};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn run(start: u64, pages: u64, first: u64) -> PageRun {
        PageRun {
            start: start * PAGE,
            pages,
            first: PageId(first),
        }
    }

    fn runs(layout: &Layout) -> Vec<PageRun> {
        layout.runs().collect()
    }

    #[test]
    fn what_has_come_is_taken_out() {
        let mut layout = Layout::new(&[run(10, 8, 100), run(30, 2, 50)]);
        assert_eq!(layout.places(&(99..103)), [run(10, 3, 100)]);
        assert_eq!(layout.places(&(51..200)), [run(31, 1, 51), run(10, 8, 100)]);
        layout.came(&run(12, 2, 102));
        assert_eq!(runs(&layout), [run(10, 2, 100), run(14, 4, 104), run(30, 2, 50)]);
        assert_eq!(layout.page_at(15 * PAGE + 7), Some(PageId(105)));
        assert_eq!(layout.page_at(12 * PAGE), None);
    }

    #[test]
    fn what_is_moved_comes_there_and_hides_what_was_to_come() {
        let mut layout = Layout::new(&[run(10, 8, 100), run(30, 9, 50)]);
        layout.move_range(12 * PAGE, 32 * PAGE, 3 * PAGE);
        let wanted = [
            run(10, 2, 100),
            run(15, 3, 105),
            run(30, 2, 50),
            run(32, 3, 102),
            run(35, 4, 55),
        ];
        assert_eq!(runs(&layout), wanted);
        layout.came(&run(0, 8, 100));
        layout.drop_range(&(0..40 * PAGE));
        assert!(layout.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Came(u64, u64),
        Drop(u64, u64),
        Move(u64, u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..60_u64, 1..20_u64).prop_map(|(first, pages)| Step::Came(first, pages)),
            (0..60_u64, 1..20_u64).prop_map(|(start, pages)| Step::Drop(start, pages)),
            // As of mremap(2): the ranges don't overlap.
            (0..60_u64, 60..120_u64, 1..20_u64).prop_map(|(from, to, pages)| Step::Move(
                from,
                to.max(from + pages),
                pages
            )),
            (60..120_u64, 0..40_u64, 1..20_u64).prop_map(|(from, to, pages)| Step::Move(from, to, pages)),
        ];
        proptest::collection::vec(step, 0..20)
    }

    proptest! {
        #[test]
        fn is_a_table_of_pages(steps in steps()) {
            let mut layout = Layout::new(&[run(0, 30, 0), run(40, 20, 30)]);
            let mut table: BTreeMap<u64, u64> = (0..30).map(|n| (n, n)).chain((0..20).map(|n| (40 + n, 30 + n))).collect();
            for step in steps {
                match step {
                    Step::Came(first, pages) => {
                        layout.came(&run(0, pages, first));
                        table.retain(|_, page| !(first..first + pages).contains(page));
                    }
                    Step::Drop(start, pages) => {
                        layout.drop_range(&(start * PAGE..(start + pages) * PAGE));
                        table.retain(|address, _| !(start..start + pages).contains(address));
                    }
                    Step::Move(from, to, pages) => {
                        layout.move_range(from * PAGE, to * PAGE, pages * PAGE);
                        let moved: Vec<(u64, u64)> = table.range(from..from + pages).map(|(a, p)| (a - from + to, *p)).collect();
                        table.retain(|address, _| !(from..from + pages).contains(address) && !(to..to + pages).contains(address));
                        table.extend(moved);
                    }
                }
                let found: BTreeMap<u64, u64> = layout.runs()
                    .flat_map(|run| (0..run.pages).map(move |n| (run.start / PAGE + n, run.first.0 + n)))
                    .collect();
                prop_assert_eq!(&found, &table);
                for (address, page) in &table {
                    prop_assert_eq!(layout.page_at(address * PAGE), Some(PageId(*page)));
                    prop_assert_eq!(layout.places(&(*page..page + 1)), [run(*address, 1, *page)]);
                }
            }
        }
    }
}
