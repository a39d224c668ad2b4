//! From the processes of an image to the ordered steps that make the same tree again: who forks whom, in which session,
//! which helper stands in for a leader that is dead. Pure: no system call, no kernel.
//!
//! A process is born into the session of the one that forks it. So a child that is in another session than its parent is
//! forked either before its parent made a session of its own; or it is an orphan, which its parent (PID 1 or a
//! subreaper) got when somebody in the child's session died. For orphans that somebody is made again, as a *helper*: it
//! is forked in the right session, forks the orphan, and ends when the whole tree stands.

use floe_image::record::{ProcessRecord, ProcessState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// One step. Ids are those inside the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `by` makes the process `pid`. A helper sends no signal when it ends.
    Fork {
        /// Who forks.
        by: i32,
        /// The new process.
        pid: i32,
        /// Whether it is a stand-in that is not in the image.
        helper: bool,
    },
    /// The process gets its address space.
    Build(i32),
    /// The process makes a session, and a group, of its own.
    NewSession(i32),
    /// The process joins a group of its session, or makes it where it is its own.
    Join {
        /// Who.
        pid: i32,
        /// Which group.
        group: i32,
    },
    /// The process adopts orphans among its descendants from now on.
    Subreaper(i32),
    /// A helper ends and its parent reaps it.
    EndHelper {
        /// Which.
        pid: i32,
        /// Whose child it is.
        parent: i32,
    },
    /// The process ends and stays a zombie.
    EndZombie(i32),
    /// The process is stopped by job control.
    Stop(i32),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork { by, pid, helper: false } => write!(f, "{by} forks {pid}"),
            Self::Fork { by, pid, helper: true } => write!(f, "{by} forks helper {pid}"),
            Self::Build(pid) => write!(f, "{pid} gets its memory"),
            Self::NewSession(pid) => write!(f, "{pid} makes a session"),
            Self::Join { pid, group } => write!(f, "{pid} joins group {group}"),
            Self::Subreaper(pid) => write!(f, "{pid} becomes a subreaper"),
            Self::EndHelper { pid, parent } => write!(f, "helper {pid} ends, reaped by {parent}"),
            Self::EndZombie(pid) => write!(f, "{pid} ends and stays a zombie"),
            Self::Stop(pid) => write!(f, "{pid} is stopped"),
        }
    }
}

/// A tree that can't be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The image holds no process that could be the first.
    #[error("the image holds no root process")]
    NoRoot,
    /// Sessions that no order of forks brings about.
    #[error(
        "process {pid} is in session {session}, which its parent {parent} never was in and could not have adopted it from"
    )]
    Session {
        /// Who.
        pid: i32,
        /// Its session.
        session: i32,
        /// Its parent.
        parent: i32,
    },
    /// Sharing with a parent that does not fork it.
    #[error("process {pid} shares state with its parent {parent}, which can't fork it into session {session}")]
    Shared {
        /// Who.
        pid: i32,
        /// Its parent.
        parent: i32,
        /// Its session.
        session: i32,
    },
    /// A process that is reached from nobody.
    #[error("process {0} is no descendant of the root process")]
    Unreachable(i32),
}

/// Works out the steps for `processes` (parents before children is not required). `has_init` says whether PID 1 is among
/// them; if not, the steps take a PID 1 for granted. Where there is a choice, those in `early` are forked before their
/// siblings.
///
/// # Errors
/// [`PlanError`].
pub fn plan(processes: &[ProcessRecord], has_init: bool, early: &BTreeSet<i32>) -> Result<Vec<Step>, PlanError> {
    let mut planner = Planner::new(processes, has_init)?;
    planner.early.clone_from(early);
    planner.find_needs();
    planner.find_orphans()?;
    planner.grow();
    planner.groups();
    planner.endings();
    match processes.iter().find(|process| !planner.born.contains(&process.pid.0)) {
        Some(process) => Err(PlanError::Unreachable(process.pid.0)),
        None => Ok(planner.steps),
    }
}

const INIT: i32 = 1;

struct Node {
    parent: i32,
    session: i32,
    group: i32,
    reaper: bool,
    state: ProcessState,
    /// CLONE_* flags of what it shares with its parent.
    shared: u32,
    children: Vec<i32>,
    /// The session it must be born into; `None` where any will do.
    need: Option<i32>,
}

struct Helper {
    pid: i32,
    parent: i32,
    /// Whether an orphan of PID 1 hangs on it (else on a subreaper), which decides when it ends.
    for_init: bool,
}

struct Planner {
    nodes: BTreeMap<i32, Node>,
    /// Parents before children.
    order: Vec<i32>,
    taken: BTreeSet<i32>,
    /// Orphans by the process that forks the helper they come from, with the helper's id where that matters.
    orphans: HashMap<i32, Vec<(Option<i32>, i32)>>,
    helpers: Vec<Helper>,
    born: BTreeSet<i32>,
    /// Forked before their siblings.
    early: BTreeSet<i32>,
    steps: Vec<Step>,
}

enum Work {
    Visit { pid: i32, by: i32 },
    Emit(Step),
}

impl Planner {
    fn new(processes: &[ProcessRecord], has_init: bool) -> Result<Self, PlanError> {
        let mut nodes: BTreeMap<i32, Node> = processes.iter().map(|process| (process.pid.0, node(process))).collect();
        if !has_init {
            let state = ProcessState::Alive;
            let init = Node {
                parent: 0,
                session: INIT,
                group: INIT,
                reaper: true,
                state,
                shared: 0,
                children: vec![],
                need: None,
            };
            nodes.insert(INIT, init);
            nodes
                .iter_mut()
                .filter(|(pid, node)| **pid != INIT && node.parent == 0)
                .for_each(|(_, n)| n.parent = INIT);
        }
        nodes.get_mut(&INIT).ok_or(PlanError::NoRoot)?.reaper = true;
        let links: Vec<(i32, i32)> = nodes.iter().map(|(pid, node)| (*pid, node.parent)).collect();
        for (pid, parent) in links {
            if let Some(node) = nodes.get_mut(&parent) {
                node.children.push(pid);
            }
        }
        let mut taken: BTreeSet<i32> = nodes.values().flat_map(|node| [node.session, node.group]).collect();
        taken.extend(nodes.keys());
        taken.extend(
            processes
                .iter()
                .flat_map(|process| process.threads.iter().map(|thread| thread.tid.0)),
        );
        let mut order = vec![INIT];
        let mut at = 0;
        while let Some(pid) = order.get(at) {
            order.extend(nodes[pid].children.iter().copied());
            at += 1;
        }
        let born = if has_init {
            BTreeSet::new()
        } else {
            BTreeSet::from([INIT])
        };
        let (orphans, helpers, steps) = (HashMap::new(), Vec::new(), Vec::new());
        Ok(Self {
            nodes,
            order,
            taken,
            orphans,
            helpers,
            born,
            early: BTreeSet::new(),
            steps,
        })
    }

    /// Children first: which session each process must be born into.
    fn find_needs(&mut self) {
        for pid in self.order.iter().rev() {
            let node = &self.nodes[pid];
            let need = if node.session != *pid {
                Some(node.session)
            } else if node.reaper {
                // Children in other sessions can be orphans it adopted.
                None
            } else {
                let needs = node.children.iter().filter_map(|child| self.nodes[child].need);
                needs.into_iter().find(|need| need != pid)
            };
            if let Some(node) = self.nodes.get_mut(pid) {
                node.need = need;
            }
        }
    }

    fn find_orphans(&mut self) -> Result<(), PlanError> {
        for pid in self.order.clone() {
            let node = &self.nodes[&pid];
            let (parent, Some(session)) = (node.parent, node.need) else {
                continue;
            };
            let Some(above) = self.nodes.get(&parent) else { continue };
            let lived_there = above.session == session || above.session == parent && above.need == Some(session);
            if lived_there {
                continue;
            }
            if node.shared != 0 {
                return Err(PlanError::Shared { pid, parent, session });
            }
            if !above.reaper {
                return Err(PlanError::Session { pid, session, parent });
            }
            let leader_stands = self.nodes.get(&session).is_some_and(|leader| leader.session == session);
            if leader_stands {
                self.orphans.entry(session).or_default().push((None, pid));
            } else {
                self.orphans.entry(parent).or_default().push((Some(session), pid));
            }
        }
        Ok(())
    }

    /// Forks the tree, depth first, without recursion: the tree of an image may be deep.
    fn grow(&mut self) {
        let mut work = vec![Work::Visit { pid: INIT, by: 0 }];
        let orphaned: BTreeSet<i32> = self.orphans.values().flatten().map(|(_, pid)| *pid).collect();
        while let Some(next) = work.pop() {
            match next {
                Work::Emit(step) => self.steps.push(step),
                Work::Visit { pid, by } => {
                    let mut list = self.visit(pid, by, &orphaned);
                    list.reverse();
                    work.extend(list);
                }
            }
        }
    }

    fn visit(&mut self, pid: i32, by: i32, orphaned: &BTreeSet<i32>) -> Vec<Work> {
        let virtual_init = pid == INIT && self.born.contains(&INIT);
        let mut list = Vec::new();
        if pid != INIT {
            list.push(Work::Emit(Step::Fork { by, pid, helper: false }));
        }
        self.born.insert(pid);
        let node = &self.nodes[&pid];
        let has_memory = node.shared & libc::CLONE_VM as u32 == 0;
        if !virtual_init && has_memory && !matches!(node.state, ProcessState::Zombie { .. }) {
            list.push(Work::Emit(Step::Build(pid)));
        }
        let is_leader = node.session == pid;
        let own = node.children.iter().filter(|child| !orphaned.contains(child));
        let (before, after): (Vec<i32>, Vec<i32>) =
            own.partition(|child| is_leader && self.nodes[child].need.is_some_and(|need| need != pid));
        list.extend(self.early_first(before.into_iter().map(|child| (None, child)), pid));
        // PID 1 is started as the leader of a session already.
        if is_leader && pid != INIT {
            list.push(Work::Emit(Step::NewSession(pid)));
        }
        let after = after.into_iter().map(|child| (None, child));
        let orphans = self.orphans.remove(&pid).unwrap_or_default();
        let orphans = orphans.into_iter().map(|(leader, orphan)| (Some(leader), orphan));
        list.extend(self.early_first(after.chain(orphans), pid));
        list
    }

    /// Visits children, and orphans each with the dead leader it needs, those first that are to be forked early.
    fn early_first(&mut self, children: impl Iterator<Item = (Option<Option<i32>>, i32)>, by: i32) -> Vec<Work> {
        let mut children: Vec<_> = children.collect();
        children.sort_by_key(|(_, child)| !self.early.contains(child));
        let visit = |(orphan_of, child)| match orphan_of {
            None => vec![Work::Visit { pid: child, by }],
            Some(leader) => self.visit_orphan(by, leader, child),
        };
        children.into_iter().flat_map(visit).collect()
    }

    /// The orphan comes from a helper that `by` forks: one in its session, or the dead leader of that session.
    fn visit_orphan(&mut self, by: i32, dead_leader: Option<i32>, orphan: i32) -> Vec<Work> {
        let for_init = self.nodes[&orphan].parent == INIT;
        let known = dead_leader.filter(|leader| self.helpers.iter().any(|helper| helper.pid == *leader));
        let mut list = Vec::new();
        let pid = known.unwrap_or_else(|| {
            let pid = dead_leader.unwrap_or_else(|| self.free_id());
            list.push(Work::Emit(Step::Fork { by, pid, helper: true }));
            if dead_leader.is_some() {
                list.push(Work::Emit(Step::NewSession(pid)));
            }
            self.helpers.push(Helper {
                pid,
                parent: by,
                for_init,
            });
            pid
        });
        list.push(Work::Visit { pid: orphan, by: pid });
        list
    }

    fn free_id(&mut self) -> i32 {
        let id = (2..)
            .find(|id| !self.taken.contains(id))
            .expect("fewer tasks than there are ids");
        self.taken.insert(id);
        id
    }

    /// Process groups: leaders first; for a dead leader a helper makes the group.
    fn groups(&mut self) {
        let mut members: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (pid, node) in self
            .nodes
            .iter()
            .filter(|(pid, node)| **pid != INIT && node.group != node.session)
        {
            members.entry(node.group).or_default().push(*pid);
        }
        // Session leaders lead the group of the same number already; others of the session may be in it by birth, or
        // have been born into another group, so they join it explicitly.
        for (pid, node) in self
            .nodes
            .iter()
            .filter(|(pid, node)| node.group == node.session && node.session != **pid)
        {
            if *pid != INIT {
                members.entry(node.group).or_default().push(*pid);
            }
        }
        for (group, pids) in members {
            if self.nodes.contains_key(&group) {
                if pids.contains(&group) {
                    self.steps.push(Step::Join { pid: group, group });
                }
            } else if !self.helpers.iter().any(|helper| helper.pid == group) {
                let by = pids[0];
                self.steps.push(Step::Fork {
                    by,
                    pid: group,
                    helper: true,
                });
                self.steps.push(Step::Join { pid: group, group });
                self.helpers.push(Helper {
                    pid: group,
                    parent: by,
                    for_init: false,
                });
            }
            let others = pids.into_iter().filter(|pid| *pid != group);
            self.steps.extend(others.map(|pid| Step::Join { pid, group }));
        }
    }

    /// Helpers whose orphans go to PID 1 end while there is no subreaper; then those of subreapers; then zombies; then
    /// stops, because the end of a process may wake stopped groups.
    fn endings(&mut self) {
        let end = |helper: &Helper| Step::EndHelper {
            pid: helper.pid,
            parent: helper.parent,
        };
        // A helper may have forked another one: the younger ends first.
        self.steps
            .extend(self.helpers.iter().rev().filter(|helper| helper.for_init).map(end));
        let reapers = self.nodes.iter().filter(|(pid, node)| node.reaper && **pid != INIT);
        self.steps.extend(reapers.map(|(pid, _)| Step::Subreaper(*pid)));
        self.steps
            .extend(self.helpers.iter().rev().filter(|helper| !helper.for_init).map(end));
        for (pid, node) in self.nodes.iter().rev() {
            if matches!(node.state, ProcessState::Zombie { .. }) {
                self.steps.push(Step::EndZombie(*pid));
            }
        }
        for (pid, node) in &self.nodes {
            if matches!(node.state, ProcessState::Stopped { .. }) {
                self.steps.push(Step::Stop(*pid));
            }
        }
    }
}

fn node(process: &ProcessRecord) -> Node {
    Node {
        parent: process.ppid.0,
        session: process.sid.0,
        group: process.pgid.0,
        reaper: process.subreaper,
        state: process.state,
        shared: process.shared,
        children: Vec::new(),
        need: None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
