//! Runs a command in a sandbox that exists: in all its namespaces and its cgroup.

use crate::sandbox::{Sandbox, SandboxError};
use floe_cgroup::Entrance;
use floe_sys::{descriptor, exec, fork};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, chdir},
};
use std::{
    ffi::{CString, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// A command to be run in a sandbox.
#[derive(Debug)]
pub struct EnterRequest {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// The whole environment, `NAME=VALUE`.
    pub env: Vec<OsString>,
    /// Working directory; the root where `None`.
    pub workdir: Option<OsString>,
}

/// A command that could not be run there.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A system call.
    #[error("{action} of sandbox {name}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// On which sandbox.
        name: String,
        /// Why it failed.
        #[source]
        source: Errno,
    },
}

/// Runs the command with the caller's streams; returns its exit status (128 + N for signal N). `started` is told its PID.
/// The caller must have one thread, and is in the sandbox's namespaces afterwards, so that it should do nothing but end.
///
/// # Errors
/// [`EnterError`].
pub fn enter(sandbox: &Sandbox, request: &EnterRequest, started: impl FnOnce(Pid)) -> Result<i32, EnterError> {
    let system = |action| {
        move |source| EnterError::System {
            action,
            name: sandbox.name().to_owned(),
            source,
        }
    };
    let pid1 = sandbox.pid1()?;
    let pidfd = descriptor::pidfd_open(pid1).map_err(system("open PID 1"))?;
    // Only the command goes into the cgroup: what waits for it here must run on when the sandbox is frozen.
    let entrance = sandbox.cgroup()?.entrance().map_err(SandboxError::from)?;
    let all = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&pidfd, all).map_err(system("enter the namespaces"))?;
    // setns changes the namespace that children are in, so the command must be a child.
    let child = fork::child(|| execute(request, &entrance)).map_err(system("fork into the PID namespace"))?;
    started(child);
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(system("wait for the command")(error)),
        }
    }
}

fn execute(request: &EnterRequest, entrance: &Entrance) -> i32 {
    if let Err(error) = entrance.enter() {
        tracing::error!(%error, "enter the cgroup of the sandbox");
        return 125;
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
        tracing::error!(%error, "enter the working directory");
        return 125;
    }
    fork::default_signals();
    let environment = strings(&request.env);
    let path = environment
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let Some(program) = request.command.first() else {
        return 125;
    };
    let error = exec::search_and_execute(program.as_bytes(), path, &strings(&request.command), &environment);
    tracing::error!(%error, program = %program.to_string_lossy(), "execute");
    if error == Errno::ENOENT { 127 } else { 126 }
}
