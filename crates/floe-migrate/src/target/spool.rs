//! Takes an image into a file without a name: from the connection with the source, or in pieces from several that have joined.

use super::{
    session::{Ended, out_of_turn},
    streams::Streams,
};
use crate::{
    link::{
        Link,
        frame::{self, DATA, Frame, FrameError, Place},
        message::{MISSING, Message, Part},
    },
    protocol::Decision,
    refusal::Refusal,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

/// The source hears something at least so often.
pub const ALIVE: Duration = Duration::from_secs(1);
/// How often is looked whether floe was told to stop, in milliseconds.
const GLANCE: u8 = 50;
/// Frames that are taken of one connection before the others get their turn.
const TURN: usize = 16;
/// Parts of an image that are apart from each other at the same time. A source has a few in each connection.
const PARTS: usize = 1 << 16;

/// Which bytes of an image have come.
#[derive(Debug, Default)]
struct Coverage {
    /// First byte and the one behind the last, of parts that do not touch each other.
    parts: BTreeMap<u64, u64>,
}

/// What can't be part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("the source sent some of the image twice")]
    Overlap,
    #[error("the source sent an image that is too long")]
    Length,
    #[error("the source sent the image in too many parts")]
    Parts,
    #[error("some of the image has not come")]
    Hole,
    #[error("the source told wrongly of what is still to come of the image")]
    Missing,
}

impl Coverage {
    /// Adds bytes, of which none has come before.
    fn add(&mut self, offset: u64, bytes: usize) -> Result<(), Fault> {
        let end = offset
            .checked_add(bytes as u64)
            .filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or(Fault::Length)?;
        if bytes == 0 {
            return Ok(());
        }
        let before = self
            .parts
            .range(..=offset)
            .next_back()
            .map(|(start, end)| (*start, *end));
        let behind = self.parts.range(offset..).next().map(|(start, end)| (*start, *end));
        if before.is_some_and(|(_, before)| before > offset) || behind.is_some_and(|(behind, _)| behind < end) {
            return Err(Fault::Overlap);
        }
        let start = before
            .filter(|(_, before)| *before == offset)
            .map_or(offset, |(start, _)| start);
        let end = match behind.filter(|(behind, _)| *behind == end) {
            Some((behind, far)) => {
                self.parts.remove(&behind);
                far
            }
            None => end,
        };
        self.parts.insert(start, end);
        match self.parts.len() {
            0..=PARTS => Ok(()),
            _ => Err(Fault::Parts),
        }
    }

    /// Checks that all bytes of an image of that length have come, and no others, but for these parts of it, of which none has.
    fn is_whole_but_for(&mut self, bytes: u64, missing: &[Part]) -> Result<(), Fault> {
        for (offset, bytes) in missing {
            let bytes = usize::try_from(*bytes)
                .ok()
                .filter(|bytes| *bytes > 0)
                .ok_or(Fault::Missing)?;
            self.add(*offset, bytes).map_err(|_| Fault::Missing)?;
        }
        match missing.is_sorted() {
            true => self.is_whole(bytes),
            false => Err(Fault::Missing),
        }
    }

    /// Checks that all bytes of an image of that length have come, and no others.
    fn is_whole(&self, bytes: u64) -> Result<(), Fault> {
        match (self.parts.len(), self.parts.first_key_value()) {
            (0, None) if bytes == 0 => Ok(()),
            (1, Some((0, end))) if *end == bytes => Ok(()),
            (_, Some((_, end))) if *end > bytes => Err(Fault::Length),
            _ => Err(Fault::Hole),
        }
    }
}

/// An image on its way.
pub struct Spool<'a> {
    link: &'a mut Link,
    streams: &'a mut Streams,
    /// Bytes at most.
    most: u64,
    file: Option<File>,
    /// Why it is not kept.
    failure: Option<Refusal>,
    coverage: Coverage,
    /// What comes later; `None` where nothing may.
    missing: Option<Vec<Part>>,
    /// Behind the last byte that came by the first connection.
    next: u64,
    /// What the source has said of it: how long it is, or (`None`) that nothing has come of it.
    told: Option<Option<u64>>,
    /// What came by each of several connections, and whether that is all.
    came: Vec<(u64, bool)>,
    /// When the source was heard last, and when it heard something.
    heard: Instant,
    last: Instant,
    buffer: Vec<u8>,
}

impl<'a> Spool<'a> {
    /// One of at most so many bytes.
    pub fn new(link: &'a mut Link, streams: &'a mut Streams, most: u64) -> Self {
        let now = Instant::now();
        let (file, failure) = match tempfile::tempfile() {
            Ok(file) => (Some(file), None),
            Err(error) => {
                let folder = std::env::temp_dir();
                let text = format!("make a temporary file for the image in {}: {error}", folder.display());
                (None, Some(Refusal::plain(text)))
            }
        };
        Self {
            came: vec![(0, false); streams.count()],
            buffer: if streams.count() == 0 {
                Vec::new()
            } else {
                vec![0; DATA]
            },
            link,
            streams,
            most,
            file,
            failure,
            coverage: Coverage::default(),
            missing: None,
            next: 0,
            told: None,
            heard: now,
            last: now,
        }
    }

    /// Takes all of it; `None` where the source says that nothing has come of it.
    pub fn take(mut self) -> Result<Option<File>, Ended> {
        while self.failure.is_none() && !self.is_over() {
            self.step()?;
        }
        self.finish()
    }

    /// The same of the last image, and which parts of it come later.
    pub fn take_last(mut self) -> Result<(File, Vec<Part>), Ended> {
        self.missing = Some(Vec::new());
        while self.failure.is_none() && !self.is_over() {
            self.step()?;
        }
        let missing = self.missing.take().unwrap_or_default();
        if self.failure.is_none() {
            let bytes = self.told.flatten().ok_or_else(out_of_turn)?;
            let whole = self.coverage.is_whole_but_for(bytes, &missing);
            whole.map_err(|fault| Ended::Refused(Refusal::of(&fault)))?;
        }
        Ok((self.finish()?.ok_or_else(out_of_turn)?, missing))
    }

    /// The same of an image that need not be kept: why it is not.
    pub fn take_or_leave(mut self) -> Result<Result<Option<File>, Refusal>, Ended> {
        while !self.is_over() {
            self.step()?;
        }
        // Who says that nothing has come of it wants to hear nothing.
        match self.failure.take().filter(|_| self.told != Some(None)) {
            Some(refusal) => {
                self.streams.next_image();
                Ok(Err(refusal))
            }
            None => self.finish().map(Ok),
        }
    }

    fn is_over(&self) -> bool {
        self.told.is_some() && self.came.iter().all(|(_, is_all)| *is_all)
    }

    fn finish(mut self) -> Result<Option<File>, Ended> {
        if let Some(refusal) = self.failure.take() {
            return Err(Ended::Refused(refusal));
        }
        self.streams.next_image();
        match self.told.flatten() {
            Some(bytes) => {
                self.coverage
                    .is_whole(bytes)
                    .map_err(|fault| Ended::Refused(Refusal::of(&fault)))?;
                Ok(self.file.take())
            }
            None => Ok(None),
        }
    }

    /// Takes what comes next.
    fn step(&mut self) -> Result<(), Ended> {
        if self.last.elapsed() > ALIVE {
            self.link.send_alive()?;
            self.last = Instant::now();
        }
        if self.streams.count() == 0 {
            let frame = self.link.receive_any()?;
            return self.take_frame(&frame);
        }
        if self.link.is_told_to_stop() {
            return Err(Ended::Refused(Refusal::plain("interrupted")));
        }
        if self.heard.elapsed() > self.link.patience() {
            return Err(FrameError::Io(io::ErrorKind::TimedOut.into()).into());
        }
        if self.link.waits().map_err(FrameError::Io)? {
            self.heard = Instant::now();
            let frame = self.link.receive_any()?;
            self.take_frame(&frame)?;
        }
        // What is unpacked already no poll(2) tells of.
        let glance = if self.link.waits().map_err(FrameError::Io)? {
            0
        } else {
            GLANCE
        };
        let mut asked = vec![PollFd::new(self.link.input(), PollFlags::POLLIN)];
        let open: Vec<usize> = (0..self.came.len()).filter(|number| !self.came[*number].1).collect();
        asked.extend(
            open.iter()
                .map(|number| PollFd::new(self.streams.input(*number), PollFlags::POLLIN)),
        );
        match poll(&mut asked, glance) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Ended::Refused(Refusal::of(&io::Error::from(error)))),
        }
        let is_ready = |asked: &PollFd<'_>| asked.revents().is_some_and(|events| !events.is_empty());
        let ready = asked.iter().skip(1).map(is_ready).collect::<Vec<_>>();
        for (number, _) in open.into_iter().zip(ready).filter(|(_, is_ready)| *is_ready) {
            self.take_from_stream(number)?;
        }
        Ok(())
    }

    /// Takes a frame of the first connection.
    fn take_frame(&mut self, frame: &Frame<Message>) -> Result<(), Ended> {
        match frame {
            Frame::Data(got) if self.streams.count() == 0 && self.told.is_none() => {
                let offset = self.next;
                self.next += *got as u64;
                self.keep(offset, *got)
            }
            // Of an image of which something is missing no more comes by the others.
            Frame::Piece(place, got) if self.missing.as_ref().is_some_and(|parts| !parts.is_empty()) => {
                if self.told.is_some() {
                    return Err(out_of_turn());
                }
                self.keep_from(place.offset, *got, true)
            }
            Frame::Message(Message::Missing { parts, .. }) if self.told.is_none() => {
                let missing = self.missing.as_mut().ok_or_else(out_of_turn)?;
                if missing.len() + parts.len() > MISSING {
                    return Err(Ended::Refused(Refusal::of(&Fault::Parts)));
                }
                missing.extend(parts);
                Ok(())
            }
            Frame::Alive => Ok(()),
            Frame::Message(Message::End { bytes }) if self.told.is_none() => {
                self.told = Some(Some(*bytes));
                Ok(())
            }
            Frame::Message(Message::Skip) if self.told.is_none() => {
                self.told = Some(None);
                Ok(())
            }
            Frame::Message(Message::Decided {
                decision: Decision::Abort,
                ..
            }) => Err(Ended::Told),
            Frame::Message(_) | Frame::Data(_) | Frame::Piece(..) => Err(out_of_turn()),
        }
    }

    /// Takes what waits in one of several connections.
    fn take_from_stream(&mut self, number: usize) -> Result<(), Ended> {
        for _ in 0..TURN {
            let broken = |error: &FrameError| {
                let reason = Refusal::of(error).reason;
                Ended::Refused(Refusal::plain(format!(
                    "one of the connections by which images come: {reason}"
                )))
            };
            let wire = self.streams.wire(number);
            match frame::receive::<Message>(wire, &mut self.buffer).map_err(|error| broken(&error))? {
                Frame::Piece(Place { image, offset }, got) if image == self.streams.image() => {
                    self.came[number].0 += got as u64;
                    self.keep(offset, got)?;
                }
                Frame::Message(Message::End { bytes }) if bytes == self.came[number].0 => {
                    self.came[number].1 = true;
                    return Ok(());
                }
                Frame::Message(Message::Refused { reason, .. }) => {
                    let text = format!("one of the connections by which images come: {reason}");
                    return Err(Ended::Refused(Refusal::plain(text)));
                }
                Frame::Message(_) | Frame::Data(_) | Frame::Piece(..) | Frame::Alive => return Err(out_of_turn()),
            }
            if !self.streams.has_more(number) {
                break;
            }
        }
        Ok(())
    }

    /// Writes a piece that has come where it belongs.
    fn keep(&mut self, offset: u64, bytes: usize) -> Result<(), Ended> {
        self.keep_from(offset, bytes, self.streams.count() == 0)
    }

    /// The same of one that has come by the first connection, or by another one.
    fn keep_from(&mut self, offset: u64, bytes: usize, first: bool) -> Result<(), Ended> {
        self.coverage
            .add(offset, bytes)
            .map_err(|fault| Ended::Refused(Refusal::of(&fault)))?;
        if offset + bytes as u64 > self.most {
            return Err(Ended::Refused(Refusal::plain("the records of the tree are too long")));
        }
        let piece = match first {
            true => self.link.data(bytes),
            false => &self.buffer[..bytes],
        };
        if let Some(file) = self.file.as_ref().filter(|_| self.failure.is_none())
            && let Err(error) = file.write_all_at(piece, offset)
        {
            let text = format!("write the image into a temporary file: {error}");
            self.failure = Some(Refusal::plain(text));
            // What is there already is not wanted any more.
            self.file = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Coverage, Fault, PARTS};

    #[test]
    fn whatever_the_order_is_all_bytes_must_come_once() {
        // All orders of five pieces.
        let pieces = [(0, 3), (3, 1), (4, 8), (12, 2), (14, 6)];
        let mut orders = vec![Vec::new()];
        for _ in 0..pieces.len() {
            let longer = orders.iter().flat_map(|order: &Vec<usize>| {
                let rest = (0..pieces.len()).filter(|next| !order.contains(next));
                rest.map(|next| [&order[..], &[next]].concat()).collect::<Vec<_>>()
            });
            orders = longer.collect();
        }
        assert_eq!(orders.len(), 120);
        for order in orders {
            let mut coverage = Coverage::default();
            for (count, number) in order.iter().enumerate() {
                assert_eq!(coverage.is_whole(20), Err(Fault::Hole), "{order:?} after {count}");
                let (offset, bytes) = pieces[*number];
                coverage.add(offset, bytes).expect("new");
                assert_eq!(coverage.add(offset, bytes), Err(Fault::Overlap));
                assert_eq!(coverage.add(offset + bytes as u64 - 1, 9), Err(Fault::Overlap));
            }
            assert_eq!(coverage.is_whole(20), Ok(()));
            assert_eq!(coverage.is_whole(19), Err(Fault::Length));
            assert_eq!(coverage.is_whole(21), Err(Fault::Hole));
        }
    }

    #[test]
    fn what_comes_later_is_exactly_what_has_not_come() {
        let whole = |missing: &[(u64, u64)]| {
            let mut coverage = Coverage::default();
            for (offset, bytes) in [(0, 10), (15, 5), (30, 2)] {
                coverage.add(offset, bytes).expect("new");
            }
            coverage.is_whole_but_for(32, missing)
        };
        assert_eq!(whole(&[(10, 5), (20, 10)]), Ok(()));
        assert_eq!(whole(&[(10, 2), (12, 3), (20, 10)]), Ok(()));
        for bad in [
            &[(10, 5), (20, 11)][..],
            &[(9, 6), (20, 10)],
            &[(20, 10), (10, 5)],
            &[(10, 5), (20, 10), (20, 10)],
            &[(10, 5), (15, 0), (20, 10)],
            &[(10, 5), (20, u64::MAX)],
        ] {
            assert_eq!(whole(bad), Err(Fault::Missing), "{bad:?}");
        }
        assert_eq!(whole(&[(10, 5)]), Err(Fault::Hole));
        assert_eq!(whole(&[(10, 5), (20, 10), (32, 1)]), Err(Fault::Length));
    }

    #[test]
    fn what_is_no_part_of_an_image_is_told() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.is_whole(0), Ok(()));
        assert_eq!(coverage.add(u64::MAX, 1), Err(Fault::Length));
        assert_eq!(coverage.add(i64::MAX as u64, 1), Err(Fault::Length));
        assert_eq!(coverage.add(7, 0), Ok(()));
        assert_eq!(coverage.is_whole(0), Ok(()));
        for number in 0..PARTS as u64 {
            coverage.add(2 * number, 1).expect("one more part");
        }
        assert_eq!(coverage.add(2 * PARTS as u64, 1), Err(Fault::Parts));
    }
}
