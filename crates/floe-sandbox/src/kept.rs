//! Files that a sandbox's monitor keeps open from one command of floe's to the next, each with a note of what it is; the
//! monitor knows no more of them. One set at a time.
//!
//! ```text
//! client                        monitor
//!    | HAND_ALL (note) ------->  forgets what it keeps
//!    | HAND (note, file) ----->  as often as needed
//!    | KEEP ------------------>  keeps these from now on
//!    | <----------------- NOTED
//!    | KEPT ------------------>
//!    | <- KEPT_ONE (note, file), as often as needed; KEPT_ALL (note)
//! ```

use crate::{
    AttachError, Client,
    message::{PAYLOAD, kind},
};
use nix::errno::Errno;
use std::{os::fd::OwnedFd, path::Path};

/// So many files one monitor keeps: it needs some for itself.
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

    /// Has the monitor of the sandbox in `folder` keep these, in the place of those that it keeps.
    ///
    /// # Errors
    /// [`AttachError`]; it keeps none then.
    pub fn hand(&self, folder: &Path) -> Result<(), AttachError> {
        let client = Client::connect(folder)?;
        if self.files.len() > MOST_KEPT || self.files.iter().any(|(note, _)| note.len() > PAYLOAD) {
            return Err(AttachError::Talk(Errno::E2BIG));
        }
        client.send(kind::HAND_ALL, &self.note)?;
        for (note, file) in &self.files {
            client.send_with_file(kind::HAND, note, file)?;
        }
        client.send(kind::KEEP, &[])?;
        match client.receive()? {
            Some((kind::NOTED, _)) => Ok(()),
            Some(_) | None => Err(AttachError::Talk(Errno::ECONNRESET)),
        }
    }
}
