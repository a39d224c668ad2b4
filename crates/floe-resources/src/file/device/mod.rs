//! Character devices without a state of their own: null, zero, full, random, urandom; and /dev/tty, which each session
//! sees as its own terminal.

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, named, open_flags, terminal::Owner,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::{open_in_root, pidfd_getfd, pidfd_open};
use nix::{
    errno::Errno,
    sys::stat::{fstat, major, makedev, minor},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// Devices that every program opens and that remember nothing.
const STATELESS: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];
const CONTROLLING_TERMINAL: (u64, u64) = (5, 0);

/// The kind of stateless devices.
pub struct Device;

/// The kind of /dev/tty.
pub struct ControllingTerminal;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    major: u64,
    minor: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct TerminalBody {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// Which of the tree's terminals it is; `None` for the sandbox's own.
    terminal: Option<u32>,
}

fn number(file: &FoundFile) -> (u64, u64) {
    (major(file.metadata.rdev()), minor(file.metadata.rdev()))
}

impl FileKind for Device {
    fn name(&self) -> &'static str {
        "device"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFCHR && STATELESS.contains(&number(file))
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(path) = named(file, "device", context) else {
            return Ok(None);
        };
        let (major, minor) = number(file);
        Ok(Some(codec::encode(&Body { path, major, minor })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let device = open_in_root(
            context.root(record),
            Path::new(OsStr::from_bytes(&body.path)),
            open_flags(record),
            0,
        )
        .map_err(FileError::system("open device", name.clone()))?;
        let found = fstat(device.as_fd()).map_err(FileError::system("stat", name.clone()))?;
        let wanted = makedev(body.major, body.minor);
        if found.st_mode & libc::S_IFMT != libc::S_IFCHR || found.st_rdev != wanted {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("{name} is another device here"),
            });
        }
        Ok(device)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(String::from_utf8_lossy(&body.path).into_owned())
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        path_obstacle(root, Path::new(OsStr::from_bytes(&body.path)), libc::S_IFCHR)
    }
}

impl FileKind for ControllingTerminal {
    fn name(&self) -> &'static str {
        "controlling-terminal"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFCHR && number(file) == CONTROLLING_TERMINAL
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(path) = named(file, "device", context) else {
            return Ok(None);
        };
        let terminal = match context.terminals.note(file, context.refusals) {
            Some(Owner::Console) => None,
            Some(Owner::Pair(pair)) => Some(pair),
            None => return Ok(None),
        };
        Ok(Some(codec::encode(&TerminalBody { path, terminal })?))
    }

    /// Which terminal /dev/tty is depends on who opens it, so a task of the session does.
    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: TerminalBody = decode(record)?;
        let lacking = || FileError::Unknown {
            id: record.id,
            what: "no session of the tree has its terminal".to_owned(),
        };
        let holder = *context.sessions.get(&body.terminal).ok_or_else(lacking)?;
        let mut batch = holder.batch();
        let path = batch.data(&[body.path.as_slice(), &[0]].concat());
        let at = libc::AT_FDCWD as u64;
        let opened = batch.call(
            "open the terminal",
            libc::SYS_openat,
            &[at, path, open_flags(record) as u64],
        );
        holder.run(&mut batch)?;
        let number = batch.result(opened) as i32;
        let system = |action| FileError::system(action, "/dev/tty");
        let pidfd = pidfd_open(holder.tid()).map_err(system("open a pidfd to fetch"))?;
        let file = pidfd_getfd(pidfd.as_fd(), number).map_err(system("fetch"))?;
        let mut batch = holder.batch();
        batch.call("close the terminal", libc::SYS_close, &[number as u64]);
        holder.run(&mut batch)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: TerminalBody = decode(record)?;
        Ok(String::from_utf8_lossy(&body.path).into_owned())
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: TerminalBody = decode(record)?;
        path_obstacle(root, Path::new(OsStr::from_bytes(&body.path)), libc::S_IFCHR)
    }
}

/// What stands in the way of opening `path` as a file of `file_type` (S_IFMT bits).
pub(super) fn path_obstacle(root: BorrowedFd<'_>, path: &Path, file_type: u32) -> Result<Option<String>, FileError> {
    let name = path.display();
    match open_in_root(root, path, libc::O_PATH, 0) {
        Ok(found) => {
            let stat = fstat(found.as_fd()).map_err(FileError::system("stat", name.to_string()))?;
            Ok((stat.st_mode & libc::S_IFMT != file_type).then(|| format!("{name} is a file of another type here")))
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(Some(format!("{name} does not exist here"))),
        Err(error) => Ok(Some(format!("{name} can't be opened here: {error}"))),
    }
}
