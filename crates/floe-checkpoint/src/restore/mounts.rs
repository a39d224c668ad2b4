//! The tree's mounts: made in a rehearsal first, in a mount namespace that nobody is in, so that all that stands in the way
//! shows before anything is made; then in the new sandbox.

use super::{RestoreError, preflight::Obstacle};
use floe_image::{
    Image,
    record::{
        ConsoleRecord, ContentOwner, FilesystemKind, FilesystemRecord, MountRecord, MountSource, NamespaceOrigin,
        PageRun,
    },
};
use floe_resources::{
    mm::Filler,
    ns::{
        Roots,
        mounts::{self, Given},
        run_inside,
    },
};
use floe_sys::{
    Pid,
    descriptor::{pidfd_getfd, pidfd_open},
    mount::{attach, clone_tree, set_attributes},
    procfs::{MountInfo, mounts_in},
};
use floe_tracee::Puppet;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, fstat},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

/// FSCONFIG_* and flags of linux/mount.h.
const FSCONFIG_SET_FLAG: u64 = 0;
const FSCONFIG_SET_STRING: u64 = 1;
const FSCONFIG_CMD_CREATE: u64 = 6;
const CLOEXEC: u64 = 1;

/// Where a tree's files will be found.
pub struct Rehearsal {
    roots: Roots,
    devices: BTreeSet<u64>,
    /// What is in the way of its mounts; those that it stopped are not there then.
    pub obstacles: Vec<Obstacle>,
    /// The mounts are there as long as this is.
    _namespace: Option<OwnedFd>,
}

impl Rehearsal {
    /// Makes the mounts of an image.
    pub fn of(image: &Image, given: &Given) -> Result<Self, RestoreError> {
        if !changes_nothing(image) {
            return apart(|| rehearse(image, given));
        }
        let root = root()?;
        Ok(Self {
            obstacles: lacking(image, given, root.as_fd()),
            roots: Roots::new(root, BTreeMap::new()),
            devices: BTreeSet::new(),
            _namespace: None,
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
    let changes = image.mount_namespaces().first();
    changes.is_none_or(|record| record.mounts.is_empty() && record.unmounted.is_empty())
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

fn rehearse(image: &Image, given: &Given) -> Result<Rehearsal, RestoreError> {
    let wrap = || RestoreError::system("rehearse the mounts");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(wrap())?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = open("/proc/thread-self/ns/mnt", flags, Mode::empty()).map_err(wrap())?;
    let mut devices = BTreeSet::new();
    let made = act(image, given, &mut devices);
    let root = root()?;
    let obstacles = match made {
        Ok(lacking) => lacking,
        Err(RestoreError::Mount(error)) => vec![Obstacle {
            object: error.object,
            reason: format!("this host can't {}: {}", error.action, error.source),
        }],
        Err(error) => return Err(error),
    };
    Ok(Rehearsal {
        roots: Roots::new(root, BTreeMap::new()),
        devices,
        obstacles,
        _namespace: Some(namespace),
    })
}

/// Makes all mounts, if all is there that they show; or what is not.
fn act(image: &Image, given: &Given, devices: &mut BTreeSet<u64>) -> Result<Vec<Obstacle>, RestoreError> {
    let wrap = || RestoreError::system("rehearse the mounts");
    let mut made = populated(image, None)?;
    for root in made.values() {
        devices.insert(fstat(root).map_err(wrap())?.st_dev);
    }
    // floe's own stands for that of PIDs that are not there yet.
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
    let lacking = lacking(image, given, root()?.as_fd());
    if lacking.is_empty() {
        mounts::make(image, made, given, &|| own_mounts(&proc))?;
    }
    Ok(lacking)
}

fn lacking(image: &Image, given: &Given, root: BorrowedFd<'_>) -> Vec<Obstacle> {
    let found = mounts::missing(image, given, root).into_iter();
    found.map(|(object, reason)| Obstacle { object, reason }).collect()
}

fn root() -> Result<OwnedFd, RestoreError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty()).map_err(RestoreError::system("open the root directory"))
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

/// Makes the mounts of an image in a new sandbox, by its seed where only a process of its can.
pub fn make(image: &Image, seed: &Puppet, (pid1, given): (Pid, &Given)) -> Result<(), RestoreError> {
    if changes_nothing(image) {
        return Ok(());
    }
    let mut made = apart(|| populated(image, Some(&Filler::new(image))))?;
    for record in with_kind(image, FilesystemKind::Proc) {
        made.insert(record.id, proc_of(seed, Some(record))?);
    }
    let proc = proc_directory()?;
    let inside = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET;
    run_inside(pid1, inside, || {
        Ok(mounts::make(image, made, given, &|| own_mounts(&proc)))
    })??;
    Ok(())
}

/// Puts the processes of a PID namespace below the tree's, in which a puppet is, in the place of what /proc shows.
pub fn show_processes_of(inside: &Puppet, image: &Image, pid1: Pid) -> Result<(), RestoreError> {
    let shows_proc = |record: &&MountRecord| record.point.0 == b"/proc";
    let mounts = image.mount_namespaces().first().map(|record| record.mounts.as_slice());
    let top = mounts.and_then(|mounts| mounts.iter().rev().find(shows_proc));
    let filesystem = match top.map(|mount| &mount.source) {
        Some(MountSource::Filesystem { filesystem, .. }) => image.filesystems().get(*filesystem as usize),
        Some(MountSource::Inherited | MountSource::Path { .. }) | None => None,
    };
    let wrap = RestoreError::system("show processes in /proc");
    let shown = proc_of(inside, filesystem)?;
    let proc = proc_directory()?;
    let replace = || -> io::Result<()> {
        let before = own_mounts(&proc)?;
        let attributes = before
            .iter()
            .rev()
            .find(|mount| mount.path == b"/proc")
            .map(|mount| mount.attributes);
        umount2("/proc", MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
        set_attributes(shown.as_fd(), attributes.unwrap_or(0))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = open("/proc", flags, Mode::empty())?;
        Ok(attach(shown.as_fd(), place.as_fd())?)
    };
    let done = run_inside(pid1, CloneFlags::CLONE_NEWNS, || Ok(replace()));
    done?.map_err(|error| wrap(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))
}

/// A filesystem of the processes of the puppet's PID namespace, which a thread of floe's can't be in.
fn proc_of(seed: &Puppet, record: Option<&FilesystemRecord>) -> Result<OwnedFd, RestoreError> {
    let mut batch = seed.batch();
    let kind = batch.data(b"proc\0");
    let opened = batch.call("make a proc filesystem", libc::SYS_fsopen, &[kind, CLOEXEC]);
    seed.run(&mut batch)?;
    let context = batch.result(opened) as u64;
    let mut batch = seed.batch();
    let options = record.into_iter().flat_map(|record| &record.options);
    let options = options.map(|option| (option.key.as_str(), option.value.as_deref()));
    let source = record.map_or(&b"proc"[..], |record| &record.source);
    for (key, value) in options.chain([("source", Some(source))]) {
        let key = batch.data(&[key.as_bytes(), b"\0"].concat());
        let (command, value) = match value {
            Some(value) => (FSCONFIG_SET_STRING, batch.data(&[value, b"\0"].concat())),
            None => (FSCONFIG_SET_FLAG, 0),
        };
        batch.call(
            "set an option of a proc filesystem",
            libc::SYS_fsconfig,
            &[context, command, key, value, 0],
        );
    }
    batch.call(
        "make a proc filesystem",
        libc::SYS_fsconfig,
        &[context, FSCONFIG_CMD_CREATE, 0, 0, 0],
    );
    let mounted = batch.call("mount a proc filesystem", libc::SYS_fsmount, &[context, CLOEXEC, 0]);
    batch.call("close a filesystem", libc::SYS_close, &[context]);
    seed.run(&mut batch)?;
    let number = batch.result(mounted);
    let fetch = || -> Result<OwnedFd, Errno> { pidfd_getfd(pidfd_open(seed.tid())?.as_fd(), number as RawFd) };
    let fetched = fetch().map_err(RestoreError::system("fetch a proc filesystem"))?;
    let mut batch = seed.batch();
    batch.call("close a filesystem", libc::SYS_close, &[number as u64]);
    seed.run(&mut batch)?;
    Ok(fetched)
}

/// What differs from the image in the mounts of a restored tree.
pub fn compare(image: &Image, pid1: Pid) -> Result<Vec<String>, RestoreError> {
    if image
        .mount_namespaces()
        .first()
        .is_none_or(|record| record.mounts.is_empty())
    {
        return Ok(Vec::new());
    }
    let proc = proc_directory()?;
    let found = run_inside(pid1, CloneFlags::CLONE_NEWNS, || Ok(own_mounts(&proc)?))?;
    Ok(mounts::differences(image, &found))
}
