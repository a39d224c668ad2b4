//! A task's own state: registers, signals, credentials, limits, scheduling. `dump` reads it, `restore` puts it back.

mod dump;
mod memory;
mod refuse;
mod restore;
mod signals;
mod sleep;
mod switches;

pub use dump::{DumpError, HeldProcess, dump_process, dump_zombie};
pub use memory::MemoryAnswers;
pub use refuse::{
    has_vfork_in_flight, is_in_vfork, refuse_calls_filtered, refuse_foreign_code, refuse_leaderless,
    refuse_unstoppable, refuse_unsupported,
};
pub use restore::{
    RestoreError, SeedState, apply_outside, finish_thread, queue_signals, restore_credentials, restore_process,
    restore_thread,
};
pub use sleep::{Sleepers, continue_sleep};
