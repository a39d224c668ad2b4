//! The sandbox's own streams: pipes to the monitor, or the pseudo-terminal whose master it holds. The restored sandbox
//! has a monitor of its own, so these are connected to that one.

use super::{
    DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, named, open_flags, pipe, reopen, set_status,
    was_opened,
};
use crate::mm::{Contents, FileIdentity};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::open_in_root;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// How the tree's standard streams lead to the monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleLinks {
    /// Inode numbers of the pipes that are standard input, output and error.
    pub pipes: [Option<u64>; 3],
    /// Path of the terminal inside the sandbox.
    pub terminal: Option<Vec<u8>>,
    /// Device and inode number of that, once it was looked at: there may be other paths to it.
    pub terminal_file: Option<FileIdentity>,
}

impl ConsoleLinks {
    /// The same, with the terminal as it is in the tree's own mount namespace.
    pub(super) fn seen(&self, contents: &Contents) -> Self {
        let path = self.terminal.as_ref().map(|path| contents.inside(0, path));
        let found = path.and_then(|path| std::fs::symlink_metadata(path).ok());
        Self {
            terminal_file: found.as_ref().map(FileIdentity::from),
            ..self.clone()
        }
    }

    /// Whether a file is the terminal, whichever way it was opened by its name.
    pub(super) fn is_terminal(&self, file: &FoundFile) -> bool {
        let by_name = self.terminal.as_ref() == Some(&file.link);
        file.file_type() == libc::S_IFCHR && (by_name || self.terminal_file == Some(file.identity()))
    }
}

/// The kind of the pipes to the monitor.
pub struct ConsolePipe;

/// The kind of the sandbox's terminal.
pub struct ConsoleTerminal;

#[derive(Debug, Serialize, Deserialize)]
struct PipeBody {
    stream: u8,
    /// F_GETPIPE_SZ.
    capacity: u32,
    owner: pipe::Owner,
}

#[derive(Debug, Serialize, Deserialize)]
struct TerminalBody {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
}

const STREAMS: [&str; 3] = ["standard input", "standard output", "standard error"];

fn stream(file: &FoundFile, console: &ConsoleLinks) -> Option<usize> {
    if file.file_type() != libc::S_IFIFO || !file.link.starts_with(b"pipe:") {
        return None;
    }
    console
        .pipes
        .iter()
        .position(|inode| *inode == Some(file.metadata.ino()))
}

/// Whether a file is one of the sandbox's own streams.
pub(super) fn is_console(file: &FoundFile, console: &ConsoleLinks) -> bool {
    stream(file, console).is_some()
}

impl FileKind for ConsolePipe {
    fn name(&self) -> &'static str {
        "console-pipe"
    }

    fn claims(&self, file: &FoundFile, console: &ConsoleLinks) -> bool {
        is_console(file, console)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let stream = stream(file, context.console).unwrap_or_default() as u8;
        let reads = file.flags() as i32 & libc::O_ACCMODE != libc::O_WRONLY;
        let contents = pipe::peek(file.as_fd(), reads, &file.title(), &mut context.pipes.own)?;
        if contents.has_packets() {
            let reason = "packets (O_DIRECT) wait in it, of which the sandbox's own streams keep no borders";
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "read them");
            return Ok(None);
        }
        // What is in the output the monitor has taken to the log.
        if stream == 0 && reads {
            context.input = contents.bytes;
        }
        let capacity = contents.capacity;
        Ok(Some(codec::encode(&PipeBody {
            stream,
            capacity,
            owner: pipe::Owner::of(&file.metadata),
        })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: PipeBody = decode(record)?;
        let unknown = || FileError::Unknown {
            id: record.id,
            what: format!("there is no stream {}", body.stream),
        };
        let end = context.console.get(usize::from(body.stream)).ok_or_else(unknown)?;
        pipe::set_capacity(end.as_fd(), body.capacity)?;
        body.owner.put_back(end.as_fd())?;
        if was_opened(record) {
            let end = reopen(end.as_fd(), open_flags(record) & !libc::O_DIRECT)?;
            set_status(end.as_fd(), record)?;
            return Ok(end);
        }
        let end = end.try_clone().map_err(|source| FileError::System {
            action: "duplicate",
            object: format!("the sandbox's {}", STREAMS[usize::from(body.stream)]),
            source,
        })?;
        set_status(end.as_fd(), record)?;
        Ok(end)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: PipeBody = decode(record)?;
        let name = STREAMS.get(usize::from(body.stream)).unwrap_or(&"unknown stream");
        Ok(format!("the sandbox's {name}"))
    }

    fn obstacle(&self, _record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        Ok(None)
    }
}

impl FileKind for ConsoleTerminal {
    fn name(&self) -> &'static str {
        "console-terminal"
    }

    fn claims(&self, file: &FoundFile, console: &ConsoleLinks) -> bool {
        console.is_terminal(file)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let path = match &context.console.terminal {
            Some(path) if *path == file.link => Some(path.clone()),
            _ => named(file, "terminal", context),
        };
        Ok(path.map(|path| codec::encode(&TerminalBody { path })).transpose()?)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: TerminalBody = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        open_in_root(
            context.root(record),
            Path::new(OsStr::from_bytes(&body.path)),
            open_flags(record),
            0,
        )
        .map_err(FileError::system("open the terminal", name))
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: TerminalBody = decode(record)?;
        Ok(format!(
            "the sandbox's terminal {}",
            String::from_utf8_lossy(&body.path)
        ))
    }

    /// The terminal comes with the new sandbox, so it is not there yet.
    fn obstacle(&self, _record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        Ok(None)
    }
}
