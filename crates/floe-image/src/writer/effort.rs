//! How much work goes into making pages small.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// How much work goes into one chunk of pages. Levels are zstd's, as zstd(1) counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// None: it is stored as it is.
    Raw,
    /// This level, or a faster one where that does nearly as well.
    Level(i32),
    /// This level, whatever faster ones do. What does not shrink is stored raw all the same.
    Exactly(i32),
}

/// Says how much work goes into each chunk.
pub trait Efforts: fmt::Debug + Send + Sync {
    /// Called by the thread that is about to compress a chunk of so many bytes.
    fn next(&self, bytes: usize) -> Effort;
    /// Called by the same thread behind that: so many bytes became so many by this effort, which took so long.
    fn packed(&self, effort: Effort, bytes: [usize; 2], took: Duration);
}

/// Who says how much work goes into the chunks of an image.
#[derive(Debug, Clone)]
pub enum Level {
    /// The same for all: [`Effort::Level`].
    Fixed(i32),
    /// Somebody who is asked for each.
    Asked(Arc<dyn Efforts>),
}

impl Level {
    pub(super) fn effort(&self, bytes: usize) -> Effort {
        match self {
            Self::Fixed(level) => Effort::Level(*level),
            Self::Asked(efforts) => efforts.next(bytes),
        }
    }

    pub(super) fn packed(&self, effort: Effort, bytes: [usize; 2], begin: Instant) {
        if let Self::Asked(efforts) = self {
            efforts.packed(effort, bytes, begin.elapsed());
        }
    }
}

impl From<i32> for Level {
    fn from(level: i32) -> Self {
        Self::Fixed(level)
    }
}
