//! The tasks of a sandbox, with their ids on every level of PID namespaces.

use crate::sandbox::{Sandbox, SandboxError};
use floe_sys::{
    Pid,
    procfs::{self, Stat, Status},
};
use serde::Serialize;

/// A process of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskInfo {
    /// Its ids, the host's first, the innermost last.
    pub nspid: Vec<i32>,
    /// Parent, in the innermost namespace; 0 where that is outside.
    pub ppid: i32,
    /// Process group, likewise.
    pub pgid: i32,
    /// Session, likewise.
    pub sid: i32,
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
    let mut all: Vec<TaskInfo> = sandbox.cgroup()?.processes()?.into_iter().filter_map(read).collect();
    // /proc knows parents by their host id alone.
    let inner: std::collections::HashMap<i32, i32> = all
        .iter()
        .filter_map(|task| Some((*task.nspid.first()?, *task.nspid.last()?)))
        .collect();
    for task in &mut all {
        task.ppid = inner.get(&task.ppid).copied().unwrap_or(0);
    }
    all.sort_by_key(|task| task.nspid.last().copied());
    Ok(all)
}

/// `None` where the process has ended meanwhile.
fn read(pid: Pid) -> Option<TaskInfo> {
    let stat = Stat::of(pid).ok()?;
    let status = Status::read(&format!("/proc/{pid}")).ok()?;
    let last = |ids: &[i32]| ids.last().copied().unwrap_or(0);
    Some(TaskInfo {
        ppid: stat.ppid,
        pgid: last(&status.ns_pgid),
        sid: last(&status.ns_sid),
        nspid: status.ns_pid,
        comm: String::from_utf8_lossy(&stat.comm).into_owned(),
        state: char::from(stat.state),
        threads: i64::try_from(procfs::threads(pid).ok()?.len()).unwrap_or(i64::MAX),
    })
}
