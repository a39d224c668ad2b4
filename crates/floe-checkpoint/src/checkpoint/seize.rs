//! Stops a tree so that no task runs any of its own code meanwhile: frozen by the cgroup, every thread seized, thawed
//! again. Without a cgroup of its own the tree is stopped by ptrace alone, again and again until no new task appears.

use super::Target;
use crate::stage::{Control, StageError};
use floe_cgroup::{Cgroup, CgroupError, Kind};
use floe_resources::{
    refusal::{Refusal, Refusals},
    task::{SignalError, Sleepers, fix_interrupted_calls},
    tree::FoundTree,
};
use floe_sys::{
    Pid,
    procfs::{Mapping, ProcError},
};
use floe_tracee::{Options, SeizeError as TraceeSeizeError, Seized, Stopped, TraceError};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
};
use std::collections::{BTreeMap, HashSet};

/// A tree that could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum SeizeError {
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Ptrace, at the start.
    #[error(transparent)]
    Seize(#[from] TraceeSeizeError),
    /// Interrupted calls.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Told to stop.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// Ending it.
    #[error("end process {pid}")]
    Kill {
        /// Which.
        pid: Pid,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Somebody joined the cgroup who is no descendant of the root.
    #[error(
        "process {pid} ({comm}) is in the cgroup of the tree but no descendant of its root; it came by exec or from outside, end it first"
    )]
    Stranger {
        /// Who.
        pid: Pid,
        /// Its name.
        comm: String,
    },
    /// Tasks that can't be stopped.
    #[error("{} task(s) can't be stopped", .0.len())]
    Refused(Vec<Refusal>),
    /// The tree grows faster than it can be stopped.
    #[error("the tree makes new processes faster than they can be stopped; give it a cgroup of its own (--cgroup)")]
    Restless,
}

/// A tree all of whose threads stand still under ptrace.
pub struct HeldTree {
    /// What was found.
    pub tree: FoundTree,
    /// Its threads.
    pub threads: BTreeMap<Pid, Stopped>,
    /// Mappings of its living processes, read when they stood still.
    pub mappings: BTreeMap<Pid, Vec<Mapping>>,
    /// When its threads fell asleep.
    pub sleepers: Sleepers,
    /// Whether the cgroup was frozen before floe came, and has to be again.
    refreeze: Option<Cgroup>,
}

impl HeldTree {
    /// Stops the target.
    pub fn hold(target: &Target, control: &Control<'_>) -> Result<Self, SeizeError> {
        match target.cgroup() {
            Some(cgroup) => Self::hold_frozen(target.root(), cgroup, control),
            None => Self::hold_by_ptrace(target.root(), control),
        }
    }

    fn hold_frozen(root: Pid, cgroup: &Cgroup, control: &Control<'_>) -> Result<Self, SeizeError> {
        let was_frozen = cgroup.is_frozen()?;
        // A version 2 freezer wakes every thread, and then ptrace does; the other leaves most of them asleep.
        let mut sleepers = Sleepers::new(if cgroup.kind() == Kind::V2 { 2 } else { 1 });
        look_at_threads(&cgroup.processes()?, &mut sleepers)?;
        control.enter("freeze")?;
        let frozen = cgroup.freeze_guarded()?;
        control.enter("collect")?;
        let tree = FoundTree::read(root)?;
        refuse_strangers(&tree, cgroup)?;
        refuse_unstoppable(&tree)?;
        control.enter("seize")?;
        let seized = seize_all(tree.threads())?;
        frozen.thaw()?;
        let refreeze = if was_frozen { Some(cgroup.clone()) } else { None };
        Self::wait_for_all(tree, seized, refreeze, sleepers)
    }

    fn hold_by_ptrace(root: Pid, control: &Control<'_>) -> Result<Self, SeizeError> {
        const ROUNDS: usize = 100;
        control.enter("freeze")?;
        control.enter("collect")?;
        control.enter("seize")?;
        let mut threads: BTreeMap<Pid, Stopped> = BTreeMap::new();
        let mut sleepers = Sleepers::new(1);
        for _ in 0..ROUNDS {
            let tree = FoundTree::read(root)?;
            let new: Vec<Pid> = tree.threads().filter(|tid| !threads.contains_key(tid)).collect();
            if threads.is_empty() {
                refuse_unstoppable(&tree)?;
            }
            if new.is_empty() {
                let all: HashSet<Pid> = tree.threads().collect();
                threads.retain(|tid, _| all.contains(tid));
                return Self::complete(tree, threads, None, sleepers);
            }
            new.iter().for_each(|tid| sleepers.look(*tid));
            for tid in new {
                match Seized::new(tid, Options::Observe) {
                    Ok(seized) => match seized.stop() {
                        Ok(stopped) => drop(threads.insert(tid, stopped)),
                        Err(TraceError::Ended { .. }) => {}
                        Err(error) => return Err(error.into()),
                    },
                    Err(error) if error.source == Errno::ESRCH => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Err(SeizeError::Restless)
    }

    fn wait_for_all(
        tree: FoundTree,
        seized: Vec<Seized>,
        refreeze: Option<Cgroup>,
        sleepers: Sleepers,
    ) -> Result<Self, SeizeError> {
        let mut threads = BTreeMap::new();
        for seized in seized {
            let stopped = seized.stop()?;
            threads.insert(stopped.tid(), stopped);
        }
        Self::complete(tree, threads, refreeze, sleepers)
    }

    fn complete(
        tree: FoundTree,
        threads: BTreeMap<Pid, Stopped>,
        refreeze: Option<Cgroup>,
        mut sleepers: Sleepers,
    ) -> Result<Self, SeizeError> {
        for thread in threads.values() {
            sleepers.stopped(thread)?;
            fix_interrupted_calls(thread)?;
        }
        let mut mappings = BTreeMap::new();
        for process in tree.living() {
            mappings.insert(process.pid, Mapping::read_all(process.pid)?);
        }
        Ok(Self {
            tree,
            threads,
            mappings,
            sleepers,
            refreeze,
        })
    }

    /// Lets the tree run on.
    pub fn release(self) -> Result<(), SeizeError> {
        if let Some(cgroup) = &self.refreeze {
            cgroup.freeze()?.keep();
        }
        for (_, thread) in self.threads {
            thread.detach()?;
        }
        Ok(())
    }

    /// Ends the tree.
    pub fn end(self) -> Result<(), SeizeError> {
        // The root first: where it is PID 1 of its namespace, its death ends all others at once.
        for process in self.tree.living() {
            match kill(process.pid.nix(), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => {
                    return Err(SeizeError::Kill {
                        pid: process.pid,
                        source,
                    });
                }
            }
        }
        let mut left: HashSet<i32> = self.threads.keys().map(|tid| tid.raw()).collect();
        // Detaching fails for tasks that are being killed, which is what is wanted here.
        drop(self.threads);
        // As their tracer floe must collect them before their parents can. In which order they can be collected is not
        // known: the last thread of a PID 1 to end, whichever it is, waits for all others of the namespace.
        while !left.is_empty() {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        left.remove(&pid.as_raw());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }
}

fn look_at_threads(processes: &[Pid], sleepers: &mut Sleepers) -> Result<(), SeizeError> {
    for pid in processes {
        match floe_sys::procfs::threads(*pid) {
            Ok(tids) => tids.into_iter().for_each(|tid| sleepers.look(tid)),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn seize_all(tids: impl Iterator<Item = Pid>) -> Result<Vec<Seized>, SeizeError> {
    Ok(tids
        .map(|tid| Seized::new(tid, Options::Observe))
        .collect::<Result<_, _>>()?)
}

fn refuse_unstoppable(tree: &FoundTree) -> Result<(), SeizeError> {
    let mut refusals = Refusals::default();
    floe_resources::task::refuse_unstoppable(tree, &mut refusals)?;
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(SeizeError::Refused(refusals.into_sorted()))
    }
}

fn refuse_strangers(tree: &FoundTree, cgroup: &Cgroup) -> Result<(), SeizeError> {
    let known: HashSet<Pid> = tree.processes.iter().map(|process| process.pid).collect();
    for pid in cgroup.processes()? {
        if !known.contains(&pid) {
            let comm = floe_sys::procfs::read_text(&format!("/proc/{pid}/comm"))?
                .trim()
                .to_owned();
            return Err(SeizeError::Stranger { pid, comm });
        }
    }
    Ok(())
}

/// Thaws a frozen cgroup so that no call in it answers EINTR because of the freezing: its tasks are stopped once more,
/// and such calls set up to be issued again.
///
/// # Errors
/// [`SeizeError`].
pub fn thaw_without_traces(cgroup: &Cgroup) -> Result<(), SeizeError> {
    let mut seized = Vec::new();
    for pid in cgroup.processes()? {
        let tids = match floe_sys::procfs::threads(pid) {
            Ok(tids) => tids,
            Err(error) if error.is_gone() => continue,
            Err(error) => return Err(error.into()),
        };
        for tid in tids {
            match Seized::new(tid, Options::Observe) {
                Ok(task) => seized.push(task),
                // Gone, or traced by a debugger, whose stops are its own business.
                Err(error) if [Errno::ESRCH, Errno::EPERM].contains(&error.source) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    cgroup.thaw()?;
    for task in seized {
        match task.stop() {
            Ok(stopped) => {
                fix_interrupted_calls(&stopped)?;
                stopped.detach()?;
            }
            Err(TraceError::Ended { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
