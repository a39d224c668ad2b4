//! POSIX timers, timer_create(2).
//!
//! Times to come are kept as the tree's own clocks will show them, which go on from where they stood (CLOCK_REALTIME and
//! CLOCK_TAI: as the host's will). Only what clocks of processor time have to go is kept as a rest: they begin anew.

mod clock;
mod dump;
mod makers;
mod refuse;
mod restore;

pub(super) use dump::dump;
pub(super) use refuse::refuse;
pub(super) use restore::{Firing, TreeTimes};
pub use restore::{arm_timers, make_timers};
