//! Runs a closure in another process's namespace: on a thread of its own that ends with it; or, as an ordinary user who has
//! no privileges there but as the maker of a user namespace, in a process that enters that first (no thread may).

use floe_sys::{
    Pid,
    beside::beside,
    descriptor,
    namespace::{self, Kind, Standing, enter_user},
    procfs::{ProcError, Status},
};
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
    sys::stat::{Mode, fstat},
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
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
    let entered = Privileges::in_new().and_then(|privileges| privileges.run(enter));
    entered.map_err(NsError::New)
}

/// Whose privileges open a namespace.
enum Privileges {
    /// floe's own.
    Own,
    /// Those of who has entered this user namespace.
    Of(OwnedFd),
    /// Those of who has made a user namespace.
    New,
}

/// The user namespace that is to be entered before a namespace can be, where floe has no privileges of its own.
///
/// # Errors
/// Those of NS_GET_USERNS.
fn owner_to_enter(namespace: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    Ok(match Privileges::to_enter(namespace)? {
        Privileges::Of(user) => Some(user),
        Privileges::Own | Privileges::New => None,
    })
}

/// A process that stands in a namespace: any but one of PIDs, which only its children would be in.
///
/// # Errors
/// Those of NS_GET_USERNS and [`Standing::there`].
pub(crate) fn stand_inside(namespace: BorrowedFd<'_>) -> io::Result<Standing> {
    let (kind, user) = (Kind::of(namespace)?, owner_to_enter(namespace)?);
    Standing::there(|| {
        if let Some(user) = &user {
            enter_user(user.as_fd())?;
        }
        match kind {
            Kind::User => enter_user(namespace),
            _ => setns(namespace, CloneFlags::from_bits_retain(kind.flag())),
        }
    })
}

impl Privileges {
    fn to_enter(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        if has_own()? {
            return Ok(Self::Own);
        }
        Self::of_owner(namespace)
    }

    fn of_owner(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let user = namespace::owner(namespace)?;
        let own = std::fs::metadata("/proc/self/ns/user")?.ino();
        Ok(if fstat(&user)?.st_ino == own {
            Self::Own
        } else {
            Self::Of(user)
        })
    }

    fn in_new() -> io::Result<Self> {
        Ok(if has_own()? { Self::Own } else { Self::New })
    }

    /// Runs something with them.
    fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match self {
            Self::Own => apart(work),
            Self::Of(user) => beside(|| {
                setns(user, CloneFlags::CLONE_NEWUSER)?;
                work()
            })?,
            Self::New => beside(|| {
                unshare(CloneFlags::CLONE_NEWUSER)?;
                work()
            })?,
        }
    }
}

/// Whether floe has privileges in its own user namespace, and so in all below it.
fn has_own() -> io::Result<bool> {
    const CAP_SYS_ADMIN: u32 = 21;
    let [_, _, effective, ..] = Status::read("/proc/thread-self")
        .map_err(io::Error::other)?
        .capabilities;
    Ok(effective & 1 << CAP_SYS_ADMIN != 0)
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
    Privileges::to_enter(namespace)?.run(|| {
        setns(namespace, CloneFlags::empty())?;
        look()
    })
}

/// As [`run_in`], with the rights of who owns the namespace and no others, where that is not the caller's user namespace: numbers of
/// users that the kernel is told are those of that namespace.
///
/// # Errors
/// Those of setns(2) and of `look`.
pub fn run_in_as_owner<T: Send>(
    namespace: BorrowedFd<'_>,
    look: impl FnOnce() -> Result<T, io::Error> + Send,
) -> Result<T, io::Error> {
    Privileges::of_owner(namespace)?.run(|| {
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
    let entered = Privileges::in_new().and_then(|privileges| privileges.run(enter));
    entered.map_err(|source| NsError::Enter {
        pid: Pid::new(std::process::id() as i32),
        flags,
        source,
    })
}

/// Runs something on a thread that ends with it.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
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
    let entered = others(pid, flags).and_then(|differing| {
        let first = Kind::ALL.into_iter().find(|kind| differing.bits() & kind.flag() != 0);
        let privileges = match first {
            Some(kind) => Privileges::to_enter(File::open(format!("/proc/{pid}/ns/{kind}"))?.as_fd())?,
            None => Privileges::Own,
        };
        privileges.run(|| {
            let pidfd = descriptor::pidfd_of_task(pid)?;
            if differing.contains(CloneFlags::CLONE_NEWNS) {
                // Entering a mount namespace moves root and working directory, so they must be the thread's own.
                unshare(CloneFlags::CLONE_FS)?;
            }
            if !differing.is_empty() {
                setns(pidfd, differing)?;
            }
            look()
        })
    });
    entered.map_err(|source| NsError::Enter { pid, flags, source })
}
