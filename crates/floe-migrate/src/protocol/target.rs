//! The target's side, which does what it is told once it holds a tree.

use super::Decision;

/// Where a target stands in one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A tree is being received, or built.
    Building,
    /// It stands frozen, verified, and stays so whatever becomes of this process and of the connection.
    Held,
    /// Nothing is left to be done in this connection.
    Over,
}

/// What a target sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetEvent {
    /// The tree is held.
    Held,
    /// It could not be built; nothing is left of it.
    Failed,
    /// The connection is gone, or was silent for too long.
    LinkLost,
    /// The source says what becomes of it.
    Told(Decision),
}

/// What a target is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetStep {
    /// Tell the source that the tree is held.
    TellPrepared,
    /// Tell the source that nothing is.
    TellRefused,
    /// Stop building: end the one who does, take the permit to hold away, and remove what it may have held before that.
    GiveUp,
    /// Carry out a decision on whatever is held by this hand-over, and tell the source that it is done. Where nothing is
    /// held it was done before.
    CarryOut(Decision),
}

impl Target {
    /// Takes note of something; what is to be done, in this order.
    pub fn see(&mut self, event: TargetEvent) -> Vec<TargetStep> {
        use TargetEvent as E;
        use TargetStep as S;
        let (next, steps) = match (*self, event) {
            (Self::Building, E::Held) => (Self::Held, vec![S::TellPrepared]),
            (Self::Building, E::Failed) => (Self::Over, vec![S::TellRefused]),
            (Self::Building, E::LinkLost) => (Self::Over, vec![S::GiveUp]),
            (Self::Building, E::Told(Decision::Abort)) => (Self::Over, vec![S::GiveUp, S::CarryOut(Decision::Abort)]),
            // Nobody decides so before the tree is held.
            (Self::Building, E::Told(Decision::Commit)) => (Self::Building, Vec::new()),
            (Self::Held, E::Told(decision)) => (Self::Over, vec![S::CarryOut(decision)]),
            (Self::Held, E::LinkLost) => (Self::Over, Vec::new()),
            (now, _) => (now, Vec::new()),
        };
        *self = next;
        steps
    }
}
