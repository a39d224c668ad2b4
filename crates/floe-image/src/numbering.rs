//! The ids of all tasks of an image on every level of PID namespaces.

use crate::{
    Image,
    record::{EndedLeaderRecord, NsPid, PidNamespaceRecord, ProcessRecord},
};
use std::collections::HashMap;

/// MAX_PID_NS_LEVEL of linux/pid_namespace.h, and the host's own.
pub(crate) const LEVELS: usize = 33;

/// Who is called what by whom. Namespaces are numbered as in the image, 0 is the tree's own; tasks are named by their ids
/// in that.
#[derive(Debug, Clone)]
pub struct Numbering {
    /// Of each namespace those from the tree's own down to it.
    paths: Vec<Vec<u32>>,
    /// Namespace, and the ids in those below the tree's.
    tasks: HashMap<i32, (u32, Vec<i32>)>,
}

impl Numbering {
    /// That of an image.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let sandbox = image.sandbox();
        Self::new(&sandbox.pid_namespaces, &sandbox.ended_leaders, image.processes())
    }

    /// From records. A namespace that is not below an earlier one, or too deep, counts as being below the tree's own.
    #[must_use]
    pub fn new(namespaces: &[PidNamespaceRecord], ended: &[EndedLeaderRecord], processes: &[ProcessRecord]) -> Self {
        let mut paths = vec![vec![0]];
        for (number, namespace) in (1..).zip(namespaces) {
            let above = paths.get(namespace.parent as usize).filter(|path| path.len() < LEVELS);
            let mut path = above.cloned().unwrap_or_else(|| vec![0]);
            path.push(number);
            paths.push(path);
        }
        let plain = |inner: &[NsPid]| inner.iter().map(|id| id.0).collect::<Vec<_>>();
        let ended = ended.iter().map(|leader| {
            let ids = plain(&leader.inner);
            (leader.pid.0, (leader.pid_namespace, ids))
        });
        let living = processes.iter().flat_map(|process| {
            let namespace = process.pid_namespace;
            let threads = process.threads.iter();
            threads.map(move |thread| (thread.tid.0, (namespace, plain(&thread.inner))))
        });
        let tasks = ended.chain(living).collect();
        Self { paths, tasks }
    }

    /// Adds a namespace below another one; its number.
    pub fn add_namespace(&mut self, parent: u32) -> u32 {
        let number = self.paths.len() as u32;
        let mut path = self.path(parent).to_vec();
        path.push(number);
        self.paths.push(path);
        number
    }

    /// Adds a task of a namespace, with its ids below the tree's.
    pub fn add(&mut self, task: i32, namespace: u32, inner: Vec<i32>) {
        self.tasks.insert(task, (namespace, inner));
    }

    /// Forgets a task that has ended.
    pub fn remove(&mut self, task: i32) {
        self.tasks.remove(&task);
    }

    /// The namespaces from the tree's own down to one.
    #[must_use]
    pub fn path(&self, namespace: u32) -> &[u32] {
        self.paths.get(namespace as usize).map_or(&[0], Vec::as_slice)
    }

    /// The one above a namespace; none above the tree's.
    #[must_use]
    pub fn parent(&self, namespace: u32) -> Option<u32> {
        let path = self.path(namespace);
        path.len().checked_sub(2).and_then(|at| path.get(at)).copied()
    }

    /// Whether a namespace is another one, or below it.
    #[must_use]
    pub fn is_within(&self, namespace: u32, other: u32) -> bool {
        self.path(namespace).contains(&other)
    }

    /// The namespace of a task; that of one that is not known is the tree's.
    #[must_use]
    pub fn namespace(&self, task: i32) -> u32 {
        self.tasks.get(&task).map_or(0, |(namespace, _)| *namespace)
    }

    /// A task's ids from the tree's namespace down to its own.
    #[must_use]
    pub fn ids(&self, task: i32) -> Vec<i32> {
        let inner = self.tasks.get(&task).map_or(&[][..], |(_, inner)| inner);
        std::iter::once(task).chain(inner.iter().copied()).collect()
    }

    /// A task's id in its own namespace.
    #[must_use]
    pub fn own(&self, task: i32) -> i32 {
        self.tasks
            .get(&task)
            .and_then(|(_, inner)| inner.last().copied())
            .unwrap_or(task)
    }

    /// What a task is called in a namespace; none where it is not seen from there.
    #[must_use]
    pub fn seen_from(&self, namespace: u32, task: i32) -> Option<i32> {
        let level = self.path(namespace).len() - 1;
        let is_there = self.is_within(self.namespace(task), namespace);
        self.ids(task).get(level).copied().filter(|_| is_there)
    }

    /// Ids that tasks have in a namespace.
    pub fn taken(&self, namespace: u32) -> impl Iterator<Item = i32> {
        self.tasks
            .keys()
            .filter_map(move |task| self.seen_from(namespace, *task))
    }

    /// PID 1 of a namespace.
    #[must_use]
    pub fn init(&self, namespace: u32) -> Option<i32> {
        let mut tasks = self.tasks.iter();
        let found = tasks.find(|(task, (of, _))| *of == namespace && self.own(**task) == 1);
        found.map(|(task, _)| *task)
    }
}

#[cfg(test)]
mod tests {
    use super::{Numbering, PidNamespaceRecord};

    /// Two namespaces below each other beside a third.
    fn three() -> Numbering {
        let namespaces = [0, 1, 0].map(|parent| PidNamespaceRecord {
            parent,
            owner: 0,
            ended: false,
        });
        let mut numbering = Numbering::new(&namespaces, &[], &[]);
        for (task, namespace, inner) in [(1, 0, vec![]), (5, 1, vec![1]), (9, 2, vec![4, 1]), (12, 3, vec![1])] {
            numbering.add(task, namespace, inner);
        }
        numbering
    }

    #[test]
    fn tasks_are_called_by_whom_they_are_seen() {
        let numbering = three();
        let seen = |task| [0, 1, 2, 3].map(|namespace| numbering.seen_from(namespace, task));
        assert_eq!(seen(1), [Some(1), None, None, None]);
        assert_eq!(seen(9), [Some(9), Some(4), Some(1), None]);
        assert_eq!(seen(12), [Some(12), None, None, Some(1)]);
        assert_eq!((numbering.own(9), numbering.own(1)), (1, 1));
    }

    #[test]
    fn namespaces_have_their_firsts() {
        let numbering = three();
        let firsts = [0, 1, 2, 3].map(|namespace| numbering.init(namespace));
        assert_eq!(firsts, [Some(1), Some(5), Some(9), Some(12)]);
        assert_eq!((numbering.parent(2), numbering.parent(0)), (Some(1), None));
        assert!(numbering.is_within(2, 1) && !numbering.is_within(3, 1));
    }
}
