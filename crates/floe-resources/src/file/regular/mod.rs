//! Regular files: by path, or with their content where they were deleted; a memfd never had a name.

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, open_ghost, seek,
};
use crate::{file::namespace::NSFS, mm::Located};
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

/// The kind.
pub struct Regular;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    ghost: Option<u32>,
    size: u64,
    mtime: i64,
    /// Device and inode number on the host that the image was made on.
    identity: [u64; 2],
}

impl FileKind for Regular {
    fn name(&self) -> &'static str {
        "regular"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.file_type() == libc::S_IFREG
            && file.link.starts_with(b"/")
            && file.pseudo_filesystem().is_none()
            && file.filesystem != Some(NSFS)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let findings = (&file.subject, &mut *context.refusals);
        let place = (file.mount_namespace(context.contents), file.link.as_slice());
        let found = context
            .contents
            .locate(&file.magic(), place, &file.metadata, (file.title(), findings))?;
        let Some(Located { path, ghost }) = found else {
            return Ok(None);
        };
        let mtime = file.metadata.mtime() * 1_000_000_000 + file.metadata.mtime_nsec();
        let body = Body {
            path,
            ghost,
            size: file.metadata.size(),
            mtime,
            identity: [file.metadata.dev(), file.metadata.ino()],
        };
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let name = String::from_utf8_lossy(&body.path).into_owned();
        let file = match body.ghost {
            Some(id) => open_ghost(id, record, context)?,
            // O_TMPFILE, which a program may see in a file's flags, holds O_DIRECTORY.
            None => open_in_root(
                context.root(record),
                path(&body),
                open_flags(record) & !libc::O_DIRECTORY,
                0,
            )
            .map_err(FileError::system("open", name.clone()))?,
        };
        seek(file.as_fd(), record, &name)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let deleted = if body.ghost.is_some() {
            " (deleted, content in the image)"
        } else {
            ""
        };
        Ok(format!("{}{deleted}", String::from_utf8_lossy(&body.path)))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        if body.ghost.is_some() {
            return Ok(None);
        }
        super::device::path_obstacle(root, path(&body), libc::S_IFREG)
    }
}

/// A file that is opened again by its path.
#[derive(Debug)]
pub struct OnDisk {
    /// Its path.
    pub path: Vec<u8>,
    /// Bytes it had.
    pub size: u64,
    /// When it was changed, nanoseconds since 1970.
    pub mtime: i64,
    /// Device and inode number on the host that the image was made on.
    pub identity: [u64; 2],
}

/// The file of a record, where it is a regular one that has a path.
///
/// # Errors
/// [`FileError`].
pub fn on_disk(record: &OpenFileRecord) -> Result<Option<OnDisk>, FileError> {
    if record.kind != Regular.name() {
        return Ok(None);
    }
    let Body {
        path,
        ghost,
        size,
        mtime,
        identity,
    } = decode(record)?;
    Ok(ghost.is_none().then_some(OnDisk {
        path,
        size,
        mtime,
        identity,
    }))
}

fn path(body: &Body) -> &Path {
    Path::new(OsStr::from_bytes(&body.path))
}
