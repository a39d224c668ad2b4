//! The process tree as it is found: who is whose child, which threads, ids in both namespaces.

use crate::refusal::Subject;
use floe_sys::{
    Pid, parallel,
    procfs::{self, ProcError, Stat, Status},
};
use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

/// A thread as found.
#[derive(Debug, Clone)]
pub struct FoundThread {
    /// Id in floe's namespace.
    pub tid: Pid,
    /// Id in the PID namespace of the tree's root.
    pub ns_tid: i32,
    /// Ids in the namespaces below that, outermost first; none where it is in that one.
    pub inner: Vec<i32>,
    /// /proc/PID/task/TID/status, read before the thread was seized.
    pub status: Status,
    /// /proc/PID/task/TID/stat, likewise.
    pub stat: Stat,
}

impl FoundThread {
    /// Its id in its own PID namespace, by which it knows itself.
    #[must_use]
    pub fn own_tid(&self) -> i32 {
        self.inner.last().copied().unwrap_or(self.ns_tid)
    }
}

/// A PID namespace that processes of the tree are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundPidNamespace {
    /// Inode number of its file in /proc/PID/ns.
    pub inode: u64,
    /// The one above it, by its position; the first, which is that of the tree's root, tells itself.
    pub parent: usize,
}

/// What is read of a process.
struct Read {
    pid: Pid,
    stat: Stat,
    threads: Vec<(Pid, Status, Stat)>,
    children: Vec<Pid>,
}

impl Read {
    /// Reads all; on several processors where it has many times `worth` threads.
    fn all(pid: Pid, worth: usize) -> Result<Self, ProcError> {
        let stat = Stat::of(pid)?;
        let tids = procfs::threads(pid)?;
        let of_thread = |tid: &Pid| -> Result<_, ProcError> {
            let directory = format!("/proc/{pid}/task/{tid}");
            let (status, stat) = (Status::read(&directory)?, Stat::read(&directory)?);
            Ok(((*tid, status, stat), procfs::children_of(pid, *tid)?))
        };
        let mut read = Self {
            pid,
            stat,
            threads: Vec::with_capacity(tids.len()),
            children: Vec::new(),
        };
        for (tid, thread) in tids.iter().zip(parallel::map(&tids, worth, of_thread)) {
            match thread {
                Ok((thread, children)) => {
                    read.threads.push(thread);
                    read.children.extend(children);
                }
                // A thread that ended since the list was read.
                Err(error) if error.is_gone() && *tid != pid => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }
}

/// A process as found.
#[derive(Debug, Clone)]
pub struct FoundProcess {
    /// Id in floe's namespace.
    pub pid: Pid,
    /// Id in the PID namespace of the tree's root.
    pub ns_pid: i32,
    /// Ids in the namespaces below that, outermost first; none where it is in that one.
    pub inner: Vec<i32>,
    /// Parent's id there; 0 for the root.
    pub ns_ppid: i32,
    /// Process group there; 0 where that is outside.
    pub ns_pgid: i32,
    /// Session there; 0 where that is outside.
    pub ns_sid: i32,
    /// Process group in the namespaces below, down to its own, outermost first; 0 where it is outside of one.
    pub inner_pgid: Vec<i32>,
    /// Session in the namespaces below.
    pub inner_sid: Vec<i32>,
    /// /proc/PID/stat, read before the process was seized.
    pub stat: Stat,
    /// Its PID namespace, by its position among the tree's.
    pub pid_namespace: usize,
    /// Threads, the leader first. Without it where it has ended and others live.
    pub threads: Vec<FoundThread>,
    /// Wait status of the leader where it has ended and others live.
    pub leader_ended: Option<i32>,
}

impl FoundProcess {
    fn of(read: Read, parent: i32, levels: &mut Levels) -> Result<Self, ProcError> {
        let Read {
            pid,
            stat,
            threads: read,
            ..
        } = read;
        let mut threads = Vec::with_capacity(read.len());
        let mut leader = None;
        for (tid, status, stat) in read {
            let (ns_tid, inner) = levels.split(&status.ns_pid);
            if tid == pid {
                leader = Some((status.clone(), ns_tid, inner.clone()));
            }
            threads.push(FoundThread {
                tid,
                ns_tid,
                inner,
                status,
                stat,
            });
        }
        let (status, ns_pid, inner) = leader.ok_or_else(|| gone(pid))?;
        let has_ended = |state| matches!(state, b'Z' | b'X');
        let leader_ended = (has_ended(status.state) && threads.len() > 1).then_some(stat.exit_code);
        if leader_ended.is_some() {
            threads.retain(|thread| !has_ended(thread.status.state));
        }
        let (ns_pgid, inner_pgid) = levels.split(&status.ns_pgid);
        let (ns_sid, inner_sid) = levels.split(&status.ns_sid);
        Ok(Self {
            pid,
            ns_pid,
            inner,
            ns_ppid: parent,
            ns_pgid,
            ns_sid,
            pid_namespace: levels.namespace(pid, inner_sid.len())?,
            inner_pgid,
            inner_sid,
            stat,
            threads,
            leader_ended,
        })
    }

    /// Its id in its own PID namespace, by which it knows itself.
    #[must_use]
    pub fn own_pid(&self) -> i32 {
        self.inner.last().copied().unwrap_or(self.ns_pid)
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

/// PID namespaces on the way down the tree.
#[derive(Debug, Default)]
struct Levels {
    /// How many levels above that of the tree's root floe sees.
    above: usize,
    namespaces: Vec<FoundPidNamespace>,
}

impl Levels {
    /// With the namespace of the tree's root.
    fn at(root: Pid) -> Result<Self, ProcError> {
        let path = format!("/proc/{root}");
        let ids = Status::read(&path)?.ns_pid.len();
        let inode = inode(root, std::fs::metadata(format!("{path}/ns/pid")))?;
        Ok(Self {
            above: ids.saturating_sub(1),
            namespaces: vec![FoundPidNamespace { inode, parent: 0 }],
        })
    }

    /// An id in the root's namespace, and in those below.
    fn split(&self, ids: &[i32]) -> (i32, Vec<i32>) {
        let own = ids.get(self.above..).unwrap_or_default();
        match own.split_first() {
            Some((first, inner)) => (*first, inner.to_vec()),
            None => (0, Vec::new()),
        }
    }

    /// The position of the namespace of a process that is so many levels below the root's.
    fn namespace(&mut self, pid: Pid, below: usize) -> Result<usize, ProcError> {
        if below == 0 {
            return Ok(0);
        }
        let file = File::open(format!("/proc/{pid}/ns/pid")).map_err(|source| unreadable(pid, source))?;
        self.number(pid, file.into(), below)
    }

    fn number(&mut self, pid: Pid, namespace: OwnedFd, below: usize) -> Result<usize, ProcError> {
        let file = File::from(namespace);
        let inode = inode(pid, file.metadata())?;
        if let Some(known) = self.namespaces.iter().position(|known| known.inode == inode) {
            return Ok(known);
        }
        // A descendant's namespace is the root's or one below it.
        let parent = match below {
            0 | 1 => 0,
            _ => {
                let above = floe_sys::namespace::parent(file.as_fd()).map_err(|e| unreadable(pid, e.into()))?;
                self.number(pid, above, below - 1)?
            }
        };
        self.namespaces.push(FoundPidNamespace { inode, parent });
        Ok(self.namespaces.len() - 1)
    }
}

fn inode(pid: Pid, found: io::Result<Metadata>) -> Result<u64, ProcError> {
    found.map(|found| found.ino()).map_err(|source| unreadable(pid, source))
}

fn unreadable(pid: Pid, source: io::Error) -> ProcError {
    ProcError::Read {
        path: format!("/proc/{pid}/ns/pid"),
        source,
    }
}

/// A tree: parents before their children.
#[derive(Debug, Clone, Default)]
pub struct FoundTree {
    /// The processes.
    pub processes: Vec<FoundProcess>,
    /// Their PID namespaces, that of the root first, each behind the one above it.
    pub pid_namespaces: Vec<FoundPidNamespace>,
}

impl FoundTree {
    /// Reads the tree below `root`. While its tasks run, what is read may be out of date at once.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read(root: Pid) -> Result<Self, ProcError> {
        let mut processes = Vec::new();
        let mut levels = Levels::at(root)?;
        let mut generation = vec![(root, 0)];
        while !generation.is_empty() {
            let is_wide = generation.len() > parallel::FEW_FILES;
            let worth = if is_wide { usize::MAX } else { parallel::FEW_FILES };
            let read = parallel::map(&generation, parallel::FEW_FILES, |(pid, _)| Read::all(*pid, worth));
            let mut next = Vec::new();
            for ((pid, parent), read) in generation.into_iter().zip(read) {
                // A child that ended and was reaped since its parent's list was read.
                let is_gone = |error: &ProcError| error.is_gone() && pid != root;
                let (children, process) = match read.and_then(|mut read| {
                    let children = std::mem::take(&mut read.children);
                    Ok((children, FoundProcess::of(read, parent, &mut levels)?))
                }) {
                    Err(error) if is_gone(&error) => continue,
                    read => read?,
                };
                if !process.is_zombie() {
                    next.extend(children.into_iter().map(|child| (child, process.ns_pid)));
                }
                processes.push(process);
            }
            generation = next;
        }
        Ok(Self {
            processes,
            pid_namespaces: levels.namespaces,
        })
    }

    /// What a process is called in a PID namespace of the tree, by its position; none where it is not seen from there.
    #[must_use]
    pub fn seen_from(&self, namespace: usize, process: &FoundProcess) -> Option<i32> {
        self.called(namespace, process, (process.ns_pid, &process.inner))
    }

    /// The same of a task of the process, by its ids.
    fn called(&self, namespace: usize, process: &FoundProcess, (first, inner): (i32, &[i32])) -> Option<i32> {
        let (mut at, mut level) = (process.pid_namespace, inner.len());
        while at != namespace {
            level = level.checked_sub(1)?;
            at = self.pid_namespaces.get(at)?.parent;
        }
        match level.checked_sub(1) {
            Some(below) => inner.get(below).copied(),
            None => Some(first),
        }
    }

    /// All tasks that are seen from a PID namespace, zombies and threads too, and what they are called there.
    #[must_use]
    pub fn all_seen_from(&self, namespace: usize) -> HashMap<Pid, i32> {
        let of_process = |process: &FoundProcess| {
            let ids = process
                .threads
                .iter()
                .map(|thread| (thread.tid, thread.ns_tid, &thread.inner));
            let ids = ids.chain([(process.pid, process.ns_pid, &process.inner)]);
            ids.filter_map(|(task, first, inner)| Some((task, self.called(namespace, process, (first, inner))?)))
                .collect::<Vec<_>>()
        };
        self.processes.iter().flat_map(of_process).collect()
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

    /// The same with their processes, to read something of each on several processors.
    #[must_use]
    pub fn tasks(&self) -> Vec<(&FoundProcess, &FoundThread)> {
        let mut tasks = Vec::new();
        for process in self.living() {
            tasks.extend(process.threads.iter().map(|thread| (process, thread)));
        }
        tasks
    }
}
