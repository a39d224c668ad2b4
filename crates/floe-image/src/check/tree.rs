//! Processes and threads: ids, parents, the sizes of what the kernel takes as a block.

use super::{CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_VM, ensure, is_path};
use crate::{
    Image,
    record::{GhostKind, ProcessRecord, ProcessState, ThreadRecord},
};
use std::collections::{HashMap, HashSet};

/// PID_MAX_LIMIT of linux/threads.h.
const PID_LIMIT: i32 = 1 << 22;
/// `struct user_regs_struct`: 27 registers.
const GENERAL_BYTES: usize = 27 * 8;
const SIGNAL_ACTIONS: usize = 64;
const LIMITS: usize = 16;
const SIGINFO_BYTES: usize = 128;
const NAME_BYTES: usize = 15;
/// SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const STOP_SIGNALS: std::ops::RangeInclusive<i32> = 19..=22;

/// Processes that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeFault {
    /// An id that no task can have.
    #[error("{0} is not a possible id of a task")]
    Id(i32),
    /// An id that two tasks have.
    #[error("two tasks have the id {0}")]
    Twice(i32),
    /// The first thread has not the process's id.
    #[error("the first thread of process {0} is not its leader")]
    Leader(i32),
    /// A group or session without a number.
    #[error("process {0} has no process group or no session")]
    Session(i32),
    /// A zombie with threads.
    #[error("process {0} is a zombie and has {1} threads")]
    ZombieThreads(i32, usize),
    /// A state that no process can be in.
    #[error("process {0} ended or stopped in an impossible way")]
    State(i32),
    /// A signal that does not exist.
    #[error("process {pid} tells its end by signal {signal}")]
    ExitSignal {
        /// Whose.
        pid: i32,
        /// Which.
        signal: i32,
    },
    /// A list with another number of items.
    #[error("process {pid} has {got} {what}, not {wanted}")]
    Count {
        /// Whose.
        pid: i32,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// A path that is none.
    #[error("the {what} of process {pid} is not a path")]
    Path {
        /// Whose.
        pid: i32,
        /// Which.
        what: &'static str,
    },
    /// A directory that is none.
    #[error("the {what} of process {pid} is no deleted directory")]
    Directory {
        /// Whose.
        pid: i32,
        /// Which.
        what: &'static str,
    },
    /// A block of another size.
    #[error("{got} bytes of {what} of task {tid}, not {wanted}")]
    Block {
        /// Whose.
        tid: i32,
        /// Which.
        what: &'static str,
        /// Its bytes.
        got: usize,
        /// What it must have.
        wanted: usize,
    },
    /// More extended registers than the header tells of.
    #[error("{got} bytes of extended registers of task {tid}, more than {most}")]
    Extended {
        /// Whose.
        tid: i32,
        /// Their bytes.
        got: usize,
        /// The header's.
        most: usize,
    },
    /// A name that the kernel would not keep as it is.
    #[error("the name of task {0} is longer than {NAME_BYTES} bytes or holds a NUL")]
    Name(i32),
    /// Not one tree.
    #[error("{0} processes have no parent, exactly one must")]
    Roots(usize),
    /// The root is PID 1 exactly where the sandbox says that its init is part of the tree.
    #[error("the root process is {root}, and the sandbox record says that PID 1 is {} of the tree", if *has_init { "part" } else { "not part" })]
    Init {
        /// The root's PID.
        root: i32,
        /// What the sandbox record says.
        has_init: bool,
    },
    /// A parent that is not in the image.
    #[error("the parent of process {pid}, {parent}, is missing")]
    Parent {
        /// Whose.
        pid: i32,
        /// Its parent.
        parent: i32,
    },
    /// What the kernel lets no process share with its parent, or not with this one.
    #[error("process {0} can't share what it shares with its parent")]
    Shared(i32),
    /// A circle of parents.
    #[error("process {0} is its own ancestor")]
    Cycle(i32),
}

pub(super) fn check(image: &Image) -> Result<(), TreeFault> {
    let mut seen = HashSet::new();
    for process in image.processes() {
        ids(process, &mut seen)?;
        match process.state {
            ProcessState::Alive => living(image, process)?,
            ProcessState::Stopped { signal, .. } => {
                ensure(STOP_SIGNALS.contains(&signal), || TreeFault::State(process.pid.0))?;
                living(image, process)?;
            }
            ProcessState::Zombie { status } => zombie(process, status)?,
        }
    }
    let parents: HashMap<i32, i32> = image.processes().iter().map(|p| (p.pid.0, p.ppid.0)).collect();
    let roots: Vec<i32> = parents.iter().filter(|(_, p)| **p == 0).map(|(pid, _)| *pid).collect();
    let &[root] = roots.as_slice() else {
        return Err(TreeFault::Roots(roots.len()));
    };
    let has_init = image.sandbox().has_init;
    ensure(has_init == (root == 1) && has_init == seen.contains(&1), || {
        TreeFault::Init { root, has_init }
    })?;
    for (&pid, &parent) in &parents {
        ensure(parent == 0 || parents.contains_key(&parent), || TreeFault::Parent {
            pid,
            parent,
        })?;
    }
    no_cycles(&parents)?;
    shared(image)
}

/// Signal actions are shared only together with memory; zombies share nothing, and nobody shares anything with one.
fn shared(image: &Image) -> Result<(), TreeFault> {
    let living = super::living(image);
    for process in image.processes().iter().filter(|process| process.shared != 0) {
        let flags = process.shared;
        let known = flags & !(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND) == 0;
        let with_memory = flags & CLONE_SIGHAND == 0 || flags & CLONE_VM != 0;
        let alive = living.contains(&process.pid.0) && living.contains(&process.ppid.0);
        ensure(known && with_memory && alive, || TreeFault::Shared(process.pid.0))?;
    }
    Ok(())
}

fn ids(process: &ProcessRecord, seen: &mut HashSet<i32>) -> Result<(), TreeFault> {
    let pid = process.pid.0;
    for tid in process.threads.iter().map(|thread| thread.tid.0) {
        ensure((1..PID_LIMIT).contains(&tid), || TreeFault::Id(tid))?;
        ensure(seen.insert(tid), || TreeFault::Twice(tid))?;
    }
    let leader = process.threads.first().map(|thread| thread.tid);
    ensure(leader == Some(process.pid), || TreeFault::Leader(pid))?;
    let signal = process.exit_signal;
    ensure((-1..=64).contains(&signal), || TreeFault::ExitSignal { pid, signal })?;
    let valid = |id: i32| (1..PID_LIMIT).contains(&id);
    ensure(valid(process.pgid.0) && valid(process.sid.0), || {
        TreeFault::Session(pid)
    })
}

fn zombie(process: &ProcessRecord, status: i32) -> Result<(), TreeFault> {
    let (pid, threads) = (process.pid.0, process.threads.len());
    ensure(threads == 1, || TreeFault::ZombieThreads(pid, threads))?;
    // Exit status in the second byte, or signal and core flag in the first.
    let possible = status & !0xff00 == 0 || (status & !0xff == 0 && (1..=64).contains(&(status & 0x7f)));
    ensure(possible, || TreeFault::State(pid))
}

fn is_directory(image: &Image, ghost: u32) -> bool {
    let found = image.ghosts().get(ghost as usize);
    found.is_some_and(|record| record.kind == GhostKind::Directory)
}

fn living(image: &Image, process: &ProcessRecord) -> Result<(), TreeFault> {
    let pid = process.pid.0;
    let count = |what, got, wanted| ensure(got == wanted, || TreeFault::Count { pid, what, got, wanted });
    count("signal actions", process.actions.len(), SIGNAL_ACTIONS)?;
    count("resource limits", process.limits.len(), LIMITS)?;
    for (what, directory) in [("working directory", &process.cwd), ("root directory", &process.root)] {
        ensure(is_path(&directory.path), || TreeFault::Path { pid, what })?;
        let found = directory.ghost.is_none_or(|id| is_directory(image, id));
        ensure(found, || TreeFault::Directory { pid, what })?;
    }
    siginfos(pid, &process.pending)?;
    let extended = image.header().xstate_size as usize;
    let mut threads = process.threads.iter();
    if let Some(status) = process.leader_ended {
        // A thread that ends alone does so by exit(2).
        ensure(status & !0xff00 == 0 && threads.len() > 1, || TreeFault::State(pid))?;
        threads.next().map_or(Ok(()), name)?;
    }
    threads.try_for_each(|thread| task(thread, extended))
}

fn task(thread: &ThreadRecord, extended: usize) -> Result<(), TreeFault> {
    let tid = thread.tid.0;
    let general = thread.registers.general.len();
    ensure(general == GENERAL_BYTES, || TreeFault::Block {
        tid,
        what: "general registers",
        got: general,
        wanted: GENERAL_BYTES,
    })?;
    let got = thread.registers.extended.len();
    ensure(got <= extended, || TreeFault::Extended {
        tid,
        got,
        most: extended,
    })?;
    name(thread)?;
    siginfos(tid, &thread.pending)
}

fn name(thread: &ThreadRecord) -> Result<(), TreeFault> {
    let name = &thread.comm;
    ensure(name.len() <= NAME_BYTES && !name.contains(&0), || {
        TreeFault::Name(thread.tid.0)
    })
}

fn siginfos(tid: i32, pending: &[Vec<u8>]) -> Result<(), TreeFault> {
    for info in pending {
        ensure(info.len() == SIGINFO_BYTES, || TreeFault::Block {
            tid,
            what: "information about a pending signal",
            got: info.len(),
            wanted: SIGINFO_BYTES,
        })?;
    }
    Ok(())
}

fn no_cycles(parents: &HashMap<i32, i32>) -> Result<(), TreeFault> {
    let mut fine = HashSet::from([0]);
    for start in parents.keys() {
        let mut path = HashSet::new();
        let mut at = *start;
        while !fine.contains(&at) {
            ensure(path.insert(at), || TreeFault::Cycle(at))?;
            at = parents.get(&at).copied().unwrap_or(0);
        }
        fine.extend(path);
    }
    Ok(())
}
