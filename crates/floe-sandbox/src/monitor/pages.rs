//! Pages of memory that others bring while the workload runs.

use crate::message::{self, kind};
use nix::errno::Errno;
use std::os::fd::OwnedFd;

/// Memory that is not all there.
#[derive(Default)]
pub struct Pages {
    /// The way to who brings it.
    server: Option<OwnedFd>,
    /// Closed by nobody before all is there, or nobody is left who could read what is not.
    held: Vec<OwnedFd>,
}

/// What became of it.
pub enum Heard {
    /// All is there.
    All,
    /// Nobody brings the rest: why not.
    Failed(String),
    /// Those who brought it are gone, without a word.
    Gone,
    /// Nothing of this.
    Other,
}

impl Pages {
    /// Takes what the launcher hands over: first the way to the server, then descriptors to hold.
    pub fn take(&mut self, files: Vec<OwnedFd>) {
        let mut files = files.into_iter();
        if self.server.is_none() {
            self.server = files.next();
        }
        self.held.extend(files);
    }

    /// The way to who brings it, while it comes.
    pub fn server(&self) -> Option<&OwnedFd> {
        self.server.as_ref()
    }

    /// Hears from the server.
    pub fn hear(&mut self) -> Heard {
        let Some(server) = &self.server else {
            return Heard::Other;
        };
        match message::get_now(server) {
            Ok(Some((kind::LOADED, _))) => {
                *self = Self::default();
                Heard::All
            }
            Ok(Some((kind::FAILED, payload))) => {
                self.server = None;
                Heard::Failed(message::parse_failure(&payload).1)
            }
            Ok(Some(_)) | Err(Errno::EAGAIN) => Heard::Other,
            Ok(None) | Err(_) => {
                self.server = None;
                Heard::Gone
            }
        }
    }
}
