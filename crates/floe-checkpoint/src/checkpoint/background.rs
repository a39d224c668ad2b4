//! Copies of memory, which are read while the tree runs on.
//!
//! While the tree stands still every process with much memory of its own forks a child that never runs
//! ([`MemoryCopy`]): what the process does from then on does not show in it. What a fork does not copy (shared memory,
//! pages that madvise(2) keeps from children, huge pages of hugetlbfs), and what is less than a fork takes, is read before
//! the tree runs on. At the end the copies are ended and their makers wait for them, by calls of floe's.

use super::{
    from_outside::WORTH_COPYING,
    inspect::Inspected,
    seize::{HeldTree, SeizeError, VFORK_PAUSE, VFORK_ROUNDS},
    traces::StoppedProcess,
    write::WriteStageError,
};
use floe_cgroup::{Cgroup, CgroupError};
use floe_image::record::{AddressSpaceRecord, PidsOfChildren};
use floe_resources::{
    mm::{self, ContentError, PrivatePages},
    task::is_in_vfork,
    tree::{FoundProcess, FoundThread},
};
use floe_sys::{
    Pid,
    procfs::{Mapping, ProcError, Stat, Status},
};
use floe_tracee::{CallError, CallHost, HostError, MemoryCopy, Stopped, TraceError, is_native};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};

/// Memory that could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The calls.
    #[error("copy the memory of process {pid}")]
    Host {
        /// Whose.
        pid: Pid,
        /// Why not.
        #[source]
        source: Box<HostError>,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Its cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Pages.
    #[error(transparent)]
    Content(#[from] ContentError),
}

/// The memory of one process.
pub struct CopiedProcess {
    /// Whose, by its number in the tree.
    pub process: i32,
    /// Its parent's number.
    pub parent: i32,
    /// Its mappings.
    pub mappings: Vec<Mapping>,
    /// The copy.
    pub memory: MemoryCopy,
    /// What the image says of it, but for what is still to be [found](mm::look_at_copied_pages) in the copy.
    pub space: AddressSpaceRecord,
    /// What was stored of its pages while it stood still.
    pub stored_before: PrivatePages,
}

impl CopiedProcess {
    /// Why its memory could not be read: whether it is there at all.
    pub fn why_not(&self, error: WriteStageError) -> WriteStageError {
        match Stat::of(self.memory.pid()) {
            Ok(stat) if !matches!(stat.state, b'Z' | b'X') => error,
            _ => WriteStageError::Ended(self.process),
        }
    }
}

/// The copies of a tree. Dropped, they end, and nothing is left of them; by then nobody may trace the tree.
#[derive(Default)]
pub struct Copies {
    all: Vec<CopiedProcess>,
    /// Those that were made in vain.
    failed: Vec<MemoryCopy>,
    not_copied: Vec<String>,
    /// What freezes the tree.
    cgroup: Option<Cgroup>,
    /// The processes of the tree, and when each began, by which it is known from another one of its number.
    tree: HashMap<Pid, u64>,
}

impl Copies {
    /// Copies the memory of all processes of a tree that are worth it.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn make(
        &mut self,
        held: &HeldTree,
        inspected: &mut Inspected,
        cgroup: Option<&Cgroup>,
    ) -> Result<(), CopyError> {
        self.cgroup = cgroup.cloned();
        self.tree = held
            .tree
            .living()
            .map(|found| (found.pid, found.stat.starttime))
            .collect();
        let frozen = frozen_by_themselves(held)?;
        for found in held.tree.living() {
            if inspected.pages_of(found.ns_pid) < WORTH_COPYING {
                continue;
            }
            let born_here = PidsOfChildren::Known(found.pid_namespace as u32);
            if held.was_frozen() || frozen.contains(&found.pid) {
                self.leave(found, "it had been frozen, and stays so");
            } else if inspected.pids_of_children(found.ns_pid) != Some(born_here) {
                self.leave(found, "its children are born into another PID namespace than its own");
            } else if held.process(found).mappings.iter().any(mm::may_not_be_shared) {
                self.leave(
                    found,
                    "it has private huge pages, of which there may be no more for what it writes",
                );
            } else {
                self.add(held, found, inspected)?;
            }
            if self.of(found.ns_pid).is_none() {
                inspected.look_at_pages(held, found)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, held: &HeldTree, found: &FoundProcess, inspected: &mut Inspected) -> Result<(), CopyError> {
        let thread = found
            .threads
            .first()
            .and_then(|thread| Some((held.threads.get(&thread.tid)?, thread)));
        let space = inspected.spaces.iter().position(|space| space.pid.0 == found.ns_pid);
        let (Some(thread), Some(space)) = (thread, space) else {
            return Ok(());
        };
        let mappings = held.process(found).mappings;
        match self.copy_memory(thread, found, mappings) {
            Ok(memory) => self.all.push(CopiedProcess {
                process: found.ns_pid,
                parent: found.ns_ppid,
                mappings: mappings.to_vec(),
                memory,
                space: inspected.spaces.swap_remove(space),
                stored_before: PrivatePages::default(),
            }),
            Err(error) => match limit(&error) {
                Some(limit) => self.leave(found, limit),
                None => {
                    return Err(CopyError::Host {
                        pid: found.pid,
                        source: Box::new(error),
                    });
                }
            },
        }
        Ok(())
    }

    fn copy_memory(
        &mut self,
        (stopped, thread): (&Stopped, &FoundThread),
        found: &FoundProcess,
        mappings: &[Mapping],
    ) -> Result<MemoryCopy, HostError> {
        let host = CallHost::new(stopped, found.own_pid(), mappings)?;
        let copy = host.copy(stopped, thread.own_tid(), &thread.status)?;
        match copy
            .leave_files(&host)
            .map_err(HostError::from)
            .and_then(|()| host.remove())
        {
            Ok(()) => Ok(copy),
            Err(error) => {
                self.failed.push(copy);
                Err(error)
            }
        }
    }

    fn leave(&mut self, found: &FoundProcess, why: &str) {
        self.not_copied.push(format!("{}: {why}", found.subject()));
    }

    /// The copy of one process's memory.
    pub fn of(&mut self, process: i32) -> Option<&mut CopiedProcess> {
        self.all.iter_mut().find(|copy| copy.process == process)
    }

    /// Which processes have memory of their own: those whose is copied, and the other ones.
    pub fn owners(&self, inspected: &Inspected) -> HashSet<i32> {
        let copied = self.all.iter().map(|copy| copy.process);
        inspected.spaces.iter().map(|space| space.pid.0).chain(copied).collect()
    }

    /// All of them.
    pub fn all(&mut self) -> &mut [CopiedProcess] {
        &mut self.all
    }

    /// Which processes that would have been worth it were not copied, and why.
    pub fn not_copied(&self) -> &[String] {
        &self.not_copied
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        let mut ended: HashMap<Pid, Vec<Pid>> = HashMap::new();
        let all = std::mem::take(&mut self.all).into_iter().map(|copy| copy.memory);
        for copy in all.chain(std::mem::take(&mut self.failed)) {
            let pid = copy.pid();
            if let Err(error) = copy.end() {
                tracing::debug!(pid = pid.raw(), %error, "a copy of memory can't be ended, or has gone already");
            }
            // Its maker, or who has adopted it because that has ended.
            match Stat::of(pid) {
                Ok(stat) => ended.entry(Pid::new(stat.ppid)).or_default().push(pid),
                Err(error) if error.is_gone() => {}
                Err(error) => tracing::debug!(pid = pid.raw(), %error, "whose a copy of memory is"),
            }
        }
        for (parent, copies) in ended {
            // Who is not of the tree waits for whom it adopts.
            if !self.tree.contains_key(&parent) {
                continue;
            }
            // The image is none the worse for a zombie that nobody sees but by name.
            if let Err(error) = self.collect(parent, &copies) {
                tracing::warn!(process = parent.raw(), %error, "an ended copy of its memory stays a zombie of a process");
            }
        }
    }
}

/// Processes that stay frozen when the tree runs on.
fn frozen_by_themselves(held: &HeldTree) -> Result<HashSet<Pid>, CopyError> {
    let mut all = HashSet::new();
    for path in held.frozen_before() {
        all.extend(Cgroup::open(&path)?.processes()?);
    }
    Ok(all)
}

/// What limit of the tree's stands in the way of one more process; then its memory is read while it stands still.
fn limit(error: &HostError) -> Option<&'static str> {
    match error {
        HostError::Call(CallError::Call {
            source: Errno::EAGAIN, ..
        }) => Some("it may make no more processes (pids.max, RLIMIT_NPROC)"),
        HostError::Call(CallError::Call {
            source: Errno::ENOMEM, ..
        })
        | HostError::Trace(TraceError::Request {
            source: Errno::ENOMEM, ..
        }) => Some("there is not memory enough to promise (vm.overcommit_memory)"),
        _ => None,
    }
}

/// Ended copies that could not be waited for.
#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error(transparent)]
    Seize(#[from] SeizeError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("no call can be run in any thread of it")]
    Busy,
    #[error("it was frozen meanwhile")]
    Frozen,
}

impl Copies {
    /// Has a process wait for its ended children; one that has ended itself need not.
    fn collect(&self, parent: Pid, ended: &[Pid]) -> Result<(), CollectError> {
        for _ in 0..VFORK_ROUNDS {
            if !self.is_there(parent)? {
                return Ok(());
            }
            if self.is_frozen(parent)? {
                return Err(CollectError::Frozen);
            }
            if is_in_vfork(parent, parent) {
                std::thread::sleep(VFORK_PAUSE);
                continue;
            }
            let process = StoppedProcess::stop(parent)?;
            return match process.threads.first() {
                Some(thread) => {
                    wait_by(thread, parent, ended)?;
                    Ok(process.release()?)
                }
                None if self.is_there(parent)? => Err(CollectError::Busy),
                None => Ok(()),
            };
        }
        Err(CollectError::Busy)
    }

    /// Whether somebody has frozen it meanwhile: then it takes no step.
    fn is_frozen(&self, pid: Pid) -> Result<bool, CgroupError> {
        let Some(cgroup) = &self.cgroup else { return Ok(false) };
        if cgroup.is_frozen()? {
            return Ok(true);
        }
        for below in cgroup.frozen_below()? {
            if below.processes()?.contains(&pid) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_there(&self, pid: Pid) -> Result<bool, ProcError> {
        match Stat::of(pid) {
            Ok(stat) => Ok(self.tree.get(&pid) == Some(&stat.starttime) && !matches!(stat.state, b'Z' | b'X')),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn wait_by(thread: &Stopped, pid: Pid, ended: &[Pid]) -> Result<(), CollectError> {
    let status = Status::read(&format!("/proc/{pid}/task/{}", thread.tid()))?;
    // Nothing would let floe's calls through.
    let is_closed = thread.dispatch()?.is_some_and(|dispatch| dispatch.selector == 0);
    if is_closed || !is_native(&thread.registers()?) {
        return Err(CollectError::Busy);
    }
    if status.seccomp != 0 {
        thread.suspend_seccomp()?;
    }
    let own = |numbers: &[i32], outside: Pid| numbers.last().copied().unwrap_or(outside.raw());
    let level = status.ns_pid.len().saturating_sub(1);
    let own_pid = own(&Status::read(&format!("/proc/{pid}"))?.ns_pid, pid);
    let host = CallHost::new(thread, own_pid, &Mapping::read_all_without_flags(pid)?)?;
    let mut batch = host.batch();
    for copy in ended {
        let number = match Status::read(&format!("/proc/{copy}")) {
            Ok(copy) => copy.ns_pid.get(level).copied(),
            // The parent has waited for it by itself.
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(number) = number {
            let options = (libc::__WALL | libc::WNOHANG) as u64;
            let arguments = [number as u64, 0, options, 0];
            batch.attempt("wait for a copy of its memory", libc::SYS_wait4, &arguments);
        }
    }
    host.run(thread, own(&status.ns_pid, thread.tid()), &status, &mut batch)?;
    host.remove()?;
    Ok(())
}
