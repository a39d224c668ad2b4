//! Memory goes over while the tree runs: all of it first, then, round by round, what was written meanwhile. Each round is an
//! image on the base of the one before. Both sides keep them until the last one, for which the tree stands still.

use super::{
    MigrateError, Request,
    save::{HERE, Saved, Sent, pump, start, talk},
};
use crate::{
    link::{Link, message::Message},
    refusal::Refusal,
};
use floe_checkpoint::{checkpoint::Then, stage::Control};
use floe_image::{Image, ImageFiles};
use floe_resources::mm::Base;
use floe_sandbox::{KeptFiles, Sandbox};
use std::{
    ffi::OsStr,
    fs::File,
    time::{Duration, Instant},
};

/// What is sent faster than this is not worth another round: what comes then stands still about as long for other reasons.
const MOMENT: Duration = Duration::from_millis(15);
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
}

impl Rounds {
    /// Sends rounds until what is left is little, or does not become less.
    pub fn send(
        request: &Request<'_>,
        memory: u64,
        link: &mut Link,
        control: &Control<'_>,
    ) -> Result<Self, MigrateError> {
        let mut rounds = Self::default();
        let most = request.rounds.unwrap_or(if memory > LITTLE { ROUNDS } else { 0 });
        let mut before = u64::MAX;
        let mut speed = 0.0;
        while rounds.count() < most {
            let begin = Instant::now();
            let Some(bytes) = rounds.send_one(request, link, control)? else {
                break;
            };
            let seconds = begin.elapsed().as_secs_f64().max(1e-6);
            speed = f64::max(speed, bytes as f64 / seconds);
            tracing::info!(round = rounds.count(), bytes, seconds, "sent while the tree runs");
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
    fn send_one(
        &mut self,
        request: &Request<'_>,
        link: &mut Link,
        control: &Control<'_>,
    ) -> Result<Option<u64>, MigrateError> {
        let mut image = tempfile::tempfile().map_err(MigrateError::system("make a temporary file for a round"))?;
        let saved = Saved {
            then: Then::RunOnMeanwhile,
            rounds: self,
            record: None,
        };
        let mut worker = start(request, link, saved, control)?;
        let peer = link.peer().to_owned();
        link.send(&Message::Round).map_err(talk(&peer))?;
        let mut sent = Sent::default();
        let pumped = pump((link, &mut worker), (&mut sent, Some(&mut image)), (request, control));
        self.bytes += sent.bytes;
        match pumped {
            Ok(()) => {}
            // All of it goes over in the end, or it is told there why not.
            Err(MigrateError::Refused { refusal, who }) if who == HERE => {
                tracing::info!(reason = refusal.reason, "memory does not go over while the tree runs");
                link.send(&Message::Skip).map_err(talk(&peer))?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        worker.wait();
        link.send(&Message::End { bytes: sent.bytes }).map_err(talk(&peer))?;
        self.paused = self.paused.max(sent.counts.frozen);
        self.images.push(image);
        Ok(Some(sent.bytes))
    }

    /// The last one, as what the next image is based on.
    pub fn base(&self) -> Result<Option<Base>, Refusal> {
        let mut files = Vec::new();
        for (number, image) in (1..).zip(&self.images) {
            let image = image.try_clone().map_err(|error| Refusal::of(&error))?;
            files.push((name(number), image));
        }
        let Some((own_name, own)) = files.pop() else {
            return Ok(None);
        };
        files.reverse();
        let image = Image::open(ImageFiles::chained(own, files)).map_err(|error| Refusal::of(&error))?;
        Ok(Some(Base::new(image, OsStr::new(&own_name))))
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
