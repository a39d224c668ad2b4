//! The tree's mounts: made in a rehearsal first, in a mount namespace that nobody is in, so that all that stands in the way
//! shows before anything is made; then in the new sandbox.

use super::{RestoreError, cgroups, preflight::Obstacle, tree::World};
use floe_image::{
    Image,
    record::{
        ConsoleRecord, ContentOwner, FilesystemKind, FilesystemRecord, MountNamespaceRecord, NamespaceKind,
        NamespaceOrigin, PageRun, ProcessRecord, ProcessState,
    },
};
use floe_resources::{
    mm::Filler,
    ns::{
        Known, Roots,
        mounts::{self, CgroupViews, Given, Mounting},
        run_inside,
    },
};
use floe_sys::{
    Pid,
    beside::beside,
    mount::clone_tree,
    namespace::beside_in_user,
    procfs::{MountInfo, mounts_in},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::stat::{Mode, fstat, stat},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The namespaces of a sandbox that what is mounted depends on.
const INSIDE: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET);

/// Where a tree's files will be found.
pub struct Rehearsal {
    roots: Roots,
    devices: BTreeSet<u64>,
    /// What is in the way of its mounts; those that it stopped are not there then.
    pub obstacles: Vec<Obstacle>,
}

impl Rehearsal {
    /// Makes the mounts of an image.
    pub fn of(image: &Image, given: &Given) -> Result<Self, RestoreError> {
        if !changes_nothing(image) {
            let cgroups = cgroups::mounted(image)?;
            return apart(|| rehearse(image, (given, &cgroups)));
        }
        let roots = own_roots(&proc_directory()?)?;
        Ok(Self {
            obstacles: lacking(image, (given, &CgroupViews::new()), roots.own()),
            roots,
            devices: BTreeSet::new(),
        })
    }

    /// The root directories.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Device numbers of filesystems whose files are in the image.
    pub fn devices(&self) -> &BTreeSet<u64> {
        &self.devices
    }
}

/// Whether a tree's mounts are those of a new sandbox.
fn changes_nothing(image: &Image) -> bool {
    let namespaces = image.mount_namespaces();
    let changes = |first: &MountNamespaceRecord| !first.mounts.is_empty() || !first.unmounted.is_empty();
    namespaces.len() < 2 && !namespaces.first().is_some_and(changes)
}

/// Runs on a thread of its own, in a mount namespace of its own, where an ordinary user may mount, too.
fn apart<T: Send>(act: impl FnOnce() -> Result<T, RestoreError> + Send) -> Result<T, RestoreError> {
    let alone = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
            .map_err(RestoreError::system("make a mount namespace"))?;
        act()
    };
    let done = std::thread::scope(|scope| scope.spawn(alone).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The namespaces that filesystems of the image show, where they are the tree's own: others' an ordinary user may not mount.
fn shown_namespaces(image: &Image) -> CloneFlags {
    let sandbox = image.sandbox();
    let shown = [
        (FilesystemKind::Sysfs, sandbox.net, CloneFlags::CLONE_NEWNET),
        (FilesystemKind::Mqueue, sandbox.ipc, CloneFlags::CLONE_NEWIPC),
    ];
    let own = shown.into_iter().filter(|(kind, origin, _)| {
        let mut all = with_kind(image, *kind);
        all.any(|record| *origin == NamespaceOrigin::Own || record.ipc_namespace != 0)
    });
    own.map(|(.., flag)| flag).collect()
}

fn rehearse(image: &Image, outside: (&Given, &CgroupViews)) -> Result<Rehearsal, RestoreError> {
    let wrap = || RestoreError::system("rehearse the mounts");
    unshare(shown_namespaces(image)).map_err(wrap())?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(wrap())?;
    let proc = proc_directory()?;
    let mut devices = BTreeSet::new();
    let (roots, obstacles) = match act(image, outside, &mut devices) {
        Ok(Ok(roots)) => (roots, Vec::new()),
        Ok(Err(lacking)) => (own_roots(&proc)?, lacking),
        Err(RestoreError::Mount(error)) => {
            let obstacle = Obstacle {
                object: error.object,
                reason: format!("this host can't {}: {}", error.action, error.source),
            };
            (own_roots(&proc)?, vec![obstacle])
        }
        Err(error) => return Err(error),
    };
    Ok(Rehearsal {
        roots,
        devices,
        obstacles,
    })
}

/// Makes all mounts, if all is there that they show; or what is not.
fn act(
    image: &Image,
    (given, cgroups): (&Given, &CgroupViews),
    devices: &mut BTreeSet<u64>,
) -> Result<Result<Roots, Vec<Obstacle>>, RestoreError> {
    let wrap = || RestoreError::system("rehearse the mounts");
    let mut made = populated(image, None)?;
    for root in made.values() {
        devices.insert(fstat(root).map_err(wrap())?.st_dev);
    }
    // floe's own stands for those of PIDs that are not there yet.
    let proc = proc_directory()?;
    for record in with_kind(image, FilesystemKind::Proc) {
        made.insert(record.id, clone_tree(proc.as_fd()).map_err(wrap())?);
    }
    let none: Option<&str> = None;
    mount(Some("/proc"), "/proc", none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(wrap())?;
    let sandbox = image.sandbox();
    if sandbox.devpts == NamespaceOrigin::Own || matches!(sandbox.console, ConsoleRecord::Terminal(_)) {
        floe_sandbox::own_terminals().map_err(|(error, action)| RestoreError::system(action)(error))?;
    }
    let lacking = lacking(image, (given, cgroups), root()?.as_fd());
    if !lacking.is_empty() {
        return Ok(Err(lacking));
    }
    let known = Known::rehearsed().map_err(|source| RestoreError::System {
        action: "open floe's own namespaces".to_owned(),
        source,
    })?;
    let mounting = Mounting::begin(image, made, (given, &known, cgroups), proc)?;
    let roots = mounting.roots()?;
    mounting.go_home()?;
    mounting.finish(&known)?;
    Ok(Ok(roots))
}

fn lacking(image: &Image, outside: (&Given, &CgroupViews), root: BorrowedFd<'_>) -> Vec<Obstacle> {
    let found = mounts::missing(image, outside, root).into_iter();
    found.map(|(object, reason)| Obstacle { object, reason }).collect()
}

fn root() -> Result<OwnedFd, RestoreError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty()).map_err(RestoreError::system("open the root directory"))
}

/// That of the mount namespace that the calling thread is in.
fn own_roots(proc: &OwnedFd) -> Result<Roots, RestoreError> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = openat(proc, "thread-self/ns/mnt", flags, Mode::empty());
    let namespace = namespace.map_err(RestoreError::system("open the mount namespace"))?;
    Ok(Roots::new(vec![(root()?, namespace)]))
}

/// floe's own, by which a thread finds itself wherever it is.
fn proc_directory() -> Result<OwnedFd, RestoreError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/proc", flags, Mode::empty()).map_err(RestoreError::system("open /proc"))
}

/// Those that the calling thread sees.
fn own_mounts(proc: &OwnedFd) -> Result<Vec<MountInfo>, Errno> {
    let mut text = Vec::new();
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let read = File::from(openat(proc, "thread-self/mountinfo", flags, Mode::empty())?).read_to_end(&mut text);
    read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(mounts_in(&text))
}

/// Filesystems that hold something, with their contents where there is a filler; they are mounted nowhere yet.
fn populated(image: &Image, filler: Option<&Filler<'_>>) -> Result<HashMap<u32, OwnedFd>, RestoreError> {
    let is_node = |owner: &ContentOwner| matches!(owner, ContentOwner::Node { .. });
    let maps = image.page_maps().iter().filter(|map| is_node(&map.owner));
    let runs: HashMap<ContentOwner, &[PageRun]> = maps.map(|map| (map.owner, map.runs.as_slice())).collect();
    let mut fill = |owner: ContentOwner, file: &File, size: u64| -> Result<(), RestoreError> {
        match (filler, runs.get(&owner)) {
            (Some(filler), Some(runs)) => Ok(filler.file(file, size, runs)?),
            _ => Ok(()),
        }
    };
    let holding = image
        .filesystems()
        .iter()
        .filter(|record| record.kind == FilesystemKind::Tmpfs);
    holding
        .map(|record| Ok((record.id, mounts::populate(record, &mut fill)?)))
        .collect()
}

fn with_kind(image: &Image, kind: FilesystemKind) -> impl Iterator<Item = &FilesystemRecord> {
    image.filesystems().iter().filter(move |record| record.kind == kind)
}

/// Makes the mounts of an image in a new sandbox. What is left to do when all processes are there.
pub fn make<'a>(
    image: &'a Image,
    pid1: Pid,
    outside: (&Given, &Known, &CgroupViews),
) -> Result<(Roots, Option<Mounting<'a>>), RestoreError> {
    let proc = proc_directory()?;
    if changes_nothing(image) {
        let roots = run_inside(pid1, CloneFlags::CLONE_NEWNS, || Ok(own_roots(&proc)))??;
        return Ok((roots, None));
    }
    let mut made = apart(|| populated(image, Some(&Filler::new(image))))?;
    for record in with_kind(image, FilesystemKind::Proc).filter(|record| record.pid_namespace == 0) {
        made.insert(record.id, proc_of(pid1, None, record)?);
    }
    run_inside(pid1, INSIDE, || {
        Ok(Mounting::begin(image, made, outside, proc).and_then(|mounting| {
            let roots = mounting.roots()?;
            Ok((roots, mounting))
        }))
    })?
    .map(|(roots, mounting)| (roots, Some(mounting)))
    .map_err(RestoreError::from)
}

/// Makes what was waited for, by processes of the PID namespaces whose processes are to be shown.
pub fn complete(mounting: &mut Mounting<'_>, world: &World<'_>, pid1: Pid) -> Result<(), RestoreError> {
    let mut made = HashMap::new();
    for record in mounting.lacks() {
        let inside = world.somebody_in(record.pid_namespace)?.tid();
        let owner = world.namespaces.owner_of_pids(record.pid_namespace);
        made.insert(record.id, proc_of(inside, world.namespaces.known.made(owner), record)?);
    }
    let known = &world.namespaces.known;
    run_inside(pid1, INSIDE, || Ok(mounting.complete(made, known)))??;
    Ok(())
}

/// Makes the rest, when all namespaces are there.
pub fn finish(mounting: Mounting<'_>, world: &World<'_>, pid1: Pid) -> Result<(), RestoreError> {
    let known = &world.namespaces.known;
    run_inside(pid1, INSIDE, || Ok(mounting.finish(known)))??;
    Ok(())
}

/// A filesystem of the processes of the PID namespace that a task is in. It is made by a process that is there for a moment: in
/// the user namespace that the PID namespace belongs to, where that is not floe's; and in a copy of floe's mount namespace, as
/// in a user namespace only who sees a proc may make one, and the tree's own may be hidden.
fn proc_of(task: Pid, user: Option<BorrowedFd<'_>>, record: &FilesystemRecord) -> Result<OwnedFd, RestoreError> {
    let path = format!("/proc/{task}/ns/pid");
    let pids = File::open(&path).map_err(|source| RestoreError::System {
        action: format!("open {path}"),
        source,
    })?;
    let root = root()?;
    let make = || -> Result<OwnedFd, Errno> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        setns(&pids, CloneFlags::CLONE_NEWPID)?;
        beside(|| mounts::new_filesystem(record, root.as_fd()))?
    };
    beside_in_user(user, make).map_err(RestoreError::system("make a proc filesystem"))
}

/// What differs from the image in the mounts of a restored tree, and in who is in which namespace.
pub fn compare(
    image: &Image,
    (roots, known): (&Roots, &Known),
    (hosts, pid1): (&BTreeMap<i32, Pid>, Pid),
) -> Result<Vec<String>, RestoreError> {
    let mut differences = Vec::new();
    for record in image.processes().iter().filter(|record| !is_zombie(record)) {
        let Some(host) = hosts.get(&record.pid.0) else { continue };
        let action = || RestoreError::system(format!("look at the mount namespace of process {}", record.pid));
        let is = stat(format!("/proc/{host}/ns/mnt").as_str()).map_err(action())?;
        let should = fstat(roots.namespace(record.mount_namespace)).map_err(action())?;
        if is.st_ino != should.st_ino {
            differences.push(format!("process {}: it is in another mount namespace", record.pid));
        }
    }
    if changes_nothing(image) {
        return Ok(differences);
    }
    let proc = proc_directory()?;
    let found = run_inside(pid1, CloneFlags::CLONE_NEWNS, || {
        let all = (0..image.mount_namespaces().len() as u32).map(|number| {
            setns(roots.namespace(number), CloneFlags::CLONE_NEWNS)?;
            own_mounts(&proc)
        });
        Ok(all.collect::<Result<Vec<_>, Errno>>()?)
    })?;
    let inode = |kind, number| {
        let namespace = match kind {
            NamespaceKind::Mount => Some(roots.namespace(number)),
            _ => known.one(kind, number),
        };
        fstat(namespace?).ok().map(|found| found.st_ino)
    };
    differences.extend(mounts::differences(image, &found, &inode));
    Ok(differences)
}

fn is_zombie(record: &ProcessRecord) -> bool {
    matches!(record.state, ProcessState::Zombie { .. })
}
