//! Images over several connections at once: each takes the next piece of what is written whenever it has sent one, and says
//! where that belongs. The first connection carries no image then, but all else.

use super::{
    Course, MigrateError, greet,
    pace::Pace,
    pump::{ALIVE, GLANCE, GROWS, await_completion, hear, is_ready, talk, wait_for},
    save::{Sent, refused_there},
    tuner::Tuner,
};
use crate::{
    link::{
        Link, Manner,
        frame::{DATA, Frame, FrameError, Place},
        message::{Id, Message},
    },
    worker::Worker,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::socket::{MsgFlags, Shutdown, recv, shutdown},
};
use std::{
    fs::File,
    io::{self, PipeWriter, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

/// How long a target is listened to, one of whose connections broke, for why.
const WHY: Duration = Duration::from_secs(1);

/// A lock that nobody leaves in disorder, as who holds it does not panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes so many more connections with the target of a link, which wait there for pieces of images.
pub fn join(course: &Course<'_>, link: &mut Link, (id, count): (&Id, u16)) -> Result<(), MigrateError> {
    let address = course.request.address;
    let manner = Manner {
        demand: link.key(),
        unattended: true,
        ..course.request.manner(course.control)
    };
    let joined = thread::scope(|scope| {
        let all: Vec<_> = (0..count)
            .map(|stream| {
                let make = move || -> Result<Link, MigrateError> {
                    let mut link = greet(address, manner)?;
                    let peer = link.peer().to_owned();
                    link.set_deadline(Instant::now().checked_add(manner.patience));
                    let id = id.clone();
                    link.send(&Message::Join { id, stream }).map_err(talk(&peer))?;
                    let answer = link.receive().map_err(talk(&peer))?;
                    link.set_deadline(None);
                    match answer {
                        Message::Joined => Ok(link),
                        Message::Refused { reason, findings } => Err(refused_there(&peer, &reason, &findings)),
                        _ => Err(MigrateError::OutOfTurn(peer)),
                    }
                };
                scope.spawn(make)
            })
            .collect();
        all.into_iter().map(ended).collect::<Result<Vec<_>, _>>()
    });
    *link.streams() = joined?;
    Ok(())
}

fn ended<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Sends what the worker writes by all connections that have joined.
pub fn pump(
    course: &Course<'_>,
    (link, worker): (&mut Link, &mut Worker),
    (sent, file): (&mut Sent, Option<&File>),
) -> Result<(), MigrateError> {
    let failed = MigrateError::system("send an image over several connections");
    let mut streams = std::mem::take(link.streams());
    let data = worker.data.try_clone();
    let ends: io::Result<Vec<OwnedFd>> = streams.iter().map(|one| one.input().try_clone_to_owned()).collect();
    let pipe = io::pipe();
    let (data, ends, (bell, ring)) = match (data, ends, pipe) {
        (Ok(data), Ok(ends), Ok(pipe)) => (data, ends, pipe),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return Err(failed(error)),
    };
    let supply = Supply {
        from: file.map_or(From::Worker(&data), From::File),
        next: Mutex::new(0),
        state: AtomicU8::new(GROWING),
    };
    let image = course.next_image();
    let (result, broken) = thread::scope(|scope| {
        let senders: Vec<_> = streams
            .iter_mut()
            .map(|stream| {
                let mut sender = Sender {
                    supply: &supply,
                    pace: &course.pace,
                    tuner: &course.tuner,
                    stream,
                    image,
                    bytes: 0,
                };
                let ring = ring.try_clone();
                scope.spawn(move || sender.run_and_ring(ring))
            })
            .collect();
        drop(ring);
        let result = watch(course, (link, worker), (sent, &supply), bell);
        supply.turn(GIVEN_UP);
        // They may wait for a target that has no more ears; of a round that was given up here they tell it so.
        if result.as_ref().is_err_and(|error| !error.is_refusal_here()) {
            for end in &ends {
                if let Err(error) = shutdown(end.as_raw_fd(), Shutdown::Both) {
                    tracing::debug!(%error, "a connection has ended");
                }
            }
        }
        let broken = senders.into_iter().map(ended).find_map(Result::err);
        (result, broken)
    });
    sent.bytes = *lock(&supply.next);
    match (result, broken) {
        (Err(error), _) => Err(error),
        (Ok(()), Some(source)) => Err(why(course, link, source)),
        (Ok(()), None) => {
            *link.streams() = streams;
            Ok(())
        }
    }
}

/// One of the connections broke: the target may say why.
fn why(course: &Course<'_>, link: &mut Link, source: FrameError) -> MigrateError {
    let begin = Instant::now();
    while begin.elapsed() < WHY && course.look_out(link).is_ok() {
        match Course::listen(link) {
            Ok(()) => {}
            Err(error @ MigrateError::Refused { .. }) => return error,
            Err(_) => break,
        }
        if wait_for(&mut [PollFd::new(link.input(), PollFlags::POLLIN)], GLANCE).is_err() {
            break;
        }
    }
    MigrateError::Stream {
        peer: link.peer().to_owned(),
        source,
    }
}

/// Hears what worker and target say until all connections have sent all, or one of them broke.
fn watch(
    course: &Course<'_>,
    (link, worker): (&mut Link, &mut Worker),
    (sent, supply): (&mut Sent, &Supply<'_>),
    mut bell: io::PipeReader,
) -> Result<(), MigrateError> {
    let mut last = Instant::now();
    let mut reports = true;
    loop {
        course.look_out(link)?;
        Course::listen(link)?;
        let mut asked = [
            PollFd::new(bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(link.input(), PollFlags::POLLIN),
            PollFd::new(worker.control.as_fd(), PollFlags::POLLIN),
        ];
        let asked = if reports { &mut asked[..] } else { &mut asked[..2] };
        wait_for(asked, GLANCE)?;
        let (rings, has_report) = (is_ready(&asked[0]), asked.get(2).is_some_and(is_ready));
        if has_report {
            reports = hear(course, worker, sent)?;
        }
        if sent.complete || !reports {
            supply.turn(WHOLE);
        }
        if rings {
            let broke = bell
                .read(&mut [0])
                .map_err(MigrateError::system("hear of the connections"))?
                > 0;
            return if broke {
                Ok(())
            } else {
                await_completion(course, worker, sent)
            };
        }
        if last.elapsed() > ALIVE {
            link.send_alive().map_err(talk(link.peer()))?;
            last = Instant::now();
        }
    }
}

/// More may be written.
const GROWING: u8 = 0;
/// All is written.
const WHOLE: u8 = 1;
/// No more is to be sent.
const GIVEN_UP: u8 = 2;

/// An image that is written, of which all connections take pieces.
struct Supply<'a> {
    from: From<'a>,
    /// Where the next piece begins.
    next: Mutex<u64>,
    state: AtomicU8,
}

enum From<'a> {
    File(&'a File),
    Worker(&'a UnixStream),
}

/// What there is of it.
enum Next {
    /// So many bytes, from there on.
    Piece(u64, usize),
    /// Nothing yet.
    Later,
    /// Nothing any more.
    Over,
}

impl Supply<'_> {
    fn turn(&self, state: u8) {
        self.state.fetch_max(state, Ordering::SeqCst);
    }

    fn take(&self, buffer: &mut [u8]) -> io::Result<Next> {
        let mut next = lock(&self.next);
        let state = self.state.load(Ordering::SeqCst);
        if state == GIVEN_UP {
            return Ok(Next::Over);
        }
        let got = match self.from {
            From::File(file) => match file.read_at(buffer, *next)? {
                0 if state == GROWING => return Ok(Next::Later),
                got => got,
            },
            From::Worker(worker) => match recv(worker.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Next::Later),
                // It may have been killed, which who hears it notices.
                Err(Errno::ECONNRESET) => 0,
                result => result?,
            },
        };
        if got == 0 {
            return Ok(Next::Over);
        }
        let offset = *next;
        *next += got as u64;
        Ok(Next::Piece(offset, got))
    }

    /// Who says that there is more, and how often has to be looked where nobody does.
    fn more(&self) -> (Option<BorrowedFd<'_>>, u8) {
        match self.from {
            From::File(_) => (None, GROWS),
            From::Worker(worker) => (Some(worker.as_fd()), GLANCE),
        }
    }
}

/// One of the connections, at work.
struct Sender<'a> {
    supply: &'a Supply<'a>,
    pace: &'a Mutex<Pace>,
    tuner: &'a Mutex<Tuner>,
    stream: &'a mut Link,
    image: u32,
    /// Sent by it.
    bytes: u64,
}

impl Sender<'_> {
    /// Sends pieces until there are no more. The ring is dropped then, or used where it fails.
    fn run_and_ring(&mut self, ring: io::Result<PipeWriter>) -> Result<(), FrameError> {
        let mut ring = ring?;
        let result = self.run();
        if result.is_err() {
            self.supply.turn(GIVEN_UP);
            // Whoever hears it is there until this has ended.
            drop(ring.write_all(&[1]));
        }
        result
    }

    fn run(&mut self) -> Result<(), FrameError> {
        let mut piece = vec![0; lock(self.pace).piece(DATA)];
        let (mut idle, mut last) = (Duration::ZERO, Instant::now());
        loop {
            let begin = Instant::now();
            match self.supply.take(&mut piece)? {
                Next::Piece(offset, got) => {
                    let pause = lock(self.pace).place(got);
                    thread::sleep(pause);
                    let image = self.image;
                    self.stream.send_piece(Place { image, offset }, &piece[..got])?;
                    self.bytes += got as u64;
                    lock(self.tuner).note(got, std::mem::take(&mut idle), begin.elapsed());
                    last = Instant::now();
                }
                Next::Over => return self.stream.send(&Message::End { bytes: self.bytes }),
                Next::Later => {
                    self.await_more()?;
                    idle += begin.elapsed();
                    if last.elapsed() > ALIVE {
                        self.stream.send_alive()?;
                        last = Instant::now();
                    }
                }
            }
        }
    }

    /// Waits until there may be more; the target says nothing here meanwhile.
    fn await_more(&mut self) -> Result<(), FrameError> {
        if self.stream.waits()? {
            return match self.stream.receive_any()? {
                Frame::Alive => Ok(()),
                _ => Err(FrameError::Kind(b'?')),
            };
        }
        let (end, milliseconds) = self.supply.more();
        let ends = [Some(self.stream.input()), end];
        let mut asked: Vec<_> = ends
            .into_iter()
            .flatten()
            .map(|end| PollFd::new(end, PollFlags::POLLIN))
            .collect();
        match poll(&mut asked, milliseconds) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(FrameError::Io(error.into())),
        }
    }
}
