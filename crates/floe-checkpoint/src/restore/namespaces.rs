//! Namespaces that not all tasks of a tree are in, or none: made before the tree is, and entered as soon as each task can.
//!
//! Who has entered a user namespace has no privileges in those above it, so that comes last. All others are entered before, by
//! a process as soon as it is forked, and by threads when they are there. Time namespaces are entered when the clocks go on.

use super::{RestoreError, state::Crowd, task_error, tree::World};
use floe_image::{
    Image,
    record::{
        CgroupPlace, Credentials, NamespaceContents, NamespaceKind, NamespaceRecord, PidsOfChildren, ProcessRecord,
        ProcessState, SandboxRecord, TaskNamespaces, ThreadRecord,
    },
};
use floe_resources::{
    cgroup::TreeError,
    ipc,
    ns::{Known, Roots, make_namespace},
    task::{SeenUsers, Standpoint, UserEntry, become_and_enter},
};
use floe_sys::{Pid, namespace::Kind};
use floe_tracee::{Puppet, Script};
use std::{fs::File, io, os::fd::BorrowedFd};

/// Kinds that a thread can be in another one of than its process.
const OF_A_THREAD: [Kind; 4] = [Kind::Uts, Kind::Ipc, Kind::Network, Kind::Cgroup];

/// All of them that were made.
#[derive(Default)]
pub(super) struct Namespaces {
    /// Those of the tree's root, and all others; those of time come late.
    pub known: Known,
    /// Whose each is, by number.
    owners: Vec<u32>,
    /// Whose PID namespaces below the tree's are.
    owners_of_pids: Vec<u32>,
    /// How user namespaces see users.
    seen: Vec<Option<SeenUsers>>,
}

/// Files that lead whoever writes 0 to them into cgroups.
pub(super) type Entrances<'a> = dyn Fn(&[CgroupPlace]) -> Result<Vec<File>, TreeError> + 'a;

fn failed(action: String) -> impl FnOnce(io::Error) -> RestoreError {
    move |source| RestoreError::System { action, source }
}

/// The number of the namespace of a kind.
fn number(of: &TaskNamespaces, kind: Kind) -> u32 {
    match kind {
        Kind::User => of.user,
        Kind::Uts => of.uts,
        Kind::Ipc => of.ipc,
        Kind::Network => of.network,
        Kind::Time => of.time,
        Kind::Cgroup => of.cgroup,
        Kind::Mount | Kind::Pid => 0,
    }
}

impl Namespaces {
    /// Makes all but those of time, where `seed` is the first task of the new sandbox. `entrances` opens the cgroups that a
    /// cgroup namespace begins at, in which nobody may be once they hand on controllers.
    pub fn make(image: &Image, seed: Pid, entrances: &Entrances<'_>) -> Result<Self, RestoreError> {
        let mut all = Self::default();
        let records = &image.sandbox().namespaces;
        // That of time it enters late, and mount namespaces have their own numbers.
        for kind in Kind::ALL
            .into_iter()
            .filter(|kind| !matches!(kind, Kind::Time | Kind::Mount))
        {
            let action = format!("open the {kind} namespace of the new sandbox");
            all.known.add_own(kind, &seed.to_string()).map_err(failed(action))?;
        }
        let is_network = |record: &NamespaceRecord| record.contents == NamespaceContents::Network;
        if records.iter().any(is_network) {
            all.known.expect_networks();
        }
        all.seen = SeenUsers::of_all(records);
        let of_pids = image.sandbox().pid_namespaces.iter();
        all.owners_of_pids = of_pids.map(|namespace| namespace.owner).collect();
        all.owners = records.iter().map(|record| record.owner).collect();
        for (number, record) in (1..).zip(records) {
            if !matches!(record.contents, NamespaceContents::Time(_)) {
                let entrances = match &record.contents {
                    NamespaceContents::Cgroup(places) => entrances(places)?,
                    _ => Vec::new(),
                };
                let user = all.known.made(record.owner);
                let made = make_namespace(&record.contents, user, &entrances);
                let made = made.map_err(failed(format!("make namespace {number} of the image")))?;
                all.known.add(number, made);
            }
        }
        Ok(all)
    }

    /// One of a kind, by its number.
    pub fn file(&self, kind: Kind, number: u32) -> Result<BorrowedFd<'_>, RestoreError> {
        let found = NamespaceKind::named(kind.name()).and_then(|kind| self.known.one(kind, number));
        found.ok_or_else(|| RestoreError::Inconsistent(format!("there is no {kind} namespace {number}")))
    }

    /// An IPC namespace.
    pub fn ipc(&self, number: u32) -> Result<BorrowedFd<'_>, RestoreError> {
        let lacking = || RestoreError::Inconsistent(format!("there is no IPC namespace {number}"));
        self.known.ipc(number).ok_or_else(lacking)
    }

    /// How a user namespace but the tree root's sees users.
    pub fn seen(&self, user: u32) -> Result<&SeenUsers, RestoreError> {
        let found = self.seen.get(user as usize).and_then(Option::as_ref);
        found.ok_or_else(|| RestoreError::Inconsistent(format!("there is no user namespace {user}")))
    }

    /// The user namespace whose privileges count in a PID namespace.
    pub fn owner_of_pids(&self, number: u32) -> u32 {
        let place = (number as usize).checked_sub(1);
        place
            .and_then(|place| self.owners_of_pids.get(place))
            .copied()
            .unwrap_or(0)
    }

    /// Whether the privileges of a user namespace count in a namespace.
    fn is_of(&self, number: u32, user: u32) -> bool {
        let owner = |number: &u32| self.owners.get((*number as usize).checked_sub(1)?).copied();
        std::iter::successors(owner(&number), owner).any(|above| above == user)
    }

    /// Where a process is while it has one thread: for each kind in what all its threads can get from to their own. That is
    /// one that a user namespace which they will be in gives nobody back, where there is such a one.
    fn first(&self, record: &ProcessRecord) -> TaskNamespaces {
        let leader = record
            .threads
            .first()
            .map(|leader| leader.namespaces)
            .unwrap_or_default();
        let pick = |kind| {
            let mut all = record.threads.iter().map(|thread| number(&thread.namespaces, kind));
            let above = all.find(|number| leader.user != 0 && !self.is_of(*number, leader.user));
            above.unwrap_or_else(|| number(&leader, kind))
        };
        TaskNamespaces {
            uts: pick(Kind::Uts),
            ipc: pick(Kind::Ipc),
            network: pick(Kind::Network),
            cgroup: pick(Kind::Cgroup),
            ..leader
        }
    }
}

/// Where a process is by now.
#[derive(Clone, Copy, Default)]
pub(super) struct Place<'a> {
    namespaces: TaskNamespaces,
    /// In a user namespace that it entered when it was forked, or inherited: who it is there.
    early: Option<(u32, &'a Credentials)>,
}

impl Place<'_> {
    /// The user namespace whose privileges it has.
    pub fn user(&self) -> u32 {
        self.early.map_or(0, |(user, _)| user)
    }

    /// The IPC namespace that it is in.
    pub fn ipc(&self) -> u32 {
        self.namespaces.ipc
    }
}

impl<'a> World<'a> {
    /// Takes a process that was just forked to where it is to be, as far as that can be now.
    pub(super) fn settle_in(&mut self, pid: i32) -> Result<(), RestoreError> {
        let mut place = self.whereabouts(pid);
        let alive = |record: &&ProcessRecord| !matches!(record.state, ProcessState::Zombie { .. });
        if let Some(record) = self.record(pid).filter(alive) {
            let wanted = self.namespaces.first(record);
            self.move_to(self.puppet(pid)?, place.namespaces, wanted)?;
            place.namespaces = wanted;
            self.places.insert(pid, place);
        }
        Ok(())
    }

    /// Has a helper become who `first` was and enter, for good, the user namespace whose a new PID namespace is to be.
    pub(super) fn settle_maker_in(
        &mut self,
        (by, maker): (i32, i32),
        first: i32,
        (user, roots): (u32, &Roots),
    ) -> Result<(), RestoreError> {
        let lacking = || RestoreError::Inconsistent(format!("process {first} is not in the image"));
        let record = self.record(first).ok_or_else(lacking)?;
        let who = &record.threads.first().ok_or_else(lacking)?.credentials;
        let (now, wanted) = (self.whereabouts(maker), self.namespaces.first(record));
        self.move_to(self.puppet(maker)?, now.namespaces, wanted)?;
        let mounts = self.directories.get(&by).map_or(0, |(_, number)| *number);
        if mounts != record.mount_namespace {
            let namespace = roots.namespace(record.mount_namespace);
            self.enter(self.puppet(maker)?, (Kind::Mount, namespace))?;
            self.directories.insert(maker, (None, record.mount_namespace));
        }
        self.become_inside(maker, user, who)?;
        if let Some(place) = self.places.get_mut(&maker) {
            place.namespaces = wanted;
        }
        Ok(())
    }

    /// Has a process become who it was to be and enter a user namespace.
    fn become_inside(&mut self, pid: i32, user: u32, who: &'a Credentials) -> Result<(), RestoreError> {
        let mut script = Script::new(self.puppet(pid)?);
        let number = self
            .channel
            .give(&mut script, &[self.namespaces.file(Kind::User, user)?])?[0];
        let mut place = self.whereabouts(pid);
        let from = self.standpoint(&place)?;
        become_and_enter(&mut script, (who, &from), number).map_err(|e| task_error(pid, e))?;
        script.run()?;
        place.early = Some((user, who));
        self.places.insert(pid, place);
        Ok(())
    }

    pub(super) fn whereabouts(&self, pid: i32) -> Place<'a> {
        self.places.get(&pid).copied().unwrap_or_default()
    }

    /// Has a process that is to get threads enter its user namespace before, as only one without can.
    pub(super) fn enter_user_early(&mut self, record: &'a ProcessRecord) -> Result<(), RestoreError> {
        let Some(leader) = record.threads.first() else {
            return Ok(());
        };
        let (pid, user) = (record.pid.0, leader.namespaces.user);
        if record.threads.len() > 1 && self.whereabouts(pid).user() != user {
            self.become_inside(pid, user, &leader.credentials)?;
        }
        Ok(())
    }

    /// Has processes that are in their IPC namespaces adjust semaphores of these when they end, while they have the privileges
    /// of the tree's root.
    pub(super) fn adjust_early(&self, sandbox: &SandboxRecord) -> Result<(), RestoreError> {
        self.adjust(sandbox, |task, namespace| {
            let is_there = self.whereabouts(task).ipc() == namespace;
            self.puppets.get(&task).filter(|_| is_there)
        })
    }

    /// The same of those that have come to theirs only with their threads, and of threads that are elsewhere.
    pub(super) fn adjust_late(&self, sandbox: &SandboxRecord, crowd: &Crowd<'_>) -> Result<(), RestoreError> {
        self.adjust(sandbox, |task, namespace| {
            let was_there = self.whereabouts(task).ipc() == namespace;
            let process = self.puppets.get(&task).filter(|_| !was_there);
            process.or_else(|| crowd.thread(task))
        })
    }

    fn adjust<'p>(
        &self,
        sandbox: &SandboxRecord,
        find: impl Fn(i32, u32) -> Option<&'p Puppet>,
    ) -> Result<(), RestoreError> {
        for (namespace, record) in sandbox.ipc_namespaces() {
            for adjustment in &record.adjustments {
                if let Some(puppet) = find(adjustment.task.0, namespace) {
                    ipc::adjust(puppet, adjustment)?;
                }
            }
        }
        Ok(())
    }

    /// Has threads of a process, the leader first, enter namespaces of their own.
    pub(super) fn settle_threads<'p>(
        &self,
        record: &ProcessRecord,
        puppets: impl Iterator<Item = &'p Puppet>,
    ) -> Result<(), RestoreError> {
        let now = self.whereabouts(record.pid.0).namespaces;
        let mut both = record.threads.iter().zip(puppets);
        both.try_for_each(|(thread, puppet)| self.move_to(puppet, now, thread.namespaces))
    }

    /// Whether a process enters its user namespace only when all else is done.
    pub(super) fn enters_user_late(&self, record: &ProcessRecord) -> bool {
        let user = record.threads.first().map_or(0, |leader| leader.namespaces.user);
        self.whereabouts(record.pid.0).user() != user
    }

    /// How a task comes into its user namespace when all else is done; a descriptor of that is given to it where it enters
    /// then.
    pub(super) fn user_entry(
        &self,
        script: &mut Script<'_>,
        process: &ProcessRecord,
        thread: &ThreadRecord,
    ) -> Result<UserEntry<'_>, RestoreError> {
        let (user, place) = (thread.namespaces.user, self.whereabouts(process.pid.0));
        if place.user() != user {
            let number = self.channel.give(script, &[self.namespaces.file(Kind::User, user)?])?[0];
            return Ok(UserEntry::By {
                number,
                from: self.standpoint(&place)?,
                leaves_pids: process.pids_of_children == PidsOfChildren::New,
            });
        }
        match user {
            0 => Ok(UserEntry::None),
            _ => Ok(UserEntry::Inside(self.standpoint(&place)?)),
        }
    }

    /// Who a process is by now.
    fn standpoint(&self, place: &Place<'_>) -> Result<Standpoint<'_>, RestoreError> {
        Ok(match place.early {
            None => Standpoint {
                now: self.base.clone(),
                seen: None,
            },
            Some((inside, now)) => Standpoint {
                now: now.clone(),
                seen: Some(self.namespaces.seen(inside)?),
            },
        })
    }

    fn move_to(&self, puppet: &Puppet, now: TaskNamespaces, wanted: TaskNamespaces) -> Result<(), RestoreError> {
        let differs = |kind: &Kind| number(&now, *kind) != number(&wanted, *kind);
        for kind in OF_A_THREAD.into_iter().filter(differs) {
            let file = self.namespaces.file(kind, number(&wanted, kind))?;
            self.enter(puppet, (kind, file))?;
        }
        Ok(())
    }

    /// Has a task enter a namespace.
    pub(super) fn enter(&self, puppet: &Puppet, (kind, file): (Kind, BorrowedFd<'_>)) -> Result<(), RestoreError> {
        let mut script = Script::new(puppet);
        let number = self.channel.give(&mut script, &[file])?[0] as u64;
        let what = match kind {
            Kind::Time => "enter a time namespace",
            Kind::Pid => "lead children into a PID namespace",
            _ => "enter a namespace",
        };
        script.call(what, libc::SYS_setns, &[number, kind.flag() as u64])?;
        script.call("close it", libc::SYS_close, &[number])?;
        script.run()?;
        Ok(())
    }
}
