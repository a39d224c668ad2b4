//! PID namespaces below that of the tree's root, pid_namespaces(7): which one children are born into, and the ids of
//! leaders of groups and sessions that have ended.

use crate::{
    ns::Others,
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_image::record::{EndedLeaderRecord, NsPid, PidNamespaceRecord, PidsOfChildren, ProcessRecord};
use floe_sys::{Pid, namespace::Kind, parallel, procfs::ProcError};
use std::{collections::BTreeMap, io::ErrorKind, os::unix::fs::MetadataExt, path::Path};

/// All of them.
#[must_use]
pub fn records(tree: &FoundTree, others: &Others) -> Vec<PidNamespaceRecord> {
    let below = tree.pid_namespaces.iter().enumerate().skip(1);
    below
        .map(|(number, namespace)| PidNamespaceRecord {
            parent: namespace.parent as u32,
            owner: others.owner_of_pids(number),
            ended: false,
        })
        .chain(others.ended_pids())
        .collect()
}

/// The inode number of the namespace that children of a task are born into; none where there has been no child yet.
fn of_children(pid: Pid, tid: Pid) -> Result<Option<u64>, ProcError> {
    let path = format!("/proc/{pid}/task/{tid}/ns/pid_for_children");
    match std::fs::metadata(&path) {
        Ok(found) => Ok(Some(found.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProcError::Read { path, source }),
    }
}

/// Finds where children of a living process are born.
///
/// # Errors
/// [`ProcError`].
pub fn look(others: &Others, process: &FoundProcess) -> Result<PidsOfChildren, ProcError> {
    let Some(inode) = of_children(process.pid, process.task())? else {
        return Ok(PidsOfChildren::New);
    };
    let known = others.number(Kind::Pid, inode);
    Ok(known.map_or(PidsOfChildren::Ended, PidsOfChildren::Known))
}

/// The PID namespace below the tree's that a /proc shows, by its position among the tree's; 0 where it shows none of these.
#[must_use]
pub fn shown_by(proc: &Path, tree: &FoundTree) -> usize {
    let shown = std::fs::metadata(proc.join("1/ns/pid")).map(|found| found.ino());
    let mut known = tree.pid_namespaces.iter();
    shown
        .ok()
        .and_then(|shown| known.position(|known| known.inode == shown))
        .unwrap_or(0)
}

/// Adds findings for namespaces whose PID 1 is not in the tree, and for threads whose children would be born elsewhere.
///
/// # Errors
/// [`ProcError`].
pub fn refuse(tree: &FoundTree, refusals: &mut Refusals) -> Result<(), ProcError> {
    for (position, namespace) in tree.pid_namespaces.iter().enumerate().skip(1) {
        let mut inside = tree
            .processes
            .iter()
            .filter(|process| process.pid_namespace == position);
        let first = inside.clone().find(|process| process.own_pid() == 1);
        if first.is_none() {
            refusals.add(
                inside.next().map(FoundProcess::subject).as_ref(),
                format!("PID namespace pid:[{}]", namespace.inode),
                "its PID 1 is outside of the tree, and with it ends all that is in it",
                "checkpoint the tree of its PID 1, or that of who made both",
            );
        }
        // It shows only from outside where the parent is in another one than who made it.
        let parent = first.and_then(|first| tree.processes.iter().find(|other| other.ns_pid == first.ns_ppid));
        if let (Some(first), Some(parent)) = (first, parent)
            && parent.pid_namespace != namespace.parent
        {
            refusals.add(
                Some(&first.subject()),
                "PID 1 whose parent is in another PID namespace than the one above",
                "it was made with CLONE_PARENT, and there is nobody who could make it so again",
                "start it without",
            );
        }
    }
    let mut tasks = tree.tasks();
    tasks.retain(|(process, _)| process.threads.len() > 1);
    let chosen = parallel::map(&tasks, parallel::FEW_FILES, |(process, thread)| {
        of_children(process.pid, thread.tid)
    });
    for ((process, thread), chosen) in tasks.into_iter().zip(chosen) {
        let own = tree.pid_namespaces[process.pid_namespace].inode;
        if chosen? != Some(own) {
            refusals.add(
                Some(&process.subject()),
                format!(
                    "thread {} whose children are born in another PID namespace",
                    thread.ns_tid
                ),
                "a namespace that a thread has chosen alone (setns(2)) is not carried yet",
                "let the process choose it before it makes threads",
            );
        }
    }
    Ok(())
}

/// Leaders of groups and sessions that are no more, by what those who are in them call them: on the levels where they had an
/// id, and no deeper.
#[must_use]
pub fn ended_leaders(tree: &FoundTree, records: &[ProcessRecord]) -> Vec<EndedLeaderRecord> {
    let mut found: BTreeMap<i32, EndedLeaderRecord> = BTreeMap::new();
    let is_there = |id: i32| records.iter().any(|record| record.pid.0 == id);
    for process in &tree.processes {
        let both = [
            (process.ns_pgid, &process.inner_pgid),
            (process.ns_sid, &process.inner_sid),
        ];
        for (id, inner) in both.into_iter().filter(|(id, _)| !is_there(*id)) {
            let inner: Vec<NsPid> = inner.iter().take_while(|id| **id != 0).map(|id| NsPid(*id)).collect();
            if inner.is_empty() {
                continue;
            }
            let mut namespace = process.pid_namespace;
            for _ in inner.len()..process.inner.len() {
                namespace = tree.pid_namespaces[namespace].parent;
            }
            let leader = EndedLeaderRecord {
                pid: NsPid(id),
                pid_namespace: namespace as u32,
                inner,
            };
            let known = found.entry(id).or_insert_with(|| leader.clone());
            if known.inner.len() < leader.inner.len() {
                *known = leader;
            }
        }
    }
    found.into_values().collect()
}
