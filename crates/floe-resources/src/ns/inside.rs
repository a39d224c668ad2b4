//! Runs a closure in another process's namespace, on a thread of its own that ends with it.

use floe_sys::{Pid, descriptor, namespace::Kind, procfs::ProcError};
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
};
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

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
    /// A setting.
    #[error("write {path}")]
    Write {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Mounts.
    #[error(transparent)]
    Proc(ProcError),
    /// Entering a network namespace that no task of floe's choice is in.
    #[error("look into network namespace net:[{inode}]")]
    Network {
        /// Its inode number.
        inode: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Making one.
    #[error("look into a new network namespace")]
    New(#[source] io::Error),
    /// Entering it.
    #[error("look into the namespaces of process {pid} ({})", names(*flags))]
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

/// Their names, as clone(2) has them.
fn names(flags: CloneFlags) -> String {
    flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// Runs a closure in a new network namespace, which ends with it.
///
/// # Errors
/// [`NsError::New`].
pub fn in_new_network<T: Send>(look: impl FnOnce() -> Result<T, io::Error> + Send) -> Result<T, NsError> {
    let enter = || -> Result<T, io::Error> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        look()
    };
    let result = std::thread::scope(|scope| scope.spawn(enter).join());
    result
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .map_err(NsError::New)
}

/// The root directory of the mount namespace of `pid`, whatever its own root directory is.
///
/// # Errors
/// [`NsError`].
pub fn root_directory(pid: Pid) -> Result<OwnedFd, NsError> {
    run(pid, CloneFlags::CLONE_NEWNS, || {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open("/", flags, Mode::empty())?)
    })
}

/// Those of the namespaces that are not the caller's, too.
fn others(pid: Pid, flags: CloneFlags) -> io::Result<CloneFlags> {
    let link = |whose: &str, kind: Kind| std::fs::read_link(format!("/proc/{whose}/ns/{kind}"));
    let asked = Kind::ALL.into_iter().filter(|kind| flags.bits() & kind.flag() != 0);
    let mut differing = CloneFlags::empty();
    for kind in asked {
        if link(&pid.to_string(), kind)? != link("thread-self", kind)? {
            differing |= CloneFlags::from_bits_retain(kind.flag());
        }
    }
    Ok(differing)
}

/// Runs `look` on a thread that has entered one namespace that is not its own: a UTS, IPC or network namespace.
///
/// # Errors
/// Those of setns(2) and of `look`.
pub fn run_in<T: Send>(
    namespace: BorrowedFd<'_>,
    look: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, io::Error> {
    apart(|| {
        setns(namespace, CloneFlags::empty())?;
        look()
    })
}

/// Runs `look` on a thread in new namespaces `flags`, which end with it.
///
/// # Errors
/// [`NsError::Enter`].
pub(super) fn run_in_new<T: Send>(
    flags: CloneFlags,
    look: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, NsError> {
    let enter = || -> Result<T, io::Error> {
        unshare(flags)?;
        look()
    };
    apart(enter).map_err(|source| NsError::Enter {
        pid: Pid::new(std::process::id() as i32),
        flags,
        source,
    })
}

/// Runs something on a thread that ends with it.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let result = std::thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Runs `look` on a thread that has entered the namespaces `flags` of `pid` (mount, UTS, IPC, network: those a single
/// thread may enter; and that of PIDs, for its children). What is floe's own it need not enter, and as the root of a user
/// namespace could not.
///
/// # Errors
/// [`NsError::Enter`].
pub fn run<T: Send>(
    pid: Pid,
    flags: CloneFlags,
    look: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, NsError> {
    let enter = || -> Result<T, io::Error> {
        let pidfd = descriptor::pidfd_of_task(pid)?;
        let flags = others(pid, flags)?;
        if flags.contains(CloneFlags::CLONE_NEWNS) {
            // Entering a mount namespace moves root and working directory, so they must be the thread's own.
            unshare(CloneFlags::CLONE_FS)?;
        }
        if !flags.is_empty() {
            setns(pidfd, flags)?;
        }
        look()
    };
    apart(enter).map_err(|source| NsError::Enter { pid, flags, source })
}
