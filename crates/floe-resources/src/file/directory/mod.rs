//! Directories, by path, with their read position.

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, open_ghost, seek,
};
use crate::mm::Located;
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::open_in_root;
use nix::sys::stat::fstat;
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
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    ghost: Option<u32>,
}

impl FileKind for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFDIR && file.pseudo_filesystem().is_none()
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let findings = (&file.subject, &mut *context.refusals);
        let place = (file.mount_namespace(context.contents), file.link.as_slice());
        let found = context
            .contents
            .locate(&file.magic(), place, &file.metadata, (file.title(), findings))?;
        let body = found.map(|Located { path, ghost }| Body { path, ghost });
        Ok(body.as_ref().map(codec::encode).transpose()?)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let path = Path::new(OsStr::from_bytes(&body.path));
        let directory = match body.ghost {
            Some(id) => open_ghost(id, record, context)?,
            None => open_in_root(context.root(record), path, open_flags(record), 0)
                .map_err(FileError::system("open directory", name.clone()))?,
        };
        // Not by O_DIRECTORY, which the program would see in the flags.
        let found = fstat(directory.as_fd()).map_err(FileError::system("stat", name.clone()))?;
        if found.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("{name} is no directory here"),
            });
        }
        seek(directory.as_fd(), record, &name)?;
        Ok(directory)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let deleted = if body.ghost.is_some() { " (deleted)" } else { "" };
        Ok(format!("{}{deleted}", String::from_utf8_lossy(&body.path)))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        if body.ghost.is_some() {
            return Ok(None);
        }
        super::device::path_obstacle(root, Path::new(OsStr::from_bytes(&body.path)), libc::S_IFDIR)
    }
}
