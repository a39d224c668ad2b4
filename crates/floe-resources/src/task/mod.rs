//! A task's own state: registers, signals, credentials, limits, scheduling. `dump` reads it, `restore` puts it back.

mod dump;
mod refuse;
mod restore;
mod signals;
mod sleep;
mod switches;

pub use dump::{DumpError, HeldProcess, dump_process, dump_zombie};
pub use refuse::{refuse_unstoppable, refuse_unsupported, runs_calls};
pub use restore::{
    CredentialsBase, RestoreError, apply_outside, finish_thread, restore_credentials, restore_process, restore_thread,
};
pub use signals::{SignalError, fix_interrupted_calls, handled_signal_pending};
pub use sleep::{Sleepers, continue_sleep};
