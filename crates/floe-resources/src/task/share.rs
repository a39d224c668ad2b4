//! What processes share by the flags of clone(2): address space, descriptors, directories and umask, signal actions.

use crate::{
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_sys::{
    Pid,
    kcmp::{self, Resource},
};
use nix::errno::Errno;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

/// What can be shared: the kernel's name of it, the flag that shares it, and words.
const SHAREABLE: [(Resource, i32, &str); 4] = [
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

/// What each process of a tree shares with its parent.
#[derive(Debug, Default)]
pub struct Sharing(HashMap<Pid, u32>);

impl Sharing {
    /// Finds it out. Who shares with somebody else but not with its parent is refused: only the parent's call can have
    /// made it share, and that one has ended or changed since.
    #[must_use]
    pub fn find(tree: &FoundTree, refusals: &mut Refusals) -> Self {
        let mut found = HashMap::new();
        let by_ns_pid: BTreeMap<i32, &FoundProcess> = tree.living().map(|process| (process.ns_pid, process)).collect();
        for (resource, flag, name) in SHAREABLE {
            let mut processes: Vec<&FoundProcess> = by_ns_pid.values().copied().collect();
            processes.sort_by(|a, b| compare(resource, a.task(), b.task()));
            let same = |a: &&FoundProcess, b: &&FoundProcess| compare(resource, a.task(), b.task()) == Ordering::Equal;
            for group in processes.chunk_by(same) {
                let is_in_group = |pid: Pid| group.iter().any(|process| process.pid == pid);
                let mut first = None;
                for process in group {
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
            refuse_shared_with_outside(root, refusals);
        }
        Self(found)
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

/// The tree's root and its parent, which stays behind.
fn refuse_shared_with_outside(root: &FoundProcess, refusals: &mut Refusals) {
    let parent = root.stat.ppid;
    for (resource, _, name) in SHAREABLE {
        if parent > 0 && compare(resource, root.task(), Pid::new(parent)) == Ordering::Equal {
            refusals.add(
                Some(&root.subject()),
                format!("{name} shared with its parent {parent}"),
                "its parent is no part of the tree",
                "checkpoint the tree that begins with the parent",
            );
        }
    }
}

/// Adds a finding for every thread that does not share with its process what threads usually do.
pub(super) fn refuse_unshared_threads(process: &FoundProcess, refusals: &mut Refusals) {
    for thread in process.threads.iter().skip(1) {
        for (resource, _, name) in [SHAREABLE[1], SHAREABLE[2]] {
            if !matches!(
                kcmp::compare(resource, (process.task(), 0), (thread.tid, 0)),
                Ok(Ordering::Equal) | Err(_)
            ) {
                refusals.add(
                    Some(&process.subject()),
                    format!("thread {} with its own {name}", thread.ns_tid),
                    "threads that unshared state from their process are not carried yet",
                    "don't call unshare in a thread",
                );
            }
        }
    }
}

fn compare(resource: Resource, a: Pid, b: Pid) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    match kcmp::compare(resource, (a, 0), (b, 0)) {
        Ok(order) => order,
        // A task that has ended since shares nothing any more.
        Err(Errno::ESRCH) => a.cmp(&b),
        Err(error) => {
            tracing::debug!(%error, "kcmp");
            a.cmp(&b)
        }
    }
}
