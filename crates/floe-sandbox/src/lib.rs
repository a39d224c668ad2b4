//! Sandboxes: created, entered, listed; the monitor that stays with each; PID 1; the state directory.
//!
//! Knows nothing of images. Restore uses the same [`Launch`] as run, with a seed in the place of the command.

#![deny(unsafe_code)]

pub mod init;
pub mod namespaces;
pub mod pids;
pub mod tasks;

mod account;
mod arch;
mod attach;
mod enter;
mod execute;
mod first;
mod handover;
mod joiner;
mod kept;
mod launch;
mod link;
mod message;
mod monitor;
mod mounts;
mod owner;
mod pages;
mod processor;
mod published;
mod sandbox;
mod spec;
mod state;
mod survey;
mod terminal;
mod uplink;
mod user;
mod whose;

pub use account::RunAs;
pub use attach::{AttachError, Attached, Client, Ending, Signals, Wishes};
pub use enter::{EnterError, EnterRequest, Place, enter};
pub use first::own_terminals;
pub use handover::{HandedOver, HandoverError, HeldName, Holding};
pub use kept::{KeptFiles, MOST_KEPT};
pub use launch::{First, Launch, LaunchError};
pub use link::{INSIDE as LINK_INSIDE, LinkSpec, LinkState, needs_carrier};
pub use mounts::{Mount, Mounts, MountsError, RootDirectory, Shown};
pub use owner::{Ids, Owner, OwnerError, UserSpace};
pub use pages::PageKeeper;
pub use processor::ProcessorState;
pub use published::Published;
pub use sandbox::{Announcement, Sandbox, SandboxError};
pub use spec::{Console, Origin, SandboxSpec};
pub use state::{ConsoleState, SandboxState, StateDir, StateError, Status};
pub use survey::Survey;
pub use terminal::{RawMode, WindowSize};
pub use uplink::{Carrier, attempt as try_uplink};
pub use user::{IdMap, UserError, become_root, become_root_by, join as join_user, map as map_user};
pub use whose::Found;

/// Name of the monitor's socket in a sandbox's folder.
fn monitor_socket() -> &'static str {
    monitor::SOCKET
}
