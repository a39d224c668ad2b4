//! Namespaces of a tree whose tasks are not all in the same, or that none is in: which there are, whose they are, and who is
//! in them.

use super::{
    contents,
    held::{Held, Identity},
    inside::{NsError, stand_inside},
};
use crate::{
    cgroup::FoundCgroups,
    ns::{MountSpaces, NetworkSpace},
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_image::record::{
    AddressSpaceRecord, NamespaceRecord, PidNamespaceRecord, ProcessRecord, TaskNamespaces, VmaRecord, VmaSource,
};
use floe_sys::{
    Pid,
    namespace::{self, Kind, Standing},
    parallel,
};
use nix::{errno::Errno, sys::stat::fstat};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// Kinds of which a thread can be in another one than its process: of the others the kernel lets only a process of one
/// thread change, or one that shares no directories (setns(2)), which is found otherwise.
const OF_A_THREAD: [Kind; 4] = [Kind::Uts, Kind::Ipc, Kind::Network, Kind::Cgroup];
/// All kinds but PIDs and mounts, which are found otherwise.
const OF_A_PROCESS: [Kind; 6] = [
    Kind::User,
    Kind::Uts,
    Kind::Ipc,
    Kind::Network,
    Kind::Cgroup,
    Kind::Time,
];

/// A kind, and the name of a link in /proc/PID/ns to a namespace of it.
type Named = (Kind, &'static str);
/// That of the time namespace into which a task's children are born.
const OF_CHILDREN: Named = (Kind::Time, "time_for_children");

/// Which namespaces a task is in, or its children, by their inode numbers.
struct Links(Vec<(Named, u64)>);

impl Links {
    /// Reads those of which a task of the process can have others than its process; all of the one that this can be asked for by.
    fn read(process: &FoundProcess, tid: Pid) -> Result<Self, NsError> {
        let kinds = if tid == process.task() {
            &OF_A_PROCESS[..]
        } else {
            &OF_A_THREAD
        };
        let names = kinds.iter().map(|kind| (*kind, kind.name())).chain([OF_CHILDREN]);
        let read = |named: Named| Ok((named, inode_at(path(process.pid, tid, named.1))?));
        names.map(read).collect::<Result<_, _>>().map(Self)
    }

    fn of(&self, wanted: Named) -> Option<u64> {
        self.0
            .iter()
            .find(|(named, _)| *named == wanted)
            .map(|(_, inode)| *inode)
    }
}

/// A namespace that is not the one of the tree's root.
#[derive(Debug)]
pub(super) struct Other {
    pub kind: Kind,
    inode: u64,
    /// The user namespace whose privileges count in it, by its inode number.
    owner: u64,
    pub file: Rc<OwnedFd>,
    /// A task whose children are in it.
    pub member: Option<Pid>,
    /// That one, where it is floe's, as none of the tree's is in it.
    standing: Option<Standing>,
}

impl Other {
    /// How findings name it.
    pub fn title(&self) -> String {
        format!("{} namespace {}:[{}]", self.kind, self.kind, self.inode)
    }
}

/// All namespaces of a tree but those of PIDs.
#[derive(Debug)]
pub struct Others {
    /// Those of the tree's root; but the user namespace is the one that floe is in, which the root may be below.
    root: HashMap<Kind, u64>,
    /// That task itself.
    root_task: Option<Pid>,
    /// User namespaces first, each behind the one above it.
    others: Vec<Other>,
    /// Time namespaces that processes lead their children into, and are not in themselves.
    led: HashSet<u64>,
    /// Mount namespaces, of which the first is the tree root's.
    mounts: Vec<u64>,
    /// PID namespaces, of which the first is the tree root's; those that have ended come last.
    pids: Vec<u64>,
    /// The numbers of what is above those that have ended.
    above_ended: Vec<u32>,
    /// Owners of the mount namespaces.
    of_mounts: Vec<u64>,
    /// Owners of the PID namespaces below the tree's.
    of_pids: Vec<u64>,
    /// Those that the tree keeps, but not alone.
    elsewhere: BTreeSet<Identity>,
}

fn read_error(path: String) -> impl FnOnce(io::Error) -> NsError {
    move |source| NsError::Read { path, source }
}

fn path(pid: Pid, tid: Pid, name: &str) -> String {
    format!("/proc/{pid}/task/{tid}/ns/{name}")
}

/// As the link of /proc names it, `uts:[4026531838]`, which is told sooner than by following it.
fn inode_at(path: String) -> Result<u64, NsError> {
    let number = std::fs::read_link(&path).and_then(|link| {
        let name = link.to_str().and_then(|name| name.strip_suffix(']'));
        let number = name.and_then(|name| name.split_once(":[")?.1.parse().ok());
        number.ok_or_else(|| io::ErrorKind::InvalidData.into())
    });
    number.map_err(read_error(path))
}

fn inode_of(file: &OwnedFd) -> io::Result<u64> {
    Ok(fstat(file.as_fd())?.st_ino)
}

fn refuse_kind(process: &FoundProcess, name: &str, refusals: &mut Refusals) {
    refusals.add(
        Some(&process.subject()),
        format!("{name} namespace of its own"),
        "tasks of one tree in different namespaces of this kind are not carried yet",
        "give the whole tree one",
    );
}

impl Others {
    /// Finds them; what can't be made again is refused. The root's cgroup namespace counts among the others where it begins
    /// elsewhere than at the tree's own cgroups.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn find(
        tree: &FoundTree,
        (spaces, held, cgroups): (&MountSpaces, &Held, &FoundCgroups),
        refusals: &mut Refusals,
    ) -> Result<Self, NsError> {
        let inode_of = |number| inode_at(format!("/proc/{}/ns/mnt", spaces.task(number)));
        let mut found = Self {
            mounts: spaces.numbers().map(inode_of).collect::<Result<_, _>>()?,
            root: HashMap::new(),
            root_task: tree.root().map(FoundProcess::task),
            others: Vec::new(),
            led: HashSet::new(),
            pids: tree.pid_namespaces.iter().map(|known| known.inode).collect(),
            above_ended: Vec::new(),
            of_mounts: Vec::new(),
            of_pids: Vec::new(),
            elsewhere: held.elsewhere(),
        };
        let Some(root) = tree.root() else { return Ok(found) };
        let begins_elsewhere = |kind: &Kind| *kind == Kind::Cgroup && cgroups.root_is_elsewhere;
        for kind in OF_A_PROCESS.into_iter().filter(|kind| !begins_elsewhere(kind)) {
            let path = match kind {
                Kind::User => "/proc/self/ns/user".to_owned(),
                _ => path(root.task(), root.task(), kind.name()),
            };
            found.root.insert(kind, inode_at(path)?);
        }
        found.refuse_owned_below(root, refusals)?;
        let tasks = tree.tasks();
        let links = parallel::map(&tasks, parallel::FEW_FILES, |(process, thread)| {
            Links::read(process, thread.tid)
        });
        let mut links = tasks.into_iter().zip(links);
        for process in tree.living() {
            let own = links.by_ref().take(process.threads.len());
            let own: Vec<(Pid, Links)> = own
                .map(|((_, thread), links)| Ok((thread.tid, links?)))
                .collect::<Result<_, NsError>>()?;
            found.meet_all(process, &own, refusals)?;
        }
        found.refuse_shared(&held.of_outsiders(tree, !found.others.is_empty())?, refusals);
        found.meet_held(held)?;
        found.find_owners_of_pids(tree, refusals)?;
        found.meet_ended(held, refusals)?;
        found.find_owners_of_mounts(spaces, refusals)?;
        found.find_owners(refusals)?;
        found.refuse_times(tree, refusals)?;
        Ok(found)
    }

    /// Refuses a tree whose own namespaces belong to a user namespace that floe is not in: those of a new sandbox are of floe's.
    fn refuse_owned_below(&self, root: &FoundProcess, refusals: &mut Refusals) -> Result<(), NsError> {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::User) {
            let path = path(root.pid, root.task(), kind.name());
            if inode_at(path.clone())? == inode_at(format!("/proc/self/ns/{kind}"))? {
                continue;
            }
            let file = File::open(&path).map_err(read_error(path.clone()))?;
            let is_floes = match namespace::owner(file.as_fd()) {
                Ok(owner) => self.root.get(&Kind::User) == Some(&inode_of(&owner).map_err(read_error(path))?),
                // It belongs to one above.
                Err(Errno::EPERM) => true,
                Err(error) => return Err(read_error(path)(error.into())),
            };
            if !is_floes {
                let reason = format!("its {kind} namespace belongs to that, and floe as the host's root stays outside");
                let advice = "have it saved by the user who made it";
                refusals.add(Some(&root.subject()), "user namespace of its own", reason, advice);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Notes the namespaces that a process is in, by what was read of each of its threads; the one that it can be asked for by
    /// comes first.
    fn meet_all(
        &mut self,
        process: &FoundProcess,
        threads: &[(Pid, Links)],
        refusals: &mut Refusals,
    ) -> Result<(), NsError> {
        let Some(((leader, first), others)) = threads.split_first() else {
            return Ok(());
        };
        for (name, inode) in &first.0 {
            self.meet(*name, *inode, (process, *leader), refusals)?;
        }
        let led = first.of(OF_CHILDREN);
        if led != first.of((Kind::Time, Kind::Time.name())) && led.is_some_and(|led| !self.led.insert(led)) {
            let reason = "two processes that are not in it lead their children there";
            refusals.add(
                Some(&process.subject()),
                "time namespace of its children",
                reason,
                "end one",
            );
        }
        for (tid, links) in others {
            for (name, inode) in links.0.iter().filter(|(name, _)| *name != OF_CHILDREN) {
                self.meet(*name, *inode, (process, *tid), refusals)?;
            }
            if links.of(OF_CHILDREN) != led {
                refuse_kind(process, OF_CHILDREN.1, refusals);
            }
        }
        Ok(())
    }

    /// Notes the namespace that a task, or its children, are in.
    fn meet(
        &mut self,
        (kind, name): Named,
        inode: u64,
        (process, tid): (&FoundProcess, Pid),
        refusals: &mut Refusals,
    ) -> Result<(), NsError> {
        // What a task tells of its time namespace is that of its children.
        let member = (name != Kind::Time.name()).then_some(tid);
        if let Some(place) = self.find_other(kind, inode) {
            let known = &mut self.others[place].member;
            *known = known.or(member);
            return Ok(());
        }
        if self.root.get(&kind) == Some(&inode) {
            return Ok(());
        }
        if inode_at(format!("/proc/self/ns/{kind}"))? == inode {
            refusals.add(
                Some(&process.subject()),
                format!("the host's {kind} namespace, where the tree's root is in another one"),
                "a restored tree can't leave its own",
                "start it from outside of the tree",
            );
            return Ok(());
        }
        let path = path(process.pid, tid, name);
        let file = File::open(&path).map_err(read_error(path))?;
        self.others.push(Other {
            kind,
            inode,
            owner: 0,
            file: Rc::new(file.into()),
            member,
            standing: None,
        });
        Ok(())
    }

    /// User namespaces below the one that floe is in, by number.
    pub(super) fn users(&self) -> impl Iterator<Item = (u32, &Other)> {
        let all = (1..).zip(&self.others);
        all.filter(|(_, other)| other.kind == Kind::User)
    }

    /// Refuses those of which others than the tree would keep the old one, when it has a new one.
    fn refuse_shared(&self, elsewhere: &BTreeSet<Identity>, refusals: &mut Refusals) {
        let shared = |other: &&Other| elsewhere.contains(&(other.kind, other.inode));
        for other in self.others.iter().filter(shared) {
            let reason = "processes outside of the tree are in it, or the host keeps it, too";
            refusals.add(None, other.title(), reason, "end them, or save them too; unmount it");
        }
    }

    /// Notes those that no task is in.
    fn meet_held(&mut self, held: &Held) -> Result<(), NsError> {
        for kind in OF_A_PROCESS {
            let own = inode_at(format!("/proc/self/ns/{kind}"))?;
            for (inode, file) in held.of_kind(kind) {
                if self.number(kind, inode).is_some() || inode == own {
                    continue;
                }
                let wrap = || read_error(format!("{kind} namespace {kind}:[{inode}]"));
                let standing = stand_inside(file.as_fd()).map_err(wrap())?;
                self.others.push(Other {
                    kind,
                    inode,
                    owner: 0,
                    file: Rc::new(file.try_clone().map_err(wrap())?),
                    member: Some(standing.task()),
                    standing: Some(standing),
                });
            }
        }
        Ok(())
    }

    /// Notes PID namespaces that have ended: nobody is left in them, or somebody would have been found.
    fn meet_ended(&mut self, held: &Held, refusals: &mut Refusals) -> Result<(), NsError> {
        let known = self.pids.len();
        for (inode, file) in held.of_kind(Kind::Pid) {
            if self.pids.contains(&inode) {
                continue;
            }
            let title = format!("PID namespace pid:[{inode}]");
            let wrap = |source: Errno| read_error(format!("what {title} is below"))(source.into());
            let above = match namespace::parent(file.as_fd()) {
                Ok(above) => fstat(above).map_err(wrap)?.st_ino,
                // It is above floe's own.
                Err(Errno::EPERM) => 0,
                Err(error) => return Err(wrap(error)),
            };
            let Some(above) = self.pids[..known].iter().position(|known| *known == above) else {
                let reason = "what it is below is not the tree's, or has ended before, and nobody can be born there";
                refusals.add(None, title, reason, "close what keeps it");
                continue;
            };
            let owner = self.note_owner(namespace::owner(file.as_fd()), &title, refusals)?;
            self.pids.push(inode);
            self.of_pids.push(owner);
            self.above_ended.push(above as u32);
        }
        Ok(())
    }

    /// PID namespaces that have ended.
    pub(super) fn ended_pids(&self) -> impl Iterator<Item = PidNamespaceRecord> {
        let first = self.pids.len() - self.above_ended.len();
        (first..)
            .zip(&self.above_ended)
            .map(|(number, above)| PidNamespaceRecord {
                parent: *above,
                owner: self.owner_of_pids(number),
                ended: true,
            })
    }

    fn find_other(&self, kind: Kind, inode: u64) -> Option<usize> {
        let is_it = |other: &Other| (other.kind, other.inode) == (kind, inode);
        self.others.iter().position(is_it)
    }

    /// Refuses time namespaces that are a user namespace's and that processes are in, or are born into a user namespace in:
    /// these could not enter them, nor be in the ones that their makers make.
    fn refuse_times(&self, tree: &FoundTree, refusals: &mut Refusals) -> Result<(), NsError> {
        let root = self.root.get(&Kind::User);
        let has_tasks = |other: &&Other| other.kind == Kind::Time && other.standing.is_none();
        let times = self.others.iter().filter(has_tasks);
        for other in times.filter(|other| Some(&other.owner) != root) {
            let reason = "one that is a user namespace's of its own is not carried yet";
            refusals.add(None, other.title(), reason, "let the tree's root make it");
        }
        for process in tree.living().filter(|process| process.pid_namespace > 0) {
            let is_below = self.of_pids.get(process.pid_namespace - 1) != root;
            let time = inode_at(path(process.pid, process.task(), Kind::Time.name()))?;
            if is_below && self.root.get(&Kind::Time) != Some(&time) {
                refuse_kind(process, Kind::Time.name(), refusals);
            }
        }
        Ok(())
    }

    /// Finds whose privileges count in each, and with these the user namespaces between that no task is in.
    fn find_owners(&mut self, refusals: &mut Refusals) -> Result<(), NsError> {
        let mut place = 0;
        while let Some(other) = self.others.get(place) {
            let (owner, title) = (namespace::owner(other.file.as_fd()), other.title());
            self.others[place].owner = self.note_owner(owner, &title, refusals)?;
            place += 1;
        }
        let above: HashMap<u64, u64> = (self.others.iter())
            .filter(|other| other.kind == Kind::User)
            .map(|other| (other.inode, other.owner))
            .collect();
        let depth = |inode: u64| std::iter::successors(Some(inode), |below| above.get(below).copied()).count();
        self.others.sort_by_key(|other| match other.kind {
            Kind::User => (0, depth(other.inode)),
            _ => (1, 0),
        });
        Ok(())
    }

    fn find_owners_of_pids(&mut self, tree: &FoundTree, refusals: &mut Refusals) -> Result<(), NsError> {
        for (place, known) in tree.pid_namespaces.iter().enumerate().skip(1) {
            let inside = |process: &&FoundProcess| process.pid_namespace == place;
            let owner = match tree.living().find(inside) {
                Some(process) => {
                    let path = path(process.pid, process.task(), "pid");
                    let file = File::open(&path).map_err(read_error(path))?;
                    let title = format!("PID namespace pid:[{}]", known.inode);
                    self.note_owner(namespace::owner(file.as_fd()), &title, refusals)?
                }
                // Nobody lives in it who could tell the difference.
                None => self.root[&Kind::User],
            };
            self.of_pids.push(owner);
        }
        Ok(())
    }

    fn find_owners_of_mounts(&mut self, spaces: &MountSpaces, refusals: &mut Refusals) -> Result<(), NsError> {
        for number in spaces.numbers() {
            let path = format!("/proc/{}/ns/mnt", spaces.task(number));
            let title = format!("mount namespace mnt:[{}]", self.mounts[number as usize]);
            let file = File::open(&path).map_err(read_error(path))?;
            let owner = match number {
                // It may be the host's.
                0 => self.root[&Kind::User],
                _ => self.note_owner(namespace::owner(file.as_fd()), &title, refusals)?,
            };
            self.of_mounts.push(owner);
        }
        Ok(())
    }

    /// The inode number of an owner, which is noted where no task is in it.
    fn note_owner(
        &mut self,
        owner: Result<OwnedFd, Errno>,
        title: &str,
        refusals: &mut Refusals,
    ) -> Result<u64, NsError> {
        let root = self.root[&Kind::User];
        let file = match owner {
            Ok(file) => file,
            Err(Errno::EPERM) => {
                let reason = "the user namespace that it belongs to is not below the tree root's";
                refusals.add(None, title, reason, "start who made it from the tree's root");
                return Ok(root);
            }
            Err(error) => return Err(read_error(format!("whose {title} is"))(error.into())),
        };
        let inode = inode_of(&file).map_err(read_error(title.to_owned()))?;
        if inode != root && self.find_other(Kind::User, inode).is_none() {
            self.others.push(Other {
                kind: Kind::User,
                inode,
                owner: 0,
                file: Rc::new(file),
                member: None,
                standing: None,
            });
        }
        Ok(inode)
    }

    /// The number of a namespace; none of one that is not the tree's.
    #[must_use]
    pub fn number(&self, kind: Kind, inode: u64) -> Option<u32> {
        let listed = match kind {
            Kind::Pid => Some(&self.pids),
            Kind::Mount => Some(&self.mounts),
            _ => None,
        };
        if let Some(listed) = listed {
            let place = listed.iter().position(|known| *known == inode);
            return place.map(|place| place as u32);
        }
        if self.root.get(&kind) == Some(&inode) {
            return Some(0);
        }
        self.find_other(kind, inode).map(|place| place as u32 + 1)
    }

    /// Why a namespace that has no number is not carried.
    pub(crate) fn why_not(&self, identity: Identity) -> &'static str {
        match identity.0 {
            _ if self.elsewhere.contains(&identity) => {
                "processes outside of the tree are in that namespace, or the host keeps it, too"
            }
            Kind::Pid => "that PID namespace is below another one that has ended, or is none of the tree's",
            Kind::Mount => {
                "that mount namespace is kept where floe can't look at it: by a hidden mount, or a message alone"
            }
            _ => "that namespace is kept where floe can't look at it: by a message alone",
        }
    }

    /// A namespace that is not the root's.
    #[must_use]
    pub fn file(&self, number: u32) -> Option<BorrowedFd<'_>> {
        let place = (number as usize).checked_sub(1)?;
        self.others.get(place).map(|other| other.file.as_fd())
    }

    /// The network namespaces, that of the tree's root first.
    pub(crate) fn networks(&self) -> impl Iterator<Item = NetworkSpace> {
        let root = self.root_task.map(NetworkSpace::of_root);
        let others = (1..).zip(&self.others).filter(|(_, other)| other.kind == Kind::Network);
        let others = others.map(|(number, other)| NetworkSpace::apart(number, Rc::clone(&other.file), other.inode));
        root.into_iter().chain(others)
    }

    /// The user namespace whose privileges count in one, where that is not the tree root's.
    pub(crate) fn owner(&self, number: u32) -> Option<BorrowedFd<'_>> {
        let other = self.others.get((number as usize).checked_sub(1)?)?;
        self.file(self.number(Kind::User, other.owner)?)
    }

    /// Those of a kind that are not the root's, by number.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let all = (1..).zip(&self.others).filter(move |(_, other)| other.kind == kind);
        all.map(|(number, other)| (number, other.file.as_fd()))
    }

    /// What is in them; IPC objects and networks are found otherwise.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn records(&self, cgroups: &FoundCgroups, refusals: &mut Refusals) -> Result<Vec<NamespaceRecord>, NsError> {
        let record = |other: &Other| {
            let owner = self.number(Kind::User, other.owner).unwrap_or(0);
            Ok(NamespaceRecord {
                owner,
                contents: contents::look(other, cgroups, refusals).map_err(read_error(other.title()))?,
            })
        };
        let mut records: Vec<NamespaceRecord> = self.others.iter().map(record).collect::<Result<_, NsError>>()?;
        contents::maps_from_above(&mut records);
        Ok(records)
    }

    /// Refuses shared memory that a process has attached and that floe could not attach there again: one that is born into a
    /// user namespace can enter no IPC namespace of those above, nor come back to the one that it is born in.
    pub fn refuse_segments(
        &self,
        process: &FoundProcess,
        (record, space): (&ProcessRecord, &AddressSpaceRecord),
        refusals: &mut Refusals,
    ) {
        let user = self.owner_of_pids(process.pid_namespace);
        let of = |vma: &VmaRecord| match vma.source {
            VmaSource::Segment { namespace, .. } => Some(namespace),
            _ => None,
        };
        let above = |number: &u32| !self.is_of(*number, user);
        let mut segments = space.vmas.iter().filter_map(of);
        let mut own = record.threads.iter().map(|thread| thread.namespaces.ipc);
        let lost = match own.find(above) {
            Some(only) => segments.any(|number| number != only),
            None => segments.any(|number| above(&number)),
        };
        if user != 0 && lost {
            refusals.add(
                Some(&process.subject()),
                "System V shared memory of an IPC namespace that it is not in",
                "the user namespace that it was born in has no rights there",
                "detach it (shmdt)",
            );
        }
    }

    /// Whether the privileges of a user namespace count in a namespace.
    fn is_of(&self, number: u32, user: u32) -> bool {
        let owner = |number: &u32| {
            let other = self.others.get((*number as usize).checked_sub(1)?)?;
            self.number(Kind::User, other.owner)
        };
        std::iter::successors(owner(&number), owner).any(|above| above == user)
    }

    /// The owner of a PID namespace below the tree's.
    #[must_use]
    pub fn owner_of_pids(&self, number: usize) -> u32 {
        let place = number.checked_sub(1);
        let owner = place.and_then(|place| self.of_pids.get(place));
        owner.and_then(|owner| self.number(Kind::User, *owner)).unwrap_or(0)
    }

    /// The owner of a mount namespace.
    #[must_use]
    pub fn owner_of_mounts(&self, number: usize) -> u32 {
        let owner = self.of_mounts.get(number);
        owner.and_then(|owner| self.number(Kind::User, *owner)).unwrap_or(0)
    }

    /// Notes in a record which namespaces the threads of a living process are in.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn note(&self, process: &FoundProcess, record: &mut ProcessRecord) -> Result<(), NsError> {
        if self.others.is_empty() {
            return Ok(());
        }
        let number = |tid: Pid, kind: Kind, name: &str| {
            let inode = inode_at(path(process.pid, tid, name))?;
            // What was refused has no number.
            Ok::<_, NsError>(self.number(kind, inode).unwrap_or(0))
        };
        for thread in &mut record.threads {
            let found = process.threads.iter().find(|found| found.ns_tid == thread.tid.0);
            // A leader that has ended is in none, and was where another one is.
            let tid = found.map_or(process.task(), |found| found.tid);
            let of = |kind: Kind| number(tid, kind, kind.name());
            thread.namespaces = TaskNamespaces {
                user: of(Kind::User)?,
                uts: of(Kind::Uts)?,
                ipc: of(Kind::Ipc)?,
                network: of(Kind::Network)?,
                time: of(Kind::Time)?,
                cgroup: of(Kind::Cgroup)?,
            };
        }
        record.time_of_children = number(process.task(), Kind::Time, "time_for_children")?;
        Ok(())
    }
}
