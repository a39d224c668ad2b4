//! The IDs of a task on every level of PID namespaces, from the reader's down: pid_namespaces(7).

use crate::{
    namespaces::{NamespacesError, of_sandboxes},
    sandbox::{Sandbox, SandboxError},
    state::StateDir,
};
use floe_sys::{
    Pid,
    namespace::{Kind, parent},
    procfs::{self, ProcError, Status},
};
use nix::{errno::Errno, sys::stat::fstat};
use serde::Serialize;
use std::{fs::File, io, os::fd::OwnedFd};

/// A number that can't be translated.
#[derive(Debug, thiserror::Error)]
pub enum PidError {
    /// A file of /proc.
    #[error(transparent)]
    Namespaces(#[from] NamespacesError),
    /// The same.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// A sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Nobody has it.
    #[error("there is no process or thread {number} in {place}")]
    NoTask {
        /// The number.
        number: i32,
        /// In which namespace.
        place: String,
    },
    /// Nobody is in it.
    #[error("there is no PID namespace {0} with a process that you may see (floe ns -t pid lists them)")]
    NoNamespace(u64),
}

/// What a task is called on one level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Level {
    /// Its ID.
    pub pid: i32,
    /// That of its process.
    pub process: i32,
    /// Inode number of the PID namespace, where the caller may know it.
    pub namespace: Option<u64>,
    /// The sandbox whose PID namespace this is.
    pub sandbox: Option<String>,
}

/// A task with its IDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// Its name.
    pub comm: String,
    /// From the reader's namespace to the innermost.
    pub levels: Vec<Level>,
}

impl Translation {
    /// That of a process or thread.
    ///
    /// # Errors
    /// [`PidError`].
    pub fn of(task: Pid, state_dir: &StateDir) -> Result<Self, PidError> {
        let folder = format!("/proc/{task}");
        let status = Status::read(&folder).map_err(|error| match error {
            error if error.is_gone() => PidError::NoTask {
                number: task.raw(),
                place: "this PID namespace".to_owned(),
            },
            error => error.into(),
        })?;
        let mut namespaces: Vec<Option<u64>> = pid_namespaces(&folder)?.into_iter().map(Some).collect();
        // The kernel hides what is above the reader's own namespace, which /proc may show.
        namespaces.resize(status.ns_pid.len(), None);
        namespaces.reverse();
        let sandboxes = of_sandboxes(state_dir)?;
        let numbers = status.ns_pid.iter().zip(&status.ns_tgid).zip(namespaces);
        let levels = numbers.map(|((pid, process), namespace)| Level {
            pid: *pid,
            process: *process,
            namespace,
            sandbox: namespace.and_then(|inode| sandboxes.get(&inode).cloned()),
        });
        Ok(Self {
            comm: status.name,
            levels: levels.collect(),
        })
    }
}

/// The task that has a number in a PID namespace, by its inode number.
///
/// # Errors
/// [`PidError`].
pub fn in_namespace(namespace: u64, number: i32) -> Result<Pid, PidError> {
    let mut exists = false;
    for process in procfs::processes()? {
        let Some(level) = pid_namespaces(&format!("/proc/{process}"))?
            .into_iter()
            .position(|inode| inode == namespace)
        else {
            continue;
        };
        exists = true;
        // All threads of a process are in one PID namespace. It may end meanwhile.
        for tid in procfs::threads(process).unwrap_or_default() {
            let status = Status::read(&format!("/proc/{process}/task/{tid}"));
            if status.is_ok_and(|status| status.ns_pid.iter().rev().nth(level) == Some(&number)) {
                return Ok(tid);
            }
        }
    }
    if !exists {
        return Err(PidError::NoNamespace(namespace));
    }
    Err(PidError::NoTask {
        number,
        place: format!("PID namespace {namespace}"),
    })
}

/// The task that has a number in a sandbox.
///
/// # Errors
/// [`PidError`].
pub fn in_sandbox(sandbox: &Sandbox, number: i32) -> Result<Pid, PidError> {
    let pid1 = sandbox.pid1()?;
    let namespace = crate::namespaces::of(pid1)?.get(&Kind::Pid).copied();
    let namespace = namespace.ok_or(NamespacesError::Forbidden(pid1))?;
    in_namespace(namespace, number).map_err(|error| match error {
        PidError::NoTask { number, .. } => PidError::NoTask {
            number,
            place: format!("sandbox {}", sandbox.name()),
        },
        error => error,
    })
}

/// Inode numbers of the PID namespaces that a task is in, the innermost first; none where the caller may not know them, or
/// it has ended.
pub(crate) fn pid_namespaces(folder: &str) -> Result<Vec<u64>, NamespacesError> {
    let path = format!("{folder}/ns/pid");
    let failed = |source: io::Error| NamespacesError::Read {
        path: path.clone().into(),
        source,
    };
    let mut next: OwnedFd = match File::open(&path) {
        Ok(file) => file.into(),
        Err(error) => {
            let expected = [libc::ENOENT, libc::ESRCH, libc::EACCES, libc::EPERM];
            return if error.raw_os_error().is_some_and(|number| expected.contains(&number)) {
                Ok(Vec::new())
            } else {
                Err(failed(error))
            };
        }
    };
    let mut found = Vec::new();
    loop {
        found.push(fstat(&next).map_err(|error| failed(error.into()))?.st_ino);
        next = match parent(std::os::fd::AsFd::as_fd(&next)) {
            Ok(above) => above,
            Err(Errno::EPERM) => return Ok(found),
            Err(error) => return Err(failed(error.into())),
        };
    }
}
