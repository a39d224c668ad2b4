//! Runs a command where tasks are that exist: in all namespaces and the cgroup of a sandbox, or of any process.

use crate::{
    message::{self, kind},
    processor::ProcessorState,
    sandbox::{Sandbox, SandboxError},
    state::StateDir,
    tasks::living_thread,
};
use floe_cgroup::{CgroupError, Entrance};
use floe_sys::{
    capability, descriptor, exec, fork,
    namespace::{self, Kind},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{
        stat::{Mode, fstat},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, chdir, chroot, fchdir},
};
use std::{
    ffi::{CString, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
};

/// A command to be run.
#[derive(Debug)]
pub struct EnterRequest {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// The whole environment, `NAME=VALUE`.
    pub env: Vec<OsString>,
    /// Working directory; where `None` that of the process, in a sandbox the root.
    pub workdir: Option<OsString>,
}

/// A command that could not be run there.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The tasks there are frozen, and so would the command be.
    #[error("sandbox {0} is frozen; thaw it first (floe thaw {0})")]
    Frozen(String),
    /// The command could not be started.
    #[error("{action} in {place}")]
    Command {
        /// What was attempted.
        action: String,
        /// Where.
        place: String,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// A system call.
    #[error("{action} of {place}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        place: String,
        /// Why it failed.
        #[source]
        source: Errno,
    },
}

impl EnterError {
    /// The exit status that says so: 127 not found, 126 not executable, else 125.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Command { action, source, .. } if action.starts_with(EXECUTE) => {
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

const EXECUTE: &str = "execute ";

/// Where a command is to run.
#[derive(Debug)]
pub struct Place {
    /// In words.
    name: String,
    /// A task that is there, and stands for it.
    thread: floe_sys::Pid,
    pidfd: OwnedFd,
    /// The PID namespace that the command is to be in, where that is one below the task's.
    below: Option<OwnedFd>,
    /// Its cgroups, where the command is to be in those.
    entrances: Vec<Entrance>,
    /// What its programs are limited to.
    processor: ProcessorState,
    /// Its root and working directory, where these are to be the command's.
    directories: Option<[OwnedFd; 2]>,
}

impl Place {
    /// That of a sandbox's PID 1.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn of_sandbox(sandbox: &Sandbox) -> Result<Self, EnterError> {
        let (thread, pidfd) = sandbox.thread()?;
        let cgroups = sandbox.cgroups()?;
        let frozen = cgroups.freezer.as_ref().map(floe_cgroup::Cgroup::is_frozen);
        if frozen.transpose()? == Some(true) {
            return Err(EnterError::Frozen(sandbox.name().to_owned()));
        }
        Ok(Self {
            name: format!("sandbox {}", sandbox.name()),
            below: shown_below(thread),
            thread,
            pidfd,
            entrances: cgroups.entrances_to(sandbox.pid1()?)?,
            processor: sandbox.state().processor.clone(),
            directories: None,
        })
    }

    /// That of a process or thread: its root and working directory too, but its cgroup only where that is a sandbox's.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn of_process(pid: floe_sys::Pid, state_dir: &StateDir) -> Result<Self, EnterError> {
        let name = format!("process {pid}");
        let failed = |action| {
            let place = name.clone();
            move |source| EnterError::System { action, place, source }
        };
        let thread = living_thread(pid);
        // First of all: where the number is another task's by now, entering its namespaces says so.
        let pidfd = descriptor::pidfd_of_task(thread).map_err(failed("open a handle"))?;
        let directory = |name: &str, action| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(format!("/proc/{thread}/{name}").as_str(), flags, Mode::empty()).map_err(failed(action))
        };
        let directories = [
            directory("root", "open the root directory")?,
            directory("cwd", "open the working directory")?,
        ];
        let (entrances, processor) = of_sandbox_around(thread, state_dir)?;
        Ok(Self {
            thread,
            pidfd,
            below: None,
            entrances,
            processor,
            directories: Some(directories),
            name,
        })
    }

    /// The namespaces that it has and the caller is not in.
    fn namespaces(&self) -> CloneFlags {
        let link = |whose: &str, kind: Kind| std::fs::read_link(format!("/proc/{whose}/ns/{kind}")).ok();
        let other = Kind::ALL
            .into_iter()
            .filter(|kind| link(&self.thread.to_string(), *kind) != link("self", *kind));
        other.fold(CloneFlags::empty(), |all, kind| {
            all | CloneFlags::from_bits_retain(kind.flag())
        })
    }
}

/// The PID namespace whose processes a task's /proc shows, where that is one below the task's own: whoever is there is to find
/// themselves in it.
fn shown_below(task: floe_sys::Pid) -> Option<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let shown = open(
        format!("/proc/{task}/root/proc/1/ns/pid").as_str(),
        flags,
        Mode::empty(),
    )
    .ok()?;
    let inode = |file: BorrowedFd<'_>| fstat(file).map(|found| found.st_ino);
    let own = std::fs::metadata(format!("/proc/{task}/ns/pid")).ok()?.ino();
    // It may be whatever the sandbox has there.
    if namespace::kind(shown.as_fd()) != Ok(libc::CLONE_NEWPID) || inode(shown.as_fd()) == Ok(own) {
        return None;
    }
    let mut above = namespace::parent(shown.as_fd()).ok()?;
    while inode(above.as_fd()) != Ok(own) {
        above = namespace::parent(above.as_fd()).ok()?;
    }
    Some(shown)
}

/// The ways into the cgroups of a task of a sandbox, and what its programs are limited to; nothing where it is of none.
fn of_sandbox_around(task: floe_sys::Pid, state_dir: &StateDir) -> Result<(Vec<Entrance>, ProcessorState), EnterError> {
    let process = floe_sys::procfs::Status::read(&format!("/proc/{task}"));
    let process = process.map_or(task, |status| floe_sys::Pid::new(status.tgid));
    for sandbox in Sandbox::list(state_dir)? {
        let Ok(cgroups) = sandbox.cgroups() else { continue };
        let Some(cgroup) = &cgroups.freezer else { continue };
        if let Some(own) = cgroup.holding(process)? {
            if own.is_frozen()? {
                return Err(EnterError::Frozen(sandbox.name().to_owned()));
            }
            let processor = sandbox.state().processor.clone();
            return Ok((cgroups.entrances_to(process)?, processor));
        }
    }
    Ok(Default::default())
}

/// Runs the command with the caller's streams; returns its exit status (128 + N for signal N). `started` is told its PID.
/// The caller must have one thread, and is in the namespaces afterwards, so that it should do nothing but end.
///
/// # Errors
/// [`EnterError`].
pub fn enter(place: &Place, request: &EnterRequest, started: impl FnOnce(Pid)) -> Result<i32, EnterError> {
    let failed = |payload: &[u8]| {
        let (source, action) = message::parse_failure(payload);
        let place = place.name.clone();
        EnterError::Command { action, place, source }
    };
    let system = |action| {
        move |source| EnterError::System {
            action,
            place: place.name.clone(),
            source,
        }
    };
    let namespaces = place.namespaces();
    if !namespaces.is_empty() {
        setns(&place.pidfd, namespaces).map_err(system("enter the namespaces"))?;
    }
    if let Some(below) = &place.below {
        setns(below, CloneFlags::CLONE_NEWPID).map_err(system("enter the PID namespace"))?;
    }
    // setns changes the namespace that children are in, so the command must be a child.
    let (hear, say) = message::pair().map_err(system("make a socket for the command"))?;
    let child = fork::child(|| {
        let (error, action) = execute(request, place, namespaces.contains(CloneFlags::CLONE_NEWUSER));
        message::put(&say, kind::FAILED, &message::failure(error, &action)).map_or(125, |()| 0)
    });
    let child = child.map_err(system("fork into the PID namespace"))?;
    drop(say);
    started(child);
    // The socket closes with the exec; only a command that did not come so far says something.
    let failure = message::get(&hear).map_err(system("hear from the command"))?;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => break failure.map_or(Ok(code), |(_, payload)| Err(failed(&payload))),
            Ok(WaitStatus::Signaled(_, signal, _)) => break Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => break Err(system("wait for the command")(error)),
        }
    }
}

/// Goes where the task is: root directory, working directory.
fn enter_directories([root, working]: &[OwnedFd; 2]) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let own = open("/", flags, Mode::empty())?;
    // It takes CAP_SYS_CHROOT, which who stays where they are need not have.
    if !descriptor::is_same_place(own.as_fd(), root.as_fd())? {
        fchdir(root)?;
        chroot(".")?;
    }
    fchdir(working)
}

/// Returns only where something failed: why, and what was attempted.
fn execute(request: &EnterRequest, place: &Place, new_user: bool) -> (Errno, String) {
    // Only the command goes into the cgroup: what waits for it must run on when that is frozen.
    for entrance in &place.entrances {
        if let Err(error) = entrance.enter() {
            let number = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            return (number, "enter the cgroup".to_owned());
        }
    }
    if let Some(directories) = &place.directories
        && let Err(error) = enter_directories(directories)
    {
        return (error, "enter the root and working directory".to_owned());
    }
    // Whoever comes from outside is nobody in a user namespace that does not know their number.
    if new_user && let Err(error) = capability::become_root() {
        return (error, "become root of the user namespace".to_owned());
    }
    let strings = |words: &[OsString]| -> Vec<CString> {
        words
            .iter()
            .map(|word| CString::new(word.clone().into_vec()).unwrap_or_default())
            .collect()
    };
    if let Some(directory) = &request.workdir
        && let Err(error) = chdir(directory.as_os_str())
    {
        let action = format!("enter the working directory {}", directory.to_string_lossy());
        return (error, action);
    }
    fork::default_signals();
    let environment = strings(&place.processor.environment(&request.env));
    let path = environment
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let Some(program) = request.command.first() else {
        return (Errno::EINVAL, "find a command".to_owned());
    };
    let error = exec::search_and_execute(program.as_bytes(), path, &strings(&request.command), &environment);
    (error, format!("{EXECUTE}{}", program.to_string_lossy()))
}
