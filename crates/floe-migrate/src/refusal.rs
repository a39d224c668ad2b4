//! Why one side can't do its part, in words, as the other side is told it.

use floe_checkpoint::{checkpoint::CheckpointError, restore::RestoreError};
use serde::{Deserialize, Serialize};
use std::error::Error;

/// Characters of a text that the other side sent, at most.
const TEXT: usize = 2000;
/// Findings that are taken from the other side, at most.
const FINDINGS: usize = 1000;

/// A reason, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, with all causes.
    pub reason: String,
    /// All that stands in the way, where it is more than one thing.
    pub findings: Vec<String>,
}

impl Refusal {
    /// For a plain reason.
    #[must_use]
    pub fn plain(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            findings: Vec::new(),
        }
    }

    /// For an error, with its causes.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        let findings = match (error.downcast_ref(), error.downcast_ref()) {
            (Some(CheckpointError::Refused(list)), _) => list.iter().map(ToString::to_string).collect(),
            (_, Some(RestoreError::Obstacles(list))) => list.iter().map(ToString::to_string).collect(),
            (_, Some(RestoreError::Differs(list))) => list.clone(),
            _ => Vec::new(),
        };
        Self { reason, findings }
    }

    /// What the other side sent, no longer than anybody would read.
    #[must_use]
    pub fn from_peer(reason: &str, findings: &[String]) -> Self {
        let short = |text: &str| text.chars().take(TEXT).collect();
        Self {
            reason: short(reason),
            findings: findings.iter().take(FINDINGS).map(|text| short(text)).collect(),
        }
    }
}
