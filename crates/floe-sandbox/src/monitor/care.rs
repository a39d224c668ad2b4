//! Files that clients give into the monitor's care.

use crate::MOST_KEPT;
use floe_sys::{Pid, procfs};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit},
};
use std::{
    os::fd::OwnedFd,
    rc::{Rc, Weak},
};

/// Descriptors that the monitor needs for all else: clients, streams, pages.
const RESERVE: usize = 64;

/// A message that is to be sent, with a file that may be forgotten before.
pub(super) type Owed = (u8, Vec<u8>, Option<Weak<OwnedFd>>);

/// Files that are kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// What they are all together.
    pub note: Vec<u8>,
    /// Each with what it is. Nobody else holds them, so that what is forgotten is closed.
    pub files: Vec<(Vec<u8>, Rc<OwnedFd>)>,
}

/// Files that a client hands over.
#[derive(Debug)]
pub(super) struct Handed {
    kept: Kept,
    room: usize,
    is_whole: bool,
}

impl Handed {
    /// None so far.
    pub fn begin(note: Vec<u8>) -> Self {
        let files = Vec::new();
        Self {
            kept: Kept { note, files },
            room: room(),
            is_whole: true,
        }
    }

    /// One more; none where there was no room to receive it.
    pub fn take(&mut self, note: Vec<u8>, file: Option<OwnedFd>) {
        match file.filter(|_| self.kept.files.len() < self.room) {
            Some(file) => self.kept.files.push((note, Rc::new(file))),
            None => self.is_whole = false,
        }
    }

    /// All of them, and how many could have been.
    ///
    /// # Errors
    /// EMFILE where they were too many.
    pub fn finish(self) -> Result<(Kept, usize), Errno> {
        if self.is_whole {
            Ok((self.kept, self.room))
        } else {
            Err(Errno::EMFILE)
        }
    }
}

/// How many more files can be kept.
fn room() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
    match procfs::descriptors(Pid::new(std::process::id() as i32)) {
        Ok(open) => limit.saturating_sub(open.len() + RESERVE).min(MOST_KEPT),
        Err(error) => {
            tracing::info!(%error, "nothing is kept, as nobody knows for how much there is room");
            0
        }
    }
}
