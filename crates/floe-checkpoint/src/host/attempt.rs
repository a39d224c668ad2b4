//! Trying something in a child, so that whatever it does ends with that.

use floe_sys::{
    Pid, fork,
    procfs::{ProcError, Status},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::pause,
};
use std::{
    error::Error,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

const CAP_SYS_ADMIN: u64 = 21;
/// How long namespaces that nobody is in any more may count.
const COUNTED: Duration = Duration::from_millis(200);

/// Who asks.
pub(super) struct Caller {
    /// Effective user.
    pub user: u32,
    /// Effective group.
    pub group: u32,
    /// Effective capabilities.
    pub capabilities: u64,
    /// Whether these count for the user namespace of the host itself.
    pub is_of_host: bool,
}

impl Caller {
    pub fn current() -> Result<Self, ProcError> {
        let status = Status::read("/proc/self")?;
        let [_, _, capabilities, ..] = status.capabilities;
        Ok(Self {
            user: status.uids[1],
            group: status.gids[1],
            capabilities,
            is_of_host: floe_sys::namespace::is_in_first_user()?,
        })
    }

    pub fn has(&self, capability: u64) -> bool {
        self.capabilities & 1 << capability != 0
    }

    /// Whether namespaces can be made without a user namespace to make them in.
    pub fn is_privileged(&self) -> bool {
        self.has(CAP_SYS_ADMIN)
    }

    /// Words for where things were tried.
    pub fn place(&self) -> &'static str {
        if self.is_privileged() {
            ""
        } else {
            ", in a user namespace of your own"
        }
    }

    /// Runs `what` in a child in new namespaces (CLONE_NEW* flags); for who may not make them, in a user namespace too, as
    /// its root.
    pub fn attempt<T>(&self, namespaces: i32, what: impl Fn() -> io::Result<T>) -> io::Result<T>
    where
        T: ToString + std::str::FromStr,
    {
        let own_user = !self.is_privileged() && namespaces != 0;
        let flags = if own_user {
            namespaces | libc::CLONE_NEWUSER
        } else {
            namespaces
        };
        let (mut near, far) = UnixStream::pair()?;
        let life = || {
            let done = if own_user {
                self.become_root().and_then(|()| what())
            } else {
                what()
            };
            let told = match done {
                Ok(value) => format!("0 {}", value.to_string()),
                Err(error) => format!("{} {error}", error.raw_os_error().unwrap_or(libc::EIO)),
            };
            (&far).write_all(told.as_bytes()).map_or(1, |()| 0)
        };
        let child = born(flags, &life)?;
        drop(far);
        let mut told = String::new();
        near.read_to_string(&mut told)?;
        while let Err(Errno::EINTR) = waitpid(child, None) {}
        let unclear = || io::Error::other("the attempt ended without a word");
        let (number, text) = told.split_once(' ').ok_or_else(unclear)?;
        match number.parse().map_err(|_| unclear())? {
            0 => text.parse().map_err(|_| unclear()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Of the user namespace that the calling process has just been born into.
    fn become_root(&self) -> io::Result<()> {
        floe_sandbox::map_user((self.user.into(), 0), (self.group.into(), 0)).map_err(io::Error::other)
    }
}

/// Runs `life` in a child in new namespaces. The kernel counts those of a child that has ended for some milliseconds more,
/// and where the limit is low (/proc/sys/user), the children before this one could have reached it.
fn born(namespaces: i32, life: &dyn Fn() -> i32) -> Result<nix::unistd::Pid, Errno> {
    let begun = Instant::now();
    loop {
        match fork::child_in(namespaces as u64, None, life) {
            Err(Errno::ENOSPC) if begun.elapsed() < COUNTED => std::thread::sleep(COUNTED / 100),
            born => return born,
        }
    }
}

/// A child that only waits, to be looked at.
pub(super) struct Subject(pub Pid);

impl Subject {
    pub fn start() -> io::Result<Self> {
        let child = fork::child(|| {
            loop {
                pause();
            }
        })?;
        Ok(Self(Pid::new(child.as_raw())))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It is a child, so its number is nobody else's until it is waited for.
        let _ = kill(self.0.nix(), Signal::SIGKILL);
        while let Err(Errno::EINTR) = waitpid(self.0.nix(), None) {}
    }
}

/// An error with what it came of, in words.
pub(super) fn words(error: &(dyn Error + 'static)) -> String {
    let own = match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
        Some(number) => Errno::from_raw(number).to_string(),
        None => error.to_string(),
    };
    match error.source() {
        Some(source) => format!("{own}: {}", words(source)),
        None => own,
    }
}
