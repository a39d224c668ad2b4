//! Files that a sandbox's monitor keeps open from one command of floe's to the next, each with a note of what it is; the
//! monitor knows no more of them. One set at a time.
//!
//! ```text
//! client                        monitor
//!    | HAND_ALL (note) ------->  forgets what it keeps
//!    | HAND (note, file) ----->  as often as needed
//!    | KEEP ------------------>  keeps these from now on, or none where there is no room for all
//!    | <- NOTED (room) | FAILED
//!    | KEPT ------------------>
//!    | <- KEPT_ONE (note, file), as often as needed; KEPT_ALL (note)
//! ```

use crate::{
    AttachError, Client,
    message::{self, PAYLOAD, kind},
};
use nix::errno::Errno;
use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

/// So many files one monitor keeps at most; fewer where its limit of open files leaves no room.
pub const MOST_KEPT: usize = 512;

/// Files that a monitor keeps.
#[derive(Debug, Default)]
pub struct KeptFiles {
    /// What they are all together; empty where there are none.
    pub note: Vec<u8>,
    /// Each with what it is.
    pub files: Vec<(Vec<u8>, OwnedFd)>,
}

impl KeptFiles {
    /// Asks the monitor of the sandbox in `folder` for those that it keeps.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn ask(folder: &Path) -> Result<Self, AttachError> {
        let client = Client::connect(folder)?;
        client.send(kind::KEPT, &[])?;
        let mut files = Vec::new();
        loop {
            match client.receive_with_file()? {
                Some((kind::KEPT_ONE, note, Some(file))) => files.push((note, file)),
                // There was no room for one more.
                Some((kind::KEPT_ONE, _, None)) => {}
                Some((kind::KEPT_ALL, note, _)) => return Ok(Self { note, files }),
                Some(_) | None => return Err(AttachError::Talk(Errno::ECONNRESET)),
            }
        }
    }

    /// Has the monitor of the sandbox in `folder` keep `files`, each with what it is, in the place of those that it keeps;
    /// `note` is what they are all together. Returns for how many it had room.
    ///
    /// # Errors
    /// [`AttachError`]; it keeps none then. EMFILE where it has no room for all.
    pub fn hand<'a>(
        folder: &Path,
        note: &[u8],
        files: impl IntoIterator<Item = (Vec<u8>, BorrowedFd<'a>)>,
    ) -> Result<usize, AttachError> {
        let client = Client::connect(folder)?;
        client.send(kind::HAND_ALL, note)?;
        for (note, file) in files {
            if note.len() > PAYLOAD {
                return Err(AttachError::Talk(Errno::E2BIG));
            }
            client.send_with_file(kind::HAND, &note, file)?;
        }
        client.send(kind::KEEP, &[])?;
        match client.receive()? {
            Some((kind::NOTED, room)) => match <[u8; 4]>::try_from(room) {
                Ok(room) => Ok(u32::from_le_bytes(room) as usize),
                Err(_) => Err(AttachError::Talk(Errno::EPROTO)),
            },
            Some((kind::FAILED, why)) => Err(AttachError::Talk(message::parse_failure(&why).0)),
            Some(_) | None => Err(AttachError::Talk(Errno::ECONNRESET)),
        }
    }

    /// Has the monitor of the sandbox in `folder` forget those that it keeps; returns for how many it has room then.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn forget(folder: &Path) -> Result<usize, AttachError> {
        Self::hand(folder, &[], [])
    }
}
