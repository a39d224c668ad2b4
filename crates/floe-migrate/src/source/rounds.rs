//! Memory goes over while the tree runs: all of it first, then, round by round, what was written meanwhile. Each round is an
//! image on the base of the one before. Both sides keep them until the last one, for which the tree stands still.

use super::{
    Course, MigrateError,
    pump::{pump, talk, wait},
    save::{Saved, Sent, start},
};
use crate::{
    link::{Link, message::Message},
    refusal::Refusal,
};
use floe_checkpoint::checkpoint::Then;
use floe_image::{Image, ImageFiles};
use floe_resources::mm::Base;
use floe_sandbox::{KeptFiles, Sandbox};
use std::{
    ffi::OsStr,
    fs::File,
    io,
    time::{Duration, Instant},
};

/// What is sent faster than this is not worth another round: what comes then stands still about as long for other reasons.
const MOMENT: Duration = Duration::from_millis(15);
/// What is left goes over behind the decision where it would take longer than this.
const LONG: Duration = Duration::from_millis(250);
/// Of so little memory there are no rounds unless somebody wants them.
const LITTLE: u64 = 8 << 20;
/// Of more there are as many, at most.
const ROUNDS: u32 = 8;

/// What went over while the tree ran.
#[derive(Debug, Default)]
pub struct Rounds {
    /// The images, the oldest first.
    images: Vec<File>,
    /// Bytes that were sent.
    pub bytes: u64,
    /// The longest that the tree stood still for one of them.
    pub paused: Duration,
    /// Whether what the tree writes may be followed since.
    pub follows: bool,
    /// Whether what is left can be expected to take long to send, and may be written into a file here.
    pub leaves_much: bool,
}

impl Rounds {
    /// Sends rounds until what is left is little, or does not become less.
    pub fn send(course: &Course<'_>, memory: u64, link: &mut Link) -> Result<Self, MigrateError> {
        let mut rounds = Self {
            leaves_much: memory > LITTLE,
            ..Self::default()
        };
        let most = course
            .request
            .rounds
            .unwrap_or(if memory > LITTLE { ROUNDS } else { 0 });
        let mut before = u64::MAX;
        let mut speed = 0.0;
        // What is sent is kept, here and there.
        while rounds.count() < most && rounds.bytes <= memory.saturating_mul(2) {
            let begin = Instant::now();
            let Some(bytes) = rounds.send_one(course, link)? else {
                // There was no room, and may be none for what is left.
                rounds.leaves_much = false;
                break;
            };
            let seconds = begin.elapsed().as_secs_f64().max(1e-6);
            speed = f64::max(speed, bytes as f64 / seconds);
            tracing::info!(round = rounds.count(), bytes, seconds, "sent while the tree runs");
            rounds.leaves_much = bytes as f64 > speed * LONG.as_secs_f64();
            let is_little = bytes as f64 <= speed * MOMENT.as_secs_f64();
            if is_little || bytes > before / 4 * 3 {
                break;
            }
            before = bytes;
        }
        Ok(rounds)
    }

    /// How many there were.
    pub fn count(&self) -> u32 {
        self.images.len() as u32
    }

    /// Sends one; how many bytes, where something came of it.
    fn send_one(&mut self, course: &Course<'_>, link: &mut Link) -> Result<Option<u64>, MigrateError> {
        // The tree does not wait for the other host: what is saved of it while it stands still is written here first.
        let image = match tempfile::tempfile() {
            Ok(image) => image,
            Err(error) => {
                tracing::info!(%error, "no memory goes over while the tree runs: there is no temporary file for it");
                return Ok(None);
            }
        };
        let saved = Saved {
            then: Then::RunOnMeanwhile,
            rounds: self,
            file: Some(&image),
            record: None,
        };
        course.tuner().begin(link.streams().len(), true);
        let mut worker = start(course, link, saved)?;
        self.follows = true;
        let peer = link.peer().to_owned();
        link.send(&Message::Round).map_err(talk(&peer))?;
        let mut sent = Sent::default();
        let pumped = pump(course, (link, &mut worker), (&mut sent, Some(&image)));
        self.bytes += sent.bytes;
        match pumped {
            Ok(()) => {}
            // All of it goes over in the end, or it is told there why not.
            Err(error) if error.is_refusal_here() => {
                tracing::info!(%error, "no more memory goes over while the tree runs");
                link.send(&Message::Skip).map_err(talk(&peer))?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        worker.wait();
        link.send(&Message::End { bytes: sent.bytes }).map_err(talk(&peer))?;
        self.paused = self.paused.max(sent.counts.frozen);
        if !await_kept(course, link, &mut sent)? {
            return Ok(None);
        }
        self.images.push(image);
        Ok(Some(sent.bytes))
    }

    /// The last one, as what the next image is based on.
    pub fn base(&self) -> Result<Option<Base>, Refusal> {
        let mut files = self.files().map_err(|error| Refusal::of(&error))?;
        if files.is_empty() {
            return Ok(None);
        }
        let (own_name, own) = files.remove(0);
        let image = Image::open(ImageFiles::chained(own, files)).map_err(|error| Refusal::of(&error))?;
        Ok(Some(Base::new(image, OsStr::new(&own_name))))
    }

    /// An image on the base of the last one.
    pub fn image(&self, own: &File) -> Result<Image, Refusal> {
        let files = own
            .try_clone()
            .and_then(|own| Ok(ImageFiles::chained(own, self.files()?)));
        let files = files.map_err(|error| Refusal::of(&error))?;
        Image::open(files).map_err(|error| Refusal::of(&error))
    }

    /// The images, each with its name, the newest first.
    fn files(&self) -> io::Result<Vec<(String, File)>> {
        let numbered = self.images.iter().enumerate().rev();
        numbered
            .map(|(index, image)| Ok((name(index as u32 + 1), image.try_clone()?)))
            .collect()
    }
}

/// Whether the target has kept a round, for which it may have had no room. It has taken all but what waits in the connection, so
/// that it may take no longer than it may be silent.
fn await_kept(course: &Course<'_>, link: &mut Link, sent: &mut Sent) -> Result<bool, MigrateError> {
    link.set_deadline(Instant::now().checked_add(course.request.silence));
    loop {
        match wait(course, (link, None), sent)? {
            Some(Message::Kept) => {
                link.set_deadline(None);
                return Ok(true);
            }
            Some(Message::NotKept { reason }) => {
                tracing::info!(
                    reason,
                    "no more memory goes over while the tree runs: the target could not keep it"
                );
                link.set_deadline(None);
                return Ok(false);
            }
            Some(_) => return Err(MigrateError::OutOfTurn(link.peer().to_owned())),
            None => {}
        }
    }
}

/// The tree runs on here: nobody wants to know any more what it writes.
pub fn forget(sandbox: &Sandbox) {
    if let Err(error) = KeptFiles::forget(sandbox.folder()) {
        tracing::info!(%error, "what the tree writes is followed still");
    }
}

/// By which an image of a round is known.
fn name(number: u32) -> String {
    format!("round-{number}")
}
