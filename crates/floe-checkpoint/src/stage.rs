//! Named stages: what a long act is doing, where it can be told to stop, and where tests make it fail.

use std::sync::atomic::{AtomicBool, Ordering};

/// How an act is watched and stopped from outside. The library asks; it installs no signal handler of its own.
pub struct Control<'a> {
    /// Set by a signal handler: give up at the next stage and undo all.
    pub interrupted: &'static AtomicBool,
    /// A stage that is to fail, for tests.
    pub fail_at: Option<&'a Injection>,
    /// Told at each stage, and as pages go by.
    pub observer: &'a dyn Observer,
}

/// A failure that a test wants at a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    stage: String,
    panic: bool,
}

impl std::str::FromStr for Injection {
    type Err = std::convert::Infallible;

    /// `STAGE` for an error, `STAGE:panic` for a panic.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stage, panic) = text.strip_suffix(":panic").map_or((text, false), |stage| (stage, true));
        Ok(Self {
            stage: stage.to_owned(),
            panic,
        })
    }
}

/// Somebody who shows progress.
pub trait Observer {
    /// A stage begins.
    fn stage(&self, name: &'static str);
    /// So many bytes of pages are done, of so many.
    fn pages(&self, done: u64, total: u64);
}

/// Why an act did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A signal.
    #[error("interrupted before stage {0}")]
    Interrupted(&'static str),
    /// A test.
    #[error("stage {0} was told to fail")]
    Injected(&'static str),
}

impl Control<'_> {
    /// Enters a stage.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn enter(&self, name: &'static str) -> Result<(), StageError> {
        self.observer.stage(name);
        self.check(name)?;
        match self.fail_at {
            Some(injection) if injection.stage == name => {
                assert!(!injection.panic, "stage {name} was told to panic");
                Err(StageError::Injected(name))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Gives up within a long stage if a signal came.
    ///
    /// # Errors
    /// [`StageError::Interrupted`].
    pub fn check(&self, name: &'static str) -> Result<(), StageError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(StageError::Interrupted(name))
        } else {
            Ok(())
        }
    }
}
