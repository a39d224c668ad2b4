//! Stops the tree, and sends what is saved of it.

use super::{
    Course, Files, Going, Hand, MigrateError, Request, files,
    pump::{pump, talk, wait},
    rounds::Rounds,
    tree::Tree,
};
use crate::{
    link::{
        Link,
        message::{Id, Instance, Message},
    },
    protocol::{Phase, SourceEvent},
    record::Record,
    refusal::Refusal,
    worker::{Counts, Ends, Relay, Report, Verdict, Worker},
};
use floe_checkpoint::{
    checkpoint::{self, Output, Target, Then, checkpoint},
    stage::Control,
};
use floe_resources::file::Externals;
use std::{
    fs::File,
    net::Shutdown,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// An image that was sent.
#[derive(Debug, Default)]
pub struct Sent {
    pub bytes: u64,
    pub counts: Counts,
    /// Whether the worker has written all of it.
    pub complete: bool,
    /// When the tree was stopped.
    pub stopped: Option<Instant>,
}

/// What is known of a stage by its name alone.
pub fn stage_name(name: &str) -> Option<&'static str> {
    let saving = [(Then::End, false), (Then::RunOnMeanwhile, true)];
    let saving = saving
        .into_iter()
        .flat_map(|(then, track)| checkpoint::stages(then, track));
    let mut all = saving.chain(floe_checkpoint::restore::STAGES);
    all.find(|known| *known == name)
}

/// Saves all but memory and has the target look for what stands in the way. The tree is stopped for a moment.
pub fn look(course: &Course<'_>, id: &Id, link: &mut Link) -> Result<(Counts, Instance, Going), MigrateError> {
    let Course { request, control, .. } = course;
    // In which is looked up what files it uses.
    let records = (request.files != Files::None).then(tempfile::tempfile).transpose();
    let records = records.map_err(MigrateError::system("make a temporary file"))?;
    let saved = Saved {
        then: Then::RunOnUnsaved,
        rounds: &Rounds::default(),
        file: records.as_ref(),
        record: None,
    };
    let mut worker = start(course, link, saved)?;
    let offer = Message::Offer {
        id: id.clone(),
        name: request.sandbox.name().to_owned(),
        streams: request.more_streams(),
        files: request.files != Files::None,
    };
    let peer = link.peer().to_owned();
    link.send(&offer).map_err(talk(&peer))?;
    let mut sent = Sent::default();
    // The tree stands still while its records are taken from it.
    limit(request, link);
    pump(course, (link, &mut worker), (&mut sent, records.as_ref()))
        .map_err(|error| standstill(request, link, error))?;
    link.set_deadline(None);
    worker.wait();
    link.send(&Message::End { bytes: sent.bytes }).map_err(talk(&peer))?;
    let going = match (request.files, &records) {
        (Files::Used, Some(records)) => Going::Used(files::send(course, records, link)?),
        (Files::Rootfs, Some(records)) => Going::Rootfs(Box::new(Tree::send(course, records, link)?)),
        (Files::None, _) | (_, None) => Going::None,
    };
    loop {
        match wait(course, (link, None), &mut sent)? {
            Some(Message::Accepted { instance }) => return Ok((sent.counts, instance, going)),
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

/// Who refuses where the source does.
pub const HERE: &str = "this host";

pub fn refused_here(refusal: Refusal) -> MigrateError {
    MigrateError::Refused {
        who: HERE.to_owned(),
        refusal,
    }
}

pub fn refused_there(peer: &str, reason: &str, findings: &[String]) -> MigrateError {
    MigrateError::Refused {
        who: peer.to_owned(),
        refusal: Refusal::from_peer(reason, findings),
    }
}

/// Stops the tree, sends its image on the base of what went over before, and sees the hand-over through.
pub fn save(
    course: &Course<'_>,
    (rounds, going): (&Rounds, &mut Going),
    hand: &mut Hand<'_>,
) -> Result<Sent, MigrateError> {
    let mut sent = Sent::default();
    match send_image((course, rounds, going), hand, &mut sent) {
        Ok(()) => {}
        Err((event, error)) => hand.fail(event, error),
    }
    Ok(sent)
}

type Failed = (SourceEvent, MigrateError);

fn send_image(
    (course, rounds, going): (&Course<'_>, &Rounds, &mut Going),
    hand: &mut Hand<'_>,
    sent: &mut Sent,
) -> Result<(), Failed> {
    let Course { request, control, .. } = course;
    let failed = |error: MigrateError| (SourceEvent::Failed, error);
    let Some(link) = &mut hand.link else {
        return Err(failed(MigrateError::Killed));
    };
    let saved = Saved {
        then: Then::End,
        rounds,
        file: hand.rest.as_ref().map(|rest| &rest.file),
        record: Some(hand.record),
    };
    course.tuner().begin(link.streams().len(), hand.rest.is_some());
    let worker = start(course, link, saved).map_err(failed)?;
    let worker = hand.worker.insert(worker);
    let peer = link.peer().to_owned();
    let lost = |source| {
        let peer = peer.clone();
        (SourceEvent::LinkLost, MigrateError::Talk { peer, source })
    };
    limit(request, link);
    link.send(&Message::Image { lazy: request.lazy }).map_err(lost)?;
    let failed = |link: &Link, error| (event_of(&error), standstill(request, link, error));
    let mut rest = hand.rest.as_mut();
    let first = match rest.as_deref_mut() {
        Some(rest) => rest.send_first((course, rounds), (link, worker), sent),
        None => pump(course, (link, worker), (sent, None)),
    };
    first.map_err(|error| failed(link, error))?;
    // The tree stands still, so that it has none of them changed from now on.
    if let Going::Used(offered) = going {
        offered.are_unchanged(course).map_err(|error| failed(link, error))?;
    }
    let bytes = match rest.as_deref() {
        Some(rest) => rest.length().map_err(|error| failed(link, error))?,
        None => sent.bytes,
    };
    link.send(&Message::End { bytes }).map_err(lost)?;
    if let Going::Rootfs(tree) = going {
        let sent = tree.send_changes(course, link);
        sent.map_err(|error| failed(link, error))?;
    }
    // No more comes by them.
    link.streams().clear();
    // From here on the target speaks, or the worker, should it be killed.
    loop {
        match wait(course, (link, Some(worker)), sent).map_err(|error| failed(link, error))? {
            Some(Message::Prepared) => break,
            Some(Message::Stage { name }) => {
                if let Some(name) = stage_name(&name) {
                    control.observer.stage(name);
                }
            }
            Some(Message::Refused { reason, findings }) => {
                return Err((SourceEvent::Refused, refused_there(&peer, &reason, &findings)));
            }
            Some(Message::Fetch { parts }) if let Some(rest) = rest.as_deref_mut() => {
                let fetched = rest.fetched(course, link, &parts);
                sent.bytes += fetched.map_err(|error| failed(link, error))?;
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
pub fn start(course: &Course<'_>, link: &mut Link, saved: Saved<'_>) -> Result<Worker, MigrateError> {
    let work = |ends: &Ends| Saving { course, saved }.run(ends);
    Worker::start(link, work).map_err(MigrateError::system("start the process that saves the tree"))
}

/// What the worker does.
struct Saving<'a> {
    course: &'a Course<'a>,
    saved: Saved<'a>,
}

#[derive(Debug, thiserror::Error)]
enum NotEnded {
    #[error("the migration was given up")]
    GivenUp,
}

impl Saving<'_> {
    fn run(&self, ends: &Ends) -> Result<Counts, Refusal> {
        let Course {
            request: asked,
            control,
            ..
        } = self.course;
        let sandbox = &asked.sandbox;
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
            level: self.course.tuner().level(),
            base,
            then: self.saved.then,
            track: self.saved.then == Then::RunOnMeanwhile,
            tcp: asked.tcp,
            patience: asked.patience,
            external: Externals::new(Vec::new()).map_err(|error| refusal(&error))?,
            behind_front: true,
            before_end: &mut before_end,
        };
        let observer = Relay(ends);
        let control = Control {
            interrupted: control.interrupted,
            fail_at: control.fail_at,
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
            if matches!(record.written_phase(self.course.request.state_dir), Ok(Phase::Decided)) {
                return true;
            }
            match self.course.request.sandbox.wait_for_monitor(GLANCE) {
                Err(floe_sandbox::HandoverError::Refused(_)) => {}
                answer => {
                    if let Err(error) = answer {
                        tracing::debug!(%error, "the monitor does not answer");
                    }
                    return matches!(record.written_phase(self.course.request.state_dir), Ok(Phase::Decided));
                }
            }
        }
    }
}
