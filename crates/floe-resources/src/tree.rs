//! The process tree as it is found: who is whose child, which threads, ids in both namespaces.

use crate::refusal::Subject;
use floe_sys::{
    Pid,
    procfs::{self, ProcError, Stat, Status},
};
use std::collections::VecDeque;

/// A thread as found.
#[derive(Debug, Clone)]
pub struct FoundThread {
    /// Id in floe's namespace.
    pub tid: Pid,
    /// Id in its own namespace.
    pub ns_tid: i32,
    /// /proc/PID/task/TID/status, read before the thread was seized.
    pub status: Status,
}

/// A process as found.
#[derive(Debug, Clone)]
pub struct FoundProcess {
    /// Id in floe's namespace.
    pub pid: Pid,
    /// Id in its own namespace.
    pub ns_pid: i32,
    /// Parent's id in its own namespace; 0 for the root.
    pub ns_ppid: i32,
    /// Process group in its own namespace; 0 where that is outside.
    pub ns_pgid: i32,
    /// Session in its own namespace; 0 where that is outside.
    pub ns_sid: i32,
    /// /proc/PID/stat, read before the process was seized.
    pub stat: Stat,
    /// Depth of its PID namespace, seen from floe's.
    pub depth: usize,
    /// Threads, the leader first. Without it where it has ended and others live.
    pub threads: Vec<FoundThread>,
    /// Wait status of the leader where it has ended and others live.
    pub leader_ended: Option<i32>,
}

impl FoundProcess {
    fn read(pid: Pid, parent: i32) -> Result<Self, ProcError> {
        let stat = Stat::of(pid)?;
        let last = |ids: &[i32]| ids.last().copied().unwrap_or(0);
        let mut threads = Vec::new();
        let mut leader = None;
        for tid in procfs::threads(pid)? {
            let status = match Status::read(&format!("/proc/{pid}/task/{tid}")) {
                Ok(status) => status,
                // A thread that ended since the list was read.
                Err(error) if error.is_gone() && tid != pid => continue,
                Err(error) => return Err(error),
            };
            let ns_tid = last(&status.ns_pid);
            if tid == pid {
                leader = Some(status.clone());
            }
            threads.push(FoundThread { tid, ns_tid, status });
        }
        let status = leader.ok_or_else(|| gone(pid))?;
        let has_ended = |state| matches!(state, b'Z' | b'X');
        let leader_ended = (has_ended(status.state) && threads.len() > 1).then_some(stat.exit_code);
        if leader_ended.is_some() {
            threads.retain(|thread| !has_ended(thread.status.state));
        }
        Ok(Self {
            pid,
            ns_pid: last(&status.ns_pid),
            ns_ppid: parent,
            ns_pgid: last(&status.ns_pgid),
            ns_sid: last(&status.ns_sid),
            stat,
            depth: status.ns_pid.len(),
            threads,
            leader_ended,
        })
    }

    /// Whether it has ended and waits to be reaped.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        matches!(self.stat.state, b'Z' | b'X') && self.leader_ended.is_none()
    }

    /// A task by which the process can be asked for: its leader, or where that has ended another thread.
    #[must_use]
    pub fn task(&self) -> Pid {
        match self.leader_ended {
            Some(_) => self.threads.first().map_or(self.pid, |thread| thread.tid),
            None => self.pid,
        }
    }

    /// How findings name it.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject {
            host: self.pid,
            ns: self.ns_pid,
            comm: String::from_utf8_lossy(&self.stat.comm).into_owned(),
        }
    }
}

fn gone(pid: Pid) -> ProcError {
    ProcError::Read {
        path: format!("/proc/{pid}/task"),
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// A tree: parents before their children.
#[derive(Debug, Clone, Default)]
pub struct FoundTree {
    /// The processes.
    pub processes: Vec<FoundProcess>,
}

impl FoundTree {
    /// Reads the tree below `root`. While its tasks run, what is read may be out of date at once.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read(root: Pid) -> Result<Self, ProcError> {
        let mut processes = Vec::new();
        let mut queue = VecDeque::from([(root, 0)]);
        while let Some((pid, parent)) = queue.pop_front() {
            let process = match FoundProcess::read(pid, parent) {
                Ok(process) => process,
                // A child that ended and was reaped since its parent's list was read.
                Err(error) if error.is_gone() && pid != root => continue,
                Err(error) => return Err(error),
            };
            if !process.is_zombie() {
                let children = match procfs::children(pid) {
                    Ok(children) => children,
                    // It was reaped meanwhile, and its children are others' now.
                    Err(error) if error.is_gone() && pid != root => continue,
                    Err(error) => return Err(error),
                };
                queue.extend(children.into_iter().map(|child| (child, process.ns_pid)));
            }
            processes.push(process);
        }
        Ok(Self { processes })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Option<&FoundProcess> {
        self.processes.first()
    }

    /// Processes that can be traced.
    pub fn living(&self) -> impl Iterator<Item = &FoundProcess> {
        self.processes.iter().filter(|process| !process.is_zombie())
    }

    /// All threads of all living processes.
    pub fn threads(&self) -> impl Iterator<Item = Pid> {
        self.living()
            .flat_map(|process| process.threads.iter().map(|thread| thread.tid))
    }
}
