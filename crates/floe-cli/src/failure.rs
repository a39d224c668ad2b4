//! How a verb fails: the chain of what went wrong, a list of findings, and the exit status.

use crate::{LogFormat, output};
use floe_checkpoint::{checkpoint::CheckpointError, host::Hindrances, restore::RestoreError};
use floe_migrate::source::MigrateError;
use serde_json::json;
use std::fmt;

/// A verb that failed.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    findings: Vec<String>,
    /// Exit status.
    pub status: u8,
}

/// What verbs return: an exit status.
pub type Outcome = Result<i32, Failure>;

impl Failure {
    /// With another exit status than 1.
    pub fn with_status(error: impl Into<anyhow::Error>, status: i32) -> Self {
        Self {
            error: error.into(),
            findings: Vec::new(),
            status: u8::try_from(status).unwrap_or(1),
        }
    }

    /// Tells it on standard error: one line for the chain, one for each finding; or all as one line of JSON.
    pub fn report(&self, format: LogFormat) {
        let message = format!("{:#}", self.error);
        match format {
            LogFormat::Json => {
                let line = json!({ "level": "ERROR", "message": message, "findings": self.findings });
                output::error(&line.to_string());
            }
            LogFormat::Text => {
                output::error(&format!("floe: {message}"));
                for finding in &self.findings {
                    output::error(&format!("  - {finding}"));
                }
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let findings = if let Some(CheckpointError::Refused(list)) = error.downcast_ref() {
            list.iter().map(ToString::to_string).collect()
        } else if let Some(RestoreError::Obstacles(list)) = error.downcast_ref() {
            list.iter().map(ToString::to_string).collect()
        } else if let Some(error) = error.downcast_ref::<MigrateError>() {
            error.findings().to_vec()
        } else if let Some(Hindrances { list, .. }) = error.downcast_ref() {
            list.clone()
        } else if let Some(RestoreError::Differs(list)) = error.downcast_ref() {
            list.clone()
        } else {
            Vec::new()
        };
        Self {
            error,
            findings,
            status: 1,
        }
    }
}
