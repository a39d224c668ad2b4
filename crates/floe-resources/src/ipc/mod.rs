//! System V IPC objects of an own IPC namespace: shared memory, semaphore sets, message queues.
//!
//! Identifiers, keys, owners, permissions and contents are carried. Who used an object last and when is not: the kernel
//! lets nobody say it. Those of the host's namespace stay the host's.

mod dump;
mod restore;

pub use dump::dump;
pub use restore::{SegmentFile, make, remove_segments};

use crate::ns::NsError;
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
        source: NsError,
    },
    /// A call.
    #[error("{action} System V object {id}")]
    Object {
        /// What was attempted.
        action: &'static str,
        /// Its identifier.
        id: i32,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A process to compare others with.
    #[error("look for adjustments of semaphores")]
    Compare(#[source] Errno),
}

fn namespace(action: &'static str) -> impl FnOnce(NsError) -> IpcError {
    move |source| IpcError::Namespace { action, source }
}
