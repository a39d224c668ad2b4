//! Drives both machines through everything that can happen: whatever is lost, breaks, is killed and started again, in every
//! order, up to a number of faults. Never do both copies run, never is none left, and when nothing more goes wrong one
//! runs and nothing else is left. Where memory goes over behind the decision, the copy ends with the process of the target that takes
//! it; but no record is forgotten before all of it is there.
//!
//! What surrounds the machines is modelled as it is: a kill of the source lets a stopped tree run on; its monitor writes
//! the record and then ends the tree; the target's monitor writes down that it holds the tree and then looks for the
//! permit; who gives up takes the permit away and then looks for what is held.

use super::{Decision, Phase, Source, SourceEvent, SourceStep, Target, TargetEvent, TargetStep};
use std::collections::{BTreeSet, HashSet};

const FAULTS: u8 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tree {
    Stopped,
    Runs,
    Dead,
}

/// The source's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Monitor {
    Waits,
    Ordered,
    Written,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Copy {
    None,
    /// Its monitor has written that it holds it, and not looked for the permit yet.
    Claimed,
    Held,
    Runs,
    /// Who was to bring its memory was killed, and it with that.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Reply {
    Prepared,
    Refused,
    Done,
    Unknown,
    Whole,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// `None`: it was killed.
    source: Option<Source>,
    connects: bool,
    /// The monitor's answer, as the source sees it.
    answer: Option<SourceEvent>,
    asked: bool,
    record: Option<Phase>,
    tree: Tree,
    monitor: Monitor,
    /// The connection by which the tree came; `None`: it was killed.
    session: Option<Target>,
    builds: bool,
    permit: bool,
    copy: Copy,
    /// A later connection has taken the permit and is about to look.
    aborts: bool,
    receives: bool,
    /// Memory that the source alone has, in a file, and of which the copy has none.
    file: bool,
    lacks: bool,
    /// On its way.
    brings: bool,
    /// The source knows that nobody wants it.
    unwanted: bool,
    to_target: BTreeSet<Decision>,
    to_source: BTreeSet<Reply>,
    faults: u8,
}

impl World {
    /// Where all memory goes over before the decision, or some behind it.
    fn begin(behind: bool) -> Self {
        Self {
            file: behind,
            lacks: behind,
            brings: false,
            unwanted: false,
            source: Some(Source::Undecided),
            connects: false,
            answer: None,
            asked: false,
            record: Some(Phase::Begun),
            tree: Tree::Stopped,
            monitor: Monitor::Waits,
            session: Some(Target::Building),
            builds: true,
            permit: true,
            copy: Copy::None,
            aborts: false,
            receives: true,
            to_target: BTreeSet::new(),
            to_source: BTreeSet::new(),
            faults: FAULTS,
        }
    }

    fn source_sees(&mut self, event: SourceEvent) {
        let Some(source) = &mut self.source else { return };
        let steps = source.see(event);
        self.source_does(steps);
    }

    fn source_does(&mut self, steps: Vec<SourceStep>) {
        for step in steps {
            match step {
                SourceStep::Decide => {
                    self.asked = true;
                    if self.monitor == Monitor::Waits {
                        self.monitor = Monitor::Ordered;
                    }
                }
                SourceStep::LetGo => {
                    assert_ne!(self.tree, Tree::Dead, "a dead tree is let go");
                    self.tree = Tree::Runs;
                }
                SourceStep::Tell(decision) => {
                    self.to_target.insert(decision);
                }
                SourceStep::Connect => self.connects = true,
                SourceStep::Bring => self.brings = true,
                SourceStep::Forget => (self.record, self.file) = (None, false),
            }
        }
    }

    fn target_sees(&mut self, event: TargetEvent) {
        let Some(session) = &mut self.session else { return };
        for step in session.see(event) {
            match step {
                TargetStep::TellPrepared => {
                    self.to_source.insert(Reply::Prepared);
                }
                TargetStep::TellRefused => {
                    self.to_source.insert(Reply::Refused);
                }
                TargetStep::GiveUp => {
                    self.builds = false;
                    self.permit = false;
                    if !matches!(self.copy, Copy::Runs | Copy::Ended) {
                        self.copy = Copy::None;
                    }
                }
                TargetStep::CarryOut(decision) => self.carry_out(decision),
            }
        }
    }

    fn carry_out(&mut self, decision: Decision) {
        match decision {
            Decision::Commit => {
                assert!(
                    matches!(self.copy, Copy::Held | Copy::Runs | Copy::Ended),
                    "a commit finds nothing: {self:?}"
                );
                if self.copy != Copy::Ended {
                    self.copy = Copy::Runs;
                }
                self.to_source.insert(Reply::Done);
            }
            Decision::Abort => {
                self.permit = false;
                self.aborts = true;
            }
        }
    }

    /// All that can happen next without a fault.
    fn nexts(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut can = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        if self.builds {
            can(&|w| (w.builds, w.copy) = (false, Copy::Claimed));
        }
        if self.copy == Copy::Claimed {
            can(&|w| {
                w.copy = match (w.permit, w.session) {
                    (false, _) => Copy::None,
                    (true, None) if w.lacks => Copy::Ended,
                    (true, _) => Copy::Held,
                };
                let event = if w.permit {
                    TargetEvent::Held
                } else {
                    TargetEvent::Failed
                };
                w.target_sees(event);
            });
        }
        if self.aborts && self.copy != Copy::Claimed {
            can(&|w| {
                assert_ne!(w.copy, Copy::Runs, "what runs is dropped");
                (w.copy, w.aborts) = (Copy::None, false);
                w.to_source.insert(Reply::Done);
            });
        }
        for decision in self.to_target.iter().copied() {
            if matches!(self.session, Some(Target::Building | Target::Held)) {
                can(&|w| {
                    w.to_target.remove(&decision);
                    w.target_sees(TargetEvent::Told(decision));
                });
            }
            if self.receives {
                can(&|w| {
                    w.to_target.remove(&decision);
                    w.carry_out(decision);
                });
            }
        }
        if self.brings && self.session.is_some() && self.lacks {
            can(&|w| {
                (w.brings, w.lacks) = (false, false);
                w.to_source.insert(Reply::Whole);
            });
        }
        // Nobody waits for it: it has all, or has ended.
        if self.brings && self.receives && (!self.lacks || self.copy == Copy::Ended) {
            can(&|w| {
                w.brings = false;
                w.to_source.insert(Reply::Refused);
            });
        }
        for reply in self.to_source.iter().copied().filter(|_| self.source.is_some()) {
            can(&|w| {
                w.to_source.remove(&reply);
                w.unwanted |= reply == Reply::Refused && w.source == Some(Source::Bringing);
                w.source_sees(match reply {
                    Reply::Unknown => SourceEvent::Unknown,
                    Reply::Prepared => SourceEvent::Prepared,
                    Reply::Refused => SourceEvent::Refused,
                    Reply::Whole => SourceEvent::Whole,
                    Reply::Done if w.file && !w.unwanted && w.copy == Copy::Runs => SourceEvent::Lacks,
                    Reply::Done => SourceEvent::Done,
                });
                // Who has told a stranger can do no more; its record is settled later.
                if reply == Reply::Unknown && matches!(w.source, Some(Source::Telling(_))) {
                    (w.source, w.connects, w.answer) = (None, false, None);
                }
            });
        }
        match self.monitor {
            Monitor::Ordered => can(&|w| (w.monitor, w.record) = (Monitor::Written, Some(Phase::Decided))),
            Monitor::Written if self.tree != Tree::Dead => can(&|w| {
                w.tree = Tree::Dead;
                w.answer = Some(SourceEvent::Recorded);
            }),
            Monitor::Dead if self.asked && self.source.is_some() && self.answer.is_none() => can(&|w| {
                // It sees that nobody answers, looks at the record, and does itself what the monitor did not.
                let written = w.record == Some(Phase::Decided);
                if written {
                    w.tree = Tree::Dead;
                }
                w.answer = Some(if written {
                    SourceEvent::Recorded
                } else {
                    SourceEvent::NotRecorded
                });
            }),
            _ => {}
        }
        if let (Some(answer), Some(Source::Deciding { .. })) = (self.answer, self.source) {
            can(&|w| w.source_sees(answer));
        }
        if self.connects && self.receives && self.source.is_some() {
            can(&|w| {
                w.connects = false;
                w.source_sees(SourceEvent::Linked);
            });
        }
        let lives = self.tree != Tree::Dead;
        let must_wait = lives && self.monitor != Monitor::Dead && self.monitor != Monitor::Waits;
        if let (None, Some(phase), false) = (self.source, self.record, must_wait) {
            can(&|w| {
                let (source, steps) = Source::resume(phase, lives);
                (w.source, w.asked, w.unwanted) = (Some(source), false, false);
                w.source_does(steps);
            });
        }
        if !self.receives {
            can(&|w| w.receives = true);
        }
        // Who waits for an answer that will not come notices that after a while.
        if all.is_empty() {
            let mut next = self.clone();
            next.source_sees(SourceEvent::LinkLost);
            if next != *self {
                all.push(next);
            }
        }
        all
    }

    /// All that can go wrong.
    fn faults(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.faults == 0 {
            return all;
        }
        let mut can = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            next.faults -= 1;
            change(&mut next);
            all.push(next);
        };
        can(&|w| w.source_sees(SourceEvent::LinkLost));
        can(&|w| w.source_sees(SourceEvent::Failed));
        can(&|w| w.target_sees(TargetEvent::LinkLost));
        for decision in &self.to_target {
            can(&|w| {
                w.to_target.remove(decision);
            });
            // Another floe is reached.
            can(&|w| {
                w.to_target.remove(decision);
                w.to_source.insert(Reply::Unknown);
            });
        }
        for reply in &self.to_source {
            can(&|w| {
                w.to_source.remove(reply);
            });
        }
        if self.brings {
            can(&|w| w.brings = false);
        }
        if self.source.is_some() {
            can(&|w| {
                (w.source, w.connects, w.answer) = (None, false, None);
                if w.tree == Tree::Stopped {
                    w.tree = Tree::Runs;
                }
            });
        }
        if self.monitor != Monitor::Dead {
            can(&|w| w.monitor = Monitor::Dead);
        }
        if self.builds {
            can(&|w| {
                w.builds = false;
                w.target_sees(TargetEvent::Failed);
            });
        }
        can(&|w| {
            w.aborts = false;
            w.lose_receiver();
        });
        // The process of the connection goes on without the receiver, which is started anew; or is killed alone.
        can(&|w| w.receives = false);
        can(&|w| w.lose_session());
        all
    }

    fn lose_receiver(&mut self) {
        self.receives = false;
        self.lose_session();
    }

    fn lose_session(&mut self) {
        // It takes who builds the tree with it.
        (self.session, self.builds) = (None, false);
        if self.lacks && matches!(self.copy, Copy::Held | Copy::Runs) {
            self.copy = Copy::Ended;
        }
    }

    fn check(&self) {
        if self.copy == Copy::Runs {
            assert_eq!(self.tree, Tree::Dead, "two copies: {self:?}");
        }
        if self.tree == Tree::Dead {
            let is_there = matches!(self.copy, Copy::Held | Copy::Runs | Copy::Ended);
            assert!(is_there, "no copy: {self:?}");
        }
        if self.copy == Copy::Runs && self.lacks {
            assert!(self.file && self.record.is_some(), "its memory is nowhere: {self:?}");
        }
    }

    /// Where nothing more happens.
    fn check_end(&self) {
        let runs_there = matches!(self.copy, Copy::Runs | Copy::Ended) && self.tree == Tree::Dead;
        let running = usize::from(self.tree == Tree::Runs) + usize::from(runs_there);
        assert_eq!(running, 1, "not one copy runs in the end: {self:?}");
        assert!(
            matches!(self.copy, Copy::None | Copy::Runs | Copy::Ended),
            "something is held: {self:?}"
        );
        assert!(
            self.copy != Copy::Runs || !self.lacks,
            "its memory did not come: {self:?}"
        );
        assert!(!self.file, "a file is left: {self:?}");
        assert_eq!(self.record, None, "a record is left: {self:?}");
    }
}

#[test]
fn one_copy_runs_in_the_end_whatever_goes_wrong() {
    let mut seen = HashSet::new();
    let mut open = vec![World::begin(false), World::begin(true)];
    let mut ends = [0_u32; 2];
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        world.check();
        let nexts = world.nexts();
        if nexts.is_empty() {
            world.check_end();
            ends[usize::from(world.copy == Copy::Runs)] += 1;
        }
        open.extend(nexts);
        open.extend(world.faults());
    }
    assert!(
        ends.iter().all(|count| *count > 0),
        "both sides must be able to win: {ends:?}"
    );
    assert!(seen.len() > 5_000, "{} states are not all", seen.len());
}

/// From each state a way without faults leads to an end; there is no circle in which everybody waits for another.
#[test]
fn without_further_faults_it_ends() {
    let mut seen = HashSet::new();
    let mut open = vec![World::begin(false), World::begin(true)];
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        open.extend(world.nexts());
        open.extend(world.faults());
    }
    for world in seen {
        let mut now = world;
        for step in 0.. {
            assert!(step < 64, "no end from here: {now:?}");
            match now.nexts().into_iter().next() {
                Some(next) => now = next,
                None => break,
            }
        }
    }
}
