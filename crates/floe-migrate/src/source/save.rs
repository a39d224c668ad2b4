//! Stops the tree, and sends what is saved of it.

use super::{Hand, MigrateError, Request, pace::Pace, rounds::Rounds};
use crate::{
    link::{
        Link,
        frame::{DATA, Frame, FrameError},
        message::{Id, Instance, Message},
    },
    protocol::{Phase, SourceEvent},
    record::Record,
    refusal::Refusal,
    worker::{Counts, Ends, Relay, Report, Verdict, Worker},
};
use floe_checkpoint::{
    checkpoint::{self, Output, Target, Then, checkpoint},
    stage::{Control, Injection},
};
use floe_resources::file::Externals;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use std::{
    fs::File,
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// The other side hears something at least so often.
const ALIVE: Duration = Duration::from_secs(1);
/// How often is looked whether floe was told to stop, in milliseconds.
const GLANCE: u8 = 50;
/// How often is looked whether a file has grown, in milliseconds.
const GROWS: u8 = 2;

/// An image that was sent.
#[derive(Debug, Default)]
pub struct Sent {
    pub bytes: u64,
    pub counts: Counts,
    /// Whether the worker has written all of it.
    complete: bool,
    /// When the tree was stopped.
    pub stopped: Option<Instant>,
}

/// What is known of a stage by its name alone.
fn stage_name(name: &str) -> Option<&'static str> {
    let saving = [(Then::End, false), (Then::RunOnMeanwhile, true)];
    let saving = saving
        .into_iter()
        .flat_map(|(then, track)| checkpoint::stages(then, track));
    let mut all = saving.chain(floe_checkpoint::restore::STAGES);
    all.find(|known| *known == name)
}

/// Saves all but memory and has the target look for what stands in the way. The tree is stopped for a moment.
pub fn look(
    request: &Request<'_>,
    id: &Id,
    link: &mut Link,
    control: &Control<'_>,
) -> Result<(Counts, Instance), MigrateError> {
    let saved = Saved {
        then: Then::RunOnUnsaved,
        rounds: &Rounds::default(),
        file: None,
        record: None,
    };
    let mut worker = start(request, link, saved, control)?;
    let offer = Message::Offer {
        id: id.clone(),
        name: request.sandbox.name().to_owned(),
    };
    let peer = link.peer().to_owned();
    link.send(&offer).map_err(talk(&peer))?;
    let mut sent = Sent::default();
    // The tree stands still while its records are taken from it.
    limit(request, link);
    pump((link, &mut worker), (&mut sent, None), (request, control))
        .map_err(|error| standstill(request, link, error))?;
    link.set_deadline(None);
    worker.wait();
    link.send(&Message::End { bytes: sent.bytes }).map_err(talk(&peer))?;
    loop {
        match wait((link, None), &mut sent, control)? {
            Some(Message::Accepted { instance }) => return Ok((sent.counts, instance)),
            Some(Message::Stage { name }) => {
                if let Some(name) = stage_name(&name) {
                    control.observer.stage(name);
                }
            }
            Some(Message::Refused { reason, findings }) => return Err(refused_there(&peer, &reason, &findings)),
            Some(_) => return Err(MigrateError::OutOfTurn(peer)),
            None => {}
        }
    }
}

/// From now on the tree may stand still for so long.
fn limit(request: &Request<'_>, link: &mut Link) {
    link.set_deadline(Instant::now().checked_add(request.stop_limit));
}

/// What has failed because that is past says so.
fn standstill(request: &Request<'_>, link: &Link, error: MigrateError) -> MigrateError {
    match error {
        MigrateError::Talk { .. } if link.is_late() => MigrateError::Standstill(request.stop_limit.as_secs()),
        error => error,
    }
}

/// What an error of talking to somebody is.
pub fn talk(peer: &str) -> impl FnOnce(FrameError) -> MigrateError {
    let peer = peer.to_owned();
    move |source| MigrateError::Talk { peer, source }
}

/// Who refuses where the source does.
pub const HERE: &str = "this host";

fn refused_here(refusal: Refusal) -> MigrateError {
    MigrateError::Refused {
        who: HERE.to_owned(),
        refusal,
    }
}

fn refused_there(peer: &str, reason: &str, findings: &[String]) -> MigrateError {
    MigrateError::Refused {
        who: peer.to_owned(),
        refusal: Refusal::from_peer(reason, findings),
    }
}

/// Stops the tree, sends its image on the base of what went over before, and sees the hand-over through.
pub fn save(
    request: &Request<'_>,
    rounds: &Rounds,
    hand: &mut Hand<'_>,
    control: &Control<'_>,
) -> Result<Sent, MigrateError> {
    let mut sent = Sent::default();
    match send_image((request, rounds), hand, &mut sent, control) {
        Ok(()) => {}
        Err((event, error)) => hand.fail(event, error),
    }
    Ok(sent)
}

type Failed = (SourceEvent, MigrateError);

fn send_image(
    (request, rounds): (&Request<'_>, &Rounds),
    hand: &mut Hand<'_>,
    sent: &mut Sent,
    control: &Control<'_>,
) -> Result<(), Failed> {
    let failed = |error: MigrateError| (SourceEvent::Failed, error);
    let Some(link) = &mut hand.link else {
        return Err(failed(MigrateError::Killed));
    };
    let saved = Saved {
        then: Then::End,
        rounds,
        file: None,
        record: Some(hand.record),
    };
    let worker = start(request, link, saved, control).map_err(failed)?;
    let worker = hand.worker.insert(worker);
    let peer = link.peer().to_owned();
    let lost = |source| {
        let peer = peer.clone();
        (SourceEvent::LinkLost, MigrateError::Talk { peer, source })
    };
    limit(request, link);
    link.send(&Message::Image { lazy: request.lazy }).map_err(lost)?;
    let failed = |link: &Link, error| (event_of(&error), standstill(request, link, error));
    pump((link, worker), (sent, None), (request, control)).map_err(|error| failed(link, error))?;
    link.send(&Message::End { bytes: sent.bytes }).map_err(lost)?;
    // From here on the target speaks, or the worker, should it be killed.
    loop {
        match wait((link, Some(worker)), sent, control).map_err(|error| failed(link, error))? {
            Some(Message::Prepared) => break,
            Some(Message::Stage { name }) => {
                if let Some(name) = stage_name(&name) {
                    control.observer.stage(name);
                }
            }
            Some(Message::Refused { reason, findings }) => {
                return Err((SourceEvent::Refused, refused_there(&peer, &reason, &findings)));
            }
            Some(_) => return Err((SourceEvent::LinkLost, MigrateError::OutOfTurn(peer.clone()))),
            None => {}
        }
    }
    link.set_deadline(None);
    hand.see(SourceEvent::Prepared);
    Ok(())
}

/// What the hand-over sees in a failure: only where the target itself says so it holds nothing, and the connection can be
/// used no more where it failed.
fn event_of(error: &MigrateError) -> SourceEvent {
    match error {
        MigrateError::Refused { who, .. } if who != HERE => SourceEvent::Refused,
        MigrateError::Talk { .. } | MigrateError::OutOfTurn(_) => SourceEvent::LinkLost,
        _ => SourceEvent::Failed,
    }
}

/// What the target says next; `None` for what is none of its words. Ends where the worker does, whose tree runs then.
pub fn wait(
    (link, mut worker): (&mut Link, Option<&mut Worker>),
    sent: &mut Sent,
    control: &Control<'_>,
) -> Result<Option<Message>, MigrateError> {
    let peer = link.peer().to_owned();
    let talk = |source| MigrateError::Talk {
        peer: peer.clone(),
        source,
    };
    let begin = Instant::now();
    let mut last = begin;
    loop {
        if control.interrupted.load(Ordering::Relaxed) {
            return Err(MigrateError::Interrupted);
        }
        if link.is_late() {
            return Err(talk(FrameError::Io(io::ErrorKind::TimedOut.into())));
        }
        if link.waits().map_err(|error| talk(error.into()))? {
            return match link.receive_any().map_err(talk)? {
                Frame::Message(message) => Ok(Some(message)),
                Frame::Alive => Ok(None),
                Frame::Data(_) => Err(MigrateError::OutOfTurn(peer.clone())),
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
            && !hear(worker, sent, control)?
        {
            return Err(MigrateError::Killed);
        }
        if begin.elapsed() > link.patience() {
            return Err(talk(FrameError::Io(io::ErrorKind::TimedOut.into())));
        }
        if last.elapsed() > ALIVE {
            link.send_alive().map_err(talk)?;
            last = Instant::now();
        }
    }
}

fn wait_for(asked: &mut [PollFd<'_>], milliseconds: u8) -> Result<(), MigrateError> {
    match poll(asked, milliseconds) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(MigrateError::system("wait for the other side")(error.into())),
    }
}

fn is_ready(asked: &PollFd<'_>) -> bool {
    asked.revents().is_some_and(|events| !events.is_empty())
}

/// Sends what the worker writes, until it has written all: to the connection with it, or into a file, which it need not wait for.
pub fn pump(
    (link, worker): (&mut Link, &mut Worker),
    (sent, file): (&mut Sent, Option<&File>),
    (request, control): (&Request<'_>, &Control<'_>),
) -> Result<(), MigrateError> {
    let peer = link.peer().to_owned();
    let talk = |source| MigrateError::Talk {
        peer: peer.clone(),
        source,
    };
    let mut pace = Pace::new(request.bandwidth);
    let mut piece = vec![0; pace.piece(DATA)];
    let mut last = Instant::now();
    let mut reports = true;
    let mut has_more = true;
    loop {
        if control.interrupted.load(Ordering::Relaxed) {
            return Err(MigrateError::Interrupted);
        }
        if link.is_late() {
            return Err(talk(FrameError::Io(io::ErrorKind::TimedOut.into())));
        }
        if link.waits().map_err(|error| talk(error.into()))? {
            match link.receive_any().map_err(talk)? {
                Frame::Message(Message::Refused { reason, findings }) => {
                    return Err(refused_there(&peer, &reason, &findings));
                }
                Frame::Message(_) | Frame::Data(_) => return Err(MigrateError::OutOfTurn(peer.clone())),
                Frame::Alive => {}
            }
        }
        let mut asked = [
            PollFd::new(worker.data.as_fd(), PollFlags::POLLIN),
            PollFd::new(link.input(), PollFlags::POLLIN),
            PollFd::new(worker.control.as_fd(), PollFlags::POLLIN),
        ];
        let asked = if reports { &mut asked[..] } else { &mut asked[..2] };
        // Nobody tells when a file grows.
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
        let (has_data, has_report) = (is_ready(&asked[0]), asked.get(2).is_some_and(is_ready));
        let was_complete = sent.complete;
        if has_report {
            // One that is gone may have written before.
            reports = hear(worker, sent, control)?;
        }
        let got = match file {
            Some(file) => Some(file.read_at(&mut piece, sent.bytes))
                .filter(|got| was_complete || !reports || !matches!(got, Ok(0))),
            None => has_data.then(|| worker.data.read(&mut piece)),
        };
        has_more = got.is_some();
        if let Some(got) = got {
            let got = got.map_err(MigrateError::system("read the image"))?;
            if got == 0 {
                while !sent.complete {
                    if !hear(worker, sent, control)? {
                        return Err(MigrateError::Killed);
                    }
                }
                return Ok(());
            }
            pace.wait(got);
            link.send_data(&piece[..got]).map_err(talk)?;
            sent.bytes += got as u64;
            last = Instant::now();
        } else if last.elapsed() > ALIVE {
            link.send_alive().map_err(talk)?;
            last = Instant::now();
        }
    }
}

/// Takes a report of the worker; whether there was one.
fn hear(worker: &mut Worker, sent: &mut Sent, control: &Control<'_>) -> Result<bool, MigrateError> {
    let report = worker.report().map_err(|error| match error {
        FrameError::Io(source) => MigrateError::system("hear from the process that saves the tree")(source),
        _ => MigrateError::Killed,
    })?;
    match report {
        Some(Report::Stage(name)) => {
            if let Some(name) = stage_name(&name) {
                if name == "freeze" {
                    sent.stopped = Some(Instant::now());
                }
                control.observer.stage(name);
            }
        }
        Some(Report::Pages(done, total)) => control.observer.pages(done, total),
        Some(Report::Refused(refusal)) => return Err(refused_here(refusal)),
        Some(Report::Complete) => sent.complete = true,
        Some(Report::Done(counts)) => (sent.counts, sent.complete) = (counts, true),
        None => return Ok(false),
    }
    Ok(true)
}

/// What is saved of a tree, and what becomes of it.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    pub then: Then,
    /// What went over before.
    pub rounds: &'a Rounds,
    /// Where the image is written; `None`: to the connection with the worker.
    pub file: Option<&'a File>,
    pub record: Option<&'a Record>,
}

/// Starts the process that stops the tree and saves it.
pub fn start(
    request: &Request<'_>,
    link: &mut Link,
    saved: Saved<'_>,
    control: &Control<'_>,
) -> Result<Worker, MigrateError> {
    let work = |ends: &Ends| {
        let saving = Saving {
            request,
            saved,
            interrupted: control.interrupted,
            fail_at: control.fail_at,
        };
        saving.run(ends)
    };
    Worker::start(link, work).map_err(MigrateError::system("start the process that saves the tree"))
}

/// What the worker does.
struct Saving<'a> {
    request: &'a Request<'a>,
    saved: Saved<'a>,
    interrupted: &'static AtomicBool,
    fail_at: Option<&'a Injection>,
}

#[derive(Debug, thiserror::Error)]
enum NotEnded {
    #[error("the migration was given up")]
    GivenUp,
}

impl Saving<'_> {
    fn run(&self, ends: &Ends) -> Result<Counts, Refusal> {
        let sandbox = &self.request.sandbox;
        let refusal = |error: &(dyn std::error::Error + 'static)| Refusal::of(error);
        // Of memory that is still to come nothing but its image is known.
        sandbox.await_memory().map_err(|error| refusal(&error))?;
        sandbox.join_user().map_err(|error| refusal(&error))?;
        let _lock = sandbox.lock().map_err(|error| refusal(&error))?;
        let target = Target::of_sandbox(sandbox).map_err(|error| refusal(&error))?;
        let base = self.saved.rounds.base()?;
        let output = match self.saved.file {
            Some(file) => file.try_clone(),
            None => ends.data.try_clone().map(|data| File::from(OwnedFd::from(data))),
        };
        let output = output.map_err(|error| refusal(&error))?;
        let mut before_end = || match self.verdict(ends) {
            Ok(()) => Ok(()),
            Err(error) => Err(Box::from(error)),
        };
        let request = checkpoint::Request {
            target,
            owner: None,
            output: Some(Output::Stream(output)),
            level: self.request.level,
            base,
            then: self.saved.then,
            track: self.saved.then == Then::RunOnMeanwhile,
            tcp: self.request.tcp,
            patience: self.request.patience,
            external: Externals::new(Vec::new()).map_err(|error| refusal(&error))?,
            behind_front: true,
            before_end: &mut before_end,
        };
        let observer = Relay(ends);
        let control = Control {
            interrupted: self.interrupted,
            fail_at: self.fail_at,
            observer: &observer,
        };
        let report = checkpoint(request, &control).map_err(|error| refusal(&error))?;
        Ok(Counts {
            processes: report.processes as u64,
            threads: report.threads as u64,
            memory: report.memory,
            frozen: report.frozen,
        })
    }

    /// The image is complete: waits for what becomes of the tree, which stands still.
    fn verdict(&self, ends: &Ends) -> Result<(), NotEnded> {
        ends.tell(&Report::Complete);
        if ends.data.shutdown(Shutdown::Write).is_err() {
            return Err(NotEnded::GivenUp);
        }
        match ends.verdict() {
            Some(Verdict::End) => Ok(()),
            Some(Verdict::LetGo) => Err(NotEnded::GivenUp),
            // Who was to say it may have been killed just after it had the monitor decide.
            None => match self.saved.record {
                Some(record) if self.was_decided(record) => Ok(()),
                _ => Err(NotEnded::GivenUp),
            },
        }
    }

    fn was_decided(&self, record: &Record) -> bool {
        // Once it has decided, the monitor waits for the tree to end, which it does only when this process lets go of it.
        const GLANCE: Duration = Duration::from_millis(100);
        loop {
            if matches!(record.written_phase(self.request.state_dir), Ok(Phase::Decided)) {
                return true;
            }
            match self.request.sandbox.wait_for_monitor(GLANCE) {
                Err(floe_sandbox::HandoverError::Refused(_)) => {}
                answer => {
                    if let Err(error) = answer {
                        tracing::debug!(%error, "the monitor does not answer");
                    }
                    return matches!(record.written_phase(self.request.state_dir), Ok(Phase::Decided));
                }
            }
        }
    }
}
