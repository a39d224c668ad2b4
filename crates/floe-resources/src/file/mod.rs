//! Descriptors. Each kind of file is one folder that owns how it is recognised, its record, dump and restore; all that
//! several kinds need is here. Adding a kind is one folder and one line in [`KINDS`].

mod bpf_map;
mod cgroup;
mod collect;
mod console;
mod device;
mod directory;
mod epoll;
mod event;
mod external;
mod found;
mod holders;
mod locks;
mod memory;
mod namespace;
mod notices;
mod outside;
mod path_only;
mod pipe;
mod place;
mod proc;
mod queue;
mod regular;
mod reopen;
mod signals;
mod socket;
mod stash;
pub mod terminal;
mod tun;
mod unsupported;

pub use collect::{CollectOptions, Collected, collect};
pub use console::{ConsoleLinks, ConsoleTerminal};
pub use event::pidfd::place as place_pidfds;
pub use external::{Externals, GrantError, Grants, Rule, RuleError, is_external};
pub use found::FoundFile;
pub use holders::Holders;
pub use locks::take_all as take_locks;
pub use notices::ask_all as ask_directories;
pub use place::{PlaceError, TablePlan, place_wave};
pub use proc::{ended_tasks, is_view, say_anew};
pub use queue::set_notices;
pub use regular::{OnDisk, on_disk};
pub use reopen::reopen;
pub use signals::set_all as set_signals;
pub(crate) use socket::is_lasting_hold;
pub use socket::{
    BoundNames, Ending, Held, Newcomers, OutsideEnds, TcpMode, Unsent, check_sockets, deliver, lacking_devices,
    looked_up_by, taken_addresses,
};
pub use stash::Stash;

use crate::{
    mm::{ContentError, Contents, ELSEWHERE, Place},
    ns::{self, Known, Roots},
    refusal::Refusals,
};
use floe_image::{
    Image,
    codec::{self, DecodeError, EncodeError},
    record::{HierarchyRecord, ObjectRecord, OpenFileRecord},
};
use floe_sys::{Pid, procfs::ProcError};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sched::CloneFlags,
    unistd::{Whence, getgroups, lseek},
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// All kinds. Exactly one may claim a file.
pub const KINDS: &[&dyn FileKind] = &[
    &regular::Regular,
    &directory::Directory,
    &path_only::PathOnly,
    &proc::Proc,
    &cgroup::Cgroup,
    &namespace::Namespace,
    &device::Device,
    &device::ControllingTerminal,
    &pipe::Pipe,
    &pipe::Fifo,
    &console::ConsolePipe,
    &console::ConsoleTerminal,
    &terminal::Master,
    &terminal::Slave,
    &event::EventFd,
    &event::SignalFd,
    &event::TimerFd,
    &event::PidFd,
    &event::Inotify,
    &event::Fanotify,
    &epoll::Epoll,
    &socket::Unix,
    &socket::Inet,
    &socket::TcpConnection,
    &socket::Raw,
    &queue::Queue,
    &external::External,
    &bpf_map::BpfMap,
    &tun::Tun,
];

/// A file that could not be saved or opened again.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call on it.
    #[error("{action} {object}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Its content.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Its record can't be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Its record can't be read.
    #[error("the record of open file {id} ({kind})")]
    Decode {
        /// Which.
        id: u32,
        /// Of which kind.
        kind: String,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// The image names a kind or version that this floe does not know, or refers to something that it lacks.
    #[error("open file {id}: {what}")]
    Unknown {
        /// Which.
        id: u32,
        /// What is wrong.
        what: String,
    },
    /// A task had to open it itself.
    #[error(transparent)]
    Puppet(#[from] floe_tracee::PuppetError),
    /// A task had to be given it.
    #[error(transparent)]
    Channel(#[from] crate::channel::ChannelError),
}

impl FileError {
    fn system(action: &'static str, object: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let object = object.into();
        move |source| Self::System {
            action,
            object,
            source: source.into(),
        }
    }
}

/// What saving files needs and fills.
pub struct DumpContext<'a> {
    /// Namespaces that not all tasks are in.
    pub(crate) others: &'a crate::ns::Others,
    /// The sandbox's own streams.
    pub console: &'a ConsoleLinks,
    /// What the user says of ends and files outside.
    pub(crate) external: &'a Externals,
    /// The tree's cgroups.
    pub(crate) cgroups: &'a crate::cgroup::FoundCgroups,
    /// Files whose content travels in the image.
    pub contents: &'a mut Contents,
    /// What stands in the way.
    pub refusals: &'a mut Refusals,
    /// Things that several open files share.
    pub objects: Vec<ObjectRecord>,
    /// What is in the pipe that is the sandbox's standard input.
    pub input: Vec<u8>,
    /// Pipes and fifos found so far.
    pub(crate) pipes: pipe::FoundPipes,
    /// epoll instances found so far.
    epolls: Vec<epoll::FoundEpoll>,
    /// Unix sockets found so far.
    unix: socket::FoundUnix,
    /// TCP connections found so far.
    connections: socket::FoundConnections,
    /// Who puts right what is changed in a socket for a look, should floe die.
    keeper: Rc<socket::Keeper>,
    /// What options are in new sockets.
    usual: socket::UsualOptions,
    /// What only the kernel's memory tells of files.
    memory: memory::Memory,
    /// POSIX message queues found so far.
    queues: queue::FoundQueues,
    /// Maps of bpf(2) found so far.
    maps: bpf_map::FoundMaps,
    /// Devices of tun found so far.
    tuns: tun::FoundTuns,
    /// Terminals found so far.
    terminals: terminal::FoundTerminals,
    /// The tree's processes: their ids in floe's namespace and in their own.
    processes: Rc<HashMap<Pid, i32>>,
    /// The same of all tasks: zombies and threads too.
    tasks: HashMap<Pid, i32>,
    /// What /proc calls tasks.
    shown: proc::Shown,
    /// The same of their process groups.
    groups: HashMap<Pid, i32>,
}

/// What becomes of ends outside of a tree that is restored.
#[derive(Debug, Clone, Copy)]
pub struct Outside<'a> {
    /// TCP connections with them.
    pub tcp: TcpMode,
    /// Whether the tree comes from another host, where it is still.
    pub moves: bool,
    /// What else the user gives.
    pub grants: &'a Grants,
    /// What the user gives for mounts.
    pub mounts: &'a crate::ns::mounts::Given,
    /// What the user gives for the host's ends of pairs of network devices.
    pub ends: &'a crate::ns::network::GivenEnds,
    /// Whether the tree must have a terminal, which is to be the caller's.
    pub terminal: bool,
}

/// What opening files again needs.
pub struct OpenContext<'a> {
    /// The root directories of the tree's mount namespaces.
    roots: &'a Roots,
    /// Its standard streams.
    pub console: &'a [OwnedFd; 3],
    /// Deleted files, made again, by number.
    pub ghosts: &'a HashMap<u32, OwnedFd>,
    /// The image's shared objects.
    pub objects: &'a [ObjectRecord],
    /// All its open files.
    pub files: &'a [OpenFileRecord],
    /// Host ids of the tree's processes and zombies, by their ids.
    pub host_pids: BTreeMap<i32, Pid>,
    /// The tree's processes, by their ids.
    pub puppets: &'a BTreeMap<i32, floe_tracee::Puppet>,
    /// Processes that are there to end, by the ids of those that they stand for.
    pub ended: BTreeMap<i32, i32>,
    /// To hand files over to them.
    pub channel: &'a crate::channel::Channel,
    /// The supplementary groups that they have.
    groups: Vec<u32>,
    /// Leaders of the sessions that have terminals, by terminal; `None` is the sandbox's own.
    sessions: HashMap<Option<u32>, &'a floe_tracee::Puppet>,
    /// Pipes made again, by number.
    pub(crate) pipes: HashMap<u32, pipe::MadePipe>,
    unix: socket::MadeUnix,
    inet: socket::MadeInet,
    supply: socket::Supply,
    usual: socket::UsualOptions,
    connections: socket::MadeConnections,
    queues: queue::MadeQueues,
    maps: bpf_map::MadeMaps,
    tuns: tun::MadeTuns,
    /// Namespaces.
    known: &'a Known,
    terminals: Option<terminal::MadeTerminals>,
    /// What of the host's the tree gets.
    outside: Outside<'a>,
    /// The tree's cgroups.
    cgroups: &'a [HierarchyRecord],
    /// Ends of TCP connections whose other ends are outside, made again, in repair mode.
    repaired: socket::MadeOutside,
}

/// What must be taken care of when a restored tree is about to run.
pub struct Opened {
    /// What waited in sockets and is still to be sent.
    pub unsent: Unsent,
    /// The names that sockets were given, which go again when this is dropped.
    pub names: BoundNames,
    /// Ends of TCP connections that are in repair mode, by file.
    pub outside: Vec<(u32, OwnedFd)>,
}

/// Tasks of the tree: processes by their ids; host ids of processes and zombies; the namespaces that they
/// are in, too.
type Tasks<'a> = (&'a BTreeMap<i32, floe_tracee::Puppet>, BTreeMap<i32, Pid>, &'a Known);

impl<'a> OpenContext<'a> {
    /// A context in which nothing has been opened yet.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn new(
        (roots, channel): (&'a Roots, &'a crate::channel::Channel),
        console: &'a [OwnedFd; 3],
        ghosts: &'a HashMap<u32, OwnedFd>,
        image: &'a Image,
        (puppets, host_pids, known): Tasks<'a>,
        outside: Outside<'a>,
    ) -> Result<Self, FileError> {
        Ok(Self {
            roots,
            console,
            ghosts,
            objects: image.objects(),
            files: image.open_files(),
            host_pids,
            puppets,
            ended: BTreeMap::new(),
            sessions: HashMap::new(),
            channel,
            groups: own_groups()?,
            pipes: HashMap::new(),
            unix: socket::MadeUnix::default(),
            inet: socket::MadeInet::default(),
            supply: socket::Supply::default(),
            usual: socket::UsualOptions::default(),
            connections: socket::MadeConnections::default(),
            queues: queue::MadeQueues::default(),
            outside,
            cgroups: &image.sandbox().cgroups,
            repaired: Vec::new(),
            maps: bpf_map::MadeMaps::default(),
            tuns: tun::MadeTuns::default(),
            known,
            terminals: None,
        })
    }

    /// The root directory that the paths of a file count from.
    fn root(&self, record: &OpenFileRecord) -> BorrowedFd<'a> {
        self.roots.of(record.mount_namespace)
    }

    /// The number of the network namespace that a file is of.
    fn network(&self, id: u32) -> u32 {
        self.files.get(id as usize).map_or(0, |record| record.network)
    }

    /// Runs a closure on a thread that has entered one of the tree's network namespaces.
    fn inside<T: Send>(&self, network: u32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        inside((self.puppets, self.known), network, work)
    }

    /// The host id of a process or zombie.
    fn host_pid(&self, pid: i32) -> Option<Pid> {
        self.host_pids.get(&pid).copied()
    }

    /// Makes the image's message queues in their IPC namespaces.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn make_queues(&mut self, image: &Image) -> Result<(), FileError> {
        self.queues = queue::make_all(self.known, image)?;
        Ok(())
    }

    /// Takes the terminals, which were made before, and the leaders of the sessions that they control.
    pub fn set_terminals(
        &mut self,
        made: terminal::MadeTerminals,
        sessions: Vec<(Option<u32>, &'a floe_tracee::Puppet)>,
    ) {
        self.terminals = Some(made);
        self.sessions.extend(sessions);
    }

    /// One of the tree's terminals, for the open file `file`.
    fn terminal(&self, file: u32, id: u32) -> Result<&terminal::Made, FileError> {
        let lacking = || FileError::Unknown {
            id: file,
            what: "no terminals were made".to_owned(),
        };
        self.terminals.as_ref().ok_or_else(lacking)?.get(file, id)
    }

    /// Completes what waits until all files are open; what is left to do.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn finish(self) -> Result<Opened, FileError> {
        if let Some(terminals) = self.terminals {
            terminals.finish()?;
        }
        Ok(Opened {
            unsent: self.unix.unsent,
            names: self.unix.bound,
            outside: self.repaired,
        })
    }
}

/// Runs a closure on a thread that has entered one of the network namespaces of the tree of these tasks.
fn inside<T: Send>(
    (puppets, known): (&BTreeMap<i32, floe_tracee::Puppet>, &Known),
    network: u32,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    if network != 0 {
        let namespace = known.made(network).ok_or(Errno::ESRCH)?;
        return ns::inside::run_in(namespace, work);
    }
    let root = puppets.values().next().ok_or(Errno::ESRCH)?.tid();
    ns::inside::run(root, CloneFlags::CLONE_NEWNET, work).map_err(io::Error::other)
}

/// A kind of file.
pub trait FileKind: Sync {
    /// Its name in images.
    fn name(&self) -> &'static str;

    /// Whether a file is of this kind.
    fn claims(&self, file: &FoundFile, console: &ConsoleLinks) -> bool;

    /// The body of a file's record; `None` where it was refused.
    ///
    /// # Errors
    /// [`FileError`].
    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError>;

    /// Opens the file again, with its flags and at its position.
    ///
    /// # Errors
    /// [`FileError`].
    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError>;

    /// Connects the file with others, when all of them are in their places.
    ///
    /// # Errors
    /// [`FileError`].
    fn connect(&self, _record: &OpenFileRecord, _holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        Ok(())
    }

    /// Puts in order what has to wait until all files are connected.
    ///
    /// # Errors
    /// [`FileError`].
    fn complete(&self, _record: &OpenFileRecord, _holders: &Holders<'_>) -> Result<(), FileError> {
        Ok(())
    }

    /// What it is, for people, e.g. its path.
    ///
    /// # Errors
    /// [`FileError`].
    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError>;

    /// What stands in the way of opening it on this host; `None` where nothing does. Its paths count from `root`.
    ///
    /// # Errors
    /// [`FileError`].
    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError>;
}

/// Kinds that may claim a file of which only the path is open (O_PATH); others would claim the file itself.
const PATH_KINDS: &[&dyn FileKind] = &[
    &regular::Regular,
    &directory::Directory,
    &path_only::PathOnly,
    &proc::Proc,
    &cgroup::Cgroup,
    &namespace::Namespace,
];

/// Whether a file can be opened again only when all others are placed, and all tasks are there and in their namespaces.
#[must_use]
pub fn is_late(record: &OpenFileRecord) -> bool {
    let late = [
        path_only::PathOnly.name(),
        proc::Proc.name(),
        namespace::Namespace.name(),
    ];
    late.contains(&record.kind.as_str())
}

/// The kind of a file in an image.
///
/// # Errors
/// [`FileError::Unknown`].
pub fn kind_of(record: &OpenFileRecord) -> Result<&'static dyn FileKind, FileError> {
    let unknown = || FileError::Unknown {
        id: record.id,
        what: format!(
            "kind {} version {} is not known to this floe",
            record.kind, record.version
        ),
    };
    KINDS
        .iter()
        .copied()
        .find(|kind| kind.name() == record.kind && record.version == 1)
        .ok_or_else(unknown)
}

fn decode<T: serde::de::DeserializeOwned>(record: &OpenFileRecord) -> Result<T, FileError> {
    codec::decode(&record.body).map_err(|source| FileError::Decode {
        id: record.id,
        kind: record.kind.clone(),
        source,
    })
}

/// The path under which a file that is not regular is found; `None` where it was refused.
fn named(file: &FoundFile, what: &str, context: &mut DumpContext<'_>) -> Option<Vec<u8>> {
    let mut refuse = |reason: String, advice| context.refusals.add(Some(&file.subject), file.title(), reason, advice);
    match file.place(context.contents) {
        Place::Named(path) => return Some(path),
        Place::Deleted(_) => refuse(format!("a deleted {what} can't be carried yet"), "close it"),
        Place::Elsewhere(_) => refuse(ELSEWHERE.0.to_owned(), ELSEWHERE.1),
    }
    None
}

/// open(2) flags that are put back as they were; all others, such as O_CREAT and O_TRUNC, an image has no say in. The
/// last two do nothing to a path without links whose end is known, but programs see them.
const STATUS_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_PATH;

fn open_flags(record: &OpenFileRecord) -> i32 {
    let flags = record.flags as i32 & STATUS_FLAGS;
    if flags & libc::O_PATH != 0 {
        // openat2(2) takes no others with it.
        flags & (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
    } else {
        flags | libc::O_NOCTTY
    }
}

/// Flags of fcntl(F_SETFL) that `record` has.
fn set_status(file: BorrowedFd<'_>, record: &OpenFileRecord) -> Result<(), FileError> {
    set_flags(file, open_flags(record), record.id)
}

fn set_flags(file: BorrowedFd<'_>, flags: i32, id: u32) -> Result<(), FileError> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags)))
        .map(drop)
        .map_err(FileError::system("set the flags of", format!("open file {id}")))
}

/// Moves a file that was opened again to its position.
fn seek(file: BorrowedFd<'_>, record: &OpenFileRecord, name: &str) -> Result<(), FileError> {
    if record.position == 0 || record.flags & libc::O_PATH as u32 != 0 {
        return Ok(());
    }
    lseek(file, record.position as i64, Whence::SeekSet)
        .map(drop)
        .map_err(FileError::system("seek in", name))
}

/// The deleted file with this number, opened as the record says.
fn open_ghost(id: u32, record: &OpenFileRecord, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let ghost = context.ghosts.get(&id).ok_or_else(|| FileError::Unknown {
        id: record.id,
        what: format!("the image lacks deleted file {id}"),
    })?;
    reopen(ghost.as_fd(), open_flags(record))
}

/// Whether a file was opened by open(2) or one of its kin, not made by pipe(2): that shows in its flags.
fn was_opened(record: &OpenFileRecord) -> bool {
    record.flags & floe_sys::descriptor::O_LARGEFILE != 0
}

/// Floe's supplementary groups, which puppets have too.
fn own_groups() -> Result<Vec<u32>, FileError> {
    let groups = getgroups().map_err(FileError::system("read the groups of", "floe"))?;
    Ok(groups.into_iter().map(nix::unistd::Gid::as_raw).collect())
}

fn has_events(file: BorrowedFd<'_>, wanted: i16) -> Result<bool, Errno> {
    Ok(floe_sys::socket::events(file, wanted)? & wanted != 0)
}

fn comm(pid: Pid) -> String {
    floe_sys::procfs::read_text(&format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}
