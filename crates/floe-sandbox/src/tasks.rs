//! The tasks of a sandbox, with their ids on every level of PID namespaces.

use crate::{
    pids::pid_namespaces,
    sandbox::{Sandbox, SandboxError},
};
use floe_sys::{
    Pid,
    procfs::{self, Stat, Status},
};
use serde::Serialize;

/// A process of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskInfo {
    /// Its id in the sandbox's PID namespace; 0 where it is outside.
    pub pid: i32,
    /// Its ids on every level, the host's first, the innermost last. That may be a namespace that was made inside.
    pub nspid: Vec<i32>,
    /// Parent, in the sandbox's PID namespace; 0 where that is outside.
    pub ppid: i32,
    /// Process group, likewise.
    pub pgid: i32,
    /// Session, likewise.
    pub sid: i32,
    /// Parent, on the host.
    #[serde(skip)]
    pub host_ppid: i32,
    /// Name.
    pub comm: String,
    /// State letter of proc(5).
    pub state: char,
    /// Number of threads.
    pub threads: i64,
}

/// All processes of a sandbox, by their ids in it.
///
/// # Errors
/// [`SandboxError`].
pub fn list(sandbox: &Sandbox) -> Result<Vec<TaskInfo>, SandboxError> {
    let pid1 = Status::read(&format!("/proc/{}", sandbox.pid1()?));
    let level = pid1.map_or(0, |status| status.ns_pid.len().saturating_sub(1));
    let members = match sandbox.cgroup()? {
        Some(cgroup) => cgroup.processes()?,
        None => in_namespace_of(sandbox.pid1()?)?,
    };
    let mut all: Vec<TaskInfo> = members.into_iter().filter_map(|pid| read(pid, level)).collect();
    // /proc knows parents by their host id alone.
    let inside: std::collections::HashMap<i32, i32> = all
        .iter()
        .filter_map(|task| Some((*task.nspid.first()?, task.pid)))
        .collect();
    for task in &mut all {
        task.ppid = inside.get(&task.host_ppid).copied().unwrap_or(0);
    }
    all.sort_by_key(|task| (task.pid, task.nspid.first().copied()));
    Ok(all)
}

/// The processes of the PID namespace of a process, and of those below it.
///
/// # Errors
/// [`SandboxError`].
pub fn in_namespace_of(pid1: Pid) -> Result<Vec<Pid>, SandboxError> {
    let Some(own) = pid_namespaces(&format!("/proc/{pid1}"))?.first().copied() else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for pid in procfs::processes()? {
        if pid_namespaces(&format!("/proc/{pid}"))?.contains(&own) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// `None` where the process has ended meanwhile.
fn read(pid: Pid, level: usize) -> Option<TaskInfo> {
    let stat = Stat::of(pid).ok()?;
    let status = Status::read(&format!("/proc/{pid}")).ok()?;
    let inside = |ids: &[i32]| ids.get(level).copied().unwrap_or(0);
    Some(TaskInfo {
        pid: inside(&status.ns_pid),
        ppid: 0,
        host_ppid: stat.ppid,
        pgid: inside(&status.ns_pgid),
        sid: inside(&status.ns_sid),
        nspid: status.ns_pid,
        comm: String::from_utf8_lossy(&stat.comm).into_owned(),
        state: char::from(stat.state),
        threads: i64::try_from(procfs::threads(pid).ok()?.len()).unwrap_or(i64::MAX),
    })
}

/// A thread of a process that lives, as its first one may do no longer; the first one where none does. Of a thread that is
/// not the first, itself.
pub(crate) fn living_thread(pid: Pid) -> Pid {
    let lives = |tid: &Pid| {
        let stat = Stat::read(&format!("/proc/{pid}/task/{tid}"));
        stat.is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'))
    };
    let threads = procfs::threads(pid).unwrap_or_default();
    threads.into_iter().find(lives).unwrap_or(pid)
}
