//! What is to come in one address space, as events tell of it that may be read in another order than they happened. Pure.
//!
//! Whoever unmaps or moves memory tells so only when others may change mappings already (userfaultfd_unmap_complete() and
//! mremap_userfaultfd_complete() come after mmap_lock is let go). So another thread may get the place that was left, move
//! something there, and its event may be read first. *Recent* is what was moved since nothing was under way: of what is told
//! of such a place now it is not known whether it came before.
//!
//! - A move is told twice, REMAP, then UNMAP of the same range (but for MREMAP_DONTUNMAP). The second says nothing new: what has
//!   come there since stays.
//! - Any other change of what is recent most likely happened behind it, as it is read. Then what was moved is gone when nothing is
//!   under way. If there is a mapping in all of its place, to which nothing was moved since, either the order was another, or
//!   something grew over all of it, of which nobody tells: nobody knows what is to come there. Until then it is *in doubt*.
//! - The other way round can't be: who changes what was moved knows where it is because the move has been read.
//! - A REMOVE comes before its change, in a place that nobody else can get meanwhile. A FORK may be told late as well, but whoever
//!   forks while others change mappings can't rely on what a child finds of them.

use super::layout::Layout;
use floe_image::record::PageRun;
use std::{ops::Range, sync::Arc};

const PAGE: u64 = 4096;

/// What is to come, and what is not certain of it.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Of an address space that was copied it is the same until one of the two changes.
    layout: Arc<Layout>,
    /// Where something was moved to.
    recent: Vec<Range<u64>>,
    /// Where something was to come, until something else was moved there.
    replaced: Vec<Range<u64>>,
    /// Where something was moved from, as long as that has not been told twice, and what of it was recent.
    from: Vec<(Range<u64>, Vec<Range<u64>>)>,
    /// What was recent, with something to come, and was left: each a place of its own.
    doubt: Vec<Range<u64>>,
}

/// The order of changes can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsure;

impl History {
    /// Of an address space in which nothing happened so far.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout: Arc::new(layout),
            ..Self::default()
        }
    }

    /// That of a copy, in which nothing is under way.
    pub fn copy(&self) -> Self {
        Self {
            recent: Vec::new(),
            replaced: Vec::new(),
            from: Vec::new(),
            ..self.clone()
        }
    }

    /// What is to come.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// These have come.
    pub fn came(&mut self, runs: &[PageRun]) {
        if !runs.is_empty() {
            let layout = Arc::make_mut(&mut self.layout);
            runs.iter().for_each(|run| layout.came(run));
        }
    }

    /// A range was moved.
    ///
    /// # Errors
    /// [`Unsure`].
    pub fn moved(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Unsure> {
        let (place, origin) = (to..to.saturating_add(bytes), from..from.saturating_add(bytes));
        if self
            .doubt
            .iter()
            .any(|place| origin.start <= place.start && place.end <= origin.end)
        {
            return Err(Unsure);
        }
        let at_stake = self.at_stake(&origin);
        if self.layout.is_wanted(&place) {
            self.replaced.push(place.clone());
        }
        Arc::make_mut(&mut self.layout).move_range(from, to, bytes);
        cut(&mut self.recent, &origin);
        cut(&mut self.recent, &place);
        cut(&mut self.doubt, &origin);
        // Something else is there now.
        self.doubt
            .retain(|doubt| common(std::slice::from_ref(doubt), &place).is_empty());
        self.from.push((origin, at_stake));
        self.recent.push(place);
        Ok(())
    }

    /// A range will be empty.
    pub fn removed(&mut self, range: &Range<u64>) {
        Arc::make_mut(&mut self.layout).drop_range(range);
    }

    /// A range is not mapped any more.
    pub fn unmapped(&mut self, range: &Range<u64>) {
        cut(&mut self.doubt, range);
        let mut left = match self.from.iter().position(|(from, _)| from == range) {
            // What is there now came since.
            Some(at) => self.from.swap_remove(at).1,
            None => {
                let at_stake = self.at_stake(range);
                Arc::make_mut(&mut self.layout).drop_range(range);
                cut(&mut self.recent, range);
                at_stake
            }
        };
        // Something was moved there since.
        left.retain(|place| common(&self.recent, place).is_empty());
        self.doubt.append(&mut left);
    }

    /// What is recent in a range, where something is lost if the order was another.
    fn at_stake(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut recent = common(&self.recent, range);
        recent.retain(|recent| self.layout.is_wanted(recent) || !common(&self.replaced, recent).is_empty());
        recent
    }

    /// Whether nothing may be brought before it is [settled](History::settled).
    pub fn is_in_doubt(&self) -> bool {
        !self.doubt.is_empty()
    }

    /// Whether what is told next may have happened before what was told.
    pub fn is_uncertain(&self) -> bool {
        !(self.recent.is_empty() && self.from.is_empty() && self.doubt.is_empty())
    }

    /// Places that must not be mapped as a whole when nothing is under way.
    pub fn doubt(&self) -> &[Range<u64>] {
        &self.doubt
    }

    /// Nothing is under way, all that has happened was told, and all that was in doubt is in order; there is no mapping at these
    /// addresses.
    pub fn settled(&mut self, absent: &[u64]) {
        self.recent.clear();
        self.replaced.clear();
        self.from.clear();
        self.doubt.clear();
        if !absent.is_empty() {
            let layout = Arc::make_mut(&mut self.layout);
            let pages = absent.iter().map(|address| *address..address + PAGE);
            pages.for_each(|page| layout.drop_range(&page));
        }
    }
}

/// The parts of ranges that lie in another.
fn common(ranges: &[Range<u64>], other: &Range<u64>) -> Vec<Range<u64>> {
    let both = ranges
        .iter()
        .map(|range| range.start.max(other.start)..range.end.min(other.end));
    both.filter(|range| range.start < range.end).collect()
}

/// Takes a range out of others.
fn cut(ranges: &mut Vec<Range<u64>>, out: &Range<u64>) {
    let mut behind = Vec::new();
    ranges.retain_mut(|range| {
        if range.end <= out.start || out.end <= range.start {
            return true;
        }
        if out.end < range.end {
            behind.push(out.end..range.end);
        }
        range.end = out.start;
        range.start < range.end
    });
    ranges.append(&mut behind);
}

#[cfg(test)]
mod tests {
    use super::{History, PAGE, Unsure};
    use crate::mm::lazy::layout::Layout;
    use floe_image::record::{PageId, PageRun};
    use std::ops::Range;

    fn run(start: u64, pages: u64, first: u64) -> PageRun {
        PageRun {
            start: start * PAGE,
            pages,
            first: PageId(first),
        }
    }

    fn pages(range: Range<u64>) -> Range<u64> {
        range.start * PAGE..range.end * PAGE
    }

    fn runs(history: &History) -> Vec<PageRun> {
        history.layout().runs().collect()
    }

    #[test]
    fn what_came_to_a_place_that_was_left_stays_when_that_is_told_again() {
        let mut history = History::new(Layout::new(&[run(10, 8, 100), run(30, 8, 200)]));
        assert_eq!(history.moved(10 * PAGE, 50 * PAGE, 8 * PAGE), Ok(()));
        assert_eq!(history.moved(30 * PAGE, 12 * PAGE, 4 * PAGE), Ok(()));
        history.unmapped(&pages(10..18));
        history.unmapped(&pages(30..34));
        assert_eq!(runs(&history), [run(12, 4, 200), run(34, 4, 204), run(50, 8, 100)]);
        assert!(!history.is_in_doubt() && history.is_uncertain());
        history.settled(&[13 * PAGE]);
        assert!(!history.is_uncertain());
        history.unmapped(&pages(10..18));
        assert_eq!(runs(&history), [run(34, 4, 204), run(50, 8, 100)]);
        assert!(!history.is_in_doubt(), "nothing was under way");
    }

    #[test]
    fn what_is_told_of_a_place_to_which_something_was_moved_is_in_doubt() {
        let mut history = History::new(Layout::new(&[run(10, 4, 100), run(40, 4, 200)]));
        assert_eq!(history.moved(10 * PAGE, 20 * PAGE, 4 * PAGE), Ok(()));
        history.unmapped(&pages(10..14));
        assert!(!history.is_in_doubt());
        history.unmapped(&pages(18..22));
        assert_eq!(history.doubt(), [pages(20..22)]);
        assert_eq!(runs(&history), [run(22, 2, 102), run(40, 4, 200)]);
        assert_eq!(history.clone().moved(20 * PAGE, 60 * PAGE, 2 * PAGE), Err(Unsure));
        assert_eq!(history.moved(40 * PAGE, 20 * PAGE, PAGE), Ok(()));
        assert!(!history.is_in_doubt(), "something else is there now");
    }

    #[test]
    fn what_is_moved_twice_is_in_doubt_when_all_of_it_is_told() {
        let mut history = History::new(Layout::new(&[run(10, 4, 100)]));
        assert_eq!(history.moved(10 * PAGE, 20 * PAGE, 4 * PAGE), Ok(()));
        history.unmapped(&pages(10..14));
        assert_eq!(history.moved(20 * PAGE, 30 * PAGE, 4 * PAGE), Ok(()));
        assert!(!history.is_in_doubt(), "it may not be unmapped");
        history.unmapped(&pages(20..24));
        assert_eq!(history.doubt(), [pages(20..24)]);
        let mut copy = history.copy();
        history.settled(&[]);
        assert_eq!(runs(&history), [run(30, 4, 100)]);
        copy.unmapped(&pages(31..32));
        assert_eq!(runs(&copy), [run(30, 1, 100), run(32, 2, 102)]);
        assert_eq!(runs(&history), [run(30, 4, 100)]);
    }
}
