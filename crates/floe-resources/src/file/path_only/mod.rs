//! Descriptors of O_PATH, open(2), that stand for what is no regular file and no directory: symbolic links, sockets, fifos,
//! devices. The file itself is not opened, so only its place counts.

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, named, open_flags};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::open_in_root;
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// The kind.
pub struct PathOnly;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// S_IFMT bits of its mode.
    file_type: u32,
    /// Number of a device, else 0.
    device: u64,
}

impl FileKind for PathOnly {
    fn name(&self) -> &'static str {
        "path-only"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        let others = [libc::S_IFREG, libc::S_IFDIR];
        file.is_path_only() && !others.contains(&file.file_type()) && file.link.starts_with(b"/")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(path) = named(file, type_name(file.file_type()), context) else {
            return Ok(None);
        };
        let body = Body {
            path,
            file_type: file.file_type(),
            device: file.metadata.rdev(),
        };
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let path = Path::new(OsStr::from_bytes(&body.path));
        // A program that has a link itself asked for it by O_NOFOLLOW.
        let flags = open_flags(record) | libc::O_PATH;
        let file = open_in_root(context.root(record), path, flags, 0)
            .map_err(FileError::system("open the path", name.clone()))?;
        match other(file.as_fd(), &body).map_err(FileError::system("stat", name.clone()))? {
            None => Ok(file),
            Some(what) => Err(FileError::Unknown {
                id: record.id,
                what: format!("{name} is {what}"),
            }),
        }
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let name = type_name(body.file_type);
        Ok(format!("{} ({name}, by O_PATH)", String::from_utf8_lossy(&body.path)))
    }

    /// A socket that the tree itself is bound to is made again before this is opened.
    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        if body.file_type == libc::S_IFSOCK {
            return Ok(None);
        }
        let name = String::from_utf8_lossy(&body.path);
        let flags = open_flags(record) | libc::O_PATH;
        let found = open_in_root(root, Path::new(OsStr::from_bytes(&body.path)), flags, 0);
        match found.and_then(|found| other(found.as_fd(), &body)) {
            Ok(what) => Ok(what.map(|what| format!("{name} is {what}"))),
            Err(error) => Ok(Some(format!("{name} can't be opened here: {error}"))),
        }
    }
}

/// What an open file is, where it is not what the body says.
fn other(file: BorrowedFd<'_>, body: &Body) -> Result<Option<&'static str>, nix::errno::Errno> {
    let found = fstat(file)?;
    if found.st_mode & libc::S_IFMT != body.file_type {
        return Ok(Some("a file of another type here"));
    }
    Ok((found.st_rdev != body.device).then_some("another device here"))
}

fn type_name(file_type: u32) -> &'static str {
    match file_type {
        libc::S_IFLNK => "symbolic link",
        libc::S_IFSOCK => "socket",
        libc::S_IFIFO => "fifo",
        _ => "device file",
    }
}
