//! Pseudo-terminals with both ends in the tree, as tmux, screen, script and sshd make them: masters, slaves, and what is
//! between them. The sandbox's own terminal, whose master the monitor holds, has the same record ([`read`]).
//!
//! A restored tree has a devpts of its own, in which each terminal gets the number back that its name says.

mod fill;
mod found;
mod make;
mod state;

pub(super) use found::{FoundTerminals, Owner, ResolvedTerminals};
pub(super) use make::Made;
pub use make::MadeTerminals;
pub use state::{Unreadable, check, read, read_settings};

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, device::path_obstacle, open_flags,
    set_status, was_opened,
};
use floe_image::{
    codec,
    record::{ObjectRecord, OpenFileRecord, TerminalInput, TerminalRecord},
};
use floe_sys::{
    descriptor::open_in_root,
    terminal::{SLAVES, open_slave},
};
use nix::sys::stat::{major, makedev, minor};
use serde::{Deserialize, Serialize};
use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

const OBJECT_KIND: &str = "terminal";
const MASTER_KIND: &str = "terminal-master";

/// Where masters are opened.
const MULTIPLEXERS: [&str; 2] = ["/dev/ptmx", "/dev/pts/ptmx"];
const MULTIPLEXER: (u64, u64) = (5, 2);

/// The kind of masters.
pub struct Master;

/// The kind of slaves.
pub struct Slave;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    pair: u32,
}

/// Both ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pair {
    terminal: TerminalRecord,
    /// `None` where it was closed, and the slave hung up.
    master: Option<MasterRecord>,
}

/// The master's side.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MasterRecord {
    /// Which of [`MULTIPLEXERS`] it was opened at.
    multiplexer: u8,
    exclusive: bool,
    /// Whether TCXONC has stopped its output.
    stopped: bool,
    /// Whether the slave can't be opened (TIOCSPTLCK).
    locked: bool,
    /// Whether the slave was ever opened: where it was, and no longer is, the master has hung up.
    opened: bool,
    /// Packet mode, with what the next read tells (TIOCPKT_*).
    packet: Option<u8>,
    input: TerminalInput,
}

impl Pair {
    /// The name of its slave.
    fn path(&self) -> String {
        path_of(self.terminal.index)
    }
}

/// The path of the slave of a pseudo-terminal with this device number; `None` for other devices.
#[must_use]
pub fn slave_path((major, minor): (u64, u64)) -> Option<String> {
    (major == SLAVES).then(|| path_of(minor as u32))
}

fn path_of(index: u32) -> String {
    format!("/dev/pts/{index}")
}

fn device(file: &FoundFile) -> (u64, u64) {
    (major(file.metadata.rdev()), minor(file.metadata.rdev()))
}

fn decode_pair(object: &ObjectRecord) -> Result<Pair, FileError> {
    let wrong = |what: String| FileError::Unknown { id: object.id, what };
    let pair: Pair = codec::decode(&object.body).map_err(|source| FileError::Decode {
        id: object.id,
        kind: OBJECT_KIND.to_owned(),
        source,
    })?;
    check(&pair.terminal).map_err(wrong)?;
    if let Some(master) = &pair.master {
        state::check_input(&master.input).map_err(wrong)?;
        if usize::from(master.multiplexer) >= MULTIPLEXERS.len() {
            return Err(wrong("its master was opened nowhere".to_owned()));
        }
    }
    Ok(pair)
}

/// The number of the terminal that a file is of; `None` where it was refused.
fn dump(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    match context.terminals.note(file, context.refusals) {
        Some(Owner::Pair(pair)) => Ok(Some(codec::encode(&Body { pair })?)),
        Some(Owner::Console) => {
            let reason = "it is the sandbox's terminal, but not by its name";
            let findings = &mut *context.refusals;
            findings.add(
                Some(&file.subject),
                file.title(),
                reason,
                "open it by its name in /dev/pts",
            );
            Ok(None)
        }
        None => Ok(None),
    }
}

impl FileKind for Master {
    fn name(&self) -> &'static str {
        MASTER_KIND
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFCHR && device(file) == MULTIPLEXER
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        dump(file, context)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let made = context.terminal(record.id, body.pair)?;
        let lacking = || FileError::Unknown {
            id: record.id,
            what: format!("terminal {} has no master", body.pair),
        };
        let master = made.master.as_ref().ok_or_else(lacking)?;
        let master = master.try_clone().map_err(|source| FileError::System {
            action: "duplicate",
            object: "the master of a terminal".to_owned(),
            source,
        })?;
        set_status(master.as_fd(), record)?;
        Ok(master)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(format!("master of terminal {}", body.pair))
    }

    /// The terminal comes with the new sandbox's devpts; there must be a place for that.
    fn obstacle(&self, _record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        path_obstacle(root, Path::new(MULTIPLEXERS[0]), libc::S_IFCHR)
    }
}

impl FileKind for Slave {
    fn name(&self) -> &'static str {
        "terminal-slave"
    }

    fn claims(&self, file: &FoundFile, console: &ConsoleLinks) -> bool {
        let is_terminal = file.file_type() == libc::S_IFCHR && major(file.metadata.rdev()) == SLAVES;
        is_terminal && !console.is_terminal(file)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        dump(file, context)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let made = context.terminal(record.id, body.pair)?;
        let path = made.pair.path();
        let system = |action| FileError::system(action, path.clone());
        if was_opened(record) {
            return open_in_root(context.root(record), Path::new(&path), open_flags(record), 0).map_err(system("open"));
        }
        let opened = open_slave(made.any_master(), open_flags(record)).map_err(system("open the slave"))?;
        set_status(opened.as_fd(), record)?;
        Ok(opened)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(format!("slave of terminal {}", body.pair))
    }

    fn obstacle(&self, _record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        path_obstacle(root, Path::new("/dev/pts"), libc::S_IFDIR)
    }
}

/// Whether a file is the slave with this number.
fn is_slave(rdev: u64, index: u32) -> bool {
    rdev == makedev(SLAVES, u64::from(index))
}

/// Whether the image's tree has terminals of its own, for which its sandbox must have a devpts.
#[must_use]
pub fn has_terminals(objects: &[ObjectRecord]) -> bool {
    objects.iter().any(|object| object.kind == OBJECT_KIND)
}
