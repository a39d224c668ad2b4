//! System V IPC objects of IPC namespaces of a tree's own: shared memory, semaphore sets, message queues.
//!
//! Identifiers, keys, owners, permissions and contents are carried. Who used an object last and when is not: the kernel
//! lets nobody say it. Those of the host's namespace stay the host's.

mod dump;
mod restore;
mod spaces;

pub use dump::dump;
pub use restore::{SegmentFile, adjust, make, remove_segments};
pub(crate) use spaces::IpcSpace;
pub use spaces::IpcSpaces;

use crate::{mm::ContentError, ns::NsError};
use nix::errno::Errno;
use std::io;

/// An object that could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The namespace, or an object in it.
    #[error("{action}")]
    Namespace {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Which there are.
    #[error("look at {path}")]
    Look {
        /// What.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// That of a task.
    #[error(transparent)]
    Task(#[from] NsError),
    /// The content of a segment.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A process to compare others with.
    #[error("look for adjustments of semaphores")]
    Compare(#[source] Errno),
}

fn namespace(action: &'static str) -> impl FnOnce(io::Error) -> IpcError {
    move |source| IpcError::Namespace { action, source }
}
