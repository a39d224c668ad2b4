//! Stops a tree so that no task runs any of its own code meanwhile: frozen by the cgroup, every thread seized, thawed
//! again. Without a cgroup of its own the tree is stopped by ptrace alone, again and again until no new task appears.

use super::{Target, mappings::MappingsReader, traces::thaw_without_traces};
use crate::stage::{Control, StageError};
use floe_cgroup::{Cgroup, CgroupError, Frozen, Kind, Lifted};
use floe_resources::{
    refusal::{Refusal, Refusals},
    task::{Sleepers, has_vfork_in_flight},
    tree::{FoundProcess, FoundThread, FoundTree},
};
use floe_sandbox::{SandboxError, tasks::in_namespace_of};
use floe_sys::{
    Pid,
    procfs::{Mapping, ProcError},
};
use floe_tracee::{
    InterruptionError, Options, SeizeError as TraceeSeizeError, Seized, Stopped, TraceError, give_events_back,
};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
};
use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often a tree is thawed for a moment because some task waits for its vfork child (posix_spawn(3) does), and for how
/// long. Nearly all such waits are over within a millisecond.
pub(super) const VFORK_ROUNDS: usize = 100;
pub(super) const VFORK_PAUSE: Duration = Duration::from_millis(2);
/// How long a frozen tree is looked at anew because some thread is still on its way to sleep, and the pause between.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// A tree that could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum SeizeError {
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Who else is in its PID namespace.
    #[error("look who is in the PID namespace of the tree")]
    Inside(#[source] Box<SandboxError>),
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Ptrace, at the start.
    #[error(transparent)]
    Seize(#[from] TraceeSeizeError),
    /// Interrupted calls.
    #[error(transparent)]
    Interruption(#[from] InterruptionError),
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
        "process {pid} ({comm}) is in the cgroup or the PID namespace of the tree but no descendant of its root; it came by exec or from outside, end it first"
    )]
    Stranger {
        /// Who.
        pid: Pid,
        /// Its name.
        comm: String,
    },
    /// floe would stop itself.
    #[error("floe itself is part of that tree; call it from outside")]
    Itself,
    /// Tasks that can't be stopped.
    #[error("{} task(s) can't be stopped", .0.len())]
    Refused(Vec<Refusal>),
    /// The tree grows faster than it can be stopped.
    #[error("the tree makes new processes faster than they can be stopped; give it a cgroup of its own (--cgroup)")]
    Restless,
}

/// A tree all of whose threads stand still under ptrace.
pub struct HeldTree {
    /// Where the cgroup was frozen before floe came: has it frozen again, before the threads are let go.
    lifted: Option<Lifted>,
    /// What was found.
    pub tree: FoundTree,
    /// Its threads.
    pub threads: BTreeMap<Pid, Stopped>,
    /// Mappings of its living processes, by the task of each, read when they stood still.
    pub mappings: BTreeMap<Pid, Vec<Mapping>>,
    /// When its threads fell asleep.
    pub sleepers: Sleepers,
}

impl HeldTree {
    /// Stops the target. `earlier` is what was known of its sleeps when it was last looked at.
    pub fn hold(target: &Target, earlier: Sleepers, control: &Control<'_>) -> Result<Self, SeizeError> {
        match target.cgroup() {
            Some(cgroup) => Self::hold_frozen((target.root(), cgroup), earlier, control),
            None => Self::hold_by_ptrace(target.root(), earlier, control),
        }
    }

    fn hold_frozen(
        (root, cgroup): (Pid, &Cgroup),
        earlier: Sleepers,
        control: &Control<'_>,
    ) -> Result<Self, SeizeError> {
        let processes = cgroup.processes()?;
        refuse_itself(processes.iter().copied())?;
        // A version 2 freezer wakes every thread, and then ptrace does; the other leaves most of them asleep.
        let mut sleepers = earlier.again(if cgroup.kind() == Kind::V2 { 2 } else { 1 });
        look_at_threads(&processes, &mut sleepers)?;
        sleepers.look_at_timers(&processes);
        let reader = MappingsReader::prepare(processes);
        control.enter("freeze")?;
        let mut frozen = FrozenTree::freeze(cgroup)?;
        control.enter("collect")?;
        let mut tree = read_frozen(root)?;
        for _ in 0..VFORK_ROUNDS {
            if !has_vfork_in_flight(&tree) {
                break;
            }
            drop(frozen);
            std::thread::sleep(VFORK_PAUSE);
            frozen = FrozenTree::freeze(cgroup)?;
            tree = read_frozen(root)?;
        }
        refuse_strangers(&tree, cgroup)?;
        if let Some(process) = elsewhere(&tree, cgroup)? {
            if frozen.was_frozen() {
                let mut refusals = Refusals::default();
                let reason = format!("it is not in {}, which is frozen", cgroup.path().display());
                refusals.add(
                    Some(&process.subject()),
                    "task that runs",
                    reason,
                    "thaw the sandbox first",
                );
                none(refusals)?;
            }
            drop(frozen);
            sleepers.ran_on();
            return Self::hold_by_ptrace(root, sleepers, control);
        }
        refuse_unstoppable(&tree)?;
        control.enter("seize")?;
        let (seized, lifted) = frozen.seize(tree.threads())?;
        Self::wait_for_all((tree, seized), lifted, sleepers, &reader)
    }

    fn hold_by_ptrace(root: Pid, earlier: Sleepers, control: &Control<'_>) -> Result<Self, SeizeError> {
        control.enter("freeze")?;
        control.enter("collect")?;
        control.enter("seize")?;
        let mut threads: BTreeMap<Pid, Stopped> = BTreeMap::new();
        let mut sleepers = earlier.again(1);
        // A tree that can't be read is told of when it is to be stopped.
        let running = FoundTree::read(root).map_or_else(|_| Vec::new(), |tree| tree.processes);
        let reader = MappingsReader::prepare(running.iter().map(|process| process.pid));
        let stopped = stop_by_ptrace(root, &mut threads, &mut sleepers);
        match stopped.and_then(|tree| refuse_strangers_inside(&tree).map(|()| tree)) {
            Ok(tree) => Self::complete(tree, threads, (None, sleepers), &reader),
            Err(error) => {
                match FoundTree::read(root) {
                    Ok(tree) => give_back_what_may(&tree, &threads),
                    Err(error) => tracing::debug!(%error, "the tree is let go as it is"),
                }
                Err(error)
            }
        }
    }

    fn wait_for_all(
        (tree, seized): (FoundTree, Vec<Seized>),
        lifted: Option<Lifted>,
        mut sleepers: Sleepers,
        reader: &MappingsReader,
    ) -> Result<Self, SeizeError> {
        let mut threads = BTreeMap::new();
        let mut seized = seized.into_iter();
        // Dropped before the threads, so that where something fails a frozen cgroup is frozen again when they go on.
        let lifted = lifted;
        let mut stop = || -> Result<(), SeizeError> {
            for seized in seized.by_ref() {
                let stopped = seized.stop()?;
                sleepers.stopped(&stopped)?;
                stopped.undo_interruption()?;
                stopped.abort_critical_section()?;
                threads.insert(stopped.tid(), stopped);
            }
            Ok(())
        };
        if let Err(error) = stop() {
            give_back_what_may(&tree, &threads);
            return Err(error);
        }
        sleepers.reckon();
        Self::complete(tree, threads, (lifted, sleepers), reader)
    }

    fn complete(
        tree: FoundTree,
        threads: BTreeMap<Pid, Stopped>,
        (lifted, sleepers): (Option<Lifted>, Sleepers),
        reader: &MappingsReader,
    ) -> Result<Self, SeizeError> {
        give_events_back(threads.values())?;
        let mut held = Self {
            tree,
            threads,
            mappings: BTreeMap::new(),
            sleepers,
            lifted,
        };
        held.read_mappings_by(reader)?;
        Ok(held)
    }

    /// Reads all mappings once more.
    pub fn read_mappings(&mut self) -> Result<(), SeizeError> {
        self.read_mappings_by(&MappingsReader::default())
    }

    fn read_mappings_by(&mut self, reader: &MappingsReader) -> Result<(), SeizeError> {
        let living: Vec<&FoundProcess> = self.tree.living().collect();
        self.mappings = reader.read_all(&living)?;
        Ok(())
    }

    /// Whether somebody had frozen the tree before floe came.
    pub fn was_frozen(&self) -> bool {
        self.lifted.as_ref().is_some_and(Lifted::is_whole)
    }

    /// Cgroups that were frozen before floe came, and are thawed for the moment.
    pub fn frozen_before(&self) -> Vec<PathBuf> {
        let groups = self.lifted.iter().flat_map(Lifted::groups);
        groups.map(|group| group.path().to_owned()).collect()
    }

    /// Lets the tree run on.
    pub fn release(self) -> Result<(), SeizeError> {
        if let Some(lifted) = self.lifted {
            lifted.freeze_again()?;
        }
        for (_, thread) in self.threads {
            match thread.detach() {
                // Somebody killed it meanwhile.
                Err(TraceError::Request {
                    source: Errno::ESRCH, ..
                }) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Ends the tree.
    pub fn end(self) -> Result<(), SeizeError> {
        if let Some(lifted) = self.lifted {
            lifted.forget();
        }
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

/// Stops all threads of a tree by ptrace alone, those that it makes meanwhile too.
fn stop_by_ptrace(
    root: Pid,
    threads: &mut BTreeMap<Pid, Stopped>,
    sleepers: &mut Sleepers,
) -> Result<FoundTree, SeizeError> {
    const ROUNDS: usize = 100;
    for round in 1..=ROUNDS {
        let tree = FoundTree::read(root)?;
        refuse_itself(tree.processes.iter().map(|process| process.pid))?;
        if threads.is_empty() && round < ROUNDS && has_vfork_in_flight(&tree) {
            std::thread::sleep(VFORK_PAUSE);
            continue;
        }
        let new: Vec<Pid> = tree.threads().filter(|tid| !threads.contains_key(tid)).collect();
        if threads.is_empty() {
            refuse_unstoppable(&tree)?;
            sleepers.look_at_timers(&tree.living().map(|process| process.pid).collect::<Vec<_>>());
        }
        if new.is_empty() {
            let all: HashSet<Pid> = tree.threads().collect();
            threads.retain(|tid, _| all.contains(tid));
            sleepers.reckon();
            return Ok(tree);
        }
        sleepers.look(&new);
        for tid in new {
            match Seized::new(tid, Options::Observe) {
                Ok(seized) => match seized.stop() {
                    Ok(stopped) => {
                        sleepers.stopped(&stopped)?;
                        stopped.undo_interruption()?;
                        stopped.abort_critical_section()?;
                        threads.insert(tid, stopped);
                    }
                    Err(TraceError::Ended { .. }) => {}
                    Err(error) => return Err(error.into()),
                },
                Err(error) if error.source == Errno::ESRCH => {}
                // What ptrace says of a task that is a zombie by now; the next round sees it as one.
                Err(error) if error.source == Errno::EPERM && has_ended(tid) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(SeizeError::Restless)
}

/// Gives events back where all threads of a process stand still, before they are let go because something failed.
fn give_back_what_may(tree: &FoundTree, threads: &BTreeMap<Pid, Stopped>) {
    for process in tree.living() {
        let held = process.threads.iter().map(|thread| threads.get(&thread.tid));
        if let Some(held) = held.collect::<Option<Vec<_>>>()
            && let Err(error) = give_events_back(held)
        {
            tracing::debug!(%error, "calls in flight may answer short");
        }
    }
}

/// The tree below a process whose cgroup is frozen. Version 2 takes a thread that waits for its vfork child for frozen,
/// also when thawing has just woken it and it has not gone back to sleep: what it waits for does not show till then.
fn read_frozen(root: Pid) -> Result<FoundTree, ProcError> {
    let started = Instant::now();
    loop {
        let tree = FoundTree::read(root)?;
        let runs = |thread: &FoundThread| thread.status.state == b'R';
        let settles = tree.living().any(|process| process.threads.iter().any(runs));
        if !settles || started.elapsed() > SETTLE_LIMIT {
            return Ok(tree);
        }
        std::thread::sleep(SETTLE_PAUSE);
    }
}

fn refuse_itself(mut processes: impl Iterator<Item = Pid>) -> Result<(), SeizeError> {
    let own = Pid::new(std::process::id() as i32);
    if processes.any(|pid| pid == own) {
        return Err(SeizeError::Itself);
    }
    Ok(())
}

fn look_at_threads(processes: &[Pid], sleepers: &mut Sleepers) -> Result<(), SeizeError> {
    let mut all = Vec::new();
    for pid in processes {
        match floe_sys::procfs::threads(*pid) {
            Ok(tids) => all.extend(tids),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    sleepers.look(&all);
    Ok(())
}

fn has_ended(tid: Pid) -> bool {
    floe_sys::procfs::Stat::of(tid).map_or_else(|error| error.is_gone(), |stat| matches!(stat.state, b'Z' | b'X'))
}

/// A tree in a frozen cgroup. Dropped, it runs on as if it had never been frozen, unless it was before.
pub(super) struct FrozenTree<'a> {
    cgroup: &'a Cgroup,
    frozen: Option<Frozen<'a>>,
    seized: Vec<Seized>,
}

impl<'a> FrozenTree<'a> {
    pub(super) fn freeze(cgroup: &'a Cgroup) -> Result<Self, SeizeError> {
        let frozen = cgroup.freeze_guarded(&|cgroup: &Cgroup| {
            if thaw_without_traces(cgroup).is_err() {
                // There is nobody to tell; better a call that ends early than a tree that stands still.
                drop(cgroup.thaw());
            }
        })?;
        Ok(Self {
            cgroup,
            frozen: Some(frozen),
            seized: Vec::new(),
        })
    }

    /// Whether it was so before.
    fn was_frozen(&self) -> bool {
        self.frozen.as_ref().is_some_and(Frozen::was_frozen)
    }

    /// Leaves it frozen.
    pub(super) fn keep(mut self) {
        if let Some(frozen) = self.frozen.take() {
            frozen.keep();
        }
    }

    /// Seizes all its threads and thaws it; they are about to stop then.
    fn seize(mut self, tids: impl Iterator<Item = Pid>) -> Result<(Vec<Seized>, Option<Lifted>), SeizeError> {
        for tid in tids {
            self.seized.push(Seized::new(tid, Options::Observe)?);
        }
        let lifted = self.frozen.take().map(Frozen::lift).transpose()?.flatten();
        Ok((std::mem::take(&mut self.seized), lifted))
    }
}

impl Drop for FrozenTree<'_> {
    fn drop(&mut self) {
        let Some(frozen) = self.frozen.take() else { return };
        if !frozen.was_frozen()
            && let Err(error) = thaw_without_traces(self.cgroup)
        {
            tracing::warn!(%error, "calls in flight may have been interrupted");
        }
        // Thaws whatever became of that; tasks that are seized can stop only now, and are then let go.
        drop(frozen);
    }
}

fn refuse_unstoppable(tree: &FoundTree) -> Result<(), SeizeError> {
    let mut refusals = Refusals::default();
    floe_resources::task::refuse_unstoppable(tree, &mut refusals)?;
    none(refusals)
}

fn none(refusals: Refusals) -> Result<(), SeizeError> {
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
            return Err(stranger(pid)?);
        }
    }
    Ok(())
}

/// A process of the tree that the freezer of a cgroup does not reach.
fn elsewhere<'a>(tree: &'a FoundTree, cgroup: &Cgroup) -> Result<Option<&'a FoundProcess>, SeizeError> {
    let reached: HashSet<Pid> = cgroup.processes()?.into_iter().collect();
    Ok(tree.living().find(|process| !reached.contains(&process.pid)))
}

fn stranger(pid: Pid) -> Result<SeizeError, ProcError> {
    let comm = floe_sys::procfs::read_text(&format!("/proc/{pid}/comm"))?;
    let comm = comm.trim().to_owned();
    Ok(SeizeError::Stranger { pid, comm })
}

/// Who is in a PID namespace whose PID 1 is the tree's root ends with it.
fn refuse_strangers_inside(tree: &FoundTree) -> Result<(), SeizeError> {
    let Some(root) = tree.root().filter(|root| root.own_pid() == 1) else {
        return Ok(());
    };
    let known: HashSet<Pid> = tree.processes.iter().map(|process| process.pid).collect();
    for pid in in_namespace_of(root.pid).map_err(|error| SeizeError::Inside(Box::new(error)))? {
        // What has just ended is nobody's loss.
        if !known.contains(&pid) && !has_ended(pid) {
            return Err(stranger(pid)?);
        }
    }
    Ok(())
}
