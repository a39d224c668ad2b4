//! A descriptor as it is found.

use super::FileError;
use crate::{mm::FileIdentity, refusal::Subject};
use floe_sys::{Pid, descriptor, procfs::FdInfo};
use std::{
    fs::Metadata,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::MetadataExt},
    },
};

/// A descriptor of a stopped task.
#[derive(Debug)]
pub struct FoundFile {
    /// Whose it is.
    pub holder: Pid,
    /// The same for findings.
    pub subject: Subject,
    /// Its number there.
    pub number: i32,
    /// Target of the link in /proc/PID/fd.
    pub link: Vec<u8>,
    /// Of the file itself.
    pub metadata: Metadata,
    /// Position, flags, mount.
    pub info: FdInfo,
}

impl FoundFile {
    /// Reads one.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(holder: Pid, subject: &Subject, number: i32) -> Result<Self, FileError> {
        let magic = format!("/proc/{holder}/fd/{number}");
        let wrap = |action| {
            let object = magic.clone();
            move |source| FileError::System { action, object, source }
        };
        Ok(Self {
            holder,
            subject: subject.clone(),
            number,
            link: std::fs::read_link(&magic)
                .map_err(wrap("read the link"))?
                .into_os_string()
                .into_vec(),
            metadata: std::fs::metadata(&magic).map_err(wrap("stat"))?,
            info: FdInfo::read(holder, number)?,
        })
    }

    /// Its link in /proc.
    #[must_use]
    pub fn magic(&self) -> String {
        format!("/proc/{}/fd/{}", self.holder, self.number)
    }

    /// What findings call it.
    #[must_use]
    pub fn title(&self) -> String {
        format!("descriptor {} ({})", self.number, String::from_utf8_lossy(&self.link))
    }

    /// Device and inode number.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        FileIdentity::from(&self.metadata)
    }

    /// S_IFMT bits of its mode.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.metadata.mode() & libc::S_IFMT
    }

    /// Flags but O_CLOEXEC, which belongs to the descriptor.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.info.flags & !(libc::O_CLOEXEC as u32)
    }

    /// A duplicate of the descriptor.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn duplicate(&self) -> Result<OwnedFd, FileError> {
        let pidfd = descriptor::pidfd_open(self.holder).map_err(FileError::system("open a pidfd of", self.title()))?;
        descriptor::pidfd_getfd(pidfd.as_fd(), self.number).map_err(FileError::system("fetch", self.title()))
    }
}
