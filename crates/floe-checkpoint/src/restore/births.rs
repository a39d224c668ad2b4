//! How tasks come to be: with the ids they had on every level of PID namespaces, clone(2), pid_namespaces(7).
//!
//! `ns_last_pid` is that of the namespace that its writer is in, and a new task takes its ids from the innermost namespace
//! outwards in one call. So somebody in each namespace writes what comes before, and then the task is made. clone3(2) takes
//! all ids at once.

use super::{
    PidMethod, RestoreError,
    contents::MadeContents,
    tree::{Heritage, World},
};
use floe_image::record::{
    NamespaceKind, NsPid, PidNamespaceRecord, PidsOfChildren, ProcessRecord, SysctlKind, SysctlRecord,
};
use floe_resources::ns::{Roots, sysctl};
use floe_sys::namespace::{Kind, ended_pids};
use floe_tracee::{Batch, CallId, Puppet, PuppetIds};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd,
    rc::Rc,
};

const NEW_PIDS: u64 = libc::CLONE_NEWPID as u64;

fn namespace_failed(source: io::Error) -> RestoreError {
    RestoreError::System {
        action: "open a PID namespace".to_owned(),
        source,
    }
}

impl World<'_> {
    /// What a task is called in the PID namespace of a process.
    pub fn called(&self, by: i32, task: i32) -> Result<i32, RestoreError> {
        let seen = self.numbering.seen_from(self.numbering.namespace(by), task);
        seen.ok_or_else(|| RestoreError::Inconsistent(format!("process {by} does not see task {task}")))
    }

    /// Has `parent` make a task that shares `flags` with it: a thread of its own, or a process.
    pub fn spawn(&self, parent: i32, task: i32, (flags, exit_signal): (u64, u64)) -> Result<Puppet, RestoreError> {
        let is_thread = flags & libc::CLONE_THREAD as u64 != 0;
        let forker = self.puppet(parent)?;
        let mut batch = forker.batch();
        let call = self.clone_call(&mut batch, (parent, task), (flags, exit_signal))?;
        let own = self.numbering.own(task);
        let ids = PuppetIds {
            process: if is_thread { parent } else { task },
            thread: task,
            own_process: if is_thread { forker.ids().own_process } else { own },
            own_thread: own,
        };
        Ok(forker.spawn(batch, call, self.called(parent, task)?, ids)?)
    }

    /// Adds to a batch of `parent` what makes a task with the ids that it is to have.
    fn clone_call(
        &self,
        batch: &mut Batch,
        (parent, task): (i32, i32),
        (flags, exit_signal): (u64, u64),
    ) -> Result<CallId, RestoreError> {
        let ids = self.numbering.ids(task);
        // Who has no privileges where the ids count needs others to choose them.
        let inside = self.whereabouts(parent).user() != 0;
        match self.method {
            PidMethod::SetTid if !inside => {
                let bytes: Vec<u8> = ids.iter().rev().flat_map(|id| id.to_ne_bytes()).collect();
                let place = batch.data(&bytes);
                // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
                // set_tid_size, cgroup.
                let words = [flags, 0, 0, 0, exit_signal, 0, 0, 0, place, ids.len() as u64, 0];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let place = batch.data(&bytes);
                Ok(batch.call("make a task", libc::SYS_clone3, &[place, bytes.len() as u64]))
            }
            PidMethod::NsLastPid | PidMethod::SetTid => {
                let path = self.numbering.path(self.numbering.namespace(task));
                let here = self.numbering.namespace(parent);
                // In a new namespace the first is 1 by itself.
                let chosen = ids.len() - usize::from(flags & NEW_PIDS != 0);
                for (namespace, id) in path.iter().zip(&ids).take(chosen) {
                    if *namespace == here && !inside {
                        self.choose_next(batch, *id);
                    } else {
                        let writer = self.somebody_in(*namespace)?;
                        let mut batch = writer.batch();
                        self.choose_next(&mut batch, *id);
                        writer.run(&mut batch)?;
                    }
                }
                Ok(batch.call("make a task", libc::SYS_clone, &[flags | exit_signal]))
            }
        }
    }

    fn choose_next(&self, batch: &mut Batch, id: i32) {
        let text = (id - 1).to_string();
        let place = batch.data(text.as_bytes());
        let arguments = [self.last_pid as u64, place, text.len() as u64, 0];
        batch.call("choose the next PID", libc::SYS_pwrite64, &arguments);
    }

    /// PID 1 of a namespace, which is there as long as the namespace is.
    pub(super) fn somebody_in(&self, namespace: u32) -> Result<&Puppet, RestoreError> {
        match namespace {
            0 => self.seed(),
            other => {
                let lacking = || RestoreError::Inconsistent(format!("PID namespace {other} has no PID 1"));
                self.puppet(self.numbering.init(other).ok_or_else(lacking)?)
            }
        }
    }

    /// Makes the settings of the tree's namespaces, when all tasks and objects are there.
    pub fn set_sysctls(&self, records: &[SysctlRecord]) -> Result<(), RestoreError> {
        for record in records {
            let (inside, task) = match (record.kind, record.namespace) {
                (SysctlKind::Ipc, number) => (Some(self.namespaces.ipc(number)?), self.seed()?),
                (SysctlKind::Pid, number) => (None, self.somebody_in(number)?),
                (SysctlKind::User, 0) => (None, self.seed()?),
                (SysctlKind::User, number) => (Some(self.namespaces.file(Kind::User, number)?), self.seed()?),
            };
            sysctl::settle(record, inside, task.tid())?;
        }
        Ok(())
    }

    /// Carries out a fork of the plan.
    pub(super) fn fork(
        &mut self,
        by: i32,
        (pid, namespace, helper): (i32, u32, bool),
        (made, roots): (&MadeContents, &Roots),
    ) -> Result<(), RestoreError> {
        let lending = self.lendings.get(&by).cloned();
        if let Some(held) = lending.as_ref().and_then(|lending| lending.before.get(&pid)) {
            self.hold(by, Heritage::Lent(Rc::new(held.clone())), made, None)?;
        }
        if helper {
            self.number(pid, namespace);
        }
        // An exit signal of 0 keeps a helper's end from its parent.
        let (shared, exit_signal) = match self.record(pid) {
            Some(record) if !helper => (record.shared, record.exit_signal),
            Some(_) | None => (0, if helper { 0 } else { libc::SIGCHLD }),
        };
        let here = self.numbering.namespace(by);
        let is_first = namespace != here && self.numbering.own(pid) == 1;
        self.lead_children(by, if is_first { here } else { namespace })?;
        let (new, exit_signal) = (if is_first { NEW_PIDS } else { 0 }, exit_signal.max(0) as u64);
        let owner = self.namespaces.owner_of_pids(namespace);
        let child = if is_first && owner != self.whereabouts(by).user() {
            self.spawn_first_of((owner, roots), (by, pid), (u64::from(shared) | new, exit_signal))?
        } else {
            let child = self.spawn(by, pid, (u64::from(shared) | new, exit_signal))?;
            self.places.insert(pid, self.whereabouts(by));
            child
        };
        if is_first {
            // It may end as a zombie before children of others are to be born into what is left of it.
            let file = File::open(format!("/proc/{}/ns/pid", child.tid())).map_err(namespace_failed)?;
            self.namespaces
                .known
                .add_pids(namespace, (Some(child.tid()), file.into()));
        }
        self.puppets.insert(pid, child);
        self.settle_in(pid)?;
        if let Some(heritage) = self.heritage.get(&by).cloned() {
            self.heritage.insert(pid, heritage);
        }
        if let Some(directories) = self.directories.get(&by).copied() {
            self.directories.entry(pid).or_insert(directories);
        }
        match lending {
            Some(lending) if lending.last == pid => self.hold(by, self.own(by)?, made, None),
            _ => Ok(()),
        }
    }

    /// Has the first process of a PID namespace be made that is a user namespace's: by a helper that has entered that one, and
    /// whose parent is the child's, too (CLONE_PARENT).
    fn spawn_first_of(
        &mut self,
        (user, roots): (u32, &Roots),
        (by, pid): (i32, i32),
        (flags, exit_signal): (u64, u64),
    ) -> Result<Puppet, RestoreError> {
        let taken = self.taken();
        let free = (2..).find(|id| !taken.contains(id) && !self.puppets.contains_key(id));
        let maker = free.expect("fewer tasks than there are ids");
        self.number(maker, self.numbering.namespace(by));
        // The child's end is told as its maker's would be.
        let puppet = self.spawn(by, maker, (0, exit_signal))?;
        self.puppets.insert(maker, puppet);
        self.places.insert(maker, self.whereabouts(by));
        self.settle_maker_in((by, maker), pid, (user, roots))?;
        let child = self.spawn(maker, pid, (flags | libc::CLONE_PARENT as u64, 0))?;
        self.places.insert(pid, self.whereabouts(maker));
        if let Some(directories) = self.directories.remove(&maker) {
            self.directories.insert(pid, directories);
        }
        self.end_helper(maker, by)?;
        self.forget_child_signal(NsPid(by), exit_signal as i32)?;
        self.numbering.remove(maker);
        self.places.remove(&maker);
        Ok(child)
    }

    /// Gives a task that is not in the image ids in the namespaces below the tree's.
    fn number(&mut self, task: i32, namespace: u32) {
        if namespace == 0 || self.numbering.namespace(task) == namespace {
            return;
        }
        let below = self.numbering.path(namespace)[1..].to_vec();
        let free = |namespace: &u32| {
            let taken: BTreeSet<i32> = self.numbering.taken(*namespace).collect();
            let mut free = (2..).filter(|id| !taken.contains(id));
            free.next().expect("fewer tasks than there are ids")
        };
        let mut inner: Vec<i32> = below.iter().map(free).collect();
        if self.numbering.init(namespace).is_none()
            && let Some(own) = inner.last_mut()
        {
            *own = 1;
        }
        self.numbering.add(task, namespace, inner);
    }

    /// Has children of a process be born into a PID namespace.
    fn lead_children(&mut self, pid: i32, namespace: u32) -> Result<(), RestoreError> {
        let own = self.numbering.namespace(pid);
        let now = self.pids_of_children.get(&pid).copied().unwrap_or(own);
        if now == namespace {
            return Ok(());
        }
        let opened = match self.namespaces.known.pids(namespace) {
            Some(file) => file.try_clone_to_owned(),
            None => File::open(format!("/proc/{}/ns/pid", self.somebody_in(namespace)?.tid())).map(Into::into),
        };
        let file = opened.map_err(namespace_failed)?;
        self.enter(self.puppet(pid)?, (Kind::Pid, file.as_fd()))?;
        self.pids_of_children.insert(pid, namespace);
        Ok(())
    }

    /// Has children of processes that get threads be born where these are, as the threads are themselves: clone(2).
    pub fn keep_children_home(&mut self, processes: &[ProcessRecord]) -> Result<(), RestoreError> {
        let crowded = processes.iter().filter(|record| record.threads.len() > 1);
        for pid in crowded.map(|record| record.pid.0) {
            if self.puppets.contains_key(&pid) {
                self.lead_children(pid, self.numbering.namespace(pid))?;
            }
        }
        Ok(())
    }

    /// Has children of all processes be born where they were to be, when nothing has to be forked any more.
    pub fn settle_pids_of_children(&mut self, processes: &[ProcessRecord]) -> Result<(), RestoreError> {
        for record in processes {
            let pid = record.pid.0;
            if !self.puppets.contains_key(&pid) {
                continue;
            }
            match record.pids_of_children {
                PidsOfChildren::Known(namespace) => self.lead_children(pid, namespace)?,
                // Who enters a user namespace makes it there.
                PidsOfChildren::New if !self.enters_user_late(record) => self.leave_for_new(pid)?,
                PidsOfChildren::New => self.lead_children(pid, self.numbering.namespace(pid))?,
                PidsOfChildren::Ended => self.lead_nowhere(pid)?,
            }
        }
        Ok(())
    }

    /// Makes PID namespaces whose PID 1 has ended, when those above are there.
    pub fn make_ended_pids(&mut self, records: &[PidNamespaceRecord]) -> Result<(), RestoreError> {
        for (number, record) in (1..).zip(records).filter(|(_, record)| record.ended) {
            let known = &self.namespaces.known;
            let above = known.one(NamespaceKind::Pid, record.parent);
            let above = above
                .ok_or_else(|| RestoreError::Inconsistent(format!("there is no PID namespace {}", record.parent)))?;
            let made = ended_pids(above, known.made(record.owner)).map_err(|source| RestoreError::System {
                action: format!("make PID namespace {number} of the image"),
                source,
            })?;
            self.namespaces.known.add_pids(number, (None, made));
        }
        Ok(())
    }

    fn leave_for_new(&mut self, pid: i32) -> Result<(), RestoreError> {
        self.lead_children(pid, self.numbering.namespace(pid))?;
        self.simple(
            pid,
            "have children be born into a new PID namespace",
            libc::SYS_unshare,
            &[NEW_PIDS],
        )
    }

    /// Has children of a process be born into a new PID namespace whose PID 1 has ended.
    fn lead_nowhere(&mut self, pid: i32) -> Result<(), RestoreError> {
        let namespace = self.numbering.add_namespace(self.numbering.namespace(pid));
        let taken = self.taken();
        let first = (2..)
            .find(|id| !taken.contains(id))
            .expect("fewer tasks than there are ids");
        self.number(first, namespace);
        self.lead_children(pid, self.numbering.namespace(pid))?;
        let helper = self.spawn(pid, first, (NEW_PIDS, 0))?;
        self.puppets.insert(first, helper);
        self.lead_children(pid, namespace)?;
        self.end_helper(first, pid)
    }

    /// Ids in the tree's PID namespace that are not free: one that names a group or a session is not, either.
    fn taken(&self) -> BTreeSet<i32> {
        let groups = self.records().flat_map(|record| [record.pgid.0, record.sid.0]);
        self.numbering.taken(0).chain(groups).chain([1]).collect()
    }

    /// Processes that stand for tasks which have ended: with their ids, where nobody has those now.
    pub fn make_ended(&self, tasks: &BTreeSet<i32>) -> Result<BTreeMap<i32, Puppet>, RestoreError> {
        let taken = self.taken();
        let mut free = (2..).filter(|id| !taken.contains(id) && !tasks.contains(id));
        tasks
            .iter()
            .map(|task| {
                let id = if taken.contains(task) {
                    free.next().unwrap_or(*task)
                } else {
                    *task
                };
                Ok((*task, self.spawn(1, id, (0, 0))?))
            })
            .collect()
    }

    /// Ends what [`make_ended`](Self::make_ended) made.
    pub fn end_all(&self, helpers: impl Iterator<Item = Puppet>) -> Result<(), RestoreError> {
        for helper in helpers {
            let pid = helper.process();
            helper.end(0)?;
            let arguments = [pid as u64, 0, libc::__WALL as u64, 0];
            self.simple(1, "reap a helper", libc::SYS_wait4, &arguments)?;
        }
        Ok(())
    }
}
