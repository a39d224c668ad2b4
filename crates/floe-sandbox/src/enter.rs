//! Runs a command in a sandbox that exists: in all its namespaces and its cgroup.

use crate::{
    message::{self, kind},
    sandbox::{Sandbox, SandboxError},
};
use floe_cgroup::Entrance;
use floe_sys::{exec, fork, time_namespace::CLONE_NEWTIME};
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
    /// The command could not be started.
    #[error("{action} in sandbox {name}")]
    Command {
        /// What was attempted.
        action: String,
        /// In which sandbox.
        name: String,
        /// Why it failed.
        #[source]
        source: Errno,
    },
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

/// Runs the command with the caller's streams; returns its exit status (128 + N for signal N). `started` is told its PID.
/// The caller must have one thread, and is in the sandbox's namespaces afterwards, so that it should do nothing but end.
///
/// # Errors
/// [`EnterError`].
pub fn enter(sandbox: &Sandbox, request: &EnterRequest, started: impl FnOnce(Pid)) -> Result<i32, EnterError> {
    let failed = |payload: &[u8]| {
        let (source, action) = message::parse_failure(payload);
        let name = sandbox.name().to_owned();
        EnterError::Command { action, name, source }
    };
    let system = |action| {
        move |source| EnterError::System {
            action,
            name: sandbox.name().to_owned(),
            source,
        }
    };
    let (thread, pidfd) = sandbox.thread()?;
    // Only the command goes into the cgroup: what waits for it here must run on when the sandbox is frozen.
    let entrance = sandbox.cgroup()?.entrance().map_err(SandboxError::from)?;
    let all = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP
        | time_namespace(thread);
    setns(&pidfd, all).map_err(system("enter the namespaces"))?;
    // setns changes the namespace that children are in, so the command must be a child.
    let (hear, say) = message::pair().map_err(system("make a socket for the command"))?;
    let child = fork::child(|| {
        let (error, action) = execute(request, &entrance);
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

/// The flag of a restored sandbox's time namespace; none where it is the caller's, as it is where the kernel knows no
/// others.
fn time_namespace(thread: floe_sys::Pid) -> CloneFlags {
    let link = |whose: &str| std::fs::read_link(format!("/proc/{whose}/ns/time")).ok();
    if link(&thread.to_string()) == link("self") {
        CloneFlags::empty()
    } else {
        CloneFlags::from_bits_retain(CLONE_NEWTIME)
    }
}

/// Returns only where something failed: why, and what was attempted.
fn execute(request: &EnterRequest, entrance: &Entrance) -> (Errno, String) {
    if let Err(error) = entrance.enter() {
        let number = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        return (number, "enter the cgroup".to_owned());
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
    let environment = strings(&request.env);
    let path = environment
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let Some(program) = request.command.first() else {
        return (Errno::EINVAL, "find a command".to_owned());
    };
    let error = exec::search_and_execute(program.as_bytes(), path, &strings(&request.command), &environment);
    (error, format!("{EXECUTE}{}", program.to_string_lossy()))
}
