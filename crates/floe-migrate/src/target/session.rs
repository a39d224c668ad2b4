//! One connection.

use super::{
    Event, FailAt, Files, Request,
    build::{self, Building},
    files::Delivery,
    late::{self, Late, Way},
    place,
    rest::Rest,
    spool::{ALIVE, Spool},
    streams::{Awaited, Streams, relay},
    swap,
    tree::Tree,
};
use crate::{
    link::{
        Link,
        frame::{Frame, FrameError},
        message::{Id, Instance, Message, Outcome, PARTS, VERSION},
        wire::Wire,
    },
    protocol::{Decision, Target, TargetEvent, TargetStep},
    record::Permit,
    refusal::Refusal,
    worker::{Counts, Ends, Report, Worker},
};
use floe_image::MAX_BASES;
use floe_resources::ns::mounts::Given;
use floe_sandbox::{Sandbox, SandboxError, StateError, Status};
use floe_sys::pager::Pager;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How often is looked whether floe was told to stop, in milliseconds.
const GLANCE: u8 = 50;
/// Bytes of the records of a tree, at most.
const RECORDS: u64 = 1 << 30;
/// How long a source that is told of a failure may take to notice.
const LINGER: Duration = Duration::from_secs(5);
/// What is begun is not interrupted.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// A connection with a source.
pub struct Session<'a> {
    pub request: &'a Request<'a>,
    /// The source, for people.
    pub from: String,
    pub interrupted: &'static AtomicBool,
    /// Whether nothing new is taken, as the receiver was told to stop.
    pub stops: bool,
    pub fail_at: FailAt<'a>,
}

/// What ends a connection before anything is held.
pub enum Ended {
    /// The source is gone, or was not understood.
    Lost(FrameError),
    /// The source gives up.
    Told,
    /// It can't be done here.
    Refused(Refusal),
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        Self::Lost(error)
    }
}

/// What is heard while a tree is held.
enum Heard {
    Event(TargetEvent),
    /// A connection by which memory comes: it was let run.
    Another(Wire),
}

/// What came with a sandbox.
enum Came {
    Nothing,
    Used(Delivery),
    Rootfs(Box<Tree>),
}

impl Came {
    /// What is given for mounts, with that.
    fn given(&self, given: &Given) -> Given {
        match self {
            Self::Nothing | Self::Used(_) => given.clone(),
            Self::Rootfs(tree) => tree.given(given),
        }
    }

    /// Paths at which there will be the right files when the sandbox is built.
    fn coming(&self) -> BTreeSet<Vec<u8>> {
        match self {
            Self::Nothing => BTreeSet::new(),
            Self::Used(delivery) => delivery.coming(),
            Self::Rootfs(tree) => tree.coming.clone(),
        }
    }
}

fn lost(error: &FrameError) -> Refusal {
    Refusal::of(error)
}

impl Session<'_> {
    /// Serves it to its end.
    ///
    /// # Errors
    /// Why nothing came of it.
    pub fn run(&self, mut link: Link) -> Result<(), Refusal> {
        let greeted = self.greet(&mut link);
        link.set_deadline(None);
        match greeted.and_then(|()| link.receive()) {
            Ok(Message::Offer { id, .. }) if self.stops => {
                let refusal = Refusal::plain("floe receive was told to stop there");
                self.end((link, &id), Ended::Refused(refusal))
            }
            Ok(Message::Offer {
                id,
                name,
                streams,
                files,
            }) => {
                let taken = self.take_offer(link, (&id, &name), (streams, files));
                self.clear(&id);
                taken
            }
            Ok(Message::Join { id, stream }) => relay(self, link, (&id, stream)),
            Ok(Message::Resume { id }) => late::relay(self, link, &id),
            Ok(Message::Decided { instance, .. }) if self.own_instance().as_ref() != Ok(&instance) => {
                link.send(&Message::Unknown).map_err(|error| lost(&error))?;
                Err(Refusal::plain(
                    "the source means another floe receive, or another state directory",
                ))
            }
            Ok(Message::Decided { id, decision, .. }) => {
                let outcome = self.carry_out_or_tell(&mut link, &id, decision)?;
                if outcome == Outcome::Runs && decision == Decision::Commit {
                    self.tell_runs(id.as_str(), None);
                }
                let told = link.send(&Message::Done { outcome }).map_err(|error| lost(&error));
                drop(link);
                self.clear(&id);
                told
            }
            Ok(_) => Err(Refusal::plain("the source said something that has no place there")),
            Err(error) => Err(lost(&error)),
        }
    }

    fn greet(&self, link: &mut Link) -> Result<(), FrameError> {
        let hello = link.receive()?;
        link.send(&Message::Hello {
            version: VERSION,
            floe: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        match hello {
            Message::Hello { version: VERSION, .. } => Ok(()),
            _ => Err(FrameError::Io(io::Error::other(
                "it speaks another version of the protocol",
            ))),
        }
    }

    pub fn is_told_to_stop(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn own_instance(&self) -> Result<Instance, Refusal> {
        Instance::of(self.request.state_dir.path())
            .map_err(|error| Refusal::plain(format!("look at the state directory: {error}")))
    }

    fn tell_runs(&self, name: &str, counts: Option<Counts>) {
        let from = &self.from;
        (self.request.tell)(&Event::Runs { name, from, counts });
    }

    fn take_offer(&self, mut link: Link, (id, name): (&Id, &str), (more, files): (u16, bool)) -> Result<(), Refusal> {
        let mut streams = Streams::default();
        let mut came = Came::Nothing;
        let looked = Spool::new(&mut link, &mut streams, RECORDS).take().and_then(|records| {
            let records = records.ok_or_else(out_of_turn)?;
            if files {
                came = self.take_files((&records, id), &mut link)?;
            }
            let (mounts, coming) = (came.given(self.request.mounts), came.coming());
            let work = |ends: &Ends| build::look(self, (&records, name), (&mounts, &coming), ends);
            let worker = Worker::start(&mut link, work);
            let mut worker = worker.map_err(|error| Ended::Refused(Refusal::of(&error)))?;
            self.attend(&mut link, &mut worker, None)?;
            // Whether it can be written down that a tree is held: given up again, as the source may be killed now, or have
            // wanted to know no more than this.
            let permit = Permit::give(self.request.state_dir, id);
            permit.map(drop).map_err(|error| Ended::Refused(Refusal::of(&error)))?;
            let awaited = Awaited::listen(id, more).map_err(Ended::Refused)?;
            Ok((self.own_instance().map_err(Ended::Refused)?, awaited))
        });
        let joined = looked.and_then(|(instance, awaited)| {
            link.send(&Message::Accepted { instance })?;
            Ok(match awaited {
                Some(awaited) => awaited.take(self, &mut link)?,
                None => streams,
            })
        });
        let mut streams = match joined {
            Ok(streams) => streams,
            Err(ended) => return self.end((link, id), ended),
        };
        let mut rounds = Vec::new();
        loop {
            match link.receive() {
                Ok(Message::Round) if rounds.len() < MAX_BASES => {
                    match keep_round(&mut link, &mut streams, &mut rounds) {
                        Ok(()) => {}
                        Err(ended) => return self.end((link, id), ended),
                    }
                }
                Ok(Message::Image { lazy }) => {
                    return self.take_image((link, streams), (id, name), (rounds, lazy), &mut came);
                }
                // It only wanted to know, or has given up.
                Err(FrameError::End) => return Ok(()),
                Ok(_) => return Err(Refusal::plain("the source said something that has no place there")),
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    fn take_image(
        &self,
        (mut link, mut streams): (Link, Streams),
        (id, name): (&Id, &str),
        (mut rounds, lazy): (Vec<File>, bool),
        came: &mut Came,
    ) -> Result<(), Refusal> {
        let permit = match Permit::give(self.request.state_dir, id) {
            Ok(permit) => permit,
            Err(error) => return self.end((link, id), Ended::Refused(Refusal::of(&error))),
        };
        let mut state = Target::Building;
        let mut steps = Vec::new();
        let (mut rest, mut late) = (None, None);
        let image = Spool::new(&mut link, &mut streams, u64::MAX).take_last();
        let built = image.and_then(|(image, missing)| {
            // No more comes by them, and who builds the tree is not to have them.
            drop(streams);
            if !missing.is_empty() {
                let made = Rest::new(&image, missing, self.interrupted);
                let mut made = made.map_err(|error| {
                    Ended::Refused(Refusal::plain(format!(
                        "make room for memory that comes later: {error}"
                    )))
                })?;
                late = Some(Late::listen(self, id, link.key()).map_err(Ended::Refused)?);
                // Where all memory must be there before it runs it comes at once, and not as somebody reads it.
                if !lazy || Pager::of_own().is_err() {
                    for parts in made.ask_for_all().chunks(PARTS) {
                        link.send(&Message::Fetch { parts: parts.to_vec() })?;
                    }
                }
                rest = Some(made);
            }
            rounds.push(image);
            match came {
                Came::Nothing => {}
                Came::Used(delivery) => {
                    place::place(self.request.state_dir, id, delivery).map_err(Ended::Refused)?;
                }
                Came::Rootfs(tree) => tree.take_changes(&mut link)?,
            }
            let mounts = came.given(self.request.mounts);
            let building = Building {
                images: &rounds,
                coming: rest.as_ref().and_then(Rest::coming),
                lazy,
                mounts: &mounts,
            };
            let work = |ends: &Ends| {
                // This process's end must show there.
                drop(rest.take());
                build::build(self, building, (id, permit.file()), ends)
            };
            let worker = Worker::start(&mut link, work);
            let mut worker = worker.map_err(|error| Ended::Refused(Refusal::of(&error)))?;
            if let Some(rest) = &mut rest {
                rest.is_handed_over();
            }
            self.attend(&mut link, &mut worker, rest.as_mut())
        });
        let counts = match built {
            Ok(counts) => {
                steps.extend(state.see(TargetEvent::Held));
                counts
            }
            Err(ended) => {
                let event = match &ended {
                    Ended::Lost(_) => TargetEvent::LinkLost,
                    Ended::Told => TargetEvent::Told(Decision::Abort),
                    Ended::Refused(_) => TargetEvent::Failed,
                };
                drop((late.take(), rest.take()));
                // Whatever follows: who was to build it is gone, and may have come to hold it before that.
                state.see(event);
                self.carry_out(id, Decision::Abort)?;
                drop(permit);
                return self.end((link, id), ended);
            }
        };
        // Held it is whatever becomes of the permit.
        drop(permit);
        for step in steps {
            if step == TargetStep::TellPrepared
                && let Err(error) = link.send(&Message::Prepared)
            {
                tracing::debug!(%error, "the source could not be told");
            }
        }
        self.obey((link, late.zip(rest)), (state, id), (name, counts))
    }

    /// A tree is held: does with it what the source says, and takes what is still to come of its memory.
    fn obey(
        &self,
        (mut link, mut rest): (Link, Option<(Late<'_>, Rest)>),
        (mut state, id): (Target, &Id),
        (name, counts): (&str, Counts),
    ) -> Result<(), Refusal> {
        let heard = self.await_decision(&mut link, rest.as_mut(), id);
        let from = &self.from;
        let event = match heard {
            Heard::Event(event) => event,
            Heard::Another(wire) => {
                drop(link);
                return match rest {
                    Some((late, rest)) => late.bring(self, Some(Way::another(wire)), rest),
                    None => Ok(()),
                };
            }
        };
        let steps = state.see(event);
        if steps.is_empty() {
            (self.request.tell)(&Event::Held { name, from });
        }
        for step in steps {
            let TargetStep::CarryOut(decision) = step else { continue };
            let outcome = match self.carry_out_or_tell(&mut link, id, decision) {
                Ok(outcome) => outcome,
                Err(refusal) if rest.is_none() => return Err(refusal),
                // It is held still, and may be let run by another connection.
                Err(_) => break,
            };
            match decision {
                Decision::Commit => self.tell_runs(name, Some(counts)),
                Decision::Abort => (self.request.tell)(&Event::GivenUp {
                    from,
                    reason: "the source gave it up",
                }),
            }
            let told = link.send(&Message::Done { outcome }).map_err(|error| lost(&error));
            return match rest.filter(|_| outcome == Outcome::Runs) {
                // Whether the source has heard it or not.
                Some((late, rest)) => {
                    self.clear(id);
                    late.bring(self, Some(Way::first(link, self.request.silence)), rest)
                }
                None => told,
            };
        }
        drop(link);
        match rest {
            Some((late, rest)) => late.bring(self, None, rest),
            None => Ok(()),
        }
    }

    /// What the source says of a tree that is held; it may still be asked for something that came too late for building it, and may
    /// have decided by another connection.
    fn await_decision(&self, link: &mut Link, mut rest: Option<&mut (Late<'_>, Rest)>, id: &Id) -> Heard {
        let lost = Heard::Event(TargetEvent::LinkLost);
        let mut heard = Instant::now();
        loop {
            match link.waits() {
                Ok(true) => heard = Instant::now(),
                Ok(false) if heard.elapsed() < link.patience() && !link.is_told_to_stop() => {
                    let mut asked = vec![link.input()];
                    asked.extend(rest.iter().flat_map(|(late, rest)| [late.input(), rest.news()]));
                    let mut asked: Vec<_> = asked
                        .into_iter()
                        .map(|end| PollFd::new(end, PollFlags::POLLIN))
                        .collect();
                    if !matches!(poll(&mut asked, GLANCE), Ok(_) | Err(Errno::EINTR)) {
                        return lost;
                    }
                    let ready = |asked: &PollFd<'_>| asked.revents().is_some_and(|events| !events.is_empty());
                    let [comes, has_news] = [1, 2].map(|index| asked.get(index).is_some_and(ready));
                    let Some((late, rest)) = rest.as_deref_mut() else {
                        continue;
                    };
                    if has_news && !matches!(rest.wanted(), Ok(Some(_))) {
                        // It was given up.
                        return lost;
                    }
                    if comes && let Some(wire) = late.meet(link.patience()) {
                        return Heard::Another(wire);
                    }
                    continue;
                }
                Ok(false) | Err(_) => return lost,
            }
            match link.receive_any() {
                Ok(Frame::Message(Message::Decided { id: told, decision, .. })) if told == *id => {
                    return Heard::Event(TargetEvent::Told(decision));
                }
                Ok(Frame::Message(other)) => tracing::debug!(?other, "the source says something else"),
                Ok(Frame::Alive) => {}
                Ok(Frame::Piece(place, got)) => {
                    let taken = rest
                        .as_deref_mut()
                        .map(|(_, rest)| rest.take(place.offset, link.data(got)));
                    if !matches!(taken, Some(Ok(()))) {
                        return lost;
                    }
                }
                Ok(Frame::Data(_)) | Err(_) => return lost,
            }
        }
    }

    /// Carries it out; where that fails the source hears why, and keeps its record.
    fn carry_out_or_tell(&self, link: &mut Link, id: &Id, decision: Decision) -> Result<Outcome, Refusal> {
        self.carry_out(id, decision).inspect_err(|refusal| {
            let Refusal { reason, findings } = refusal.clone();
            if let Err(error) = link.send(&Message::Refused { reason, findings }) {
                tracing::debug!(%error, "the source is gone");
            }
        })
    }

    /// Does with what is held by a hand-over, if anything is, and with what came with it, what was decided.
    fn carry_out(&self, id: &Id, decision: Decision) -> Result<Outcome, Refusal> {
        let state_dir = self.request.state_dir;
        let outcome = self.carry_out_on_tree(id, decision)?;
        place::settle(state_dir, id, decision)?;
        swap::settle(state_dir, id)?;
        Ok(outcome)
    }

    /// Takes what goes with a sandbox, as far as that may come here.
    fn take_files(&self, (records, id): (&File, &Id), link: &mut Link) -> Result<Came, Ended> {
        match self.request.files {
            Files::Used => Delivery::take(self, link).map(Came::Used),
            Files::Rootfs(roots) => {
                let tree = Tree::take(self, (records, id), roots, link)?;
                Ok(Came::Rootfs(Box::new(tree)))
            }
            Files::None => {
                let text = "floe receive takes no files there (--files at both sides)";
                Err(Ended::Refused(Refusal::plain(text)))
            }
        }
    }

    /// Removes what of a root tree is not needed any more, which may take a while: the source has been told by now.
    fn clear(&self, id: &Id) {
        if let Err(refusal) = swap::clear(self.request.state_dir, id) {
            (self.request.tell)(&Event::Left {
                from: &self.from,
                reason: &refusal.reason,
            });
        }
    }

    fn carry_out_on_tree(&self, id: &Id, decision: Decision) -> Result<Outcome, Refusal> {
        let state_dir = self.request.state_dir;
        if decision == Decision::Abort {
            // In this order: who builds it finds no permit any more, or has it held by now.
            Permit::revoke(state_dir, id).map_err(|error| Refusal::of(&error))?;
        }
        let all = Sandbox::list(state_dir).map_err(|error| Refusal::of(&error))?;
        let mut own = all
            .into_iter()
            .filter(|sandbox| sandbox.state().handover.as_deref() == Some(id.as_str()));
        let Some(sandbox) = own.next() else {
            return Ok(Outcome::None);
        };
        let mut failure = None;
        if sandbox.state().status == Status::Held {
            if decision == Decision::Commit {
                swap::commit(state_dir, id)?;
            }
            let done = match decision {
                Decision::Commit => sandbox.release(id.as_str()),
                Decision::Abort => sandbox.abandon(id.as_str()),
            };
            match done {
                Ok(()) if decision == Decision::Abort => return Ok(Outcome::None),
                // It has ended meanwhile; or another connection was faster.
                Ok(()) => {}
                Err(error) => failure = Some(Refusal::of(&error)),
            }
        }
        let now = match Sandbox::open(state_dir, sandbox.name()) {
            Ok(now) if now.state().handover == sandbox.state().handover => now,
            Ok(_) | Err(SandboxError::State(StateError::Unknown(_))) => return Ok(Outcome::None),
            Err(error) => return Err(Refusal::of(&error)),
        };
        match now.state().status {
            _ if !now.is_running() => Ok(Outcome::None),
            Status::Running => Ok(Outcome::Runs),
            // Nothing is done by that: the source must not forget it.
            _ => Err(failure.unwrap_or_else(|| Refusal::plain("it is held still"))),
        }
    }

    /// Waits for a worker, and lets the source know that it lives, and what it waits for.
    fn attend(&self, link: &mut Link, worker: &mut Worker, mut rest: Option<&mut Rest>) -> Result<Counts, Ended> {
        let mut stage = String::new();
        let mut last = Instant::now();
        let mut heard = last;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Ended::Refused(Refusal::plain("interrupted")));
            }
            if heard.elapsed() > link.patience() {
                return Err(FrameError::Io(io::ErrorKind::TimedOut.into()).into());
            }
            if link.waits().map_err(FrameError::Io)? {
                heard = Instant::now();
                match link.receive_any()? {
                    Frame::Message(Message::Decided {
                        decision: Decision::Abort,
                        ..
                    }) => return Err(Ended::Told),
                    Frame::Piece(place, got) => {
                        let rest = rest.as_deref_mut().ok_or_else(out_of_turn)?;
                        let taken = rest.take(place.offset, link.data(got));
                        taken.map_err(|error| Ended::Refused(Refusal::of(&error)))?;
                    }
                    Frame::Message(_) | Frame::Data(_) => return Err(out_of_turn()),
                    Frame::Alive => {}
                }
            }
            // What is unpacked already no poll(2) tells of.
            let glance = if link.waits().map_err(FrameError::Io)? {
                0
            } else {
                GLANCE
            };
            let mut asked = vec![
                PollFd::new(worker.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(link.input(), PollFlags::POLLIN),
            ];
            asked.extend(rest.iter().map(|rest| PollFd::new(rest.news(), PollFlags::POLLIN)));
            match poll(&mut asked, glance) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Ended::Refused(Refusal::of(&io::Error::from(error)))),
            }
            let is_ready = |asked: &PollFd<'_>| asked.revents().is_some_and(|events| !events.is_empty());
            let (reports, has_news) = (is_ready(&asked[0]), asked.get(2).is_some_and(is_ready));
            if has_news && let Some(rest) = rest.as_deref_mut() {
                // That nobody is there any more the worker says better.
                let wanted = rest.wanted().map_err(|error| Ended::Refused(Refusal::of(&error)))?;
                if let Some(parts) = wanted.filter(|parts| !parts.is_empty()) {
                    link.send(&Message::Fetch { parts })?;
                }
            }
            let mut tells = last.elapsed() > ALIVE;
            if reports {
                match worker.report() {
                    Ok(Some(Report::Stage(name))) => (stage, tells) = (name, true),
                    Ok(Some(Report::Pages(..) | Report::Complete)) => {}
                    Ok(Some(Report::Done(counts))) => return Ok(counts),
                    Ok(Some(Report::Refused(refusal))) => return Err(Ended::Refused(refusal)),
                    Ok(None) | Err(_) => {
                        let text = "the process that builds the tree was killed";
                        return Err(Ended::Refused(Refusal::plain(text)));
                    }
                }
            }
            if tells {
                link.send(&Message::Stage { name: stage.clone() })?;
                last = Instant::now();
            }
        }
    }

    /// Nothing is held: tells the source, where it is still there.
    fn end(&self, (mut link, id): (Link, &Id), ended: Ended) -> Result<(), Refusal> {
        // The source is to be told, also where this process is told to stop.
        link.set_manner(LINGER, &NEVER);
        link.set_deadline(Some(Instant::now() + 2 * LINGER));
        match ended {
            Ended::Lost(error) => Err(lost(&error)),
            Ended::Told => {
                let outcome = self.carry_out_or_tell(&mut link, id, Decision::Abort)?;
                link.send(&Message::Done { outcome }).map_err(|error| lost(&error))?;
                Err(Refusal::plain("the source gave it up"))
            }
            Ended::Refused(refusal) => {
                let Refusal { reason, findings } = refusal.clone();
                if link.send(&Message::Refused { reason, findings }).is_ok() {
                    linger(&mut link);
                }
                Err(refusal)
            }
        }
    }
}

/// Takes what the source has sent meanwhile, so that it hears what it was told before it finds the connection closed.
pub fn linger(link: &mut Link) {
    link.set_deadline(Some(Instant::now() + LINGER));
    while !link.is_late() && link.receive_any().is_ok() {}
}

pub fn out_of_turn() -> Ended {
    Ended::Refused(Refusal::plain("the source is out of turn"))
}

/// Takes a round, and says whether there was room for it.
fn keep_round(link: &mut Link, streams: &mut Streams, rounds: &mut Vec<File>) -> Result<(), Ended> {
    match Spool::new(link, streams, u64::MAX).take_or_leave()? {
        Ok(Some(round)) => {
            rounds.push(round);
            Ok(link.send(&Message::Kept)?)
        }
        Ok(None) => Ok(()),
        // The last image is to come all the same.
        Err(Refusal { reason, .. }) => Ok(link.send(&Message::NotKept { reason })?),
    }
}
