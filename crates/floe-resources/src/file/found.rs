//! A descriptor as it is found.

use super::FileError;
use crate::{mm::FileIdentity, refusal::Subject};
use floe_sys::{
    Pid, descriptor,
    procfs::{Descriptors, FdInfo},
};
use nix::sys::statfs::fstatfs;
use std::{
    fs::{File, Metadata},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    rc::Rc,
};

/// include/uapi/linux/magic.h.
const PSEUDO_FILESYSTEMS: [(i64, &str); 8] = [
    (0x9fa0, "/proc"),
    (0x0027_e0eb, "a cgroup file system"),
    (0x6367_7270, "a cgroup file system"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x1980_0202, "the message queue file system"),
    (0x5345_434d, "memfd_secret"),
    (0xcafe_4a11, "the BPF file system"),
];

/// A descriptor of a stopped task, or an open file on its way through a socket.
#[derive(Debug)]
pub struct FoundFile {
    /// Whose it is: a task, or floe, which has a duplicate of what is on its way.
    pub holder: Pid,
    /// The same, by a descriptor.
    pub pidfd: Rc<OwnedFd>,
    /// A duplicate of the descriptor.
    file: File,
    /// The task that has it, or the socket that it is on its way through: for findings.
    pub subject: Subject,
    /// That task: what a path or the number of a process means to it.
    pub viewer: Pid,
    /// Its number there.
    pub number: i32,
    /// What findings call the socket that it is on its way through.
    through: Option<String>,
    /// Target of the link in /proc/PID/fd.
    pub link: Vec<u8>,
    /// Of the file itself.
    pub metadata: Metadata,
    /// Type of its filesystem (statfs(2)), where it lies on one by its type.
    pub filesystem: Option<i64>,
    /// Position, flags, mount.
    pub info: FdInfo,
}

impl FoundFile {
    /// Reads one of a process, which is the `holder` by number and by descriptor.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(
        (holder, pidfd): (Pid, &Rc<OwnedFd>),
        subject: &Subject,
        (descriptors, number): (&mut Descriptors, i32),
    ) -> Result<Self, FileError> {
        let wrap = |action| FileError::system(action, format!("/proc/{holder}/fd/{number}"));
        let file = descriptor::pidfd_getfd(pidfd.as_fd(), number).map_err(wrap("fetch"))?;
        Self::look((holder, pidfd), (subject, holder), (descriptors, number, file))
    }

    /// Reads one that is on its way through a socket of the task `subject`: `file` is a duplicate, that floe has.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn on_its_way(
        (own, pidfd): (Pid, &Rc<OwnedFd>),
        (subject, viewer, through): (&Subject, Pid, &str),
        (descriptors, file): (&mut Descriptors, OwnedFd),
    ) -> Result<Self, FileError> {
        let number = file.as_raw_fd();
        let mut found = Self::look((own, pidfd), (subject, viewer), (descriptors, number, file))?;
        found.through = Some(through.to_owned());
        Ok(found)
    }

    fn look(
        (holder, pidfd): (Pid, &Rc<OwnedFd>),
        (subject, viewer): (&Subject, Pid),
        (descriptors, number, file): (&mut Descriptors, i32, OwnedFd),
    ) -> Result<Self, FileError> {
        let wrap = |action| FileError::system(action, format!("/proc/{holder}/fd/{number}"));
        let file = File::from(file);
        let metadata = file.metadata().map_err(|source| FileError::System {
            action: "stat",
            object: format!("/proc/{holder}/fd/{number}"),
            source,
        })?;
        let filesystem = if metadata.is_file() || metadata.is_dir() {
            Some(fstatfs(&file).map_err(wrap("statfs"))?.filesystem_type().0)
        } else {
            None
        };
        Ok(Self {
            holder,
            pidfd: Rc::clone(pidfd),
            file,
            subject: subject.clone(),
            viewer,
            number,
            through: None,
            link: descriptors.link(number)?,
            filesystem,
            metadata,
            info: descriptors.info(number)?,
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
        let link = String::from_utf8_lossy(&self.link);
        match &self.through {
            Some(socket) => format!("file on its way through {socket} ({link})"),
            None => format!("descriptor {} ({link})", self.number),
        }
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

    /// Whether only its path is open (O_PATH).
    #[must_use]
    pub fn is_path_only(&self) -> bool {
        self.info.flags & libc::O_PATH as u32 != 0
    }

    /// What its filesystem is, where its files are views of the kernel's state and can't be opened again as they were.
    #[must_use]
    pub fn pseudo_filesystem(&self) -> Option<&'static str> {
        let known = PSEUDO_FILESYSTEMS.iter();
        known
            .copied()
            .find_map(|(number, name)| (Some(number) == self.filesystem).then_some(name))
    }
}

impl AsFd for FoundFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
