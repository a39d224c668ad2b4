//! Directories, by path, with their read position.

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, named, open_flags};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::open_in_root;
use nix::{
    sys::stat::fstat,
    unistd::{Whence, lseek},
};
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
}

impl FileKind for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFDIR && file.pseudo_filesystem().is_none()
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(path) = named(file, "directory", context) else {
            return Ok(None);
        };
        Ok(Some(codec::encode(&Body { path })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let path = Path::new(OsStr::from_bytes(&body.path));
        let directory = open_in_root(context.root, path, open_flags(record), 0)
            .map_err(FileError::system("open directory", name.clone()))?;
        // Not by O_DIRECTORY, which the program would see in the flags.
        let found = fstat(directory.as_fd()).map_err(FileError::system("stat", name.clone()))?;
        if found.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("{name} is no directory here"),
            });
        }
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
