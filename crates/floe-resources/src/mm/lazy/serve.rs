//! Brings pages to address spaces until all are there, or nobody is left who could want them.
//!
//! One thread reads what happens to the address spaces; others read, check and unpack chunks and fill pages, one of them only
//! such that somebody waits for. A chunk goes to all address spaces that are to have pages of it: processes that were forked
//! meanwhile want what their parents want. What can't be filled yet, as its mapping is being changed, is tried again as long as
//! it is wanted.

use super::{
    queue::{Job, Queue, order},
    spaces::{Delivery, Space},
};
use floe_image::{
    ChunkScratch, Image, Place, ReadError,
    record::{AddressSpaceRecord, PageId, PageRun},
};
use floe_sys::{event, pager::Pager, sched};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const PAGE: usize = 4096;
/// How long is waited until what could not be filled is tried again.
const LATER: Duration = Duration::from_millis(10);
/// How long until an event is looked for that is on its way.
const SOON: Duration = Duration::from_micros(50);
/// Memory, and room for descriptors, may be short for a while; this often it is tried again, at intervals of [`LATER`].
const SHORTAGES: u32 = 3000;
/// More threads bring no more.
const MOST_THREADS: usize = 8;
/// So many pages, 128 KiB, are brought before it is looked whether somebody waits for others.
const PART: usize = 32;
/// How far those that bring what nobody waits for yet stand back (nice(2)) behind the one that is waited for.
const BEHIND: i32 = 10;

/// Pages that could not be brought.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The image.
    #[error("{place} can't be read")]
    Read {
        /// Which part of it.
        place: Place,
        /// Why not.
        #[source]
        source: Box<ReadError>,
    },
    /// A page that is to come lies in none of the image's chunks.
    #[error("page {0} of the image lies in no chunk")]
    NoChunk(u64),
    /// Memory is short.
    #[error("there was no memory for pages of the workload for half a minute")]
    NoRoom,
    /// Descriptors are short.
    #[error("there was no room for descriptors of forked processes for long")]
    Crowded,
    /// Threads changed mappings at the same time.
    #[error("threads of the workload moved and unmapped memory in an order that is not known")]
    Order,
    /// A descriptor that tells of an address space.
    #[error("read what happens to the memory of the workload")]
    Hear(#[source] Errno),
    /// The kernel took them not.
    #[error("fill pages of the workload")]
    Fill(#[source] Errno),
    /// A system call.
    #[error("wait for what happens to the memory of the workload")]
    Wait(#[source] Errno),
    /// A thread.
    #[error("start a thread that brings pages")]
    Thread(#[source] std::io::Error),
}

/// How it came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// All pages are there.
    All,
    /// It was told to stop.
    Stopped,
}

/// An address space: what is mapped, what looks after it, what is to come.
pub type Watched<'a> = (&'a AddressSpaceRecord, Pager, Vec<PageRun>);

/// Those around the server.
pub trait Surroundings {
    /// What tells that something has become of them.
    fn files(&self) -> Vec<BorrowedFd<'_>>;
    /// Whether nobody is left to bring pages to.
    fn are_over(&mut self) -> bool;
    /// Ends all who could read what does not come, and waits until nobody is left.
    fn end(&self, error: &ServeError);
}

struct Server<'a> {
    image: &'a Image,
    /// They outlive this: none may be closed before the surroundings are at their end.
    spaces: &'a RwLock<Vec<Arc<Space>>>,
    queue: Mutex<Queue<Arc<Space>>>,
    bell: Condvar,
    /// Tells the thread that reads events that there is nothing left to do, or that there are others to hear.
    idle: OwnedFd,
    /// How often in a row there was no room for a copy's descriptor.
    crowded: AtomicU32,
    failure: Mutex<Option<ServeError>>,
}

/// Brings all pages.
///
/// # Errors
/// [`ServeError`]. The descriptors are closed only when the surroundings have come to their end: until then nobody reads zeros.
pub fn serve(
    image: &Image,
    watched: Vec<Watched<'_>>,
    surroundings: &mut impl Surroundings,
) -> Result<Brought, ServeError> {
    let wanted = watched.iter().map(|(space, _, runs)| (*space, &runs[..]));
    let order = order(image, wanted).map_err(ServeError::NoChunk);
    let spaces = watched.into_iter();
    let spaces = spaces.map(|(_, userfault, runs)| Arc::new(Space::new(userfault, &runs)));
    let spaces = RwLock::new(spaces.collect());
    let result = order.and_then(|order| bring_all(image, order, &spaces, surroundings));
    if let Err(error) = &result {
        surroundings.end(error);
    }
    result
}

fn bring_all(
    image: &Image,
    order: Vec<usize>,
    spaces: &RwLock<Vec<Arc<Space>>>,
    surroundings: &mut impl Surroundings,
) -> Result<Brought, ServeError> {
    let server = Server {
        image,
        queue: Mutex::new(Queue::new(order)),
        spaces,
        bell: Condvar::new(),
        idle: event::eventfd(libc::EFD_NONBLOCK).map_err(ServeError::Wait)?,
        crowded: AtomicU32::new(0),
        failure: Mutex::new(None),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let brought = std::thread::scope(|scope| {
        let mut started = Ok(());
        for number in 0..=cores.clamp(2, MOST_THREADS) {
            let name = if number == 0 { "floe-asked" } else { "floe-ahead" };
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, {
                let server = &server;
                move || server.work(number == 0)
            });
            // Two are needed: one that waits with who waits, and one for the rest.
            if let (Err(error), 0..=1) = (thread, number) {
                started = Err(ServeError::Thread(error));
            }
        }
        let result = started.and_then(|()| server.watch(surroundings));
        server.stop();
        result
    });
    let failure = server
        .failure
        .lock()
        .expect("no thread panics with the lock held")
        .take();
    failure.map_or(brought, Err)
}

impl Server<'_> {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue<Arc<Space>>> {
        self.queue.lock().expect("no thread panics with the lock held")
    }

    fn all(&self) -> Vec<Arc<Space>> {
        self.spaces.read().expect("no thread panics with the lock held").clone()
    }

    fn stop(&self) {
        self.queue().stop = true;
        self.bell.notify_all();
    }

    /// Reads events until all is done.
    fn watch(&self, surroundings: &mut impl Surroundings) -> Result<Brought, ServeError> {
        let mut tried = Vec::new();
        let mut rested = true;
        loop {
            if surroundings.are_over()
                || self
                    .failure
                    .lock()
                    .expect("no thread panics with the lock held")
                    .is_some()
            {
                return Ok(Brought::Stopped);
            }
            let mut patience = PollTimeout::NONE;
            if self.queue().is_idle() {
                let missing = self.missing()?;
                if missing.is_empty() {
                    return Ok(Brought::All);
                }
                rested = !rested && missing == tried;
                if rested {
                    patience = PollTimeout::try_from(LATER).unwrap_or(PollTimeout::ZERO);
                } else {
                    let mut queue = self.queue();
                    missing.iter().for_each(|chunk| queue.again(*chunk));
                    drop(queue);
                    self.bell.notify_all();
                    tried = missing;
                }
            }
            let spaces = self.all();
            let on = surroundings.files();
            let others = on.iter().copied().chain([self.idle.as_fd()]);
            let mut asked: Vec<PollFd<'_>> = (others.chain(spaces.iter().map(|space| space.userfault().as_fd())))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut asked, patience) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(ServeError::Wait(error)),
            }
            let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
            let (others, tellers) = asked.split_at(on.len() + 1);
            if others.last().is_some_and(ready) {
                let mut count = [0; 8];
                // Whatever it counts.
                let _ = nix::unistd::read(self.idle.as_fd(), &mut count);
            }
            for index in (0..spaces.len()).filter(|index| ready(&tellers[*index])) {
                self.hear(&spaces[index])?;
            }
        }
    }

    /// Chunks that somebody misses still. Those address spaces of the beginning that miss nothing are looked after all the
    /// same, until all are let go together: the monitor has their descriptors too.
    fn missing(&self) -> Result<Vec<usize>, ServeError> {
        self.let_go();
        let mut chunks = Vec::new();
        for run in self.all().iter().flat_map(|space| space.missing()) {
            let first = self.chunk_of(run.first.0)?;
            chunks.extend(first..=self.chunk_of(run.first.0 + run.pages - 1)?);
        }
        chunks.sort_unstable();
        chunks.dedup();
        Ok(chunks)
    }

    fn chunk_of(&self, page: u64) -> Result<usize, ServeError> {
        self.image.chunk_of(PageId(page)).ok_or(ServeError::NoChunk(page))
    }

    /// Lets go of those that nobody has any more, and of copies that miss nothing: their descriptors are the server's alone.
    /// Whether there were any.
    fn let_go(&self) -> bool {
        let mut spaces = self.spaces.write().expect("no thread panics with the lock held");
        let before = spaces.len();
        spaces.retain(|space| !(space.is_gone() || space.is_complete_copy()));
        spaces.len() < before
    }

    /// Notes what the owner of an address space did.
    fn hear(&self, space: &Arc<Space>) -> Result<(), ServeError> {
        let news = match space.hear() {
            // Who forked waits until there is room: that of those who have ended, or have all.
            Err(Errno::EMFILE) if self.let_go() => return Ok(()),
            Err(Errno::EMFILE) => {
                if self.crowded.fetch_add(1, Ordering::Relaxed) >= SHORTAGES {
                    return Err(ServeError::Crowded);
                }
                std::thread::sleep(LATER);
                return Ok(());
            }
            news => news.map_err(ServeError::Hear)?,
        };
        if news.unsure {
            return Err(ServeError::Order);
        }
        if !news.copies.is_empty() {
            self.crowded.store(0, Ordering::Relaxed);
            // So no more are kept than live, however many come and go.
            self.let_go();
            let mut spaces = self.spaces.write().expect("no thread panics with the lock held");
            spaces.extend(news.copies.into_iter().map(Arc::new));
            drop(spaces);
            self.tell();
        }
        if !news.faults.is_empty() {
            let mut queue = self.queue();
            news.faults
                .iter()
                .for_each(|address| queue.fault(space.clone(), *address));
            drop(queue);
            self.bell.notify_all();
        }
        Ok(())
    }

    /// What a thread does until it is told to stop.
    fn work(&self, faults: bool) {
        if !faults && let Err(error) = sched::stand_back(BEHIND) {
            tracing::debug!(%error, "threads that bring memory do not stand back");
        }
        let mut scratch = ChunkScratch::default();
        let mut queue = self.queue();
        while !queue.stop {
            let Some(job) = queue.next(faults) else {
                queue = self.bell.wait(queue).expect("no thread panics with the lock held");
                continue;
            };
            drop(queue);
            let result = match job {
                Job::Fault(space, address) => self.answer(&space, address, &mut scratch),
                Job::Chunk(chunk) => self.bring(chunk, None, &mut scratch),
            };
            queue = self.queue();
            queue.busy -= 1;
            if let Err(error) = result {
                queue.stop = true;
                let mut failure = self.failure.lock().expect("no thread panics with the lock held");
                failure.get_or_insert(error);
                self.bell.notify_all();
            }
            if queue.stop || queue.is_idle() {
                self.tell();
            }
        }
    }

    /// Has the thread that reads events look again.
    fn tell(&self) {
        // It counts far enough.
        let _ = nix::unistd::write(&self.idle, &1_u64.to_ne_bytes());
    }

    /// Somebody waits for an address.
    fn answer(&self, space: &Arc<Space>, address: u64, scratch: &mut ChunkScratch) -> Result<(), ServeError> {
        let mut shortages = 0;
        loop {
            if let Some(page) = space.page_at(address) {
                let chunk = self.chunk_of(page)?;
                self.queue().in_hand(chunk);
                return self.bring(chunk, Some((space, address)), scratch);
            }
            let delivery = space.zero(address).map_err(ServeError::Fill)?;
            if self.is_settled(space, delivery, &mut shortages)? {
                return Ok(());
            }
        }
    }

    /// Brings a chunk to all; the page first that somebody waits for, then what lies behind it. When somebody waits for another chunk
    /// meanwhile, the rest of this one is left to others.
    fn bring(
        &self,
        chunk: usize,
        first: Option<(&Arc<Space>, u64)>,
        scratch: &mut ChunkScratch,
    ) -> Result<(), ServeError> {
        let entry = &self.image.chunks()[chunk];
        let failed = |source| ServeError::Read {
            place: Place::Chunk(*entry),
            source: Box::new(source),
        };
        // Others wait for what may be there.
        let goes_on = || {
            let queue = self.queue();
            !queue.stop && !queue.has_faults()
        };
        let is_there = self.image.await_chunk(entry, first.is_some(), Some(&goes_on));
        if !is_there.map_err(failed)? {
            let mut queue = self.queue();
            queue.again(chunk);
            if let Some((space, address)) = first {
                queue.fault(Arc::clone(space), address);
            }
            return Ok(());
        }
        let pages = entry.first.0..entry.end();
        let bytes = self.image.read_chunk(entry, scratch).map_err(failed)?;
        let Some((space, address)) = first else {
            return self.bring_to_all(&pages, &pages, bytes);
        };
        let wanted = self.bring_one(space, address, &pages, bytes)?.unwrap_or(pages.start);
        let behind = (wanted..pages.end)
            .step_by(PART)
            .map(|at| at..pages.end.min(at + PART as u64));
        let before = (pages.start..wanted)
            .step_by(PART)
            .map(|at| at..wanted.min(at + PART as u64));
        for part in behind.chain(before) {
            self.bring_to_all(&part, &pages, bytes)?;
            self.help_others(&pages, bytes)?;
            let mut queue = self.queue();
            if queue.has_faults() {
                queue.left(chunk);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Helps those who wait for pages of a chunk, whose bytes these are, and those for whom all has come that they need.
    fn help_others(&self, chunk: &Range<u64>, bytes: &[u8]) -> Result<(), ServeError> {
        let can_be = |space: &Arc<Space>, address| space.page_at(address).is_none_or(|page| chunk.contains(&page));
        loop {
            let Some((space, address)) = self.queue().take_fault(can_be) else {
                return Ok(());
            };
            if self.bring_one(&space, address, chunk, bytes)?.is_some() {
                continue;
            }
            if space.zero(address).map_err(ServeError::Fill)? != Delivery::Whole {
                // That takes longer.
                self.queue().fault(space, address);
                return Ok(());
            }
        }
    }

    /// Brings the page of a chunk, whose bytes these are, that somebody waits for; returns its number.
    fn bring_one(
        &self,
        space: &Arc<Space>,
        address: u64,
        chunk: &Range<u64>,
        bytes: &[u8],
    ) -> Result<Option<u64>, ServeError> {
        let Some(page) = space.page_at(address).filter(|page| chunk.contains(page)) else {
            return Ok(None);
        };
        let at = (page - chunk.start) as usize * PAGE;
        self.bring_to(space, &(page..page + 1), &bytes[at..at + PAGE])?;
        Ok(Some(page))
    }

    /// Brings pages of a chunk, whose bytes these are, to all.
    fn bring_to_all(&self, pages: &Range<u64>, chunk: &Range<u64>, bytes: &[u8]) -> Result<(), ServeError> {
        let within = |page: u64| (page - chunk.start) as usize * PAGE;
        let bytes = &bytes[within(pages.start)..within(pages.end)];
        (self.all().iter()).try_for_each(|space| self.bring_to(space, pages, bytes))
    }

    /// Brings pages to one; tries until no event stands in the way.
    fn bring_to(&self, space: &Arc<Space>, pages: &Range<u64>, bytes: &[u8]) -> Result<(), ServeError> {
        let mut shortages = 0;
        loop {
            let delivery = space.bring(pages, bytes).map_err(ServeError::Fill)?;
            if self.is_settled(space, delivery, &mut shortages)? {
                return Ok(());
            }
        }
    }

    /// Whether nothing is to be tried again now; waits for a moment if it is.
    fn is_settled(&self, space: &Arc<Space>, delivery: Delivery, shortages: &mut u32) -> Result<bool, ServeError> {
        match delivery {
            Delivery::Whole | Delivery::Aside => return Ok(true),
            Delivery::Again => {
                self.hear(space)?;
                std::thread::sleep(SOON);
            }
            Delivery::Unsure => return Err(ServeError::Order),
            Delivery::NoRoom if *shortages == SHORTAGES => return Err(ServeError::NoRoom),
            Delivery::NoRoom => {
                *shortages += 1;
                std::thread::sleep(LATER);
            }
        }
        Ok(self.queue().stop)
    }
}
