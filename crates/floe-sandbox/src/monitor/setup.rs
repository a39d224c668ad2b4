//! Makes what a sandbox consists of: cgroup, console, socket, PID 1. If a step fails, what the earlier ones made goes.

use super::{
    clients::Clients,
    console::{ConsoleEnds, PipeEnds},
};
use crate::{
    first::{self, Program},
    launch::unique_name,
    link::{Link, LinkSpec, LinkState},
    message::{self, kind},
    mounts::Points,
    spec::{Console, SandboxSpec},
    state::{ConsoleState, SandboxState, StateDir, StateError},
};
use floe_cgroup::{CgroupError, Cgroups, Hierarchies, Layout};
use floe_sys::{Pid, descriptor, fork, procfs::Stat};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use std::{
    error::Error,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

/// All parts of a sandbox whose PID 1 waits for its exec.
pub struct Setup {
    pub state: SandboxState,
    pub folder: PathBuf,
    pub cgroups: Cgroups,
    pub pidfd: OwnedFd,
    pub first: OwnedFd,
    pub console: ConsoleEnds,
    pub clients: Clients,
    pub link: Option<Link>,
    /// Mount points that were made for it.
    pub points: Points,
}

/// Errno and what was attempted.
pub type Failure = (Errno, String);

fn failed(text: impl Into<String>) -> impl FnOnce(Errno) -> Failure {
    let text = text.into();
    move |error| (error, text)
}

fn cgroup_failed(error: &CgroupError) -> Failure {
    let number = error
        .source()
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error);
    (Errno::from_raw(number.unwrap_or(libc::EIO)), error.to_string())
}

fn state_failed(error: &StateError) -> Failure {
    let number = match error {
        StateError::File { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        StateError::Taken(_) => libc::EEXIST,
        StateError::Unknown(_)
        | StateError::Mixed(_)
        | StateError::Others { .. }
        | StateError::BadName(_)
        | StateError::Malformed { .. } => libc::EINVAL,
    };
    (Errno::from_raw(number), error.to_string())
}

/// Removes what was made if the set-up does not come to its end.
struct Undo {
    folder: Option<PathBuf>,
    cgroups: Cgroups,
    child: Option<nix::unistd::Pid>,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(child) = self.child {
            let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
            while let Err(Errno::EINTR) = nix::sys::wait::waitpid(child, None) {}
        }
        if let Err(error) = self.cgroups.remove() {
            tracing::error!(%error, "remove the cgroups of a sandbox that did not start");
        }
        if let Some(folder) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            tracing::error!(%error, "remove the folder of a sandbox that did not start");
        }
    }
}

impl Setup {
    /// Makes everything and tells the launcher.
    pub fn make(
        state_dir: &StateDir,
        spec: &SandboxSpec,
        name: &str,
        program: &Program,
        launcher: &OwnedFd,
    ) -> Result<Self, Failure> {
        // Whoever finds this monitor dead knows by its state what to remove.
        let mut state = SandboxState::new(name, spec);
        let folder = state_dir.claim(&state).map_err(|error| state_failed(&error))?;
        let mut undo = Undo {
            folder: Some(folder.clone()),
            cgroups: Cgroups::default(),
            child: None,
        };
        let hierarchies = Hierarchies::probe().map_err(|error| {
            (
                Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
                "read mountinfo".to_owned(),
            )
        })?;
        let unique = unique_name(name, std::process::id() as i32);
        let layout = Layout::with(&hierarchies, &spec.controllers()).map_err(|error| cgroup_failed(&error))?;
        let cgroups = Cgroups::create(&hierarchies, &layout, &unique).map_err(|error| cgroup_failed(&error))?;
        undo.cgroups.clone_from(&cgroups);
        state.note(&cgroups);
        spec.limits.set(&cgroups).map_err(|error| cgroup_failed(&error))?;
        let cgroup = &cgroups.freezer;
        if cgroup.is_none() {
            tracing::info!("no cgroup can be made here: the sandbox can't be frozen, and is stopped task by task");
        }
        let clients = Clients::listen(&folder).map_err(failed("listen for clients"))?;
        // They go where a later step fails.
        let points = Points::make(&spec.mounts)?;
        let (near, far) = message::pair().map_err(failed("make a socket for PID 1"))?;
        let (pipes, streams) = PipeEnds::make(spec.console).map_err(failed("make the standard streams"))?;
        let birthplace = match cgroup {
            Some(cgroup) => cgroup.birthplace().map_err(|error| cgroup_failed(&error))?,
            None => None,
        };
        let child = fork::child_in(spec.namespaces(), birthplace.as_ref().map(AsFd::as_fd), || {
            let keep = keep_list(program, &far, &streams);
            fork::close_all_but(&keep);
            // What PID 1 opens must not land on the numbers of its streams.
            descriptor::null_streams();
            first::live(spec, name, program, &far, streams)
        })
        .map_err(failed("make PID 1 in new namespaces"))?;
        undo.child = Some(child);
        drop(far);
        let pid = Pid::new(child.as_raw());
        let pidfd = descriptor::pidfd_open(pid).map_err(failed("open a pidfd of PID 1"))?;
        cgroups.add(pid).map_err(|error| cgroup_failed(&error))?;
        let link = spec.link.as_ref().map(|link| join(link, name, pid)).transpose()?;
        state.link = link.as_ref().map(|link| link.state().clone());
        let told = state.link.as_ref().map(LinkState::to_bytes).unwrap_or_default();
        message::put(&near, kind::PLACED, &told).map_err(failed("talk to PID 1"))?;
        hear(&near, kind::MOUNTED)?;
        let console = open_console(spec, pid, pipes, &folder, &mut state)?;
        message::put(&near, kind::CONSOLE, &[]).map_err(failed("talk to PID 1"))?;
        hear(&near, kind::READY)?;
        state.pid1 = pid.raw();
        state.pid1_start = Stat::of(pid)
            .map_err(|error| (Errno::ESRCH, error.to_string()))?
            .starttime;
        state.write(&folder).map_err(|error| state_failed(&error))?;
        message::put(launcher, kind::READY, &[]).map_err(failed("tell the launcher"))?;
        (undo.folder, undo.cgroups, undo.child) = (None, Cgroups::default(), None);
        Ok(Self {
            state,
            folder,
            cgroups,
            pidfd,
            first: near,
            console,
            clients,
            link,
            points,
        })
    }
}

/// Joins the network of PID 1 to the host's.
fn join(link: &LinkSpec, name: &str, pid: Pid) -> Result<Link, Failure> {
    let inside = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| {
        (
            Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            "open the network namespace of PID 1".to_owned(),
        )
    })?;
    Link::make(link, name, inside.as_fd())
}

fn keep_list(program: &Program, monitor: &OwnedFd, streams: &[Option<OwnedFd>; 3]) -> Vec<i32> {
    let mut keep = vec![monitor.as_raw_fd()];
    keep.extend(streams.iter().flatten().map(AsRawFd::as_raw_fd));
    if let Program::Seed {
        executable,
        keep: inherited,
    } = program
    {
        keep.push(executable.as_raw_fd());
        keep.extend(inherited);
    }
    keep
}

fn hear(first: &OwnedFd, wanted: u8) -> Result<(), Failure> {
    match message::get(first).map_err(failed("hear from PID 1"))? {
        Some((got, _)) if got == wanted => Ok(()),
        Some((kind::FAILED, payload)) => Err(message::parse_failure(&payload)),
        Some(_) | None => Err((Errno::ECHILD, "set up PID 1 (it ended)".to_owned())),
    }
}

fn open_console(
    spec: &SandboxSpec,
    pid: Pid,
    pipes: PipeEnds,
    folder: &std::path::Path,
    state: &mut SandboxState,
) -> Result<ConsoleEnds, Failure> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .map_err(|error| {
            (
                Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
                "open the log".to_owned(),
            )
        })?;
    match spec.console {
        Console::Pipes { .. } => {
            state.console = ConsoleState::Pipes(pipes.inodes().map_err(failed("look at the standard streams"))?);
            Ok(ConsoleEnds::pipes(pipes, log))
        }
        Console::Terminal { window, index } => {
            let path = format!("/proc/{pid}/root/dev/pts/ptmx");
            let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            let open = || open(path.as_str(), flags, Mode::empty());
            let master = floe_sys::terminal::numbered(index, &mut Vec::new(), open)
                .map_err(failed(format!("open the pseudo-terminal {index}")))?;
            floe_sys::terminal::lock(master.as_fd(), false).map_err(failed("unlock the pseudo-terminal"))?;
            window
                .apply(master.as_raw_fd())
                .map_err(failed("set the size of the pseudo-terminal"))?;
            state.console = ConsoleState::Terminal(PathBuf::from(format!("/dev/pts/{index}")));
            Ok(ConsoleEnds::terminal(master, log))
        }
    }
}
