//! From the processes of an image to the ordered steps that make the same tree again: who forks whom, in which session,
//! which helper stands in for a leader that is dead. Pure: no system call, no kernel.
//!
//! A process is born into the session of the one that forks it. So a child that is in another session than its parent is
//! forked either before its parent made a session of its own; or it is an orphan, which its parent (PID 1 or a
//! subreaper) got when somebody in the child's session died. For orphans that somebody is made again, as a *helper*: it
//! is forked in the right session, forks the orphan, and ends when the whole tree stands.
//!
//! PID namespaces below the tree's begin with the process that is PID 1 there, which only somebody in the namespace above can
//! fork. Whoever else is born into one from above comes later; and each such namespace adopts its orphans by itself.

mod groups;
mod model;

use floe_image::{
    Numbering,
    record::{ProcessRecord, ProcessState},
};
use model::Model;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
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
        /// Its PID namespace, which comes to be with its first process.
        namespace: u32,
        /// Whether it is a stand-in that is not in the image.
        helper: bool,
    },
    /// The process gets its address space.
    Build(i32),
    /// The process makes a session, and a group, of its own.
    NewSession(i32),
    /// The process joins a group of its session, or makes it where it is its own.
    Join {
        /// Who puts it there: itself, or the one that forked it where it does not see the group.
        by: i32,
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
            Self::Fork {
                by,
                pid,
                namespace,
                helper,
            } => {
                let helper = if *helper { "helper " } else { "" };
                write!(f, "{by} forks {helper}{pid}")?;
                match namespace {
                    0 => Ok(()),
                    number => write!(f, " in PID namespace {number}"),
                }
            }
            Self::Build(pid) => write!(f, "{pid} gets its memory"),
            Self::NewSession(pid) => write!(f, "{pid} makes a session"),
            Self::Join { by, pid, group } if by == pid => write!(f, "{pid} joins group {group}"),
            Self::Join { by, pid, group } => write!(f, "{by} puts {pid} into group {group}"),
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
    /// A group that no order of forks brings about.
    #[error(
        "process {pid} is in group {group} of another PID namespace, and its parent {parent} could not have put it there"
    )]
    Group {
        /// Who.
        pid: i32,
        /// Its group.
        group: i32,
        /// Its parent.
        parent: i32,
    },
    /// A PID namespace that no order of forks brings about.
    #[error("process {pid} can't come into its PID namespace from {by}, which is to fork it")]
    Namespace {
        /// Who.
        pid: i32,
        /// Who forks it.
        by: i32,
    },
    /// Steps that the kernel would not take.
    #[error("the tree can't be made in any order that floe knows: {0}")]
    Impossible(String),
    /// Steps that would make another tree.
    #[error("process {0} would come to another parent, session or group in any order of forks that floe knows")]
    Differs(i32),
    /// A process that is reached from nobody.
    #[error("process {0} is no descendant of the root process")]
    Unreachable(i32),
}

/// Works out the steps for `processes` (parents before children is not required), which `numbering` tells the PID namespaces
/// of. `has_init` says whether PID 1 is among them; if not, the steps take a PID 1 for granted. Where there is a choice,
/// those in `early` are forked before their siblings.
///
/// # Errors
/// [`PlanError`].
pub fn plan(
    processes: &[ProcessRecord],
    (has_init, numbering): (bool, &Numbering),
    early: &BTreeSet<i32>,
) -> Result<Vec<Step>, PlanError> {
    let mut planner = Planner::new(processes, (has_init, numbering))?;
    planner.early.clone_from(early);
    planner.find_needs();
    planner.find_orphans()?;
    planner.grow()?;
    planner.groups()?;
    planner.endings();
    if let Some(process) = processes.iter().find(|process| !planner.born.contains(&process.pid.0)) {
        return Err(PlanError::Unreachable(process.pid.0));
    }
    let model = Model::run(&planner.steps, numbering).map_err(PlanError::Impossible)?;
    model.compare(processes, has_init)?;
    Ok(planner.steps)
}

const INIT: i32 = 1;

struct Node {
    parent: i32,
    session: i32,
    group: i32,
    /// Whether it adopts others' children, as a subreaper or a PID 1.
    reaper: bool,
    subreaper: bool,
    state: ProcessState,
    /// CLONE_* flags of what it shares with its parent.
    shared: u32,
    children: Vec<i32>,
    /// The session it must be born into; `None` where any will do.
    need: Option<i32>,
    /// Its PID namespace.
    namespace: u32,
    /// Whether it is PID 1 there.
    is_first: bool,
}

struct Helper {
    pid: i32,
    parent: i32,
    /// Whether an orphan of a PID 1 hangs on it (else on a subreaper), which decides when it ends.
    for_init: bool,
}

/// Where a process stands while the tree is made.
#[derive(Clone, Copy)]
struct Now {
    by: i32,
    session: i32,
    group: i32,
    namespace: u32,
}

struct Planner<'a> {
    numbering: &'a Numbering,
    nodes: BTreeMap<i32, Node>,
    /// Parents before children.
    order: Vec<i32>,
    taken: BTreeSet<i32>,
    /// Orphans by the process that forks the helper they come from, with the helper's id where that matters.
    orphans: HashMap<i32, Vec<(Option<i32>, i32)>>,
    helpers: Vec<Helper>,
    born: BTreeSet<i32>,
    /// Where those stand that are there, helpers too.
    now: HashMap<i32, Now>,
    /// PID namespaces that are there.
    namespaces: BTreeSet<u32>,
    /// Who waits to be born into a namespace, and by whom.
    waiting: BTreeMap<u32, Vec<Work>>,
    /// Forked before their siblings.
    early: BTreeSet<i32>,
    steps: Vec<Step>,
}

#[derive(Clone, Copy)]
enum Work {
    /// Visit one that `by` can't fork itself, by a helper, or by the dead leader of its session.
    Orphan {
        by: i32,
        leader: Option<i32>,
        orphan: i32,
    },
    Visit {
        pid: i32,
        by: i32,
    },
    Emit(Step),
    /// Join the group, where it is there.
    Group(i32),
}

impl<'a> Planner<'a> {
    fn new(processes: &[ProcessRecord], (has_init, numbering): (bool, &'a Numbering)) -> Result<Self, PlanError> {
        let mut nodes: BTreeMap<i32, Node> = processes
            .iter()
            .map(|process| (process.pid.0, node(process, numbering)))
            .collect();
        if !has_init {
            let state = ProcessState::Alive;
            let init = Node {
                parent: 0,
                session: INIT,
                group: INIT,
                reaper: true,
                subreaper: false,
                state,
                shared: 0,
                children: vec![],
                need: None,
                namespace: 0,
                is_first: true,
            };
            nodes.insert(INIT, init);
            nodes
                .iter_mut()
                .filter(|(pid, node)| **pid != INIT && node.parent == 0)
                .for_each(|(_, n)| n.parent = INIT);
        }
        let init = nodes.get_mut(&INIT).ok_or(PlanError::NoRoot)?;
        (init.reaper, init.is_first) = (true, true);
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
        let first = Now {
            by: 0,
            session: INIT,
            group: INIT,
            namespace: 0,
        };
        Ok(Self {
            numbering,
            nodes,
            order,
            taken,
            orphans,
            helpers,
            born,
            now: HashMap::from([(INIT, first)]),
            namespaces: BTreeSet::from([0]),
            waiting: BTreeMap::new(),
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
    fn grow(&mut self) -> Result<(), PlanError> {
        let mut work = VecDeque::from([Work::Visit { pid: INIT, by: 0 }]);
        let orphaned: BTreeSet<i32> = self.orphans.values().flatten().map(|(_, pid)| *pid).collect();
        while let Some(next) = work.pop_front() {
            match next {
                Work::Emit(step) => {
                    self.emit(step);
                    if let Step::Fork { namespace, .. } = step
                        && self.namespaces.insert(namespace)
                    {
                        work.extend(self.waiting.remove(&namespace).unwrap_or_default());
                    }
                }
                Work::Group(pid) => self.join_early(pid),
                Work::Visit { pid, by } if pid != INIT && !self.can_come(pid, by)? => {
                    let namespace = self.nodes[&pid].namespace;
                    self.waiting.entry(namespace).or_default().push(next);
                }
                Work::Visit { pid, by } => prepend(&mut work, self.visit(pid, by, &orphaned)),
                Work::Orphan { by, leader, orphan } => {
                    let namespace = self.adopter(orphan).namespace;
                    if self.namespaces.contains(&namespace) {
                        prepend(&mut work, self.visit_orphan(by, leader, orphan)?);
                    } else {
                        self.waiting.entry(namespace).or_default().push(next);
                    }
                }
            }
        }
        match self.waiting.values().flatten().next() {
            Some(Work::Visit { pid, by } | Work::Orphan { orphan: pid, by, .. }) => {
                Err(PlanError::Namespace { pid: *pid, by: *by })
            }
            Some(Work::Emit(_) | Work::Group(_)) | None => Ok(()),
        }
    }

    /// Whether a process can be forked into its PID namespace now, or only when that is there.
    fn can_come(&self, pid: i32, by: i32) -> Result<bool, PlanError> {
        let (node, from) = (&self.nodes[&pid], self.now[&by]);
        let namespace = node.namespace;
        let makes_it = node.is_first && self.numbering.parent(namespace) == Some(from.namespace);
        if makes_it || namespace == from.namespace {
            return Ok(true);
        }
        if node.is_first || !self.numbering.is_within(namespace, from.namespace) {
            return Err(PlanError::Namespace { pid, by });
        }
        let is_there = self.namespaces.contains(&namespace);
        // One that waited may find that its parent has left for a session of its own.
        match node.need {
            Some(session) if is_there && session != from.session => {
                let parent = node.parent;
                Err(PlanError::Session { pid, session, parent })
            }
            _ => Ok(is_there),
        }
    }

    /// Adds a step, and notes where it leads.
    fn emit(&mut self, step: Step) {
        match step {
            Step::Fork { by, pid, namespace, .. } => {
                let forker = self.now[&by];
                self.now.insert(
                    pid,
                    Now {
                        by,
                        namespace,
                        ..forker
                    },
                );
            }
            Step::NewSession(pid) => {
                if let Some(now) = self.now.get_mut(&pid) {
                    (now.session, now.group) = (pid, pid);
                }
            }
            Step::Join { pid, group, .. } => {
                if let Some(now) = self.now.get_mut(&pid) {
                    now.group = group;
                }
            }
            Step::Build(_) | Step::Subreaper(_) | Step::EndHelper { .. } | Step::EndZombie(_) | Step::Stop(_) => {}
        }
        self.steps.push(step);
    }

    fn visit(&mut self, pid: i32, by: i32, orphaned: &BTreeSet<i32>) -> Vec<Work> {
        let virtual_init = pid == INIT && self.born.contains(&INIT);
        let mut list = Vec::new();
        let node = &self.nodes[&pid];
        if pid != INIT {
            list.push(Work::Emit(Step::Fork {
                by,
                pid,
                namespace: node.namespace,
                helper: false,
            }));
        }
        self.born.insert(pid);
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
        // Early, as those of its children who do not see the group must be born into it.
        if pid != INIT && !is_leader {
            list.push(Work::Group(pid));
        }
        let after = after.into_iter().map(|child| (None, child));
        let orphans = self.orphans.remove(&pid).unwrap_or_default();
        let orphans = orphans.into_iter().map(|(leader, orphan)| (Some(leader), orphan));
        list.extend(self.early_first(after.chain(orphans), pid));
        list
    }

    /// Visits children, and orphans each with the dead leader it needs, those first that are to be forked early.
    fn early_first(&self, children: impl Iterator<Item = (Option<Option<i32>>, i32)>, by: i32) -> Vec<Work> {
        let mut children: Vec<_> = children.collect();
        children.sort_by_key(|(_, child)| !self.early.contains(child));
        let visit = |(orphan_of, child)| match orphan_of {
            None => Work::Visit { pid: child, by },
            Some(leader) => Work::Orphan {
                by,
                leader,
                orphan: child,
            },
        };
        children.into_iter().map(visit).collect()
    }

    /// The orphan comes from a helper that `by` forks: one in its session, or the dead leader of that session.
    fn visit_orphan(&mut self, by: i32, dead_leader: Option<i32>, orphan: i32) -> Result<Vec<Work>, PlanError> {
        let adopter = self.adopter(orphan);
        // Orphans stay in the namespace of who left them.
        let (for_init, namespace) = (adopter.is_first, adopter.namespace);
        if !self.numbering.is_within(namespace, self.now[&by].namespace) {
            return Err(PlanError::Namespace { pid: orphan, by });
        }
        let known = dead_leader.filter(|leader| self.helpers.iter().any(|helper| helper.pid == *leader));
        let mut list = Vec::new();
        let pid = known.unwrap_or_else(|| {
            let pid = dead_leader.unwrap_or_else(|| self.free_id());
            list.push(Work::Emit(Step::Fork {
                by,
                pid,
                namespace,
                helper: true,
            }));
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
        Ok(list)
    }

    /// Who has adopted it.
    fn adopter(&self, orphan: i32) -> &Node {
        &self.nodes[&self.nodes[&orphan].parent]
    }

    fn free_id(&mut self) -> i32 {
        let id = (2..)
            .find(|id| !self.taken.contains(id))
            .expect("fewer tasks than there are ids");
        self.taken.insert(id);
        id
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
        let reapers = self.nodes.iter().filter(|(pid, node)| node.subreaper && **pid != INIT);
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

fn prepend(work: &mut VecDeque<Work>, list: Vec<Work>) {
    for next in list.into_iter().rev() {
        work.push_front(next);
    }
}

fn node(process: &ProcessRecord, numbering: &Numbering) -> Node {
    let is_first = process.pid_namespace != 0 && numbering.own(process.pid.0) == 1;
    Node {
        parent: process.ppid.0,
        session: process.sid.0,
        group: process.pgid.0,
        reaper: process.subreaper || is_first,
        subreaper: process.subreaper,
        state: process.state,
        shared: process.shared,
        children: Vec::new(),
        need: None,
        namespace: process.pid_namespace,
        is_first,
    }
}

#[cfg(test)]
mod tests;
