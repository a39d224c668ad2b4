//! A sandbox that goes to another host, or has come from one: what is asked of its monitor, so that a kill of floe at any
//! moment leaves neither two that run nor none.
//!
//! ```text
//! source   floe migrate                  monitor
//!             | HAND_OVER ------------>   writes the record, syncs it, ends PID 1
//!             | <------------- NOTED      (FAILED: nothing was done, it runs on)
//!
//! target   floe receive                  monitor
//!             | COMMIT, Holding ----->   keeps it frozen, whatever becomes of floe
//!             | <------------ COMMIT      (FAILED: it is removed)
//!         any floe, later
//!             | RELEASE, or DROP ----->   thaws it, or removes all of it
//!             | <------------- NOTED      (FAILED: it is not held by that hand-over)
//! ```

use crate::{
    attach::{AttachError, Client},
    message::{self, kind},
    sandbox::{Sandbox, SandboxError},
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A record that a monitor keeps before it ends its sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandedOver {
    /// Where; what is there is replaced.
    pub path: PathBuf,
    /// What.
    pub text: String,
}

/// The file of a socket that was bound anew for a sandbox that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldName {
    /// Its path in the sandbox.
    pub path: PathBuf,
    /// Device and inode number: another file at the path stays.
    pub identity: (u64, u64),
}

/// What a monitor did not do.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// It said no, and did nothing.
    #[error("{0}")]
    Refused(String),
    /// It is gone, or PID 1 has ended meanwhile. What it did before that its record tells.
    #[error("the monitor of the sandbox did not answer")]
    Gone,
}

impl From<AttachError> for HandoverError {
    fn from(error: AttachError) -> Self {
        match error {
            // Nobody is there.
            AttachError::Connect { .. } => Self::Gone,
            other => Self::Sandbox(other.into()),
        }
    }
}

/// A sandbox that is to be left frozen until somebody decides on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holding {
    /// The id of its hand-over.
    pub id: String,
    /// A file without which it does not come about: whoever has removed it finds the sandbox held, or it never will be.
    pub permit: PathBuf,
}

/// How often who waits for a monitor is called, in milliseconds.
const NOW_AND_THEN: u8 = 100;

/// A name in a sandbox's folder.
const NAMES: &str = "held-names.json";

/// Writes down names that go with a sandbox that is held.
pub(crate) fn note_names(folder: &Path, names: &[HeldName]) -> io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    fs::write(folder.join(NAMES), serde_json::to_vec(names)?)
}

/// What was written down.
pub(crate) fn noted_names(folder: &Path) -> io::Result<Vec<HeldName>> {
    match fs::read(folder.join(NAMES)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Sandbox {
    /// Has the monitor keep a record and, when it is safe on its disk, end PID 1. `waiting` is called now and then until it
    /// has answered: it can do nothing while a PID 1 that has ended is still traced.
    ///
    /// # Errors
    /// [`HandoverError::Refused`]: nothing was done. [`HandoverError::Gone`]: where the record is there, the sandbox is to be
    /// ended by whoever asked; otherwise nothing was done, and won't be.
    pub fn hand_over(&self, record: &HandedOver, waiting: &mut dyn FnMut()) -> Result<(), HandoverError> {
        let text = serde_json::to_vec(record).map_err(|error| HandoverError::Refused(error.to_string()))?;
        self.order(kind::HAND_OVER, &text, waiting)
    }

    /// Lets one that is held run.
    ///
    /// # Errors
    /// [`HandoverError::Refused`] where it is not held by the hand-over `id`.
    pub fn release(&self, id: &str) -> Result<(), HandoverError> {
        self.order(kind::RELEASE, id.as_bytes(), &mut || {})
    }

    /// Removes one that is held.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn abandon(&self, id: &str) -> Result<(), HandoverError> {
        self.order(kind::DROP, id.as_bytes(), &mut || {})
    }

    /// Whether its monitor lives.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.has_monitor()
    }

    /// Returns when the monitor has done all that others ordered before.
    ///
    /// # Errors
    /// [`HandoverError::Gone`].
    pub fn wait_for_monitor(&self) -> Result<(), HandoverError> {
        Ok(Client::connect(self.folder())?.announce()?)
    }

    fn order(&self, kind: u8, payload: &[u8], waiting: &mut dyn FnMut()) -> Result<(), HandoverError> {
        if payload.len() > message::PAYLOAD {
            return Err(HandoverError::Refused("the record is too long".to_owned()));
        }
        let client = Client::connect(self.folder())?;
        match client.send(kind, payload) {
            Ok(()) => {}
            Err(AttachError::Talk(Errno::EPIPE | Errno::ECONNRESET)) => return Err(HandoverError::Gone),
            Err(error) => return Err(error.into()),
        }
        while !client.has_answer(NOW_AND_THEN)? {
            waiting();
        }
        match client.receive() {
            Ok(Some((kind::NOTED, _))) => Ok(()),
            Ok(Some((kind::FAILED, payload))) => Err(HandoverError::Refused(message::parse_failure(&payload).1)),
            Ok(Some(_) | None) | Err(AttachError::Talk(Errno::EPIPE | Errno::ECONNRESET)) => Err(HandoverError::Gone),
            Err(error) => Err(error.into()),
        }
    }
}
