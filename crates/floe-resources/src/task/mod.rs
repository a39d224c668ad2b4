//! A task's own state: registers, signals, credentials, limits, scheduling. `dump` reads it, `restore` puts it back.

mod credentials;
mod dispatch;
mod dump;
mod ends;
mod labels;
mod landlock;
mod memory;
mod questions;
mod refuse;
mod restore;
mod scheduling;
mod seccomp;
mod settings;
mod share;
mod signals;
mod sleep;
mod switches;
mod timers;
mod user;

pub use credentials::{become_and_enter, restore_credentials};
pub use dump::{DumpError, HeldProcess, ProcFiles, dump_process, dump_zombie};
pub use ends::Ends;
pub use labels::{login, login_of, refuse_labels, restore_login};
pub use landlock::{DecoyError, Decoys};
pub use memory::MemoryAnswers;
pub use refuse::{
    has_vfork_in_flight, is_in_vfork, refuse_calls_filtered, refuse_foreign_code, refuse_unstoppable,
    refuse_unsupported,
};
pub use restore::{
    RestoreError, SeedState, apply_outside, finish_thread, queue_signals, restore_process, restore_thread,
};
pub use seccomp::{confine, share_filters};
pub use settings::{restore_process_settings, restore_thread_settings};
pub use share::{ShareError, Sharing};
pub use sleep::{Sleepers, continue_sleep};
pub use timers::{arm_timers, make_timers};
pub use user::{SeenUsers, Standpoint, UserEntry};
