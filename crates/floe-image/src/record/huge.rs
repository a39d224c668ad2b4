//! Huge pages: where memory was made of them.

use serde::{Deserialize, Serialize};

/// Bytes of a transparent huge page.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Transparent huge pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugeRun {
    /// Address of the first.
    pub start: u64,
    /// How many, of [`HUGE_PAGE`] bytes each.
    pub count: u64,
}
