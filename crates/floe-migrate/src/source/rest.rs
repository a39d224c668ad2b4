//! What of the last image goes over when the tree runs at the target already: that image is written into a file here, parts of
//! which the target does without until it is told to let the tree run. The file has a name, by which another floe goes on should
//! this one be killed.

use super::{
    Course, MigrateError,
    pace::Pace,
    pump::{ALIVE, GLANCE, hear, is_ready, pump, talk, wait_for},
    rounds::Rounds,
    save::Sent,
};
use crate::{
    link::{
        Link,
        frame::{DATA, Frame, FrameError, Place},
        message::{Id, MISSING, Message, PARTS, Part},
    },
    refusal::Refusal,
    worker::Worker,
};
use floe_resources::mm::lazy::may_come_later;
use nix::poll::{PollFd, PollFlags};
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    num::NonZeroU64,
    ops::Range,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Instant,
};

/// Less than this is not worth it.
const LITTLE: u64 = 1 << 20;

/// The last image.
#[derive(Debug)]
pub struct Rest {
    pub file: File,
    path: PathBuf,
    /// What is to be sent, in this order.
    queue: VecDeque<Part>,
    /// Bytes that were.
    pub sent: u64,
    /// Why the file can't be read.
    pub unreadable: Option<io::Error>,
}

impl Rest {
    /// A file for it, where there may be one.
    pub fn make(id: &Id) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("floe-{}.rest", id.as_str()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        // Whoever settles it may be elsewhere.
        match std::path::absolute(path).and_then(|path| Ok((options.open(&path)?, path))) {
            Ok((file, path)) => Some(Self::new(file, path)),
            Err(error) => {
                tracing::info!(%error, "all memory goes over before it runs there: there is no temporary file for the rest");
                None
            }
        }
    }

    /// One that was left.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(File::open(path)?, path.to_owned()))
    }

    fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            queue: VecDeque::new(),
            sent: 0,
            unreadable: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that have not gone over.
    pub fn left(&self) -> u64 {
        self.queue.iter().map(|part| part.1).sum()
    }

    /// Finds what the target can do without for now, of the image that was written.
    fn choose(&mut self, rounds: &Rounds) -> Result<(), Refusal> {
        let image = rounds.image(&self.file)?;
        let mut later: Vec<Range<u64>> = may_come_later(&image)
            .into_values()
            .flatten()
            .map(|run| run.first.0..run.first.0 + run.pages)
            .collect();
        later.sort_unstable_by_key(|range| range.start);
        later.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        let is_later = |first: u64, end: u64| {
            let behind = later.partition_point(|range| range.start <= first);
            behind.checked_sub(1).is_some_and(|index| end <= later[index].end)
        };
        let chunks = image.own_chunks().iter();
        let chosen = chunks.filter(|chunk| is_later(chunk.first.0, chunk.end()));
        let mut parts: Vec<Part> = chosen.map(floe_image::record::Chunk::extent).collect();
        parts.sort_unstable();
        parts.truncate(MISSING);
        if parts.iter().map(|part| part.1).sum::<u64>() >= LITTLE {
            self.queue = parts.into();
        }
        Ok(())
    }

    /// Sends all of the image that the target can't do without, when the worker has written it, and says what is missing.
    pub fn send_first(
        &mut self,
        (course, rounds): (&Course<'_>, &Rounds),
        (link, worker): (&mut Link, &mut Worker),
        sent: &mut Sent,
    ) -> Result<(), MigrateError> {
        await_image(course, (link, worker), sent)?;
        self.choose(rounds).map_err(super::save::refused_here)?;
        if self.queue.is_empty() {
            return pump(course, (link, worker), (sent, Some(&self.file)));
        }
        let talk = talk(link.peer());
        let missing: Vec<Part> = self.queue.iter().copied().collect();
        for (number, parts) in missing.chunks(PARTS).enumerate() {
            let (parts, last) = (parts.to_vec(), (number + 1) * PARTS >= missing.len());
            link.send(&Message::Missing { parts, last }).map_err(&talk)?;
        }
        // Nothing of it comes by the others.
        for stream in link.streams() {
            stream.send(&Message::End { bytes: 0 }).map_err(&talk)?;
        }
        let mut at = 0;
        for (offset, length) in missing.into_iter().chain([(self.length()?, 0)]) {
            sent.bytes += self.send_part(course, link, (at, offset - at), &mut Course::listen)?;
            at = offset + length;
        }
        Ok(())
    }

    /// Bytes of all of the image.
    pub fn length(&self) -> Result<u64, MigrateError> {
        Ok(self.file.metadata().map_err(read_failed)?.len())
    }

    /// Sends a part while the tree stands still.
    fn send_part(
        &self,
        course: &Course<'_>,
        link: &mut Link,
        (offset, bytes): Part,
        listen: &mut dyn FnMut(&mut Link) -> Result<(), MigrateError>,
    ) -> Result<u64, MigrateError> {
        let talk = talk(link.peer());
        let mut piece = vec![0; course.pace().piece(DATA)];
        let mut done = 0;
        while done < bytes {
            course.look_out(link)?;
            listen(link)?;
            let most = piece.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
            self.file
                .read_exact_at(&mut piece[..most], offset + done)
                .map_err(read_failed)?;
            let pause = course.pace().place(most);
            std::thread::sleep(pause);
            let place = Place {
                image: 0,
                offset: offset + done,
            };
            link.send_piece(place, &piece[..most]).map_err(&talk)?;
            done += most as u64;
        }
        Ok(done)
    }

    /// Sends parts that the target waits for before it holds the tree.
    pub fn fetched(&mut self, course: &Course<'_>, link: &mut Link, parts: &[Part]) -> Result<u64, MigrateError> {
        let mut sent = 0;
        for part in parts {
            // Each comes once by this connection.
            if let Some(index) = self.queue.iter().position(|left| left == part) {
                // What it says meanwhile is heard behind that.
                sent += self.send_part(course, link, *part, &mut |_| Ok(()))?;
                self.queue.remove(index);
            }
        }
        Ok(sent)
    }

    /// Somebody waits for these at the target.
    pub fn hurry(&mut self, parts: &[Part]) {
        for part in parts.iter().rev() {
            if let Some(index) = self.queue.iter().position(|left| left == part) {
                self.queue.remove(index);
                self.queue.push_front(*part);
            }
        }
    }

    /// Says by a new connection that the rest comes by it, and hears what that is; `false` where nobody wants it.
    pub fn resume(&mut self, link: &mut Link, id: &Id) -> Result<bool, FrameError> {
        link.send(&Message::Resume { id: id.clone() })?;
        match link.receive()? {
            Message::Joined => {}
            Message::Whole => return Ok(false),
            Message::Refused { reason, .. } => return Err(FrameError::Io(io::Error::other(reason))),
            _ => return Err(FrameError::Kind(b'?')),
        }
        self.queue.clear();
        let length = self.file.metadata()?.len();
        loop {
            let Message::Missing { parts, last } = link.receive()? else {
                return Err(FrameError::Kind(b'?'));
            };
            let is_there = |part: &Part| part.0.checked_add(part.1).is_some_and(|end| end <= length);
            if !parts.iter().all(is_there) {
                let why = "it ends before what the target asks for";
                self.unreadable = Some(io::Error::new(io::ErrorKind::UnexpectedEof, why));
                return Err(FrameError::End);
            }
            if self.queue.len() + parts.len() > MISSING {
                return Err(FrameError::Io(io::Error::other("it asks for more than there can be")));
            }
            self.queue.extend(parts);
            if last {
                return Ok(true);
            }
        }
    }

    /// Sends what is left, what the target waits for first, until it says that it needs no more. The tree runs there.
    pub fn send(&mut self, link: &mut Link, bandwidth: Option<NonZeroU64>) -> Result<(), FrameError> {
        let mut pace = Pace::new(bandwidth);
        let mut piece = vec![0; pace.piece(DATA)];
        let mut last = Instant::now();
        let mut heard = last;
        loop {
            let first = self.queue.front();
            let (mut offset, end) = first.map_or((0, 0), |(offset, bytes)| (*offset, offset + bytes));
            // What is begun is sent whole: pieces of a part follow each other.
            loop {
                while link.waits()? {
                    heard = Instant::now();
                    match link.receive_any()? {
                        Frame::Message(Message::Whole) => return Ok(()),
                        Frame::Message(Message::Fetch { parts }) => self.hurry_behind_first(&parts),
                        Frame::Alive => {}
                        Frame::Message(Message::Refused { reason, .. }) => {
                            return Err(FrameError::Io(io::Error::other(reason)));
                        }
                        Frame::Message(_) | Frame::Data(_) | Frame::Piece(..) => return Err(FrameError::Kind(b'?')),
                    }
                }
                if link.is_told_to_stop() {
                    return Err(FrameError::Io(io::Error::other("told to stop")));
                }
                if heard.elapsed() > link.patience() {
                    return Err(FrameError::Io(io::ErrorKind::TimedOut.into()));
                }
                if last.elapsed() > ALIVE {
                    link.send_alive()?;
                    last = Instant::now();
                }
                if offset >= end {
                    break;
                }
                let most = piece.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
                if let Err(error) = self.file.read_exact_at(&mut piece[..most], offset) {
                    self.unreadable = Some(error);
                    return Err(FrameError::End);
                }
                std::thread::sleep(pace.place(most));
                link.send_piece(Place { image: 0, offset }, &piece[..most])?;
                last = Instant::now();
                offset += most as u64;
                self.sent += most as u64;
            }
            if self.queue.pop_front().is_none() {
                // All is on its way.
                let mut asked = [PollFd::new(link.input(), PollFlags::POLLIN)];
                wait_for(&mut asked, GLANCE).map_err(|error| FrameError::Io(io::Error::other(error)))?;
            }
        }
    }

    /// As [`hurry`](Self::hurry), while the first one is being sent.
    fn hurry_behind_first(&mut self, parts: &[Part]) {
        let first = self.queue.pop_front();
        self.hurry(parts);
        if let Some(first) = first {
            self.queue.push_front(first);
        }
    }
}

/// Removes a file that nobody needs any more.
pub fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a file stays that nobody needs any more");
        }
        _ => {}
    }
}

fn read_failed(source: io::Error) -> MigrateError {
    MigrateError::system("read the image")(source)
}

/// Waits until the worker has written the image.
fn await_image(
    course: &Course<'_>,
    (link, worker): (&mut Link, &mut Worker),
    sent: &mut Sent,
) -> Result<(), MigrateError> {
    let mut last = Instant::now();
    while !sent.complete {
        course.look_out(link)?;
        Course::listen(link)?;
        let mut asked = [link.input(), worker.control.as_fd()].map(|end| PollFd::new(end, PollFlags::POLLIN));
        wait_for(&mut asked, GLANCE)?;
        let reports = is_ready(&asked[1]);
        if reports && !hear(course, worker, sent)? {
            return Err(MigrateError::Killed);
        }
        if last.elapsed() > ALIVE {
            link.send_alive().map_err(talk(link.peer()))?;
            last = Instant::now();
        }
    }
    Ok(())
}
