//! Terminals of a tree that is saved: which files are ends of the same, who has the other end, whose session it controls.

use super::{
    super::{FileError, FoundFile},
    MULTIPLEXER, MULTIPLEXERS, MasterRecord, OBJECT_KIND, Pair, device, is_slave, path_of,
    state::{self, PATIENCE, Unreadable},
};
use crate::refusal::{Refusals, Subject};
use floe_image::{
    codec,
    record::{ObjectRecord, OutputStop, TerminalInput, TerminalRecord},
};
use floe_sys::{
    Pid,
    descriptor::{pidfd_getfd, pidfd_of_task},
    kernel::{TerminalEnd, Terminals},
    terminal::{self, TerminalSettings},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// include/uapi/asm-generic/ioctls.h.
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;

/// The device number of /dev/tty.
const BY_SESSION: (u64, u64) = (5, 0);

/// Bits of packet mode, include/uapi/asm-generic/ioctls.h.
mod packet {
    pub const FLUSHWRITE: u8 = 2;
    pub const STOP: u8 = 4;
    pub const IOCTL: u8 = 64;
}

const LOST: Unreadable = Unreadable::Refused(
    "no session of the tree has the terminal any more that this was when it was opened",
    "close it",
);

const OUTSIDE: Unreadable = Unreadable::Refused(
    "it controls a session whose leader is outside of the tree",
    "end that session, or save it too",
);

/// Which terminal a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The sandbox's own.
    Console,
    /// One of the tree's.
    Pair(u32),
}

/// An open file of the tree that is an end. There may be more than floe may have files open.
struct Holder {
    pid: Pid,
    number: i32,
    subject: Subject,
    title: String,
}

impl Holder {
    fn of(file: &FoundFile) -> Self {
        Self {
            pid: file.holder,
            number: file.number,
            subject: file.subject.clone(),
            title: file.title(),
        }
    }

    fn fetch(&self) -> Result<OwnedFd, Errno> {
        pidfd_getfd(pidfd_of_task(self.pid)?.as_fd(), self.number)
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotFound.into()
}

struct FoundPair {
    slave: TerminalEnd,
    hung_up: bool,
    index: u32,
    /// User and group, and mode, of the slave that was seen first.
    permissions: ([u32; 2], u32),
    master: Option<(Holder, u8)>,
    first_slave: Option<Holder>,
    /// Open file descriptions of the slave.
    slaves: u32,
    /// Whether one of them was opened by way of /dev/tty.
    by_session: bool,
}

/// The sandbox's own.
enum Console {
    /// Its path.
    Unseen(PathBuf),
    Seen(TerminalEnd),
}

/// The terminals of a tree.
pub struct FoundTerminals {
    /// Opened when it is needed.
    kernel: Option<Result<Terminals, String>>,
    /// The root directory of the tree's mount namespace.
    root: PathBuf,
    console: Option<Console>,
    pairs: Vec<FoundPair>,
    by_slave: HashMap<TerminalEnd, u32>,
}

/// What [`FoundTerminals::resolve`] finds.
#[derive(Default)]
pub struct ResolvedTerminals {
    pub objects: Vec<ObjectRecord>,
    /// Leaders of sessions and the terminals that control these.
    pub sessions: HashMap<Pid, u32>,
}

impl FoundTerminals {
    /// None yet.
    pub fn new(root: &Path, console: Option<&[u8]>) -> Self {
        Self {
            kernel: None,
            root: root.to_owned(),
            console: console.map(|path| Console::Unseen(crate::mm::under(root, path))),
            pairs: Vec::new(),
            by_slave: HashMap::new(),
        }
    }

    /// Notes an end; `None` where it was refused.
    pub fn note(&mut self, file: &FoundFile, refusals: &mut Refusals) -> Option<Owner> {
        match self.try_note(file) {
            Ok(owner) => Some(owner),
            Err(Unreadable::Refused(reason, advice)) => {
                refusals.add(Some(&file.subject), file.title(), reason, advice);
                None
            }
            // There is no other that /dev/tty could be, or it is refused by name.
            Err(Unreadable::Failed(_)) if device(file) == BY_SESSION && self.console.is_some() => Some(Owner::Console),
            Err(Unreadable::Failed(error)) => {
                refuse_unseen((&file.subject, file.title()), &error, refusals);
                None
            }
        }
    }

    fn kernel(&mut self) -> io::Result<&Terminals> {
        let opened = self
            .kernel
            .get_or_insert_with(|| Terminals::open().map_err(|error| error.to_string()));
        opened.as_ref().map_err(|error| io::Error::other(error.clone()))
    }

    /// The slave of the sandbox's own terminal.
    fn console_end(&mut self) -> io::Result<Option<TerminalEnd>> {
        let path = match &self.console {
            None => return Ok(None),
            Some(Console::Seen(end)) => return Ok(Some(*end)),
            Some(Console::Unseen(path)) => path,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty())?;
        let end = self.kernel()?.end(file.as_fd())?;
        self.console = Some(Console::Seen(end));
        Ok(Some(end))
    }

    fn try_note(&mut self, file: &FoundFile) -> Result<Owner, Unreadable> {
        let is_master = device(file) == MULTIPLEXER;
        let kernel = self.kernel()?;
        let end = kernel.end(file.as_fd())?;
        let slave = match is_master {
            true => kernel.other(end)?.ok_or_else(gone)?,
            false => end,
        };
        if !is_master && self.console_end()? == Some(slave) {
            return Ok(Owner::Console);
        }
        let number = match self.by_slave.get(&slave) {
            Some(number) => *number,
            None => self.add(slave, file)?,
        };
        let multiplexer = is_master.then(|| multiplexer(file)).transpose()?;
        let pair = &mut self.pairs[number as usize];
        if let Some(multiplexer) = multiplexer {
            pair.master = Some((Holder::of(file), multiplexer));
        } else {
            pair.slaves += 1;
            pair.by_session |= device(file) == BY_SESSION;
            if pair.first_slave.is_none() {
                pair.first_slave = Some(Holder::of(file));
            }
        }
        Ok(Owner::Pair(number))
    }

    fn add(&mut self, slave: TerminalEnd, file: &FoundFile) -> Result<u32, Unreadable> {
        let look = self.kernel()?.look(slave, PATIENCE)?;
        let index = self.kernel()?.index(slave)?;
        if self.pairs.iter().any(|pair| pair.index == index) {
            return Err(Unreadable::Refused(
                "another terminal of the tree, of another devpts, has its number",
                "use one devpts",
            ));
        }
        if look.other_closed && device(file) == BY_SESSION {
            return Err(LOST);
        }
        let permissions = match look.other_closed {
            // The name is gone.
            true => ([file.metadata.uid(), file.metadata.gid()], file.metadata.mode()),
            false => self.permissions(index)?,
        };
        let number = self.pairs.len() as u32;
        self.pairs.push(FoundPair {
            slave,
            hung_up: look.other_closed,
            index,
            permissions,
            master: None,
            first_slave: None,
            slaves: 0,
            by_session: false,
        });
        self.by_slave.insert(slave, number);
        Ok(number)
    }

    fn permissions(&self, index: u32) -> Result<([u32; 2], u32), Unreadable> {
        let path = crate::mm::under(&self.root, path_of(index).as_bytes());
        match std::fs::symlink_metadata(path) {
            Ok(found) if is_slave(found.rdev(), index) => Ok(([found.uid(), found.gid()], found.mode())),
            _ => Err(Unreadable::Refused(
                "its name in /dev/pts leads elsewhere now",
                "use the devpts at /dev/pts",
            )),
        }
    }

    /// Reads all of them when all of their ends were noted.
    pub fn resolve(&mut self, living: &HashSet<Pid>, refusals: &mut Refusals) -> Result<ResolvedTerminals, FileError> {
        let mut resolved = ResolvedTerminals::default();
        for (number, pair) in self.pairs.iter().enumerate() {
            let Some(Ok(kernel)) = &self.kernel else { break };
            let Some(holder) = pair.holder() else { continue };
            let session = pair.session();
            let leader = session.filter(|leader| living.contains(leader));
            let read = match (pair.read(kernel), session) {
                (Ok(_), Some(_)) if leader.is_none() => Err(OUTSIDE),
                (Ok(_), None) if pair.by_session => Err(LOST),
                (read, _) => read,
            };
            match read {
                Ok(both) => {
                    let id = number as u32;
                    resolved.objects.push(ObjectRecord {
                        kind: OBJECT_KIND.to_owned(),
                        id,
                        version: 1,
                        body: codec::encode(&both)?,
                    });
                    resolved.sessions.extend(leader.map(|leader| (leader, id)));
                }
                Err(Unreadable::Refused(reason, advice)) => {
                    refusals.add(Some(&holder.subject), holder.title.clone(), reason, advice);
                }
                Err(Unreadable::Failed(error)) => {
                    refuse_unseen((&holder.subject, holder.title.clone()), &error, refusals);
                }
            }
        }
        Ok(resolved)
    }
}

fn refuse_unseen((subject, title): (&Subject, String), error: &io::Error, refusals: &mut Refusals) {
    refusals.add(
        Some(subject),
        title,
        format!("what waits in this terminal can't be seen: {error}"),
        "run floe as root, where bpf(2) may read the kernel's memory",
    );
}

/// Which of [`MULTIPLEXERS`] a master was opened at.
fn multiplexer(file: &FoundFile) -> Result<u8, Unreadable> {
    let found = MULTIPLEXERS.iter().position(|path| path.as_bytes() == file.link);
    found.map(|at| at as u8).ok_or(Unreadable::Refused(
        "the master of a terminal that was opened elsewhere than at /dev/ptmx",
        "use /dev/ptmx",
    ))
}

impl FoundPair {
    fn holder(&self) -> Option<&Holder> {
        let master = self.master.as_ref().map(|(holder, _)| holder);
        self.first_slave.as_ref().or(master)
    }

    /// The leader of the session that it controls, as the master tells.
    fn session(&self) -> Option<Pid> {
        let (master, _) = self.master.as_ref()?;
        let session = terminal::number(master.fetch().ok()?.as_fd(), libc::TIOCGSID).ok()?;
        Some(Pid::new(session))
    }

    fn read(&self, kernel: &Terminals) -> Result<Pair, Unreadable> {
        if self.hung_up {
            return Ok(self.used_up());
        }
        let Some((holder, multiplexer)) = &self.master else {
            return Err(Unreadable::Refused(
                "a terminal whose other end is outside of the tree can't be carried",
                "start the workload with floe run -t, or with its standard streams in files; \
                 floe checkpoint --tty current for the terminal that it was started on",
            ));
        };
        let file = holder.fetch()?;
        let file = file.as_fd();
        let (owner, mode) = self.permissions;
        let (record, look) = state::read((kernel, self.slave), file, (self.index, owner, mode))?;
        if look.open_files != self.slaves {
            return Err(Unreadable::Refused(
                "a process outside of the tree has this terminal open too",
                "end that process",
            ));
        }
        if look.broken && self.slaves > 0 {
            return Err(Unreadable::Refused(
                "an attempt to open this terminal while it was locked has made it useless",
                "open it anew",
            ));
        }
        let own = kernel.look(kernel.end(file)?, PATIENCE)?;
        let in_packets = terminal::number(file, TIOCGPKT)? != 0;
        let master = MasterRecord {
            multiplexer: *multiplexer,
            exclusive: own.exclusive,
            stopped: own.stopped != floe_sys::kernel::StoppedOutput::No,
            locked: terminal::number(file, TIOCGPTLCK)? != 0,
            opened: self.slaves > 0 || own.other_closed,
            packet: in_packets.then_some(look.packet_status),
            input: state::input(&own)?,
        };
        refuse_impossible(&record, &master)?;
        Ok(Pair {
            terminal: record,
            master: Some(master),
        })
    }

    /// What is left of it when the master is closed.
    fn used_up(&self) -> Pair {
        let (owner, mode) = self.permissions;
        Pair {
            terminal: TerminalRecord {
                index: self.index,
                settings: vec![0; TerminalSettings::BYTES],
                locked: vec![0; 36],
                window: [0; 4],
                owner,
                mode: mode & 0o7777,
                exclusive: false,
                stopped: OutputStop::No,
                input: TerminalInput::default(),
            },
            master: None,
        }
    }
}

/// Combinations that [`fill`](super::fill) can't bring about.
fn refuse_impossible(terminal: &TerminalRecord, master: &MasterRecord) -> Result<(), Unreadable> {
    let status = master.packet.unwrap_or(0);
    let extended = TerminalSettings::from_bytes(&terminal.settings)
        .is_some_and(|settings| settings.has(terminal::Flags::Local, libc::EXTPROC));
    let stopped = terminal.stopped != OutputStop::No && status & !packet::STOP != 0;
    let flushed = status & packet::FLUSHWRITE != 0 && !master.input.beyond.is_empty();
    let told = status & packet::IOCTL != 0 && !extended;
    if stopped || flushed || told {
        return Err(Unreadable::Refused(
            "in packet mode, it has a status that its master has not read",
            "let the master read it, and try again",
        ));
    }
    Ok(())
}
