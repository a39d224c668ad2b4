//! Files of events but epoll: counters, signals, timers, ends of processes, changes of files.

mod eventfd;
mod fanotify;
mod inotify;
pub(super) mod pidfd;
mod signalfd;
mod timerfd;
mod watched;

pub use eventfd::EventFd;
pub use fanotify::Fanotify;
pub use inotify::Inotify;
pub use pidfd::PidFd;
pub use signalfd::SignalFd;
pub use timerfd::TimerFd;

use super::{FileError, FoundFile};
use floe_sys::procfs::{self, ProcError};

/// Whether a file is the kernel's anonymous one of this kind.
pub(super) fn is_anonymous(file: &FoundFile, kind: &str) -> bool {
    file.link
        .strip_prefix(b"anon_inode:[")
        .and_then(|rest| rest.strip_suffix(b"]"))
        .is_some_and(|name| name == kind.as_bytes())
}

/// Lines of /proc/PID/fdinfo/N.
pub(super) struct Lines {
    path: String,
    text: String,
}

impl Lines {
    pub(super) fn read(file: &FoundFile) -> Result<Self, FileError> {
        let path = format!("/proc/{}/fdinfo/{}", file.holder, file.number);
        let text = procfs::read_text(&path)?;
        Ok(Self { path, text })
    }

    /// All values of one key.
    pub(super) fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.text
            .lines()
            .filter_map(move |line| line.split_once(':').filter(|(name, _)| name.trim() == key))
            .map(|(_, value)| value.trim())
    }

    /// What follows a first word.
    pub(super) fn all_words(&self, first: &str) -> impl Iterator<Item = &str> {
        let lines = self.text.lines();
        lines.filter_map(move |line| line.strip_prefix(first)?.strip_prefix(' '))
    }

    /// The number of a key.
    pub(super) fn number(&self, key: &'static str, radix: u32) -> Result<u64, FileError> {
        let value = self.all(key).next();
        value
            .and_then(|value| u64::from_str_radix(value, radix).ok())
            .ok_or_else(|| self.malformed(key))
    }

    pub(super) fn malformed(&self, field: &'static str) -> FileError {
        FileError::Proc(ProcError::Field {
            path: self.path.clone(),
            field,
        })
    }
}
