//! The source's side, which decides.

use super::{Decision, Phase};

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Its tree stands still, or does not yet; nothing is decided.
    Undecided,
    /// Its monitor has been told to keep the record and to end the tree.
    Deciding {
        /// Whether the target can still be told on this connection.
        linked: bool,
    },
    /// The target is being told.
    Telling(Decision),
    /// It runs there, and is brought memory that this side alone has.
    Bringing,
    /// Nothing is left to be done.
    Settled,
}

/// What a source sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The target holds the tree, verified.
    Prepared,
    /// The target holds nothing, or wants nothing, and says so.
    Refused,
    /// Something went wrong here, or the user wants no more of it.
    Failed,
    /// The connection is gone, or was silent for too long.
    LinkLost,
    /// There is a new connection.
    Linked,
    /// The monitor has kept the record and ended the tree.
    Recorded,
    /// The monitor has not, and will not.
    NotRecorded,
    /// The target has done what it was told.
    Done,
    /// The target lets it run, and this side has memory that has not gone over.
    Lacks,
    /// The target has all of it, or needs no more.
    Whole,
    /// Who was reached is not the target.
    Unknown,
}

/// What a source is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceStep {
    /// Have the monitor keep the record and end the tree.
    Decide,
    /// Let the tree run on.
    LetGo,
    /// Tell the target.
    Tell(Decision),
    /// Connect anew.
    Connect,
    /// Send memory that has not gone over.
    Bring,
    /// Remove the record.
    Forget,
}

impl Source {
    /// One that goes on with what another one has left: with its record, and whether the tree that this is about still
    /// lives. That tree is ended in one deed with the record, so where it lives the deed was cut short by the death of the
    /// monitor, and nobody can have been told: it runs on.
    #[must_use]
    pub fn resume(phase: Phase, tree_lives: bool) -> (Self, Vec<SourceStep>) {
        let decision = match (phase, tree_lives) {
            (Phase::Decided, false) => Decision::Commit,
            (Phase::Decided, true) | (Phase::Begun, _) => Decision::Abort,
        };
        (Self::Telling(decision), vec![SourceStep::Connect])
    }

    /// Takes note of something; what is to be done, in this order. What comes too late changes nothing.
    pub fn see(&mut self, event: SourceEvent) -> Vec<SourceStep> {
        use SourceEvent as E;
        use SourceStep as S;
        let (next, steps) = match (*self, event) {
            (Self::Undecided, E::Prepared) => (Self::Deciding { linked: true }, vec![S::Decide]),
            (Self::Undecided, E::Refused) => (Self::Settled, vec![S::LetGo, S::Forget]),
            (Self::Undecided, E::Failed) => (Self::Telling(Decision::Abort), vec![S::LetGo, S::Tell(Decision::Abort)]),
            (Self::Undecided, E::LinkLost) => (Self::Telling(Decision::Abort), vec![S::LetGo, S::Connect]),
            (Self::Deciding { .. }, E::LinkLost) => (Self::Deciding { linked: false }, Vec::new()),
            (Self::Deciding { linked }, E::Recorded) => {
                let tell = if linked { S::Tell(Decision::Commit) } else { S::Connect };
                (Self::Telling(Decision::Commit), vec![tell])
            }
            (Self::Deciding { linked }, E::NotRecorded) => {
                let tell = if linked { S::Tell(Decision::Abort) } else { S::Connect };
                (Self::Telling(Decision::Abort), vec![S::LetGo, tell])
            }
            (Self::Telling(decision), E::Linked) => (*self, vec![S::Tell(decision)]),
            (Self::Telling(_), E::LinkLost) => (*self, vec![S::Connect]),
            (Self::Telling(_), E::Done) => (Self::Settled, vec![S::Forget]),
            (Self::Telling(Decision::Commit), E::Lacks) => (Self::Bringing, vec![S::Bring]),
            (Self::Bringing, E::Linked) => (*self, vec![S::Bring]),
            (Self::Bringing, E::LinkLost) => (*self, vec![S::Connect]),
            // All is there, or it has ended: how it stands is asked once more.
            (Self::Bringing, E::Refused) => (Self::Telling(Decision::Commit), vec![S::Connect]),
            (Self::Bringing, E::Whole) => (Self::Settled, vec![S::Forget]),
            // Who else holds it is not known here: the record stays, for whoever settles it.
            (Self::Telling(_), E::Unknown) => (*self, Vec::new()),
            (now, _) => (now, Vec::new()),
        };
        *self = next;
        steps
    }
}
