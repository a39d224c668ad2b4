//! Pipes and fifos with what is in them. Reading would empty them, so the contents are duplicated by tee(2).

mod contents;
mod outside;
mod owner;

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, console::is_console, decode, named,
};
use crate::mm::FileIdentity;
use contents::PipeContents;
pub(super) use contents::peek;
use floe_image::{
    codec,
    record::{ObjectRecord, OpenFileRecord},
};
use floe_sys::descriptor::open_in_root;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

pub(crate) use contents::MadePipe;
pub(super) use contents::set_capacity;
pub(crate) use outside::FoundPipes;
pub(super) use owner::Owner;

const OBJECT_KIND: &str = "pipe";

/// The kind of pipe ends.
pub struct Pipe;

/// The kind of ends of named pipes.
pub struct Fifo;

#[derive(Debug, Serialize, Deserialize)]
struct PipeBody {
    pipe: u32,
    owner: Owner,
}

#[derive(Debug, Serialize, Deserialize)]
struct FifoBody {
    pipe: u32,
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// Whether it is a reader that saw its last writer go: poll(2) tells such a one from one that never had a writer.
    hung_up: bool,
}

/// Notes an end that is refused: that it is inside of the tree still tells where the other end is.
pub(super) fn note_refused(file: &FoundFile, context: &mut DumpContext<'_>) {
    if file.file_type() == libc::S_IFIFO && !is_console(file, context.console) {
        context.pipes.note(file);
    }
}

/// The number of the pipe behind a file, `None` where it was refused; its contents are saved with the first end that can
/// read them.
fn pipe_number(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<u32>, FileError> {
    let (id, is_new) = context.pipes.note(file);
    let reads = file.flags() as i32 & libc::O_ACCMODE != libc::O_WRONLY;
    if !(is_new || reads && !context.pipes.has_contents(id)) {
        return Ok(Some(id));
    }
    let contents = peek(file.as_fd(), reads, &file.title(), &mut context.pipes.own)?;
    if !contents.fits() {
        let reason = "it holds buffers of more than a page, from sockets (splice), which can't be made again";
        context
            .refusals
            .add(Some(&file.subject), file.title(), reason, "read some of it");
        return Ok(None);
    }
    if reads {
        context.pipes.set_has_contents(id);
    }
    let record = ObjectRecord {
        kind: OBJECT_KIND.to_owned(),
        id,
        version: 1,
        body: codec::encode(&contents)?,
    };
    match context
        .objects
        .iter_mut()
        .find(|object| object.kind == OBJECT_KIND && object.id == id)
    {
        Some(object) => *object = record,
        None => context.objects.push(record),
    }
    Ok(Some(id))
}

fn stored_contents(record: &OpenFileRecord, pipe: u32, objects: &[ObjectRecord]) -> Result<PipeContents, FileError> {
    let object = objects
        .iter()
        .find(|object| object.kind == OBJECT_KIND && object.id == pipe);
    let lacking = || FileError::Unknown {
        id: record.id,
        what: format!("the image lacks pipe {pipe}"),
    };
    codec::decode(&object.ok_or_else(lacking)?.body).map_err(|source| FileError::Decode {
        id: record.id,
        kind: OBJECT_KIND.to_owned(),
        source,
    })
}

/// The pipe made again, and the end that `record` describes.
fn open_end(
    record: &OpenFileRecord,
    (pipe, hung_up): (u32, bool),
    context: &mut OpenContext<'_>,
    make: impl FnOnce(&PipeContents) -> Result<MadePipe, FileError>,
) -> Result<OwnedFd, FileError> {
    if !context.pipes.contains_key(&pipe) {
        let contents = stored_contents(record, pipe, context.objects)?;
        let made = make(&contents)?;
        context.pipes.insert(pipe, made);
    }
    context.pipes[&pipe].open(record, hung_up)
}

impl FileKind for Pipe {
    fn name(&self) -> &'static str {
        "pipe"
    }

    fn claims(&self, file: &FoundFile, console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFIFO && file.link.starts_with(b"pipe:") && !is_console(file, console)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(pipe) = pipe_number(file, context)? else {
            return Ok(None);
        };
        let owner = Owner::of(&file.metadata);
        Ok(Some(codec::encode(&PipeBody { pipe, owner })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: PipeBody = decode(record)?;
        let end = open_end(record, (body.pipe, false), context, MadePipe::anonymous)?;
        body.owner.put_back(end.as_fd())?;
        Ok(end)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: PipeBody = decode(record)?;
        let end = match record.flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => "read end",
            libc::O_WRONLY => "write end",
            _ => "both ends",
        };
        Ok(format!("{end} of pipe {}", body.pipe))
    }

    fn obstacle(&self, _record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        Ok(None)
    }
}

impl FileKind for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFIFO && file.link.starts_with(b"/")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(path) = named(file, "fifo", context) else {
            return Ok(None);
        };
        let Some(pipe) = pipe_number(file, context)? else {
            return Ok(None);
        };
        let reads_only = file.flags() as i32 & libc::O_ACCMODE == libc::O_RDONLY;
        let hung_up = reads_only && outside::hung_up(file.as_fd(), &file.title())?;
        Ok(Some(codec::encode(&FifoBody { pipe, path, hung_up })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: FifoBody = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let path = Path::new(OsStr::from_bytes(&body.path));
        let root = context.root(record);
        open_end(record, (body.pipe, body.hung_up), context, |contents| {
            let read = open_in_root(root, path, libc::O_RDONLY | libc::O_NONBLOCK, 0)
                .map_err(FileError::system("open fifo", name))?;
            MadePipe::named(read, contents)
        })
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: FifoBody = decode(record)?;
        Ok(format!("fifo {}", String::from_utf8_lossy(&body.path)))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: FifoBody = decode(record)?;
        let path = Path::new(OsStr::from_bytes(&body.path));
        if let Some(obstacle) = super::device::path_obstacle(root, path, libc::S_IFIFO)? {
            return Ok(Some(obstacle));
        }
        // What is in it now would mix with what was in it.
        let name = path.display().to_string();
        let in_use = contents::in_use(root, path).map_err(FileError::system("open fifo", name.clone()))?;
        Ok(in_use.then(|| format!("fifo {name} is open in a process of this host")))
    }
}

/// Numbers of pipes by identity.
type ByIdentity = HashMap<FileIdentity, u32>;
