//! A sandbox that exists: what is known of it, and what can be done with it.

use crate::{
    attach::{AttachError, Client},
    namespaces::NamespacesError,
    owner::UserSpace,
    state::{ConsoleState, SandboxState, StateDir, StateError, Status},
    tasks::living_thread,
    user::{self, UserError},
    whose,
};
use floe_cgroup::{Cgroup, CgroupError, Cgroups, Lock};
use floe_sys::{Pid, descriptor, procfs::Stat};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What can't be done with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// It has none.
    #[error("sandbox {0} has no cgroup, which it takes to freeze it: its user may make none (floe check tells more)")]
    NoCgroup(String),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] floe_sys::procfs::ProcError),
    /// Its namespaces.
    #[error(transparent)]
    Namespaces(#[from] NamespacesError),
    /// The user namespace that it is in.
    #[error(transparent)]
    User(#[from] UserError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its monitor.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It has ended.
    #[error("sandbox {0} is not running")]
    NotRunning(String),
    /// Its monitor has died.
    #[error(
        "the monitor of sandbox {0} is gone, and with it its streams and its exit status; remove it (floe rm -f {0})"
    )]
    Lost(String),
    /// It runs.
    #[error("sandbox {0} is running; end it first (floe kill {0}), or use --force")]
    Running(String),
    /// PID 1.
    #[error("open a handle of PID 1 of {name}")]
    Handle {
        /// Whose.
        name: String,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// A signal.
    #[error("send signal {signal} to PID 1 of {name}")]
    Signal {
        /// Whose.
        name: String,
        /// Which.
        signal: i32,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// It came from another host, and it is not known yet whether it counts.
    #[error(
        "sandbox {0} came by a migration, and whether it or the one at the source runs on is not decided yet (floe receive --help)"
    )]
    Held(String),
    /// It is not complete yet.
    #[error("sandbox {0} is just being made; try again")]
    Starting(String),
    /// Its folder.
    #[error("remove {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub(crate) state: SandboxState,
    pub(crate) folder: PathBuf,
}

/// Holds that the end of PID 1 is a checkpoint's doing, until dropped.
#[derive(Debug)]
pub struct Announcement {
    client: Client,
    /// A pidfd of the monitor.
    monitor: OwnedFd,
}

impl Announcement {
    /// Waits until the monitor has removed the sandbox, and is gone itself.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn wait_gone(mut self) -> Result<(), SandboxError> {
        self.client.wait_for_end()?;
        let mut asked = [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut asked, PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(AttachError::Talk(error).into()),
            }
        }
    }
}

impl Sandbox {
    /// The one with this name. What an ordinary user has written counts for the host's root as far as it names what is theirs.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn open(state_dir: &StateDir, name: &str) -> Result<Self, SandboxError> {
        let folder = state_dir.folder(name)?;
        let (state, user) = SandboxState::read_of(&folder)?;
        whose::refuse_others(&state, user, &folder)?;
        Ok(Self { state, folder })
    }

    /// All there are, by name. One that vanishes meanwhile is left out.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn list(state_dir: &StateDir) -> Result<Vec<Self>, SandboxError> {
        let mut all = Vec::new();
        for name in state_dir.names()? {
            match Self::open(state_dir, &name) {
                Ok(sandbox) => all.push(sandbox),
                Err(SandboxError::State(StateError::Unknown(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// What is written down of it.
    #[must_use]
    pub fn state(&self) -> &SandboxState {
        &self.state
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its streams.
    #[must_use]
    pub fn console(&self) -> &ConsoleState {
        &self.state.console
    }

    /// Whether PID 1 lives: the process with its number started when PID 1 did, and has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let stat = Stat::of(Pid::new(self.state.pid1));
        // One whose first thread alone has ended is a zombie that counts threads.
        let lives = |stat: &Stat| stat.state != b'Z' || stat.num_threads > 1;
        let same = stat.is_ok_and(|stat| stat.starttime == self.state.pid1_start && lives(&stat));
        same && !matches!(self.state.status, Status::Exited(_))
    }

    /// PID 1 in the host's namespace.
    ///
    /// # Errors
    /// [`SandboxError::NotRunning`].
    pub fn pid1(&self) -> Result<Pid, SandboxError> {
        if self.is_running() {
            Ok(Pid::new(self.state.pid1))
        } else {
            Err(SandboxError::NotRunning(self.state.name.clone()))
        }
    }

    /// A descriptor that stands for PID 1, whatever becomes of its number.
    ///
    /// # Errors
    /// [`SandboxError::NotRunning`].
    pub fn handle(&self) -> Result<OwnedFd, SandboxError> {
        let opened = descriptor::pidfd_open(Pid::new(self.state.pid1));
        // In this order: where the number is PID 1's now, it was so when it was opened.
        self.pid1()?;
        opened.map_err(|source| SandboxError::Handle {
            name: self.state.name.clone(),
            source,
        })
    }

    /// A thread of PID 1 that lives, as its first one may do no longer, and a descriptor that stands for it: what is to
    /// enter its namespaces needs such a one.
    ///
    /// # Errors
    /// [`SandboxError::NotRunning`], [`SandboxError::Handle`].
    pub fn thread(&self) -> Result<(Pid, OwnedFd), SandboxError> {
        let pid1 = Pid::new(self.state.pid1);
        let thread = living_thread(pid1);
        let opened = descriptor::pidfd_of_task(thread);
        // In this order, as above.
        self.pid1()?;
        let opened = opened.map_err(|source| SandboxError::Handle {
            name: self.state.name.clone(),
            source,
        })?;
        Ok((thread, opened))
    }

    /// Refuses one that is held: whether it or another copy of it runs on is not decided yet.
    ///
    /// # Errors
    /// [`SandboxError::Held`].
    pub fn refuse_held(&self) -> Result<(), SandboxError> {
        match self.state.status {
            Status::Held => Err(SandboxError::Held(self.state.name.clone())),
            Status::Created | Status::Running | Status::Exited(_) => Ok(()),
        }
    }

    pub(crate) fn has_monitor(&self) -> bool {
        Stat::of(Pid::new(self.state.monitor))
            .is_ok_and(|stat| stat.starttime == self.state.monitor_start && stat.state != b'Z')
    }

    /// Whether its monitor is still about to make it.
    fn is_starting(&self) -> bool {
        self.state.pid1 == 0 && self.has_monitor()
    }

    /// Its cgroup; `None` where it was started by somebody who may make none.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn cgroup(&self) -> Result<Option<Cgroup>, SandboxError> {
        self.pid1()?;
        Ok(self.state.cgroup.as_deref().map(Cgroup::open).transpose()?)
    }

    /// All its cgroups.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn cgroups(&self) -> Result<Cgroups, SandboxError> {
        self.pid1()?;
        Ok(self.state.cgroups()?)
    }

    /// Its cgroup, for what can't be done without.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn freezer(&self) -> Result<Cgroup, SandboxError> {
        self.cgroup()?
            .ok_or_else(|| SandboxError::NoCgroup(self.state.name.clone()))
    }

    /// Keeps other floes from freezing, thawing and saving it.
    ///
    /// # Errors
    /// [`SandboxError`] where another one does.
    pub fn lock(&self) -> Result<Lock, SandboxError> {
        Ok(Lock::of(self.state.cgroup.as_ref().unwrap_or(&self.folder))?)
    }

    /// Enters the user namespace that it was made in, as its monitor did: what its root may do the caller may do then. Tells of
    /// it where the caller comes from the first one.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn join_user(&self) -> Result<Option<UserSpace>, SandboxError> {
        let maker = if self.has_monitor() {
            Pid::new(self.state.monitor)
        } else {
            self.pid1()?
        };
        Ok(user::join(maker)?)
    }

    /// How it stands, in a word: `running`, `frozen`, `exited`, `created`, `held`, or `lost` where its monitor has died.
    #[must_use]
    pub fn status_word(&self) -> &'static str {
        match self.state.status {
            Status::Exited(_) => "exited",
            Status::Created if self.is_starting() => "created",
            _ if !self.is_running() || !self.has_monitor() => "lost",
            Status::Created => "created",
            Status::Held => "held",
            Status::Running => {
                let cgroup = self.state.cgroup.as_deref().map(Cgroup::open);
                let frozen = cgroup.map(|cgroup| cgroup.and_then(|cgroup| cgroup.is_frozen()));
                if matches!(frozen, Some(Ok(true))) {
                    "frozen"
                } else {
                    "running"
                }
            }
        }
    }

    /// Sends a signal to PID 1. SIGKILL ends also a frozen one.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        let wrap = |source| SandboxError::Signal {
            name: self.state.name.clone(),
            signal,
            source,
        };
        let pidfd = self.handle()?;
        let cgroup = self.cgroup()?;
        descriptor::pidfd_signal(pidfd.as_fd(), signal).map_err(wrap)?;
        if signal == libc::SIGKILL
            && let Some(Err(error)) = cgroup.as_ref().map(Cgroup::let_die)
        {
            // They have ended already, and the cgroup with them.
            tracing::debug!(%error, "the cgroup is gone already");
        }
        Ok(())
    }

    /// Tells the monitor that the end of PID 1 will be a checkpoint's doing.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn announce_checkpoint(&self) -> Result<Announcement, SandboxError> {
        let mut client = Client::connect(&self.folder)?;
        client.announce()?;
        let monitor = descriptor::pidfd_open(Pid::new(self.state.monitor)).map_err(AttachError::Talk)?;
        Ok(Announcement { client, monitor })
    }

    /// Waits until all its memory is there: some may come while it runs. One without a monitor is not waited for.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn await_memory(&self) -> Result<(), SandboxError> {
        match Client::connect(&self.folder) {
            Ok(mut client) => Ok(client.await_memory()?),
            Err(error) => {
                tracing::debug!(%error, "the monitor is gone");
                Ok(())
            }
        }
    }

    /// Waits for its end and returns its exit status.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn wait(&self) -> Result<i32, SandboxError> {
        if let Status::Exited(status) = self.state.status {
            return Ok(status);
        }
        match Client::connect(&self.folder) {
            Ok(mut client) => match client.wait_for_end()? {
                Some(crate::Ending::Exited(status) | crate::Ending::Killed(status)) => return Ok(status),
                Some(crate::Ending::Checkpointed) => return Ok(0),
                None => {}
            },
            Err(error) => tracing::debug!(%error, "the monitor is gone"),
        }
        // It ended just before; the state tells.
        match SandboxState::read(&self.folder)?.status {
            Status::Exited(status) => Ok(status),
            Status::Created | Status::Running | Status::Held => Err(SandboxError::Lost(self.state.name.clone())),
        }
    }

    /// Waits until the monitor of a sandbox whose PID 1 has ended has written into the folder how that was. It may live on
    /// behind that, for clients that don't read what they are told.
    fn wait_for_last_state(&self) -> Result<(), SandboxError> {
        let monitor = descriptor::pidfd_open(Pid::new(self.state.monitor));
        // In this order: where the number is the monitor's now, it was so when it was opened.
        let (Ok(monitor), true) = (monitor, self.has_monitor()) else {
            return Ok(());
        };
        loop {
            match SandboxState::read(&self.folder) {
                Ok(state) if matches!(state.status, Status::Exited(_)) => return Ok(()),
                Ok(_) => {}
                // The monitor of one that leaves no trace has removed it.
                Err(StateError::Unknown(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let mut asked = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
            match poll(&mut asked, PollTimeout::from(1_u8)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(AttachError::Talk(error).into()),
            }
        }
    }

    /// Waits until the monitor of one that was handed over has removed it, for a while.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] where it does not.
    pub fn wait_until_gone(&self) -> Result<(), SandboxError> {
        const WHILE: Duration = Duration::from_secs(10);
        let begin = Instant::now();
        while self.has_monitor() && self.folder.exists() {
            if begin.elapsed() > WHILE {
                return Err(SandboxError::Lost(self.state.name.clone()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Removes all that is left of it; with `force` also ends it.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn remove(&self, force: bool) -> Result<(), SandboxError> {
        if self.is_starting() {
            return Err(SandboxError::Starting(self.state.name.clone()));
        }
        if self.is_running() {
            if !force {
                return Err(SandboxError::Running(self.state.name.clone()));
            }
            match self.signal(libc::SIGKILL) {
                Ok(()) | Err(SandboxError::NotRunning(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.wait_for_last_state()?;
        // What the monitor did not clear up because it died itself.
        for cgroups in [self.state.remaining_cgroups(), self.state.unnoted_cgroups()?] {
            cgroups.kill_all()?;
            cgroups.remove()?;
        }
        match std::fs::remove_dir_all(&self.folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(SandboxError::Remove {
                path: self.folder.clone(),
                source,
            }),
        }
    }
}
