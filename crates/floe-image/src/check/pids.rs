//! PID namespaces below the tree's: one below the other, each with its PID 1, and ids that each has once.

use super::ensure;
use crate::{
    Image, Numbering,
    numbering::LEVELS,
    record::{FilesystemKind, NsPid, PidsOfChildren, ProcessRecord, ProcessState},
};
use std::collections::HashSet;

/// PID_MAX_LIMIT of linux/threads.h.
const PID_LIMIT: i32 = 1 << 22;

/// PID namespaces that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PidFault {
    /// One that is not below an earlier one, or too deep.
    #[error("PID namespace {0} is not below an earlier one, or is on a level that does not exist")]
    Level(u32),
    /// One that the image lacks.
    #[error("task {task} is in PID namespace {namespace}, which the image lacks")]
    Unknown {
        /// Who.
        task: i32,
        /// Which.
        namespace: u32,
    },
    /// Ids on more or fewer levels than there are.
    #[error("task {task} has ids in {got} PID namespaces below the tree's, not {wanted}")]
    Ids {
        /// Whose.
        task: i32,
        /// How many it has.
        got: usize,
        /// How many it must have.
        wanted: usize,
    },
    /// An id that no task can have, or that two have.
    #[error("{id} can't be the id of task {task} in PID namespace {namespace}")]
    Id {
        /// Whose.
        task: i32,
        /// Which.
        id: i32,
        /// Where.
        namespace: u32,
    },
    /// Nobody, or a thread, is PID 1.
    #[error("PID namespace {0} has no process that is its PID 1")]
    NoInit(u32),
    /// One that a proc shows, but that the image lacks; or what shows one is no proc.
    #[error("filesystem {id} can't show PID namespace {namespace}")]
    Shown {
        /// Which.
        id: u32,
        /// The namespace.
        namespace: u32,
    },
    /// One whose PID 1 has ended, but not as it can.
    #[error("PID namespace {0} can't be there any more as its PID 1 ended, or has ended")]
    EndedInit(u32),
    /// A process in a namespace that its parent can't have made or entered.
    #[error("process {0} is in a PID namespace that is not below its parent's")]
    Parent(i32),
    /// Children that would be born outside of their parent's.
    #[error("children of process {0} would be in a PID namespace that is not below its own")]
    Children(i32),
}

pub(super) fn check(image: &Image) -> Result<(), PidFault> {
    let count = levels(image)?;
    let numbering = Numbering::of(image);
    for record in image.filesystems() {
        let (id, namespace) = (record.id, record.pid_namespace);
        let exists = namespace < count && !has_ended(image, namespace);
        let may_show = namespace == 0 || exists && record.kind == FilesystemKind::Proc;
        ensure(may_show, || PidFault::Shown { id, namespace })?;
    }
    let mut seen = HashSet::new();
    for process in image.processes() {
        let ended = has_ended(image, process.pid_namespace);
        ensure(!ended, || PidFault::EndedInit(process.pid_namespace))?;
        for thread in &process.threads {
            let task = (thread.tid, process.pid_namespace);
            ids(task, &thread.inner, (count, &numbering), &mut seen)?;
        }
        related(process, (count, &numbering))?;
    }
    for leader in &image.sandbox().ended_leaders {
        let task = (leader.pid, leader.pid_namespace);
        ids(task, &leader.inner, (count, &numbering), &mut seen)?;
    }
    let first = |process: &ProcessRecord| {
        let ids = process.threads.first().map(|leader| leader.inner.last());
        ids.flatten() == Some(&NsPid(1))
    };
    let firsts: HashSet<u32> = (image.processes().iter())
        .filter(|process| first(process))
        .map(|process| process.pid_namespace)
        .collect();
    let alive = (1..count).filter(|number| !has_ended(image, *number));
    let mut alone = alive.filter(|number| !firsts.contains(number));
    alone.next().map_or(Ok(()), |number| Err(PidFault::NoInit(number)))?;
    ended_firsts(image, &numbering, first)
}

/// Whether nothing is left of one.
fn has_ended(image: &Image, number: u32) -> bool {
    let place = (number as usize).checked_sub(1);
    let found = place.and_then(|place| image.sandbox().pid_namespaces.get(place));
    found.is_some_and(|namespace| namespace.ended)
}

/// How many there are, the tree's own among them.
fn levels(image: &Image) -> Result<u32, PidFault> {
    let mut depths = vec![1];
    for (number, namespace) in (1..).zip(&image.sandbox().pid_namespaces) {
        let above = depths.get(namespace.parent as usize).filter(|above| **above < LEVELS);
        let deeper = *above.ok_or(PidFault::Level(number))? + 1;
        ensure(!has_ended(image, namespace.parent), || {
            PidFault::EndedInit(namespace.parent)
        })?;
        depths.push(deeper);
    }
    Ok(depths.len() as u32)
}

fn ids(
    (task, namespace): (NsPid, u32),
    inner: &[NsPid],
    (count, numbering): (u32, &Numbering),
    seen: &mut HashSet<(u32, i32)>,
) -> Result<(), PidFault> {
    let task = task.0;
    ensure(namespace < count, || PidFault::Unknown { task, namespace })?;
    let below = &numbering.path(namespace)[1..];
    ensure(inner.len() == below.len(), || PidFault::Ids {
        task,
        got: inner.len(),
        wanted: below.len(),
    })?;
    for (&namespace, id) in below.iter().zip(inner) {
        let id = id.0;
        let fine = (1..PID_LIMIT).contains(&id) && seen.insert((namespace, id));
        ensure(fine, || PidFault::Id { task, id, namespace })?;
    }
    Ok(())
}

/// With PID 1 of a namespace ends all that is in it, and below; a signal other than SIGKILL can't have ended it.
fn ended_firsts(
    image: &Image,
    numbering: &Numbering,
    is_first: impl Fn(&ProcessRecord) -> bool,
) -> Result<(), PidFault> {
    const SIGKILL: i32 = 9;
    let mut ended = HashSet::new();
    for process in image.processes().iter().filter(|process| is_first(process)) {
        let ProcessState::Zombie { status } = process.state else {
            continue;
        };
        let fault = || PidFault::EndedInit(process.pid_namespace);
        ensure([0, SIGKILL].contains(&(status & 0x7f)), fault)?;
        ended.insert(process.pid_namespace);
    }
    let mut shown = image.filesystems().iter().map(|record| record.pid_namespace);
    shown.try_for_each(|namespace| ensure(!ended.contains(&namespace), || PidFault::EndedInit(namespace)))?;
    let others = image.processes().iter().filter(|process| process.pid_namespace != 0);
    for process in others.filter(|process| !is_first(process) || !ended.contains(&process.pid_namespace)) {
        let path = numbering.path(process.pid_namespace);
        let gone = path.iter().find(|namespace| ended.contains(namespace));
        ensure(gone.is_none(), || PidFault::EndedInit(gone.copied().unwrap_or(0)))?;
    }
    Ok(())
}

fn related(process: &ProcessRecord, (count, numbering): (u32, &Numbering)) -> Result<(), PidFault> {
    let (pid, own) = (process.pid.0, process.pid_namespace);
    let above = match process.ppid.0 {
        0 => 0,
        parent => numbering.namespace(parent),
    };
    let is_root = process.ppid.0 == 0;
    let below = numbering.is_within(own, above) && (!is_root || own == 0);
    ensure(below, || PidFault::Parent(pid))?;
    match process.pids_of_children {
        PidsOfChildren::Known(theirs) => {
            let below = theirs < count && numbering.is_within(theirs, own);
            ensure(below, || PidFault::Children(pid))
        }
        PidsOfChildren::New | PidsOfChildren::Ended => Ok(()),
    }
}
