//! What the kernel makes of a plan: setsid(2), setpgid(2), credentials(7) and pid_namespaces(7) as a model. A plan that would end
//! as another tree than the one that was saved is none.

use super::{INIT, PlanError, Step};
use floe_image::{
    Numbering,
    record::{ProcessRecord, ProcessState},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    pub parent: i32,
    pub session: i32,
    pub group: i32,
    pub zombie: bool,
    pub reaper: bool,
    pub namespace: u32,
}

/// All that are there.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub processes: BTreeMap<i32, Stand>,
    children: HashMap<i32, BTreeSet<i32>>,
    /// How many are in a group of a session, by group and session.
    groups: BTreeMap<(i32, i32), usize>,
    firsts: BTreeMap<u32, i32>,
}

impl Model {
    /// Carries out steps; an error says what the kernel would refuse.
    pub(super) fn run(steps: &[Step], numbering: &Numbering) -> Result<Self, String> {
        let mut model = Self::default();
        let init = Stand {
            parent: 0,
            session: INIT,
            group: INIT,
            zombie: false,
            reaper: true,
            namespace: 0,
        };
        model.firsts.insert(0, INIT);
        model.put(INIT, init);
        for step in steps {
            model.step(*step, numbering)?;
        }
        Ok(model)
    }

    fn step(&mut self, step: Step, numbering: &Numbering) -> Result<(), String> {
        match step {
            Step::Fork { by, pid, namespace, .. } => {
                let forker = self.of(by)?;
                let is_new = !self.firsts.contains_key(&namespace);
                let fits = if is_new {
                    numbering.parent(namespace) == Some(forker.namespace) && numbering.own(pid) == 1
                } else {
                    numbering.is_within(namespace, forker.namespace)
                };
                ensure(fits && !forker.zombie, || {
                    format!("{by} can't fork {pid} into namespace {namespace}")
                })?;
                ensure(!self.processes.contains_key(&pid), || format!("{pid} is taken"))?;
                if is_new {
                    self.firsts.insert(namespace, pid);
                }
                let child = Stand {
                    parent: by,
                    reaper: is_new,
                    namespace,
                    ..forker
                };
                self.put(pid, child);
            }
            Step::NewSession(pid) => {
                let stand = self.of(pid)?;
                let leads = self.groups.range((pid, i32::MIN)..=(pid, i32::MAX)).next().is_some();
                ensure(!leads, || format!("{pid} leads a group and can't make a session"))?;
                self.put(
                    pid,
                    Stand {
                        session: pid,
                        group: pid,
                        ..stand
                    },
                );
            }
            Step::Join { by, pid, group } => {
                let (caller, stand) = (self.of(by)?, self.of(pid)?);
                let may = by == pid || stand.parent == by && caller.session == stand.session;
                ensure(may && stand.session != pid, || {
                    format!("{by} can't put {pid} into a group")
                })?;
                let is_there = pid == group || self.groups.contains_key(&(group, stand.session));
                ensure(is_there, || format!("there is no group {group} for {pid}"))?;
                let seen = numbering.is_within(self.of(group)?.namespace, caller.namespace);
                ensure(seen, || format!("{by} does not see group {group}"))?;
                self.put(pid, Stand { group, ..stand });
            }
            Step::Subreaper(pid) => {
                let stand = self.of(pid)?;
                self.put(pid, Stand { reaper: true, ..stand });
            }
            Step::EndHelper { pid, parent } => {
                ensure(self.of(pid)?.parent == parent, || format!("{parent} can't reap {pid}"))?;
                self.orphan_children(pid)?;
                self.take(pid);
            }
            Step::EndZombie(pid) => {
                self.orphan_children(pid)?;
                let stand = self.of(pid)?;
                self.put(pid, Stand { zombie: true, ..stand });
            }
            Step::Build(_) | Step::Stop(_) => {}
        }
        Ok(())
    }

    fn of(&self, pid: i32) -> Result<Stand, String> {
        self.processes
            .get(&pid)
            .copied()
            .ok_or_else(|| format!("{pid} is not there"))
    }

    fn put(&mut self, pid: i32, stand: Stand) {
        self.take(pid);
        *self.groups.entry((stand.group, stand.session)).or_default() += 1;
        self.children.entry(stand.parent).or_default().insert(pid);
        self.processes.insert(pid, stand);
    }

    fn take(&mut self, pid: i32) {
        let Some(stand) = self.processes.remove(&pid) else {
            return;
        };
        if let Some(siblings) = self.children.get_mut(&stand.parent) {
            siblings.remove(&pid);
        }
        let group = (stand.group, stand.session);
        if let Some(count) = self.groups.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                self.groups.remove(&group);
            }
        }
    }

    /// Gives the children of one that ends to the nearest subreaper above it in its PID namespace, or to the PID 1 of that.
    fn orphan_children(&mut self, dying: i32) -> Result<(), String> {
        let orphans = self.children.get(&dying).cloned().unwrap_or_default();
        if orphans.is_empty() {
            return Ok(());
        }
        let namespace = self.of(dying)?.namespace;
        let first = self.firsts.get(&namespace).copied().unwrap_or(INIT);
        let mut reaper = self.of(dying)?.parent;
        let adopter = loop {
            match self.processes.get(&reaper) {
                Some(above) if above.namespace == namespace && above.reaper => break reaper,
                Some(above) if above.namespace == namespace => reaper = above.parent,
                Some(_) | None => break first,
            }
        };
        for orphan in orphans {
            let stand = self.of(orphan)?;
            self.put(
                orphan,
                Stand {
                    parent: adopter,
                    ..stand
                },
            );
        }
        Ok(())
    }

    /// Compares with the processes that were saved; an error names the first that would be another one.
    pub(super) fn compare(&self, processes: &[ProcessRecord], has_init: bool) -> Result<(), PlanError> {
        for process in processes {
            let pid = process.pid.0;
            let parent = match process.ppid.0 {
                0 if !has_init => INIT,
                parent => parent,
            };
            let wanted = (
                parent,
                process.sid.0,
                process.pgid.0,
                matches!(process.state, ProcessState::Zombie { .. }),
                process.pid_namespace,
            );
            let is = self.processes.get(&pid);
            let is = is.map(|is| (is.parent, is.session, is.group, is.zombie, is.namespace));
            if is != Some(wanted) {
                return Err(PlanError::Differs(pid));
            }
        }
        Ok(())
    }
}

fn ensure(holds: bool, else_say: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(else_say()) }
}
