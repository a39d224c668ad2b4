//! What this host, and what the caller may do on it, offers to floe. The kernel is asked by trying, never by its version:
//! in children, in namespaces that end with them, on files that nobody else sees.
//!
//! Forks, so the caller must have one thread.

mod attempt;
mod freezer;
mod limits;
mod memory;
mod namespaces;
mod network;
mod tasks;

use attempt::Caller;
use floe_sys::procfs::ProcError;
use std::fmt;

/// What somebody wants to do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are verbs of the command")]
pub enum Act {
    Run,
    Checkpoint,
    Restore,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Run => "run",
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
        })
    }
}

/// What keeps an act from being done here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} in the way of floe {act} here", crate::things_stand(.list.len()))]
pub struct Hindrances {
    /// The act.
    pub act: Act,
    /// What there is, in words.
    pub list: Vec<String>,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Standing {
    Yes,
    Partly,
    No,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Yes => "yes",
            Self::Partly => "partly",
            Self::No => "no",
        })
    }
}

/// Something that floe uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// Whether it is there.
    pub standing: Standing,
    /// What was found, in words.
    pub found: String,
    /// What floe needs it for.
    pub used_for: &'static str,
    /// What can be done where it is not there, or only in part.
    pub advice: Option<&'static str>,
    /// The acts that it has something to do with.
    pub used_by: &'static [Act],
    /// Those that can't do without it, whatever the tree.
    pub needed_by: &'static [Act],
}

impl Feature {
    /// Whether it stands in the way of an act.
    #[must_use]
    pub fn hinders(&self, act: Act) -> bool {
        self.standing == Standing::No && self.needed_by.contains(&act)
    }
}

/// What a probe finds.
enum Finding {
    Yes(String),
    Partly(String),
    No(String),
}

/// How a feature is looked for.
struct Probe {
    name: &'static str,
    used_for: &'static str,
    advice: &'static str,
    used_by: &'static [Act],
    needed_by: &'static [Act],
    ask: fn(&Caller) -> Finding,
}

const ALL: &[Act] = &[Act::Run, Act::Checkpoint, Act::Restore];
const MAKING: &[Act] = &[Act::Run, Act::Restore];
const TREES: &[Act] = &[Act::Checkpoint, Act::Restore];
const SAVING: &[Act] = &[Act::Checkpoint];
const RESTORING: &[Act] = &[Act::Restore];
const NONE: &[Act] = &[];

/// All features, those that everything hangs on first.
const PROBES: &[&[Probe]] = &[
    tasks::PROBES,
    freezer::PROBES,
    limits::PROBES,
    namespaces::PROBES,
    memory::PROBES,
    network::PROBES,
];

/// Looks for everything.
///
/// # Errors
/// [`ProcError`] where the caller can't even see itself.
pub fn features() -> Result<Vec<Feature>, ProcError> {
    let caller = Caller::current()?;
    let probes = PROBES.iter().copied().flatten();
    Ok(probes.map(|probe| probe.feature(&caller)).collect())
}

impl Probe {
    fn feature(&self, caller: &Caller) -> Feature {
        let (standing, found) = match (self.ask)(caller) {
            Finding::Yes(found) => (Standing::Yes, found),
            Finding::Partly(found) => (Standing::Partly, found),
            Finding::No(found) => (Standing::No, found),
        };
        Feature {
            name: self.name,
            standing,
            found,
            used_for: self.used_for,
            advice: (standing != Standing::Yes).then_some(self.advice),
            used_by: self.used_by,
            needed_by: self.needed_by,
        }
    }
}
