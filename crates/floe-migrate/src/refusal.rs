//! Why one side can't do its part, in words, as the other side is told it.

use floe_checkpoint::{checkpoint::CheckpointError, restore::RestoreError};
use serde::{Deserialize, Serialize};
use std::error::Error;

/// Characters of a text that the other side sent, at most.
const TEXT: usize = 2000;
/// Findings that are told, at most.
const FINDINGS: usize = 1000;
/// Bytes of these at most: as JSON, in which a byte takes six at most, they fit into a message.
const BYTES: usize = 128 << 10;
/// Bytes of the note that there are more.
const NOTE: usize = 64;

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
        let short = |text: &str| text.chars().take(TEXT).collect::<String>();
        let mut taken: Vec<String> = findings.iter().take(FINDINGS).map(|text| short(text)).collect();
        let bytes = |taken: &[String]| taken.iter().map(String::len).sum::<usize>();
        if taken.len() < findings.len() || bytes(&taken) > BYTES {
            while taken.len() >= FINDINGS || bytes(&taken) > BYTES - NOTE {
                taken.pop();
            }
            taken.push(format!("and {} more", findings.len() - taken.len()));
        }
        Self {
            reason: short(reason),
            findings: taken,
        }
    }

    /// So much of it as fits into a message.
    #[must_use]
    pub fn shortened(self) -> Self {
        Self::from_peer(&self.reason, &self.findings)
    }
}

#[cfg(test)]
mod tests {
    use super::Refusal;
    use crate::link::{frame, message::Message};

    #[test]
    fn a_long_list_fits_into_a_message() {
        let findings: Vec<String> = (0..5000).map(|at| format!("{at}: {}", "\u{1}".repeat(300))).collect();
        let reason = "\u{1}".repeat(5000);
        let told = Refusal { reason, findings }.shortened();
        assert_eq!(told.clone().shortened(), told);
        let Refusal { reason, findings } = told;
        let last = findings.last().cloned().expect("a finding");
        let shown = findings.len() - 1;
        assert_eq!(last, format!("and {} more", 5000 - shown));
        assert!(shown > 100);
        let mut wire = Vec::new();
        frame::send(&mut wire, &Message::Refused { reason, findings }).expect("it fits");
    }
}
