//! Files that stay outside: the user names them when the tree is saved, and gives others in their place when it is
//! restored. An image alone gets nothing of the host's by this: what is not given stands in the way.

mod given;
mod grants;
mod rules;
mod shape;

pub use grants::{GrantError, Grants};
pub use rules::{Externals, Rule, RuleError};

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, has_events, open_flags, reopen,
    set_flags,
};
use floe_image::{codec, record::OpenFileRecord};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use shape::Shape;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The kind of what the user named.
pub struct External;

pub(super) const NAME: &str = "external";

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// By which the user gives another one.
    name: String,
    /// What that one must be.
    shape: Shape,
    /// Device and inode number on the host that the image was made on.
    identity: (u64, u64),
    /// Whether something waited in it that the tree could read and had not.
    waits: bool,
}

/// Whether it is a file that the user named: what it is like now is that one's own.
#[must_use]
pub fn is_external(record: &OpenFileRecord) -> bool {
    record.kind == NAME
}

/// What the user names it, where the rules do; such a file is of this kind and no other.
pub(super) fn dump_named(file: &FoundFile, context: &DumpContext<'_>) -> Result<Option<(String, Vec<u8>)>, FileError> {
    let Some(name) = context.external.name_of(&file.link).filter(|_| Shape::can_be(file)) else {
        return Ok(None);
    };
    let shape = Shape::of(file.as_fd()).map_err(FileError::system("look at", file.title()))?;
    let reads = file.flags() as i32 & libc::O_ACCMODE != libc::O_WRONLY;
    let waits = reads
        && shape.holds_input()
        && has_events(file.as_fd(), libc::POLLIN).map_err(FileError::system("poll", file.title()))?;
    let identity = file.identity();
    let body = Body {
        name: name.to_owned(),
        shape,
        identity: (identity.device, identity.inode),
        waits,
    };
    Ok(Some((NAME.to_owned(), codec::encode(&body)?)))
}

impl FileKind for External {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The user says which are, not they themselves.
    fn claims(&self, _file: &FoundFile, _console: &ConsoleLinks) -> bool {
        false
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        Ok(dump_named(file, context)?.map(|(_, body)| body))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let lacking = || FileError::Unknown {
            id: record.id,
            what: format!("nothing is given for {}", body.name),
        };
        let given = context.outside.grants.descriptor(&body.name).ok_or_else(lacking)?;
        let wrap = |action| FileError::system(action, format!("what is given for {}", body.name));
        let own = fcntl(given, FcntlArg::F_GETFL).map_err(wrap("read the flags of"))?;
        // What others write there, too, is not overwritten.
        let flags = open_flags(record) | own & libc::O_APPEND;
        let file = if own & libc::O_ACCMODE == flags & libc::O_ACCMODE {
            given.try_clone_to_owned().map_err(|source| FileError::System {
                action: "duplicate",
                object: format!("what is given for {}", body.name),
                source,
            })?
        } else {
            let file = reopen(given, flags)?;
            match lseek(given, 0, Whence::SeekCur) {
                Ok(position) => lseek(&file, position, Whence::SeekSet).map_err(wrap("seek in"))?,
                Err(Errno::ESPIPE) => 0,
                Err(error) => return Err(wrap("find the position of")(error)),
            };
            file
        };
        set_flags(file.as_fd(), flags, record.id)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(format!("{} that is given as {:?}", body.shape, body.name))
    }

    /// What is in the way [`Grants`] tell.
    fn obstacle(&self, _record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        Ok(None)
    }
}
