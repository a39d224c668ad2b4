//! One address space that pages are brought to.
//!
//! The order of what its owner does and of what is brought follows from one lock. Whoever fills pages holds it for reading,
//! from looking up where they go until they are there; whoever reads events holds it for writing, until the layout is what
//! they say. The kernel lets nothing in from the moment at which a change begins until it has been read (EAGAIN): so what is
//! filled was looked up either before the change, or behind it. What has come is noted beside the layout, and taken out of it by
//! the next who holds the lock for writing: so those who fill don't wait for each other.
//!
//! A page that is to come to where there is no mapping that is looked after, while nothing is under way, will never come: it was
//! not inherited (MADV_DONTFORK), or was unmapped without a word (shmat(2) with SHM_REMAP). It is let go of.

use super::{
    history::{History, Unsure},
    layout::Layout,
};
use floe_image::record::PageRun;
use floe_sys::pager::{Event, Motion, Pager, Partly};
use nix::errno::Errno;
use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

const PAGE: u64 = 4096;
/// So many runs that have come are noted before the layout is told.
const MOST_NOTES: usize = 256;

/// An address space.
#[derive(Debug)]
pub struct Space {
    userfault: Pager,
    history: RwLock<History>,
    /// What has come since the history was told so. Locked by who holds that.
    came: Mutex<Vec<PageRun>>,
    /// Made by a fork while memory came.
    is_copy: bool,
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
    /// Nobody knows what has to come where.
    Unsure,
}

/// What became of pages that were brought.
#[derive(Default)]
struct Found {
    /// They are there.
    came: Vec<PageRun>,
    /// They were not taken: there was no mapping for them.
    absent: Vec<PageRun>,
}

/// What its owner did.
#[derive(Debug, Default)]
pub struct News {
    /// Who waits, and where.
    pub faults: Vec<u64>,
    /// Copies.
    pub copies: Vec<Space>,
    /// Nobody knows what has to come where.
    pub unsure: bool,
}

impl Space {
    /// One with these pages to come.
    pub fn new(userfault: Pager, runs: &[PageRun]) -> Self {
        Self {
            is_copy: false,
            ..Self::copy(userfault, History::new(Layout::new(runs)))
        }
    }

    fn copy(userfault: Pager, history: History) -> Self {
        Self {
            userfault,
            history: RwLock::new(history),
            came: Mutex::default(),
            is_copy: true,
            gone: AtomicBool::new(false),
        }
    }

    /// What tells of it.
    pub fn userfault(&self) -> &Pager {
        &self.userfault
    }

    /// Whether nobody has it any more.
    pub fn is_gone(&self) -> bool {
        if self.userfault.motion() == Motion::Gone {
            self.gone.store(true, Ordering::Release);
        }
        self.gone.load(Ordering::Acquire)
    }

    /// Whether it was made by a fork while memory came, and all has come to it.
    pub fn is_complete_copy(&self) -> bool {
        self.is_copy && self.up_to_date().layout().is_empty()
    }

    /// What is to come.
    pub fn missing(&self) -> Vec<PageRun> {
        self.up_to_date().layout().runs().collect()
    }

    /// Number of the page that is to come to an address.
    pub fn page_at(&self, address: u64) -> Option<u64> {
        let history = self.read();
        let page = history.layout().page_at(address)?.0;
        let has_come = (self.came().iter()).any(|run| (run.first.0..run.first.0 + run.pages).contains(&page));
        (!has_come).then_some(page)
    }

    /// Reads what its owner did.
    ///
    /// # Errors
    /// EMFILE where there is no room for another copy's descriptor.
    pub fn hear(&self) -> Result<News, Errno> {
        let mut news = News::default();
        let mut history = self.write();
        for event in self.userfault.read()? {
            match event {
                Event::Fault(address) => news.faults.push(address),
                Event::Fork(userfault) => news.copies.push(Self::copy(userfault, history.copy())),
                Event::Remap { from, to, bytes } => {
                    news.unsure |= history.moved(from, to, bytes) == Err(Unsure);
                    // Who waits for it where it was finds nothing there now.
                    self.userfault.wake(&(from..from + bytes));
                }
                Event::Remove(range) => history.removed(&range),
                Event::Unmap(range) => {
                    history.unmapped(&range);
                    self.userfault.wake(&range);
                }
            }
        }
        if history.is_uncertain() {
            news.unsure |= self.settle(&mut history, &[])? == Err(Unsure);
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
        let mut absent = Vec::new();
        let (result, is_certain) = self.fill(pages, bytes, &mut absent)?;
        if (!absent.is_empty() || !is_certain) && self.settle(&mut self.write(), &absent)? == Err(Unsure) {
            return Ok(Delivery::Unsure);
        }
        Ok(result)
    }

    /// Where nothing is under way, lets go of pages that were not taken, where there is no mapping that is looked after; and finds
    /// out whether all is in order that was in doubt. The caller has the lock, so that no event is read meanwhile.
    fn settle(&self, history: &mut History, refused: &[PageRun]) -> Result<Result<(), Unsure>, Errno> {
        if self.userfault.motion() != Motion::Still {
            return Ok(Ok(()));
        }
        let numbers = |run: &PageRun| run.first.0..run.first.0 + run.pages;
        let asked = || -> Result<_, Errno> {
            let mut is_mapped = false;
            for range in history.doubt() {
                is_mapped |= self.absent_of(range)?.is_empty();
            }
            let mut absent = Vec::new();
            for place in refused.iter().flat_map(|run| history.layout().places(&numbers(run))) {
                absent.extend(self.absent_of(&(place.start..place.start + place.pages * PAGE))?);
            }
            Ok((is_mapped, absent))
        };
        let (is_mapped, absent) = match asked() {
            Ok(answers) => answers,
            Err(Errno::EAGAIN | Errno::ESRCH | Errno::ENOMEM) => return Ok(Ok(())),
            Err(error) => return Err(error),
        };
        if self.userfault.motion() != Motion::Still {
            return Ok(Ok(()));
        }
        if is_mapped {
            return Ok(Err(Unsure));
        }
        history.settled(&absent);
        absent
            .iter()
            .for_each(|address| self.userfault.wake(&(*address..address + PAGE)));
        Ok(Ok(()))
    }

    /// Pages of a range that lie in no mapping that is looked after.
    fn absent_of(&self, range: &Range<u64>) -> Result<Vec<u64>, Errno> {
        if self.userfault.is_registered(range)? {
            return Ok(Vec::new());
        }
        let mut absent = Vec::new();
        for address in range.clone().step_by(PAGE as usize) {
            if !self.userfault.is_registered(&(address..address + PAGE))? {
                absent.push(address);
            }
        }
        Ok(absent)
    }

    /// Has an address be zeros, where nothing is to come: else that has to be brought, again.
    ///
    /// # Errors
    /// As [`Space::bring`].
    pub fn zero(&self, address: u64) -> Result<Delivery, Errno> {
        let history = self.read();
        if history.is_in_doubt() || history.layout().page_at(address).is_some() {
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

    /// Fills what is to come of these; also tells whether all is certain that is known of what is to come. Collects what was
    /// not taken, as there was no mapping for it.
    fn fill(&self, pages: &Range<u64>, bytes: &[u8], absent: &mut Vec<PageRun>) -> Result<(Delivery, bool), Errno> {
        let history = self.read();
        let is_certain = !history.is_uncertain();
        if history.is_in_doubt() {
            return Ok((Delivery::Again, is_certain));
        }
        let mut found = Found::default();
        let result = self.fill_places(&history, (pages, bytes), &mut found);
        absent.append(&mut found.absent);
        let mut came = self.came();
        came.append(&mut found.came);
        let many = came.len() > MOST_NOTES;
        drop((came, history));
        if many {
            drop(self.write());
        }
        Ok((result?, is_certain))
    }

    fn fill_places(
        &self,
        history: &History,
        (pages, bytes): (&Range<u64>, &[u8]),
        found: &mut Found,
    ) -> Result<Delivery, Errno> {
        let mut whole = Delivery::Whole;
        for place in history.layout().places(pages) {
            let from = ((place.first.0 - pages.start) * PAGE) as usize;
            let bytes = &bytes[from..from + (place.pages * PAGE) as usize];
            match self.fill_place(&place, bytes, found)? {
                Delivery::Whole => {}
                Delivery::Aside => whole = Delivery::Aside,
                other => return Ok(other),
            }
        }
        Ok(whole)
    }

    /// Pages that follow each other; notes what becomes of them.
    fn fill_place(&self, place: &PageRun, bytes: &[u8], found: &mut Found) -> Result<Delivery, Errno> {
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
                found.came.push(part(at, end - at));
                at = end;
                continue;
            };
            if done > 0 {
                found.came.push(part(at, done));
                at += done;
                continue;
            }
            match why {
                Errno::EEXIST => {
                    let page = PAGE as usize;
                    found.came.push(part(at, page));
                    self.userfault
                        .wake(&(place.start + at as u64..place.start + at as u64 + PAGE));
                    at += page;
                }
                // Several mappings: the kernel takes no range that lies in more than one.
                Errno::ENOENT if end - at > PAGE as usize => most = PAGE as usize,
                Errno::ENOENT => {
                    self.userfault
                        .wake(&(place.start + at as u64..place.start + at as u64 + PAGE));
                    found.absent.push(part(at, PAGE as usize));
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

    fn read(&self) -> RwLockReadGuard<'_, History> {
        self.history.read().expect("no thread panics with the lock held")
    }

    /// The history when it has been told what has come.
    fn up_to_date(&self) -> RwLockReadGuard<'_, History> {
        if !self.came().is_empty() {
            drop(self.write());
        }
        self.read()
    }

    /// The history, which is told what has come.
    fn write(&self) -> RwLockWriteGuard<'_, History> {
        let mut history = self.history.write().expect("no thread panics with the lock held");
        history.came(&std::mem::take(&mut *self.came()));
        history
    }

    fn came(&self) -> MutexGuard<'_, Vec<PageRun>> {
        self.came.lock().expect("no thread panics with the lock held")
    }
}
