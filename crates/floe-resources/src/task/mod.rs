//! A task's own state: registers, signals, credentials, limits, scheduling. `dump` reads it, `restore` puts it back.

mod dump;
mod refuse;
mod restore;
mod signals;

pub use dump::{DumpError, HeldProcess, dump_process, dump_zombie};
pub use refuse::{has_vfork_in_flight, refuse_foreign_code, refuse_unstoppable, refuse_unsupported, waits_for_vfork};
pub use restore::{
    CredentialsBase, RestoreError, apply_outside, finish_thread, queue_signals, restore_credentials, restore_process,
    restore_thread,
};
