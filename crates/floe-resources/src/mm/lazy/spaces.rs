//! One address space that pages are brought to.
//!
//! The order of what its owner does and of what is brought follows from one lock. Whoever fills pages holds it for reading,
//! from looking up where they go until they are there; whoever reads events holds it for writing, until the layout is what
//! they say. The kernel lets nothing in from the moment at which a change begins until it has been read (EAGAIN): so what is
//! filled was looked up either before the change, or behind it.

use super::layout::Layout;
use floe_image::record::PageRun;
use floe_sys::pager::{Event, Pager, Partly};
use nix::errno::Errno;
use std::{
    ops::Range,
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

const PAGE: u64 = 4096;

/// An address space.
#[derive(Debug)]
pub struct Space {
    userfault: Pager,
    layout: RwLock<Layout>,
    /// Its last process has ended, or executes something else.
    gone: AtomicBool,
}

/// What came of bringing pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All that are wanted are there.
    Whole,
    /// An event has to be read first.
    Again,
    /// Some have no mapping that is looked after, for now or for ever.
    Aside,
    /// There is no room.
    NoRoom,
}

/// What its owner did.
#[derive(Debug, Default)]
pub struct News {
    /// Who waits, and where.
    pub faults: Vec<u64>,
    /// Copies.
    pub copies: Vec<Space>,
}

impl Space {
    /// One with these pages to come.
    pub fn new(userfault: Pager, runs: &[PageRun]) -> Self {
        Self::with(userfault, Layout::new(runs))
    }

    fn with(userfault: Pager, layout: Layout) -> Self {
        Self {
            userfault,
            layout: RwLock::new(layout),
            gone: AtomicBool::new(false),
        }
    }

    /// What tells of it.
    pub fn userfault(&self) -> &Pager {
        &self.userfault
    }

    /// Whether nobody has it any more.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// What is to come.
    pub fn missing(&self) -> Vec<PageRun> {
        self.read().runs().collect()
    }

    /// Number of the page that is to come to an address.
    pub fn page_at(&self, address: u64) -> Option<u64> {
        self.read().page_at(address).map(|page| page.0)
    }

    /// Reads what its owner did.
    ///
    /// # Errors
    /// EMFILE where there is no room for another copy's descriptor.
    pub fn hear(&self) -> Result<News, Errno> {
        let mut news = News::default();
        let mut layout = self.layout.write().expect("no thread panics with the lock held");
        for event in self.userfault.read()? {
            match event {
                Event::Fault(address) => news.faults.push(address),
                Event::Fork(userfault) => news.copies.push(Self::with(userfault, layout.clone())),
                Event::Remap { from, to, bytes } => {
                    layout.move_range(from, to, bytes);
                    // Who waits for it where it was finds nothing there now.
                    self.userfault.wake(&(from..from + bytes));
                }
                Event::Remove(range) => layout.drop_range(&range),
                Event::Unmap(range) => {
                    layout.drop_range(&range);
                    self.userfault.wake(&range);
                }
            }
        }
        Ok(news)
    }

    /// Brings the pages of a chunk that are to come here: `bytes` are those of the pages with these numbers.
    ///
    /// # Errors
    /// Where the kernel takes them for another reason not.
    pub fn bring(&self, pages: &Range<u64>, bytes: &[u8]) -> Result<Delivery, Errno> {
        if self.gone.load(Ordering::Acquire) {
            return Ok(Delivery::Whole);
        }
        let mut came = Vec::new();
        let result = self.fill(pages, bytes, &mut came);
        let mut layout = self.layout.write().expect("no thread panics with the lock held");
        came.iter().for_each(|run| layout.came(run));
        result
    }

    /// Has an address be zeros, where nothing is to come: else that has to be brought, again.
    ///
    /// # Errors
    /// As [`Space::bring`].
    pub fn zero(&self, address: u64) -> Result<Delivery, Errno> {
        let layout = self.read();
        if layout.page_at(address).is_some() {
            return Ok(Delivery::Again);
        }
        let page = address..address + PAGE;
        match self.userfault.zero(address) {
            Ok(()) => Ok(Delivery::Whole),
            // It looks again, and finds it, or that nothing is mapped there.
            Err(Errno::EEXIST | Errno::ENOENT) => {
                self.userfault.wake(&page);
                Ok(Delivery::Whole)
            }
            Err(error) => self.failed(error),
        }
    }

    fn fill(&self, pages: &Range<u64>, bytes: &[u8], came: &mut Vec<PageRun>) -> Result<Delivery, Errno> {
        let layout = self.read();
        let mut whole = Delivery::Whole;
        for place in layout.places(pages) {
            let from = ((place.first.0 - pages.start) * PAGE) as usize;
            let bytes = &bytes[from..from + (place.pages * PAGE) as usize];
            match self.fill_place(&place, bytes, came)? {
                Delivery::Whole => {}
                Delivery::Aside => whole = Delivery::Aside,
                other => return Ok(other),
            }
        }
        Ok(whole)
    }

    /// Pages that follow each other; notes which are there then.
    fn fill_place(&self, place: &PageRun, bytes: &[u8], came: &mut Vec<PageRun>) -> Result<Delivery, Errno> {
        let mut whole = Delivery::Whole;
        let (mut at, mut most) = (0, bytes.len());
        let part = |at: usize, bytes: usize| PageRun {
            start: place.start + at as u64,
            pages: bytes as u64 / PAGE,
            first: floe_image::record::PageId(place.first.0 + at as u64 / PAGE),
        };
        while at < bytes.len() {
            let end = bytes.len().min(at + most);
            let Err(Partly { done, why }) = self.userfault.copy(place.start + at as u64, &bytes[at..end]) else {
                came.push(part(at, end - at));
                at = end;
                continue;
            };
            if done > 0 {
                came.push(part(at, done));
                at += done;
                continue;
            }
            match why {
                Errno::EEXIST => {
                    let page = PAGE as usize;
                    came.push(part(at, page));
                    self.userfault
                        .wake(&(place.start + at as u64..place.start + at as u64 + PAGE));
                    at += page;
                }
                // Several mappings: the kernel takes no range that lies in more than one.
                Errno::ENOENT if end - at > PAGE as usize => most = PAGE as usize,
                Errno::ENOENT => {
                    self.userfault
                        .wake(&(place.start + at as u64..place.start + at as u64 + PAGE));
                    whole = Delivery::Aside;
                    at += PAGE as usize;
                }
                error => return self.failed(error),
            }
        }
        Ok(whole)
    }

    fn failed(&self, error: Errno) -> Result<Delivery, Errno> {
        match error {
            Errno::EAGAIN => Ok(Delivery::Again),
            Errno::ENOMEM => Ok(Delivery::NoRoom),
            Errno::ESRCH => {
                self.gone.store(true, Ordering::Release);
                Ok(Delivery::Whole)
            }
            error => Err(error),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Layout> {
        self.layout.read().expect("no thread panics with the lock held")
    }
}
