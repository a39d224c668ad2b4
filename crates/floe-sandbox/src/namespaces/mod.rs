//! The namespaces of this machine: which there are, who is in them, what else keeps them alive, how they belong together.
//!
//! As far as the caller may know: of a process that it may not trace the kernel tells no namespaces (PTRACE_MODE_READ in
//! ptrace(2)).

mod holders;
mod relations;
mod tree;

pub use tree::{Node, Relation, forest};

use crate::{
    sandbox::{Sandbox, SandboxError},
    state::StateDir,
};
use floe_sys::{
    Pid,
    namespace::Kind,
    procfs::{self, ProcError, Stat, Status},
};
use holders::Holders;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
};

/// Namespaces that can't be told.
#[derive(Debug, thiserror::Error)]
pub enum NamespacesError {
    /// A file of /proc.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Nobody has this PID.
    #[error("there is no process {0}")]
    NoProcess(Pid),
    /// The caller may not know.
    #[error("the namespaces of process {0} are told only to who may trace it (ptrace(2))")]
    Forbidden(Pid),
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its kind.
    pub kind: Kind,
    /// Its inode number, by which it is known.
    pub inode: u64,
    /// A path that opens it; `None` where it is known only as the parent or owner of others.
    pub path: Option<PathBuf>,
    /// How many processes are in it, by their first threads.
    pub processes: usize,
    /// The one with the lowest PID.
    pub first: Option<Process>,
    /// Where it is mounted (nsfs), which keeps it alive. Mounts of other mount namespaces by their paths in
    /// /proc/PID/root.
    pub mounts: Vec<PathBuf>,
    /// The namespace of the same kind that it was made in, where it has one that the caller sees.
    pub parent: Option<u64>,
    /// The user namespace that it belongs to, or of a user namespace its parent, where the caller sees it.
    pub owner: Option<u64>,
    /// Of a network namespace, the number that the caller's one has for it.
    pub number: Option<i32>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its PID.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Effective user.
    pub uid: u32,
    /// Command line; its name where it has none.
    pub command: String,
}

/// All namespaces that the caller may know of, by inode number.
///
/// # Errors
/// [`NamespacesError`]. What ends meanwhile is no error.
pub fn list() -> Result<Vec<Namespace>, NamespacesError> {
    let holders = Holders::look()?;
    let mut found: BTreeMap<u64, Namespace> = BTreeMap::new();
    for (inode, held) in holders.namespaces {
        let namespace = Namespace {
            kind: held.kind,
            inode,
            path: Some(held.path),
            processes: held.members.len(),
            first: held.members.first().and_then(|pid| process(*pid)),
            mounts: held.mounts,
            parent: None,
            owner: None,
            number: None,
        };
        found.insert(inode, namespace);
    }
    relations::relate(&mut found)?;
    Ok(found.into_values().collect())
}

/// The processes that are in a namespace, by their first threads, lowest PID first.
///
/// # Errors
/// [`NamespacesError`]. What ends meanwhile is no error.
pub fn members(of: &Namespace) -> Result<Vec<Process>, NamespacesError> {
    let mut found = Vec::new();
    for pid in procfs::processes()? {
        if holders::of_task(&format!("/proc/{pid}"))?.get(&of.kind) == Some(&of.inode) {
            found.extend(process(pid));
        }
    }
    Ok(found)
}

/// Inode numbers of the namespaces that a process is in, or a thread.
///
/// # Errors
/// [`NamespacesError`].
pub fn of(task: Pid) -> Result<BTreeMap<Kind, u64>, NamespacesError> {
    let found = holders::of_task(&format!("/proc/{task}"))?;
    if !found.is_empty() {
        return Ok(found);
    }
    match Stat::of(task) {
        Ok(_) => Err(NamespacesError::Forbidden(task)),
        Err(error) if error.is_gone() => Err(NamespacesError::NoProcess(task)),
        Err(error) => Err(error.into()),
    }
}

/// The names of the sandboxes that run, by the inode numbers of the namespaces that are theirs and not the caller's.
///
/// # Errors
/// [`SandboxError`].
pub fn of_sandboxes(state_dir: &StateDir) -> Result<HashMap<u64, String>, SandboxError> {
    let own = holders::of_task("/proc/self")?;
    let mut found = HashMap::new();
    for sandbox in Sandbox::list(state_dir)? {
        // It may end meanwhile.
        let Ok(pid1) = sandbox.pid1() else { continue };
        for (kind, inode) in holders::of_task(&format!("/proc/{pid1}"))? {
            if own.get(&kind) != Some(&inode) {
                found.insert(inode, sandbox.name().to_owned());
            }
        }
    }
    Ok(found)
}

/// `None` where it has ended meanwhile.
fn process(pid: Pid) -> Option<Process> {
    let stat = Stat::of(pid).ok()?;
    let folder = format!("/proc/{pid}");
    let line = procfs::read(&format!("{folder}/cmdline")).ok()?;
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let words = words.join(" ");
    let command = match words.trim_end() {
        "" => String::from_utf8_lossy(&stat.comm).into_owned(),
        words => words.to_owned(),
    };
    Some(Process {
        pid: pid.raw(),
        ppid: stat.ppid,
        uid: Status::read(&folder).ok()?.uids[1],
        command,
    })
}
