//! Process groups: who joins which, when, and through whom.
//!
//! setpgid(2) takes numbers of the caller's PID namespace. A process in a namespace below that of its group's leader does not
//! see the group: the one that forked it puts it there, or it is born into it.

use super::{Helper, INIT, PlanError, Planner, Step};
use std::collections::BTreeMap;

impl Planner<'_> {
    /// Joins the own group, or one that is there, as soon as a process is there.
    pub(super) fn join_early(&mut self, pid: i32) {
        let (group, now) = (self.nodes[&pid].group, self.now[&pid]);
        let leads = self.now.get(&group);
        let is_there =
            pid == group || leads.is_some_and(|leader| (leader.group, leader.session) == (group, now.session));
        if now.group != group
            && is_there
            && let Some(by) = self.who_joins(pid, group)
        {
            self.emit(Step::Join { by, pid, group });
        }
    }

    /// Those that are not where they belong: leaders first; for a dead leader a helper makes the group.
    pub(super) fn groups(&mut self) -> Result<(), PlanError> {
        let mut members: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let others = self.nodes.iter().filter(|(pid, _)| **pid != INIT);
        for (pid, node) in others.filter(|(pid, node)| self.now.get(pid).is_some_and(|now| now.group != node.group)) {
            members.entry(node.group).or_default().push(*pid);
        }
        for (group, pids) in members {
            if self.nodes.contains_key(&group) {
                if pids.contains(&group) {
                    self.join(group, group)?;
                }
            } else if !self.helpers.iter().any(|helper| helper.pid == group) {
                self.make_group(group, &pids)?;
            }
            for pid in pids.into_iter().filter(|pid| *pid != group) {
                self.join(pid, group)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, pid: i32, group: i32) -> Result<(), PlanError> {
        let parent = self.nodes[&pid].parent;
        let by = self.who_joins(pid, group);
        let by = by.ok_or(PlanError::Group { pid, group, parent })?;
        self.emit(Step::Join { by, pid, group });
        Ok(())
    }

    /// Who can put a process into a group: itself, or its forker, which must be in the same session.
    fn who_joins(&self, pid: i32, group: i32) -> Option<i32> {
        let now = self.now.get(&pid)?;
        let forker = self.now.get(&now.by).filter(|forker| forker.session == now.session);
        let place = self.now.get(&group)?.namespace;
        let sees = |namespace: u32| self.numbering.is_within(place, namespace);
        if sees(now.namespace) {
            return Some(pid);
        }
        forker.filter(|forker| sees(forker.namespace)).map(|_| now.by)
    }

    /// Has a helper make a group whose leader has ended: in its namespace, and in the session of its members.
    fn make_group(&mut self, group: i32, members: &[i32]) -> Result<(), PlanError> {
        let first = members[0];
        let (namespace, session) = (self.numbering.namespace(group), self.nodes[&first].session);
        let fits = |pid: &i32| {
            let now = self.now.get(pid).filter(|now| now.session == session);
            now.is_some_and(|now| self.numbering.is_within(namespace, now.namespace))
        };
        let forkers = members.iter().filter_map(|pid| self.now.get(pid)).map(|now| now.by);
        let by = members
            .iter()
            .copied()
            .find(fits)
            .or_else(|| forkers.clone().find(fits));
        let parent = self.nodes[&first].parent;
        let by = by.ok_or(PlanError::Group {
            pid: first,
            group,
            parent,
        })?;
        self.emit(Step::Fork {
            by,
            pid: group,
            namespace,
            helper: true,
        });
        self.emit(Step::Join {
            by: group,
            pid: group,
            group,
        });
        self.helpers.push(Helper {
            pid: group,
            parent: by,
            for_init: false,
        });
        Ok(())
    }
}
