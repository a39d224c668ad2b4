//! Sends an image while another process writes it, and hears meanwhile what that and the target say.

use super::{
    Course, MigrateError,
    save::{Sent, refused_here, refused_there, stage_name},
    streams,
};
use crate::{
    link::{
        Link,
        frame::{DATA, Frame, FrameError},
        message::Message,
    },
    worker::{Report, Worker},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use std::{
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// The other side hears something at least so often.
pub const ALIVE: Duration = Duration::from_secs(1);
/// How often is looked whether floe was told to stop, in milliseconds.
pub const GLANCE: u8 = 50;
/// How often is looked whether a file has grown, in milliseconds.
pub const GROWS: u8 = 2;

/// What an error of talking to somebody is.
pub fn talk(peer: &str) -> impl Fn(FrameError) -> MigrateError + use<> {
    let peer = peer.to_owned();
    move |source| MigrateError::Talk {
        peer: peer.clone(),
        source,
    }
}

/// What the target says next; `None` for what is none of its words. Ends where the worker does, whose tree runs then.
pub fn wait(
    course: &Course<'_>,
    (link, mut worker): (&mut Link, Option<&mut Worker>),
    sent: &mut Sent,
) -> Result<Option<Message>, MigrateError> {
    let peer = link.peer().to_owned();
    let talk = talk(&peer);
    let begin = Instant::now();
    let mut last = begin;
    loop {
        course.look_out(link)?;
        if link.waits().map_err(|error| talk(error.into()))? {
            return match link.receive_any().map_err(talk)? {
                Frame::Message(message) => Ok(Some(message)),
                Frame::Alive => Ok(None),
                Frame::Data(_) | Frame::Piece(..) => Err(MigrateError::OutOfTurn(peer)),
            };
        }
        let mut asked = vec![PollFd::new(link.input(), PollFlags::POLLIN)];
        asked.extend(
            worker
                .iter()
                .map(|worker| PollFd::new(worker.control.as_fd(), PollFlags::POLLIN)),
        );
        wait_for(&mut asked, GLANCE)?;
        let reports = asked.get(1).is_some_and(is_ready);
        if let Some(worker) = &mut worker
            && reports
            && !hear(course, worker, sent)?
        {
            return Err(MigrateError::Killed);
        }
        if begin.elapsed() > link.patience() {
            return Err(talk(FrameError::Io(io::ErrorKind::TimedOut.into())));
        }
        if last.elapsed() > ALIVE {
            link.send_alive().map_err(&talk)?;
            last = Instant::now();
        }
    }
}

pub fn wait_for(asked: &mut [PollFd<'_>], milliseconds: u8) -> Result<(), MigrateError> {
    match poll(asked, milliseconds) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(MigrateError::system("wait for the other side")(error.into())),
    }
}

pub fn is_ready(asked: &PollFd<'_>) -> bool {
    asked.revents().is_some_and(|events| !events.is_empty())
}

impl Course<'_> {
    /// Fails where floe was told to stop, or the tree stands still for too long.
    pub fn look_out(&self, link: &Link) -> Result<(), MigrateError> {
        if self.control.interrupted.load(Ordering::Relaxed) {
            return Err(MigrateError::Interrupted);
        }
        match link.is_late() {
            true => Err(talk(link.peer())(FrameError::Io(io::ErrorKind::TimedOut.into()))),
            false => Ok(()),
        }
    }

    /// Takes what the target says while an image goes over: no more than that it lives, or refuses.
    pub fn listen(link: &mut Link) -> Result<(), MigrateError> {
        let talk = talk(link.peer());
        if !link.waits().map_err(|error| talk(error.into()))? {
            return Ok(());
        }
        match link.receive_any().map_err(talk)? {
            Frame::Message(Message::Refused { reason, findings }) => {
                Err(refused_there(link.peer(), &reason, &findings))
            }
            Frame::Message(_) | Frame::Data(_) | Frame::Piece(..) => {
                Err(MigrateError::OutOfTurn(link.peer().to_owned()))
            }
            Frame::Alive => Ok(()),
        }
    }
}

/// Sends what the worker writes, until it has written all: to the connection with it, or into a file, which it need not wait for.
pub fn pump(
    course: &Course<'_>,
    (link, worker): (&mut Link, &mut Worker),
    (sent, file): (&mut Sent, Option<&File>),
) -> Result<(), MigrateError> {
    if !link.streams().is_empty() {
        return streams::pump(course, (link, worker), (sent, file));
    }
    let talk = talk(link.peer());
    let mut piece = vec![0; course.pace().piece(DATA)];
    let mut last = Instant::now();
    let mut reports = true;
    let mut has_more = true;
    let mut idle = Duration::ZERO;
    loop {
        course.look_out(link)?;
        Course::listen(link)?;
        let mut asked = [
            PollFd::new(worker.data.as_fd(), PollFlags::POLLIN),
            PollFd::new(link.input(), PollFlags::POLLIN),
            PollFd::new(worker.control.as_fd(), PollFlags::POLLIN),
        ];
        let asked = if reports { &mut asked[..] } else { &mut asked[..2] };
        // Nobody tells when a file grows.
        let begin = Instant::now();
        wait_for(
            asked,
            if file.is_none() {
                GLANCE
            } else if has_more {
                0
            } else {
                GROWS
            },
        )?;
        idle += begin.elapsed();
        let (has_data, has_report) = (is_ready(&asked[0]), asked.get(2).is_some_and(is_ready));
        let was_complete = sent.complete;
        if has_report {
            // One that is gone may have written before.
            reports = hear(course, worker, sent)?;
        }
        let begin = Instant::now();
        let got = match file {
            Some(file) => Some(file.read_at(&mut piece, sent.bytes))
                .filter(|got| was_complete || !reports || !matches!(got, Ok(0))),
            None => has_data.then(|| worker.data.read(&mut piece)),
        };
        has_more = got.is_some();
        if let Some(got) = got {
            let got = got.map_err(MigrateError::system("read the image"))?;
            if got == 0 {
                return await_completion(course, worker, sent);
            }
            let pause = course.pace().place(got);
            std::thread::sleep(pause);
            link.send_data(&piece[..got]).map_err(&talk)?;
            sent.bytes += got as u64;
            course.tuner().note(got, std::mem::take(&mut idle), begin.elapsed());
            last = Instant::now();
        } else if last.elapsed() > ALIVE {
            link.send_alive().map_err(&talk)?;
            last = Instant::now();
        }
    }
}

/// All that was written is sent: waits for the worker's word that it is all.
pub fn await_completion(course: &Course<'_>, worker: &mut Worker, sent: &mut Sent) -> Result<(), MigrateError> {
    while !sent.complete {
        if !hear(course, worker, sent)? {
            return Err(MigrateError::Killed);
        }
    }
    Ok(())
}

/// Takes a report of the worker; whether there was one.
pub fn hear(course: &Course<'_>, worker: &mut Worker, sent: &mut Sent) -> Result<bool, MigrateError> {
    let observer = course.control.observer;
    let report = worker.report().map_err(|error| match error {
        FrameError::Io(source) => MigrateError::system("hear from the process that saves the tree")(source),
        _ => MigrateError::Killed,
    })?;
    match report {
        Some(Report::Stage(name)) => {
            if let Some(name) = stage_name(&name) {
                match name {
                    "freeze" => sent.stopped = Some(Instant::now()),
                    "let-go" => course.tuner().lift(),
                    _ => {}
                }
                observer.stage(name);
            }
        }
        Some(Report::Pages(done, total)) => observer.pages(done, total),
        Some(Report::Refused(refusal)) => return Err(refused_here(refusal)),
        Some(Report::Complete) => sent.complete = true,
        Some(Report::Done(counts)) => (sent.counts, sent.complete) = (counts, true),
        None => return Ok(false),
    }
    Ok(true)
}
