//! Directories, by path, with their read position.

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags};
use crate::mm::parse_link;
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::open_in_root;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// The kind.
pub struct Directory;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    path: Vec<u8>,
}

impl FileKind for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFDIR && !file.link.starts_with(b"/proc/")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let link = parse_link(&file.link);
        if link.deleted {
            let reason = "a deleted directory can't be carried yet";
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "close it");
            return Ok(None);
        }
        Ok(Some(codec::encode(&Body { path: link.path })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let path = Path::new(OsStr::from_bytes(&body.path));
        let directory = open_in_root(context.root, path, open_flags(record) | libc::O_DIRECTORY, 0)
            .map_err(FileError::system("open directory", name.clone()))?;
        if record.position != 0 {
            lseek(directory.as_fd(), record.position as i64, Whence::SeekSet)
                .map_err(FileError::system("seek in directory", name))?;
        }
        Ok(directory)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(String::from_utf8_lossy(&body.path).into_owned())
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        super::device::path_obstacle(root, Path::new(OsStr::from_bytes(&body.path)), libc::S_IFDIR)
    }
}
