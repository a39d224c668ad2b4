//! Whose a pipe is: who may open it again by its link in /proc.

use crate::file::FileError;
use nix::{
    errno::Errno,
    sys::stat::{Mode, fchmod, fstat},
    unistd::fchown,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::Metadata,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
};

/// Its user, group and permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::file) struct Owner {
    user: u32,
    group: u32,
    permissions: u32,
}

impl Owner {
    pub(in crate::file) fn of(pipe: &Metadata) -> Self {
        Self {
            user: pipe.uid(),
            group: pipe.gid(),
            permissions: pipe.mode() & 0o7777,
        }
    }

    /// Gives a pipe that was made again to them. Whom floe's user namespace does not know can't have it.
    pub(in crate::file) fn put_back(self, pipe: BorrowedFd<'_>) -> Result<(), FileError> {
        let failed = |action| FileError::system(action, "a pipe");
        let now = fstat(pipe).map_err(failed("look at"))?;
        if (now.st_uid, now.st_gid) != (self.user, self.group) {
            match fchown(pipe, Some(self.user.into()), Some(self.group.into())) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(error) => return Err(failed("set the owner of")(error)),
            }
        }
        if now.st_mode & 0o7777 != self.permissions {
            fchmod(pipe, Mode::from_bits_truncate(self.permissions)).map_err(failed("set the permissions of"))?;
        }
        Ok(())
    }
}
