//! The hand-over, as two machines without input or output: what each side does next, given what it has seen. The threads
//! of a real migration (`source`, `target`) only carry out what they say, and the test in `model.rs` drives both through
//! everything that can happen.
//!
//! ```text
//! source (decides)                                target
//!   record: begun
//!   stops its tree, sends the image  ───────────►  builds it, compares it, holds it frozen
//!                                    ◄─── Prepared
//!   record: decided; the tree ends   (one deed of its monitor)
//!                                    Commit ─────►  lets it run
//!                                    ◄─────── Done
//!   no record
//! ```
//! It is two-phase commit in which the source decides. Until its record says "decided" the outcome is that the source's
//! tree runs on, whatever happened and whoever was killed; from then on it is that the target's does. A target that holds
//! a tree waits until it is told; the source tells until it is answered, and a record on its disk says what, should it be
//! killed. What each failure leads to stands in `docs/wire-protocol.md`.

mod source;
mod target;

#[cfg(test)]
mod model;

pub use source::{Source, SourceEvent, SourceStep};
pub use target::{Target, TargetEvent, TargetStep};

use serde::{Deserialize, Serialize};

/// What becomes of what the target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Decision {
    /// It runs; the source's tree has ended.
    Commit,
    /// It goes; the source's tree runs on.
    Abort,
}

/// How far the source's record says that a hand-over has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not decided: it counts as given up once nobody works on it.
    Begun,
    /// The target's copy is the one that counts.
    Decided,
}
