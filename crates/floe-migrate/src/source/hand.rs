//! Carries out what [`Source`] says.

use super::{
    MigrateError, greet,
    rest::{self, Rest},
};
use crate::{
    link::{
        Link, Manner,
        message::{Message, Outcome},
    },
    protocol::{Decision, Phase, Source, SourceEvent, SourceStep},
    record::Record,
    worker::{Counts, Report, Verdict, Worker},
};
use floe_sandbox::{HandoverError, Sandbox, StateDir};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long a target that may hold a tree for nothing is tried to be told so.
const ABORT: Duration = Duration::from_secs(5);
/// Between two attempts to connect, at first and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// What is begun is not interrupted.
static NEVER: AtomicBool = AtomicBool::new(false);

/// What a connection was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The image went by it.
    First,
    /// It is new.
    Fresh,
    /// The target was told the decision by it, where it was not the first one.
    Told,
}

/// A hand-over of which this process is the source.
pub struct Hand<'a> {
    pub state: Source,
    pub record: &'a Record,
    pub state_dir: &'a StateDir,
    /// Whose monitor decides; `None` where that is over.
    pub sandbox: Option<&'a Sandbox>,
    pub manner: Manner<'a>,
    pub link: Option<Link>,
    pub way: Way,
    /// Memory that goes over when it runs there.
    pub rest: Option<Rest>,
    /// Whether the target wants no more of it.
    pub unwanted: bool,
    /// Who has stopped the tree.
    pub worker: Option<Worker>,
    /// Whether that was told to end it.
    pub ends: bool,
    /// Why it is not through.
    pub failure: Option<MigrateError>,
    /// What was saved.
    pub counts: Counts,
    /// Why the target could not do what it was told.
    pub untold: Option<String>,
    /// How the sandbox stands at the target, and since when.
    pub outcome: Option<(Outcome, Instant)>,
}

/// What came of a hand-over.
pub struct Finished {
    /// How the sandbox stands at the target, and since when.
    pub outcome: Option<(Outcome, Instant)>,
    /// What was saved.
    pub counts: Counts,
    /// Bytes of that which were sent when it ran there.
    pub behind: u64,
}

impl Hand<'_> {
    /// Takes note of something, and does what follows from it.
    pub fn see(&mut self, event: SourceEvent) {
        let steps = self.state.see(event);
        self.carry_out(steps);
    }

    /// Takes note of a failure.
    pub fn fail(&mut self, event: SourceEvent, error: MigrateError) {
        self.failure.get_or_insert(error);
        self.see(event);
    }

    /// Does these things, and what follows from each.
    pub fn carry_out(&mut self, steps: Vec<SourceStep>) {
        let begin = Instant::now();
        let mut pause = PAUSE[0];
        let mut steps = VecDeque::from(steps);
        while let Some(step) = steps.pop_front() {
            let event = match step {
                SourceStep::Decide => self.decide(),
                SourceStep::LetGo => {
                    if let Some(mut worker) = self.worker.take() {
                        worker.tell(Verdict::LetGo);
                        drop(worker);
                    }
                    super::settle::thaw_left_frozen(self.record, self.state_dir);
                    None
                }
                SourceStep::Tell(decision) => Some(self.tell(decision)),
                SourceStep::Connect => {
                    self.link = None;
                    let aborts = self.state == Source::Telling(Decision::Abort);
                    let is_over = aborts && begin.elapsed() > ABORT;
                    if is_over || self.manner.interrupted.load(Ordering::Relaxed) && pause > PAUSE[0] {
                        return;
                    }
                    Some(self.connect(&mut pause))
                }
                SourceStep::Bring => self.bring(&mut pause),
                SourceStep::Forget => {
                    if let Err(error) = self.record.forget(self.state_dir) {
                        self.failure.get_or_insert(error.into());
                    }
                    // Behind that: who finds the record finds the file.
                    self.record.rest.iter().for_each(|left| rest::remove(&left.path));
                    None
                }
            };
            if let Some(event) = event {
                steps.extend(self.state.see(event));
            }
        }
    }

    /// Has the monitor keep the record and end the tree.
    fn decide(&mut self) -> Option<SourceEvent> {
        let tracer = self.worker.as_ref().and_then(Worker::identity).unwrap_or_default();
        let decided = self.record.decided(self.state_dir, tracer);
        let result = match (decided, self.sandbox) {
            (Err(error), _) => Err(error.into()),
            (Ok(_), None) => Err(HandoverError::Gone.into()),
            (Ok(decided), Some(sandbox)) => {
                let (worker, pid1) = (&mut self.worker, &self.record.pid1);
                let mut waiting = || {
                    // The monitor waits for a PID 1 that somebody has killed, which is the tracer's to take note of first.
                    if !pid1.lives()
                        && let Some(mut worker) = worker.take()
                    {
                        worker.tell(Verdict::LetGo);
                        drop(worker);
                    }
                };
                sandbox.hand_over(&decided, &mut waiting).map_err(MigrateError::from)
            }
        };
        let (written, all_killed) = match result {
            Ok(all_killed) => (true, all_killed),
            // It has done nothing, and says so.
            Err(error @ (MigrateError::Monitor(HandoverError::Refused(_)) | MigrateError::Record(_))) => {
                self.failure.get_or_insert(error);
                (false, false)
            }
            Err(error) => {
                // Of a monitor that does not answer any more the record tells whether it has decided.
                self.failure.get_or_insert(error);
                match super::settle::phase_left(self.record, self.state_dir) {
                    Ok(phase) => (phase == Phase::Decided, false),
                    // Not known: nobody is told anything, and the record stays, by which the worker does what it can find out.
                    Err(error) => {
                        self.failure = Some(error);
                        self.worker = None;
                        return None;
                    }
                }
            }
        };
        if !written {
            return Some(SourceEvent::NotRecorded);
        }
        self.failure = None;
        if let Some(worker) = &mut self.worker {
            worker.tell(Verdict::End);
            self.ends = true;
        }
        if all_killed {
            // Nothing of it runs any more; that its memory is given back need not be waited for.
            return Some(SourceEvent::Recorded);
        }
        self.let_worker_end();
        // Its monitor has killed it, unless that was killed itself behind the record.
        if let Some(sandbox) = self.sandbox
            && self.record.pid1.lives()
            && let Err(error) = sandbox.signal(libc::SIGKILL)
        {
            tracing::debug!(%error, "PID 1 has ended meanwhile");
        }
        while self.record.pid1.lives() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(SourceEvent::Recorded)
    }

    /// Waits until the worker has seen the tree end.
    fn let_worker_end(&mut self) {
        if let Some(worker) = self.worker.take()
            && let Some(Report::Done(counts)) = worker.wait()
        {
            self.counts = counts;
        }
    }

    /// Tells the target, and waits until it has done it.
    fn tell(&mut self, decision: Decision) -> SourceEvent {
        let Some(link) = &mut self.link else {
            return SourceEvent::LinkLost;
        };
        // Who is told to stop now ends this wait; who was before still has the target told, if it answers soon.
        let was_stopped = self.manner.interrupted.load(Ordering::Relaxed);
        let (patience, interrupted) = match was_stopped {
            true => (self.manner.patience.min(ABORT), &NEVER),
            false => (self.manner.patience, self.manner.interrupted),
        };
        link.set_manner(patience, interrupted);
        // Whatever else it says meanwhile.
        link.set_deadline(Instant::now().checked_add(patience));
        let message = Message::Decided {
            id: self.record.id.clone(),
            instance: self.record.instance.clone(),
            decision,
        };
        let mut why = None;
        let mut answer = link.send(&message).and_then(|()| link.receive());
        // What it said before it heard this.
        while let Ok(Message::Stage { .. } | Message::Prepared | Message::Refused { .. } | Message::Fetch { .. }) =
            &answer
        {
            match &answer {
                Ok(Message::Refused { reason, findings }) => {
                    why = Some(crate::refusal::Refusal::from_peer(reason, findings).reason);
                }
                Ok(Message::Fetch { parts }) => self.rest.iter_mut().for_each(|rest| rest.hurry(parts)),
                _ => {}
            }
            answer = link.receive();
        }
        if self.way == Way::Fresh {
            self.way = Way::Told;
        }
        match answer {
            Ok(Message::Done { outcome }) => {
                self.outcome = Some((outcome, Instant::now()));
                match outcome {
                    Outcome::Runs if self.lacks() => SourceEvent::Lacks,
                    Outcome::Runs | Outcome::None => SourceEvent::Done,
                }
            }
            Ok(Message::Unknown) => {
                let file = self.record.path(self.state_dir);
                self.untold = Some(format!(
                    "{} is not who has accepted it: it keeps its sandboxes in another state directory, or its host was \
                     started anew; where the one that did is gone for good, remove {}",
                    link.peer(),
                    file.display()
                ));
                SourceEvent::Unknown
            }
            Ok(other) => {
                tracing::debug!(?other, "the target says something else");
                SourceEvent::LinkLost
            }
            Err(error) => {
                tracing::debug!(%error, "the target could not be told");
                self.untold = why.or(self.untold.take());
                SourceEvent::LinkLost
            }
        }
    }

    /// Whether this side may have memory that the target has not.
    fn lacks(&self) -> bool {
        let Some(rest) = &self.rest else { return false };
        // By a connection that is not the first one only the target knows.
        let is_told = self.state == Source::Telling(Decision::Commit) && !self.unwanted;
        is_told && (self.way != Way::First || rest.left() > 0)
    }

    /// Brings the target memory that has not gone over; nothing follows where it can't be read.
    fn bring(&mut self, pause: &mut Duration) -> Option<SourceEvent> {
        let (Some(link), Some(rest)) = (&mut self.link, &mut self.rest) else {
            return Some(SourceEvent::LinkLost);
        };
        link.set_manner(self.manner.patience, self.manner.interrupted);
        link.set_deadline(None);
        let wanted = match self.way {
            Way::First => Ok(true),
            Way::Fresh => rest.resume(link, &self.record.id),
            // Who serves that has no part in it.
            Way::Told => return Some(SourceEvent::LinkLost),
        };
        let before = rest.sent;
        let sent = match wanted {
            Ok(true) => rest.send(link, self.record.rest.as_ref().and_then(|left| left.bandwidth)),
            Ok(false) => {
                self.unwanted = true;
                return Some(SourceEvent::Refused);
            }
            Err(error) => Err(error),
        };
        if rest.sent > before {
            *pause = PAUSE[0];
        }
        if let Some(source) = rest.unreadable.take() {
            self.failure = Some(MigrateError::Rest {
                path: rest.path().to_owned(),
                peer: self.record.address.to_string(),
                record: self.record.path(self.state_dir),
                source,
            });
            return None;
        }
        match sent {
            Ok(()) => Some(SourceEvent::Whole),
            Err(error) => {
                if !self.manner.interrupted.load(Ordering::Relaxed) {
                    tracing::warn!(%error, "the connection by which memory goes over is gone");
                }
                Some(SourceEvent::LinkLost)
            }
        }
    }

    fn connect(&mut self, pause: &mut Duration) -> SourceEvent {
        std::thread::sleep(*pause);
        *pause = (*pause * 2).min(PAUSE[1]);
        let manner = Manner {
            interrupted: &NEVER,
            demand: self.record.key,
            unattended: true,
            ..self.manner
        };
        match greet(&self.record.address, manner) {
            Ok(link) => {
                (self.link, self.way) = (Some(link), Way::Fresh);
                SourceEvent::Linked
            }
            Err(error) => {
                tracing::debug!(%error, "the target can't be reached");
                SourceEvent::LinkLost
            }
        }
    }

    /// What came of it.
    pub fn finish(mut self) -> Result<Finished, MigrateError> {
        if self.ends {
            self.let_worker_end();
        }
        self.worker = None;
        if let (Source::Bringing, Some(rest)) = (self.state, &self.rest) {
            return Err(self.failure.unwrap_or_else(|| MigrateError::Behind {
                peer: self.record.address.to_string(),
                bytes: Some(rest.left()).filter(|bytes| *bytes > 0),
            }));
        }
        if let Source::Telling(decision) = self.state {
            let reason = match &self.failure {
                _ if self.untold.is_some() => self.untold.unwrap_or_default(),
                Some(error) => crate::refusal::Refusal::of(error).reason,
                None => "it can't be reached".to_owned(),
            };
            return Err(MigrateError::Untold { decision, reason });
        }
        match (self.failure, self.outcome) {
            (_, Some((Outcome::Runs, _))) if self.record.pid1.lives() && !self.record.pid1.is_ending() => {
                Err(MigrateError::Two(self.record.sandbox.clone()))
            }
            (Some(error), _) => Err(error),
            (None, outcome) => Ok(Finished {
                outcome,
                counts: self.counts,
                behind: self.rest.map_or(0, |rest| rest.sent),
            }),
        }
    }
}
