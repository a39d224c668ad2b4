//! What processes share by the flags of clone(2): address space, descriptors, directories and umask, signal actions.

use crate::{
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_sys::{
    Pid,
    kcmp::{self, Resource},
    parallel,
};
use nix::errno::Errno;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

/// What can be shared: the kernel's name of it, the flag that shares it, and words.
type Shareable = (Resource, i32, &'static str);

const SHAREABLE: [Shareable; 4] = [
    (Resource::Memory, libc::CLONE_VM, "memory (CLONE_VM)"),
    (Resource::Descriptors, libc::CLONE_FILES, "descriptors (CLONE_FILES)"),
    (
        Resource::Filesystem,
        libc::CLONE_FS,
        "working directory and umask (CLONE_FS)",
    ),
    (
        Resource::SignalActions,
        libc::CLONE_SIGHAND,
        "signal actions (CLONE_SIGHAND)",
    ),
];

/// So many processes take longer to compare than a thread to begin.
const FEW_PROCESSES: usize = 50;

/// Two tasks that could not be compared.
#[derive(Debug, thiserror::Error)]
#[error("find out whether tasks {first} and {second} share their {name}")]
pub struct ShareError {
    first: Pid,
    second: Pid,
    name: &'static str,
    source: Errno,
}

/// What each process of a tree shares with its parent.
#[derive(Debug, Default)]
pub struct Sharing(HashMap<Pid, u32>);

impl Sharing {
    /// Finds it out. Who shares with somebody else but not with its parent is refused: only the parent's call can have
    /// made it share, and that one has ended or changed since. So are threads that do not share with their process what
    /// threads usually do.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn find(tree: &FoundTree, refusals: &mut Refusals) -> Result<Self, ShareError> {
        let mut found = HashMap::new();
        let by_ns_pid: BTreeMap<i32, &FoundProcess> = tree.living().map(|process| (process.ns_pid, process)).collect();
        let worth = if by_ns_pid.len() < FEW_PROCESSES { usize::MAX } else { 1 };
        let all = parallel::map(&SHAREABLE, worth, |shareable| {
            groups(by_ns_pid.values().copied(), *shareable)
        });
        for ((_, flag, name), groups) in SHAREABLE.into_iter().zip(all) {
            for group in groups? {
                let is_in_group = |pid: Pid| group.iter().any(|process| process.pid == pid);
                let mut first = None;
                for process in &group {
                    let parent = by_ns_pid.get(&process.ns_ppid);
                    if parent.is_some_and(|parent| is_in_group(parent.pid)) {
                        *found.entry(process.pid).or_insert(0) |= flag as u32;
                        continue;
                    }
                    if let Some(first) = first.replace(process.ns_pid) {
                        refusals.add(
                            Some(&process.subject()),
                            format!("{name} shared with task {first}"),
                            "what is shared with another process than the parent can't be shared again",
                            "use threads, or let the parent of both share it too",
                        );
                    }
                }
            }
        }
        if let Some(root) = tree.root() {
            refuse_shared_with_outside(root, refusals)?;
        }
        tree.living()
            .try_for_each(|process| refuse_unshared_threads(process, refusals))?;
        Ok(Self(found))
    }

    /// CLONE_* flags of what a process shares with its parent.
    #[must_use]
    pub fn with_parent(&self, process: &FoundProcess) -> u32 {
        self.0.get(&process.pid).copied().unwrap_or(0)
    }

    /// Whether its parent has the same one of what `flag` stands for.
    #[must_use]
    pub fn shares(&self, process: &FoundProcess, flag: i32) -> bool {
        self.with_parent(process) & flag as u32 != 0
    }
}

/// Processes that have the same, together.
fn groups<'a>(
    processes: impl Iterator<Item = &'a FoundProcess>,
    shareable: Shareable,
) -> Result<Vec<Vec<&'a FoundProcess>>, ShareError> {
    let mut groups: Vec<Vec<&FoundProcess>> = Vec::new();
    for process in processes {
        let mut failure = None;
        let place = groups.binary_search_by(|group| {
            compare(shareable, group[0].task(), process.task()).unwrap_or_else(|error| {
                failure = Some(error);
                Ordering::Equal
            })
        });
        match (failure, place) {
            (Some(error), _) => return Err(error),
            (None, Ok(index)) => groups[index].push(process),
            (None, Err(index)) => groups.insert(index, vec![process]),
        }
    }
    Ok(groups)
}

/// The tree's root and its parent, which stays behind.
fn refuse_shared_with_outside(root: &FoundProcess, refusals: &mut Refusals) -> Result<(), ShareError> {
    let parent = root.stat.ppid;
    let is_same = |shareable| match compare(shareable, root.task(), Pid::new(parent)) {
        // One that has more rights than floe, as the host's PID 1 may, where orphans come to: who shared anything with that
        // would have them too, and could not be looked at either.
        Err(ShareError {
            source: Errno::EPERM, ..
        }) => Ok(false),
        compared => compared.map(|order| order == Ordering::Equal),
    };
    for shareable in SHAREABLE {
        if parent > 0 && is_same(shareable)? {
            refusals.add(
                Some(&root.subject()),
                format!("{} shared with its parent {parent}", shareable.2),
                "its parent is no part of the tree",
                "checkpoint the tree that begins with the parent",
            );
        }
    }
    Ok(())
}

fn refuse_unshared_threads(process: &FoundProcess, refusals: &mut Refusals) -> Result<(), ShareError> {
    for thread in process.threads.iter().skip(1) {
        for shareable in [SHAREABLE[1], SHAREABLE[2]] {
            if compare(shareable, process.task(), thread.tid)? != Ordering::Equal {
                refusals.add(
                    Some(&process.subject()),
                    format!("thread {} with its own {}", thread.ns_tid, shareable.2),
                    "threads that unshared state from their process are not carried yet",
                    "don't call unshare in a thread",
                );
            }
        }
    }
    Ok(())
}

fn compare((resource, _, name): Shareable, first: Pid, second: Pid) -> Result<Ordering, ShareError> {
    if first == second {
        return Ok(Ordering::Equal);
    }
    match kcmp::compare(resource, (first, 0), (second, 0)) {
        // A task that has ended since shares nothing any more.
        Err(Errno::ESRCH) => Ok(first.cmp(&second)),
        compared => compared.map_err(|source| ShareError {
            first,
            second,
            name,
            source,
        }),
    }
}
