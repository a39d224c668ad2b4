//! Ptrace as types, and code run in other tasks: single remote calls and batches of them.
//!
//! Knows tasks, not checkpoints. Everything that knows the architecture stands in `arch`.

mod arch;
mod arena;
mod batch;
mod copy;
mod events;
mod filter;
mod host;
mod interrupted;
mod puppet;
mod rseq;
mod script;
mod stopped;

pub use arch::{
    GENERAL_BYTES, Registers, call_instruction, components_in_use, is_native, moved_components, vdso_bridge, vdso_tail,
    xfeatures,
};
pub use arena::Arena;
pub use batch::{Batch, CallError, CallId};
pub use copy::MemoryCopy;
pub use events::give_events_back;
pub use host::{CallHost, HostError, Running};
pub use interrupted::{InterruptionError, RestartCode, has_handled_signal_pending, is_restarted, restart_code};
pub use puppet::{ARENA_BYTES, Puppet, PuppetError, PuppetIds};
pub use script::Script;
pub use stopped::{Options, Outliving, SeizeError, Seized, Stopped, TraceError};
