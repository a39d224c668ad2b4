//! State that floe can't carry, found before anything is changed.

use floe_sys::Pid;
use std::{fmt, net::SocketAddr};

/// Who has the state: both ids and the command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Id in floe's PID namespace.
    pub host: Pid,
    /// Id in its own PID namespace.
    pub ns: i32,
    /// Its name.
    pub comm: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} (host {}, {})", self.ns, self.host, self.comm)
    }
}

/// How a finding passes without anybody doing anything about it: the tree has only to run on for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Passing {
    /// By what it does anyway.
    OfItself,
    /// When it has accepted the connections that wait at this address, and no more come.
    Accepted(SocketAddr),
}

/// One piece of state that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Whose it is; `None` for the tree as a whole.
    pub subject: Option<Subject>,
    /// What it is, e.g. `descriptor 5 (socket:[4711])`.
    pub object: String,
    /// Why it can't be carried.
    pub reason: String,
    /// What the user can do.
    pub advice: String,
    /// How it passes, if it does.
    pub passing: Option<Passing>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subject) = &self.subject {
            write!(f, "{subject}: ")?;
        }
        write!(f, "{}: {}; {}", self.object, self.reason, self.advice)
    }
}

/// All that was found in the way, to be reported in one list.
#[derive(Debug, Default)]
pub struct Refusals(Vec<Refusal>);

impl Refusals {
    /// Adds a finding.
    pub fn add(
        &mut self,
        subject: Option<&Subject>,
        object: impl Into<String>,
        reason: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Refusal {
            subject: subject.cloned(),
            object: object.into(),
            reason: reason.into(),
            advice: advice.into(),
            passing: None,
        });
    }

    /// Notes of the last finding that it passes.
    pub fn last_passes(&mut self, passing: Passing) {
        if let Some(last) = self.0.last_mut() {
            last.passing = Some(passing);
        }
    }

    /// How many there are so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing stands in the way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The findings, sorted by task, each once.
    #[must_use]
    pub fn into_sorted(mut self) -> Vec<Refusal> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}
