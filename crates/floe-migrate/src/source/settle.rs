//! What becomes of hand-overs that nobody works on any more.

use super::{
    MigrateError,
    hand::{Hand, Way},
    rest::Rest,
};
use crate::{
    link::{Manner, message::Outcome},
    protocol::{Decision, Phase, Source},
    record::{Record, RecordError},
    worker::Counts,
};
use floe_checkpoint::checkpoint::thaw_without_traces;
use floe_sandbox::{HandoverError, Sandbox, SandboxError, StateDir, StateError};
use std::time::{Duration, Instant};

/// A hand-over that nobody worked on any more, and what came of it.
#[derive(Debug)]
pub struct Settled {
    /// Its record.
    pub record: Record,
    /// The decision that the target was told, and how the sandbox stands there; or why it could not be told.
    pub told: Result<(Decision, Option<Outcome>), MigrateError>,
}

/// Tells targets what has become of migrations whose floe was killed, or gave up telling them.
///
/// # Errors
/// [`RecordError`] where the records can't be read.
pub fn settle(state_dir: &StateDir, manner: Manner<'_>) -> Result<Vec<Settled>, RecordError> {
    let mut all = Vec::new();
    let (records, _) = Record::left(state_dir)?;
    for record in records {
        let told = settle_one(
            &record,
            state_dir,
            Manner {
                keys: manner.keys.filter(|_| !record.insecure),
                demand: record.key,
                ..manner
            },
        );
        all.push(Settled { record, told });
    }
    Ok(all)
}

/// How long a monitor may take for what it was ordered, and a killed tree to end.
const MOMENT: Duration = Duration::from_secs(10);

/// How far a hand-over has come by its record, when its monitor has done what it was ordered, and can't write it any more.
pub fn phase_left(record: &Record, state_dir: &StateDir) -> Result<Phase, MigrateError> {
    let begin = Instant::now();
    while record.monitor.lives() {
        let asked = match Sandbox::open(state_dir, &record.sandbox) {
            Ok(sandbox) => sandbox.wait_for_monitor(MOMENT),
            // It is about to end, having removed it.
            Err(SandboxError::State(StateError::Unknown(_))) => Err(HandoverError::Gone),
            Err(error) => return Err(error.into()),
        };
        match asked {
            Ok(()) => break,
            Err(HandoverError::Gone) if begin.elapsed() < MOMENT => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(record.written_phase(state_dir)?)
}

/// The same, of one that nobody works on any more: where that has ended the tree, it is gone.
fn settled_phase(record: &Record, state_dir: &StateDir) -> Result<Phase, MigrateError> {
    let begin = Instant::now();
    let phase = phase_left(record, state_dir)?;
    // A monitor that has written it has killed the tree, unless it was killed itself.
    while phase == Phase::Decided && record.pid1.lives() && (record.monitor.lives() || record.pid1.is_ending()) {
        if begin.elapsed() > 2 * MOMENT {
            return Err(HandoverError::Refused("the tree was killed, and has not ended yet".to_owned()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(phase)
}

/// Thaws a tree that counts, whose monitor was killed between freezing it and keeping the record.
pub fn thaw_left_frozen(record: &Record, state_dir: &StateDir) {
    if record.was_frozen || record.monitor.lives() || !record.pid1.lives() {
        return;
    }
    let thawed = Sandbox::open(state_dir, &record.sandbox).and_then(|sandbox| sandbox.cgroup());
    match thawed {
        Ok(None) => {}
        Ok(Some(cgroup)) => {
            if let Err(error) = thaw_without_traces(&cgroup) {
                tracing::error!(%error, "the sandbox stays frozen");
            }
        }
        Err(error) => tracing::error!(%error, "the sandbox may stay frozen"),
    }
}

fn settle_one(
    record: &Record,
    state_dir: &StateDir,
    manner: Manner<'_>,
) -> Result<(Decision, Option<Outcome>), MigrateError> {
    let phase = settled_phase(record, state_dir)?;
    let lives = record.pid1.lives();
    if lives {
        thaw_left_frozen(record, state_dir);
    }
    let (state, steps) = Source::resume(phase, lives);
    let Source::Telling(decision) = state else {
        return Err(MigrateError::Interrupted);
    };
    let rest = match &record.rest {
        Some(left) if decision == Decision::Commit => {
            let rest = Rest::open(&left.path).map_err(|source| MigrateError::Rest {
                path: left.path.clone(),
                peer: record.address.to_string(),
                record: record.path(state_dir),
                source,
            });
            Some(rest?)
        }
        _ => None,
    };
    let mut hand = Hand {
        state,
        record,
        state_dir,
        sandbox: None,
        manner,
        link: None,
        way: Way::First,
        rest,
        unwanted: false,
        worker: None,
        ends: false,
        failure: None,
        counts: Counts::default(),
        untold: None,
        outcome: None,
    };
    hand.carry_out(steps);
    let outcome = hand.finish()?.outcome;
    Ok((decision, outcome.map(|(outcome, _)| outcome)))
}
