//! Starting a sandbox: the launcher's side.
//!
//! ```text
//! launcher            monitor (forked by launcher)        PID 1 (forked by monitor)
//!    |  begin ------------> folder, cgroup, console, clone ------> mounts, session, streams
//!    |  <------------------------------- ready <------------------- ready
//!    |  (restore seizes PID 1 here)
//!    |  execute ----------------> execute -------------------------> execve
//!    |  <--------------------------- executed / failed
//!    |  commit -----------------> keeps the sandbox by itself
//! ```
//! If the launcher hangs up before `commit`, for whatever reason, the monitor kills PID 1 and removes everything.

use crate::{
    first::Program,
    handover::{self, HeldName, Holding},
    link,
    message::{self, kind},
    monitor,
    spec::SandboxSpec,
    state::{SandboxState, StateDir, StateError},
};
use floe_cgroup::{Cgroup, CgroupError, Cgroups, Hierarchies, Layout};
use floe_sys::{Pid, fork};
use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, waitpid},
};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// What PID 1 executes.
#[derive(Debug)]
pub enum First {
    /// The spec's command.
    Command,
    /// A program in memory; descriptors in `keep` stay open in it under their numbers.
    Seed {
        /// The program.
        executable: OwnedFd,
        /// Descriptors.
        keep: Vec<RawFd>,
    },
}

/// A sandbox that did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A system call of the launcher.
    #[error("{action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The monitor or PID 1 could not do something.
    #[error("start the sandbox: {action}")]
    Failed {
        /// What was attempted.
        action: String,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// The monitor is gone.
    #[error("the monitor ended before the sandbox was complete")]
    Hangup,
}

impl LaunchError {
    /// The exit status that run(1)'s kin give for it: 127 not found, 126 not executable, else 125.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Failed { action, source } if action.starts_with("execute ") => {
                if *source == Errno::ENOENT {
                    127
                } else {
                    126
                }
            }
            _ => 125,
        }
    }
}

pub(crate) fn system(action: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |source| LaunchError::System {
        action,
        source: source.into(),
    }
}

/// A sandbox that is being started. Dropping it uncommitted ends the sandbox and waits until all of it is gone.
#[derive(Debug)]
pub struct Launch {
    socket: Option<OwnedFd>,
    monitor: nix::unistd::Pid,
    state: SandboxState,
    folder: PathBuf,
    cgroups: Cgroups,
    committed: bool,
}

impl Launch {
    /// Starts monitor and PID 1, up to the point where PID 1 waits for its exec. The caller must have one thread.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn begin(state_dir: &StateDir, spec: &SandboxSpec, first: First) -> Result<Self, LaunchError> {
        let (near, far) = message::pair().map_err(system("make a socket for the monitor"))?;
        let program = match first {
            First::Command => Program::Command,
            First::Seed { executable, keep } => Program::Seed { executable, keep },
        };
        let name = match &spec.name {
            Some(name) => name.clone(),
            None => state_dir.free_name(),
        };
        // The monitor makes the folder, as all that must go again if the launcher dies; here it is only looked for.
        let folder = state_dir.vacant(&name)?;
        // As is where its limits are to be had.
        let controllers = spec.controllers();
        if !controllers.is_empty() {
            Layout::with(&hierarchies()?, &controllers)?;
        }
        if spec.link.is_some() {
            link::check().map_err(|(source, action)| LaunchError::Failed { action, source })?;
        }
        let monitor = fork::child(|| monitor::live(state_dir, spec, &name, &program, &far));
        let monitor = monitor.map_err(system("fork the monitor"))?;
        drop((far, program));
        let state = match wait_ready(&near, &folder) {
            Ok(state) => state,
            Err(error) => {
                drop(near);
                while let Err(Errno::EINTR) = waitpid(monitor, None) {}
                clear_up_behind(monitor, &name, [&folder, &state_dir.draft(&name, monitor.as_raw())]);
                return Err(error);
            }
        };
        let cgroups = state.cgroups()?;
        Ok(Self {
            socket: Some(near),
            monitor,
            state,
            folder,
            cgroups,
            committed: false,
        })
    }

    /// PID 1 in the host's namespace.
    #[must_use]
    pub fn pid1(&self) -> Pid {
        Pid::new(self.state.pid1)
    }

    /// The sandbox's cgroup, where it has one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroups.freezer.as_ref()
    }

    /// All cgroups of the sandbox.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The sandbox's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// What is written down of it.
    #[must_use]
    pub fn state(&self) -> &SandboxState {
        &self.state
    }

    /// Its folder in the state directory.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Lets PID 1 execute its program; returns when it has.
    ///
    /// # Errors
    /// [`LaunchError::Failed`] where the program can't be executed.
    pub fn exec(&self) -> Result<(), LaunchError> {
        let socket = self.socket.as_ref().ok_or(LaunchError::Hangup)?;
        message::put(socket, kind::EXECUTE, &[]).map_err(system("talk to the monitor"))?;
        match message::get(socket).map_err(system("talk to the monitor"))? {
            Some((kind::EXECUTED, _)) => Ok(()),
            Some((kind::FAILED, payload)) => Err(parse(&payload)),
            Some(_) | None => Err(LaunchError::Hangup),
        }
    }

    /// Gives the monitor its end of a socket to the page server, and descriptors to hold.
    pub(crate) fn hand_over(&self, server: &OwnedFd, held: &[BorrowedFd<'_>]) -> Result<(), LaunchError> {
        let socket = self.socket.as_ref().ok_or(LaunchError::Hangup)?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(server.as_fd()).chain(held.iter().copied()).collect();
        for files in all.chunks(message::MOST_FILES) {
            message::put_with_files(socket, kind::PAGES, files).map_err(system("talk to the monitor"))?;
        }
        Ok(())
    }

    /// Gives the monitor its end of a socket to who joins the sandbox to networks.
    pub(crate) fn hand_joiner(&self, joiner: &OwnedFd) -> Result<(), LaunchError> {
        let socket = self.socket.as_ref().ok_or(LaunchError::Hangup)?;
        message::put_with_files(socket, kind::JOIN, &[joiner.as_fd()]).map_err(system("talk to the monitor"))
    }

    /// Leaves the sandbox to its monitor.
    ///
    /// # Errors
    /// [`LaunchError`] where the monitor is gone.
    pub fn commit(self) -> Result<(), LaunchError> {
        self.commit_with(&[])
    }

    /// Leaves the sandbox, which is frozen, to its monitor, which thaws it. So that there is no moment at which it runs
    /// and would still end with the launcher.
    ///
    /// # Errors
    /// [`LaunchError`] where the monitor is gone or can't thaw it.
    pub fn commit_frozen(self) -> Result<(), LaunchError> {
        self.commit_with(message::THAW)
    }

    /// Leaves the sandbox, which is frozen, to its monitor, which keeps it frozen until somebody decides on the hand-over:
    /// [`Sandbox::release`](crate::Sandbox::release), [`Sandbox::abandon`](crate::Sandbox::abandon). `names` are
    /// files of sockets that go with it where it does not count.
    ///
    /// # Errors
    /// [`LaunchError`] where the monitor is gone or can't write down that it holds it.
    pub fn commit_held(self, holding: &Holding, names: &[HeldName]) -> Result<(), LaunchError> {
        handover::note_names(&self.folder, names).map_err(|source| LaunchError::System {
            action: "write down the sandbox's names of sockets",
            source,
        })?;
        let payload = serde_json::to_vec(holding).map_err(|error| LaunchError::System {
            action: "put down by which hand-over the sandbox is held",
            source: error.into(),
        })?;
        self.commit_with(&payload)
    }

    fn commit_with(mut self, payload: &[u8]) -> Result<(), LaunchError> {
        let socket = self.socket.as_ref().ok_or(LaunchError::Hangup)?;
        message::put(socket, kind::COMMIT, payload).map_err(system("talk to the monitor"))?;
        match message::get(socket).map_err(system("talk to the monitor"))? {
            Some((kind::COMMIT, _)) => {
                self.committed = true;
                Ok(())
            }
            Some((kind::FAILED, payload)) => Err(parse(&payload)),
            Some(_) | None => Err(LaunchError::Hangup),
        }
    }
}

fn wait_ready(socket: &OwnedFd, folder: &Path) -> Result<SandboxState, LaunchError> {
    match message::get(socket).map_err(system("talk to the monitor"))? {
        Some((kind::READY, _)) => Ok(SandboxState::read(folder)?),
        Some((kind::FAILED, payload)) => Err(parse(&payload)),
        Some(_) | None => Err(LaunchError::Hangup),
    }
}

fn hierarchies() -> Result<Hierarchies, LaunchError> {
    Hierarchies::probe().map_err(|source| LaunchError::System {
        action: "read mountinfo",
        source,
    })
}

/// Removes what a monitor that was killed has left of a sandbox that did not start.
fn clear_up_behind<const N: usize>(monitor: nix::unistd::Pid, name: &str, folders: [&PathBuf; N]) {
    let remove = || -> Result<(), LaunchError> {
        let left = Cgroups::left_by(&hierarchies()?, &unique_name(name, monitor.as_raw()))?;
        left.kill_all()?;
        Ok(left.remove()?)
    };
    if let Err(error) = remove() {
        tracing::error!(%error, "remove the cgroups of a sandbox that did not start");
    }
    for folder in folders {
        // Another one of this name may be there by now.
        let is_its_own = match SandboxState::read(folder) {
            Ok(state) => state.monitor == monitor.as_raw(),
            Err(_) => folder.file_name().is_some_and(|name| name.as_bytes().starts_with(b".")) && folder.exists(),
        };
        if is_its_own && let Err(error) = std::fs::remove_dir_all(folder) {
            tracing::error!(%error, "remove the folder of a sandbox that did not start");
        }
    }
}

/// The name of a sandbox's cgroups: no two sandboxes have the same, whatever state directories they are in.
pub(crate) fn unique_name(name: &str, monitor: i32) -> String {
    format!("{name}-{monitor}")
}

fn parse(payload: &[u8]) -> LaunchError {
    let (source, action) = message::parse_failure(payload);
    LaunchError::Failed { action, source }
}

impl Drop for Launch {
    fn drop(&mut self) {
        self.socket = None;
        if self.committed {
            return;
        }
        // The monitor kills PID 1, removes everything and ends. It can reap what the launcher traces only after the
        // launcher did, so all are collected as they come.
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(status) if status.pid() == Some(self.monitor) => {
                    clear_up_behind(self.monitor, &self.state.name, [&self.folder]);
                    return;
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
