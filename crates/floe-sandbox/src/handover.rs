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
    state::{SandboxState, Status},
};
use floe_sys::descriptor;
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::fstatat,
    unistd::{UnlinkatFlags, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A record that a monitor keeps before it ends its sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandedOver {
    /// Where; what is there is replaced.
    pub path: PathBuf,
    /// What.
    pub text: String,
    /// What must stand there before: whoever has settled the hand-over meanwhile has removed it.
    pub begun: String,
    /// PID and start time of the tracer under which the tree has stood still since its image was taken.
    pub tracer: (i32, u64),
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
    /// Its monitor has died, and what is left of it could not be seen to.
    #[error("finish for the monitor of the sandbox, which has died: {0}")]
    Unfinished(String),
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

/// Removes files of sockets that were bound anew for a sandbox that does not count.
pub(crate) fn remove_names(folder: &Path, pid1: i32) -> io::Result<()> {
    let names = noted_names(folder)?;
    if names.is_empty() {
        return Ok(());
    }
    let root = File::open(format!("/proc/{pid1}/root"))?;
    for name in names {
        let (Some(folder), Some(file)) = (name.path.parent(), name.path.file_name()) else {
            continue;
        };
        let folder = match descriptor::open_in_root(root.as_fd(), folder, libc::O_PATH | libc::O_CLOEXEC, 0) {
            Ok(folder) => folder,
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let found = fstatat(&folder, file, AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| (found.st_dev, found.st_ino) == name.identity) {
            unlinkat(&folder, file, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

impl Sandbox {
    /// Has the monitor keep a record and, when it is safe on its disk, end PID 1. `waiting` is called now and then until it
    /// has answered: it can do nothing while a PID 1 that has ended is still traced. Whether no task of the sandbox can run any
    /// more, though they may not be gone yet; otherwise that is so as soon as PID 1 is gone.
    ///
    /// # Errors
    /// [`HandoverError::Refused`]: nothing was done. [`HandoverError::Gone`]: where the record is there, the sandbox is to be
    /// ended by whoever asked; otherwise nothing was done, and won't be.
    pub fn hand_over(&self, record: &HandedOver, waiting: &mut dyn FnMut()) -> Result<bool, HandoverError> {
        let text = serde_json::to_vec(record).map_err(|error| HandoverError::Refused(error.to_string()))?;
        let answer = self.order(kind::HAND_OVER, &text, waiting)?;
        Ok(answer == [1])
    }

    /// Lets one that is held run.
    ///
    /// # Errors
    /// [`HandoverError::Refused`] where it is not held by the hand-over `id`.
    pub fn release(&self, id: &str) -> Result<(), HandoverError> {
        match self.order(kind::RELEASE, id.as_bytes(), &mut || {}) {
            Err(HandoverError::Gone) => self.finish(id, |held| {
                let mut state = held.state().clone();
                // Written down first: one that runs must not be taken for held.
                state.status = Status::Running;
                state.write(held.folder()).map_err(|error| error.to_string())?;
                let thawed = held
                    .freezer()
                    .map_err(|error| error.to_string())
                    .and_then(|cgroup| cgroup.thaw().map_err(|error| error.to_string()));
                thawed.inspect_err(|_| {
                    if let Err(error) = held.state().write(held.folder()) {
                        tracing::error!(%error, "a sandbox that is held is written down as one that runs");
                    }
                })
            }),
            result => result.map(drop),
        }
    }

    /// Does with a held sandbox whose monitor has died what that would have done.
    fn finish(&self, id: &str, deed: impl FnOnce(&Self) -> Result<(), String>) -> Result<(), HandoverError> {
        if self.has_monitor() {
            return Err(HandoverError::Gone);
        }
        let unfinished = |error: &dyn std::fmt::Display| HandoverError::Unfinished(error.to_string());
        let _lock = self.lock()?;
        let now = Self {
            state: SandboxState::read(self.folder()).map_err(|error| unfinished(&error))?,
            folder: self.folder().to_owned(),
        };
        if now.state().status != Status::Held || now.state().handover.as_deref() != Some(id) {
            return Err(HandoverError::Refused("the sandbox is not held".to_owned()));
        }
        deed(&now).map_err(HandoverError::Unfinished)
    }

    /// Removes one that is held.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn abandon(&self, id: &str) -> Result<(), HandoverError> {
        match self.order(kind::DROP, id.as_bytes(), &mut || {}) {
            Err(HandoverError::Gone) => self.finish(id, |held| {
                remove_names(held.folder(), held.state().pid1).map_err(|error| error.to_string())?;
                held.remove(true).map_err(|error| error.to_string())
            }),
            result => result.map(drop),
        }
    }

    /// Whether its monitor lives.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.has_monitor()
    }

    /// Returns when the monitor has done all that others ordered before.
    ///
    /// # Errors
    /// [`HandoverError::Gone`]; [`HandoverError::Refused`] where it does not answer for `patience`.
    pub fn wait_for_monitor(&self, patience: Duration) -> Result<(), HandoverError> {
        let begin = Instant::now();
        let client = Client::connect(self.folder())?;
        client.send(kind::ANNOUNCE, &[])?;
        while !client.has_answer(NOW_AND_THEN)? {
            if begin.elapsed() > patience {
                let text = "the monitor of the sandbox lives, and does not answer";
                return Err(HandoverError::Refused(text.to_owned()));
            }
        }
        match client.receive() {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(AttachError::Talk(_)) => Err(HandoverError::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// What it answers.
    fn order(&self, kind: u8, payload: &[u8], waiting: &mut dyn FnMut()) -> Result<Vec<u8>, HandoverError> {
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
            Ok(Some((kind::NOTED, answer))) => Ok(answer),
            Ok(Some((kind::FAILED, payload))) => Err(HandoverError::Refused(message::parse_failure(&payload).1)),
            Ok(Some(_) | None) | Err(AttachError::Talk(Errno::EPIPE | Errno::ECONNRESET)) => Err(HandoverError::Gone),
            Err(error) => Err(error.into()),
        }
    }
}
