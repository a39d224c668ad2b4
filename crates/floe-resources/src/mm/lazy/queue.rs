//! Which chunk comes next: of what somebody waits for, else what lies behind what was waited for last, else in the order in
//! which it is expected to be used.

use floe_image::{
    Image,
    record::{AddressSpaceRecord, PageId, PageRun},
};
use std::collections::{HashMap, VecDeque};

/// What a thread is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Job<S> {
    /// Somebody waits: in which address space, for which address.
    Fault(S, u64),
    /// A chunk for whoever is to have pages of it.
    Chunk(usize),
}

/// What is to be done.
#[derive(Debug)]
pub struct Queue<S> {
    faults: VecDeque<(S, u64)>,
    /// Chunks in order of expected use.
    order: Vec<usize>,
    /// Where each stands in it.
    position: HashMap<usize, usize>,
    /// Which of the order are to come still.
    waiting: Vec<bool>,
    left: usize,
    /// Where to go on.
    cursor: usize,
    /// How many are in hand.
    pub busy: usize,
    /// All threads are to end.
    pub stop: bool,
}

impl<S> Queue<S> {
    /// All chunks of an order, each once.
    pub fn new(order: Vec<usize>) -> Self {
        Self {
            position: order.iter().enumerate().map(|(at, chunk)| (*chunk, at)).collect(),
            waiting: vec![true; order.len()],
            left: order.len(),
            order,
            faults: VecDeque::new(),
            cursor: 0,
            busy: 0,
            stop: false,
        }
    }

    /// Somebody waits.
    pub fn fault(&mut self, space: S, address: u64) {
        self.faults.push_back((space, address));
    }

    /// A chunk has to come (again).
    pub fn again(&mut self, chunk: usize) {
        if let Some(waiting) = self.position.get(&chunk).and_then(|at| self.waiting.get_mut(*at))
            && !*waiting
        {
            *waiting = true;
            self.left += 1;
        }
    }

    /// Somebody waits whom `fits` says can be helped now.
    pub fn take_fault(&mut self, fits: impl Fn(&S, u64) -> bool) -> Option<(S, u64)> {
        let at = self.faults.iter().position(|(space, address)| fits(space, *address))?;
        self.faults.remove(at)
    }

    /// A chunk that was in hand because somebody waited for it was not brought whole; the rest comes next.
    pub fn left(&mut self, chunk: usize) {
        self.again(chunk);
        if let Some(at) = self.position.get(&chunk) {
            self.cursor = *at;
        }
    }

    /// A chunk is in hand because somebody waits for it: it needs not come once more, and what lies behind it comes next.
    pub fn in_hand(&mut self, chunk: usize) {
        let Some(at) = self.position.get(&chunk).copied() else {
            return;
        };
        if std::mem::take(&mut self.waiting[at]) {
            self.left -= 1;
        }
        self.cursor = at + 1;
    }

    /// The next thing to do; with `faults` alone, only of those.
    pub fn next(&mut self, faults: bool) -> Option<Job<S>> {
        if let Some((space, address)) = self.faults.pop_front() {
            self.busy += 1;
            return Some(Job::Fault(space, address));
        }
        if faults || self.left == 0 {
            return None;
        }
        let from = self.cursor.min(self.order.len());
        let behind = self.waiting[from..].iter().position(|waiting| *waiting);
        let at = match behind {
            Some(offset) => from + offset,
            None => self.waiting.iter().position(|waiting| *waiting)?,
        };
        self.waiting[at] = false;
        self.left -= 1;
        self.busy += 1;
        self.cursor = at + 1;
        Some(Job::Chunk(self.order[at]))
    }

    /// Whether somebody waits whom nobody has in hand.
    pub fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Whether there is nothing to do, and nobody does anything.
    pub fn is_idle(&self) -> bool {
        self.left == 0 && self.busy == 0 && self.faults.is_empty()
    }
}

/// Chunks that hold pages of these, those first that are expected to be used first: of each process the heap, then all by
/// address.
///
/// # Errors
/// The number of a page that lies in no chunk.
pub fn order<'a>(
    image: &Image,
    spaces: impl IntoIterator<Item = (&'a AddressSpaceRecord, &'a [PageRun])>,
) -> Result<Vec<usize>, u64> {
    // Of the heaps, and of the rest; each with the chunk that was added last.
    let mut orders = [(Vec::new(), 0..0), (Vec::new(), 0..0)];
    for (space, runs) in spaces {
        let heap = space.layout.start_brk..space.layout.brk;
        for run in runs {
            let (order, within) = &mut orders[usize::from(!heap.contains(&run.start))];
            let mut page = run.first.0;
            // Most lie in the chunk of the one before.
            if within.contains(&page) {
                page = within.end;
            }
            while page < run.first.0 + run.pages {
                let chunk = image.chunk_of(PageId(page)).ok_or(page)?;
                order.push(chunk);
                let entry = &image.chunks()[chunk];
                *within = entry.first.0..entry.end();
                page = within.end;
            }
        }
    }
    let mut known = vec![false; image.chunks().len()];
    let mut order: Vec<usize> = orders.into_iter().flat_map(|(order, _)| order).collect();
    order.retain(|chunk| !std::mem::replace(&mut known[*chunk], true));
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::{Job, Queue};

    #[test]
    fn who_waits_comes_first_and_what_lies_behind_it_next() {
        let mut queue: Queue<usize> = Queue::new(vec![7, 3, 5, 9]);
        assert_eq!(queue.next(true), None);
        assert_eq!(queue.next(false), Some(Job::Chunk(7)));
        queue.fault(0, 0x1000);
        assert_eq!(queue.next(false), Some(Job::Fault(0, 0x1000)));
        queue.in_hand(5);
        assert_eq!(queue.next(false), Some(Job::Chunk(9)));
        assert_eq!(queue.next(false), Some(Job::Chunk(3)));
        assert_eq!(queue.next(false), None);
        assert!(!queue.is_idle());
        queue.busy = 0;
        assert!(queue.is_idle());
        queue.fault(1, 0x2000);
        queue.fault(2, 0x3000);
        assert_eq!(queue.take_fault(|space, _| *space == 2), Some((2, 0x3000)));
        assert_eq!(queue.take_fault(|space, _| *space == 2), None);
        queue.again(9);
        queue.left(3);
        assert_eq!(queue.next(false), Some(Job::Fault(1, 0x2000)));
        assert_eq!(queue.next(false), Some(Job::Chunk(3)));
        assert_eq!(queue.next(false), Some(Job::Chunk(9)));
        queue.again(5);
        queue.again(5);
        assert_eq!(queue.next(false), Some(Job::Chunk(5)));
        assert_eq!(queue.next(false), None);
    }
}
