//! Runs a closure in another process's namespace, on a thread of its own that ends with it.

use floe_sys::{Pid, descriptor};
use nix::sched::{CloneFlags, setns};
use std::io;

/// A namespace that could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum NsError {
    /// A file of /proc.
    #[error("read {path}")]
    Read {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Entering it.
    #[error("look into the {flags:?} namespace of process {pid}")]
    Enter {
        /// Whose.
        pid: Pid,
        /// Which.
        flags: CloneFlags,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Runs `look` on a thread that has entered the namespaces `flags` of `pid` (UTS, IPC, network: those a single thread may
/// enter).
///
/// # Errors
/// [`NsError::Enter`].
pub fn run<T: Send>(
    pid: Pid,
    flags: CloneFlags,
    look: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, NsError> {
    let enter = || -> Result<T, io::Error> {
        let pidfd = descriptor::pidfd_open(pid)?;
        setns(pidfd, flags)?;
        look()
    };
    let result = std::thread::scope(|scope| scope.spawn(enter).join());
    result
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        .map_err(|source| NsError::Enter { pid, flags, source })
}
