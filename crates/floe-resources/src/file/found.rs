//! A descriptor as it is found.

use super::FileError;
use crate::{
    mm::{Contents, FileIdentity, Place},
    ns::NetworkSpace,
    refusal::Subject,
};
use floe_sys::{
    Pid, descriptor,
    procfs::{Descriptors, FdInfo},
};
use nix::{
    errno::Errno,
    sys::statfs::fstatfs,
    unistd::{Whence, lseek},
};
use std::{
    collections::HashMap,
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
    /// The network namespace that it is of, if it is a socket or the like.
    pub network: NetworkSpace,
}

/// Looks at descriptors of one task, or at such as floe has.
#[derive(Debug)]
pub struct Finder {
    holder: Pid,
    pidfd: Rc<OwnedFd>,
    descriptors: Descriptors,
    devices: HashMap<u64, Device>,
}

/// What is the same for all files of a device.
#[derive(Debug, Clone, Copy, Default)]
struct Device {
    /// As in [`FoundFile`].
    filesystem: Option<i64>,
    /// How links begin that end with the inode number: files of this device have no names.
    nameless: Option<&'static str>,
}

const NAMELESS: [&str; 2] = ["pipe:[", "socket:["];

impl Finder {
    /// Of this task.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn new(holder: Pid) -> Result<Self, FileError> {
        let pidfd = descriptor::pidfd_of_task(holder)
            .map_err(FileError::system("open a pidfd of", format!("process {holder}")))?;
        Ok(Self {
            holder,
            pidfd: Rc::new(pidfd),
            descriptors: Descriptors::open(holder)?,
            devices: HashMap::new(),
        })
    }

    /// The task's own descriptor `number`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn own(&mut self, subject: &Subject, number: i32) -> Result<FoundFile, FileError> {
        let file = descriptor::pidfd_getfd(self.pidfd.as_fd(), number).map_err(self.failed("fetch", number))?;
        let viewer = self.holder;
        self.look((subject, viewer), (number, file))
    }

    /// A file that is on its way through a socket of the task `subject`, and of which this one, floe, has a duplicate.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn on_its_way(
        &mut self,
        (subject, viewer, through): (&Subject, Pid, &str),
        file: OwnedFd,
    ) -> Result<FoundFile, FileError> {
        let mut found = self.look((subject, viewer), (file.as_raw_fd(), file))?;
        found.through = Some(through.to_owned());
        Ok(found)
    }

    fn failed(&self, action: &'static str, number: i32) -> impl FnOnce(Errno) -> FileError {
        FileError::system(action, format!("/proc/{}/fd/{number}", self.holder))
    }

    fn look(
        &mut self,
        (subject, viewer): (&Subject, Pid),
        (number, file): (i32, OwnedFd),
    ) -> Result<FoundFile, FileError> {
        let file = File::from(file);
        let metadata = file.metadata().map_err(|source| FileError::System {
            action: "stat",
            object: format!("/proc/{}/fd/{number}", self.holder),
            source,
        })?;
        let mut device = self.devices.get(&metadata.dev()).copied().unwrap_or_default();
        if device.filesystem.is_none() && (metadata.is_file() || metadata.is_dir()) {
            let found = fstatfs(&file).map_err(self.failed("statfs", number))?;
            device.filesystem = Some(found.filesystem_type().0);
        }
        let link = match device.nameless {
            Some(begin) => format!("{begin}{}]", metadata.ino()).into_bytes(),
            None => self.descriptors.link(number)?,
        };
        let is_nameless = |begin: &&&str| link.starts_with(begin.as_bytes());
        device.nameless = NAMELESS.iter().find(is_nameless).copied();
        self.devices.insert(metadata.dev(), device);
        Ok(FoundFile {
            holder: self.holder,
            pidfd: Rc::clone(&self.pidfd),
            file,
            subject: subject.clone(),
            viewer,
            number,
            through: None,
            link,
            filesystem: device.filesystem.filter(|_| metadata.is_file() || metadata.is_dir()),
            metadata,
            info: self.descriptors.info(number)?,
            network: NetworkSpace::of_root(viewer),
        })
    }
}

impl FoundFile {
    /// The number of the mount namespace that its paths count from.
    #[must_use]
    pub fn mount_namespace(&self, contents: &Contents) -> u32 {
        contents.spaces.of_mount(self.info.mount, self.viewer)
    }

    /// Where it is found.
    pub(crate) fn place(&self, contents: &Contents) -> Place {
        contents.place(self.mount_namespace(contents), &self.link, &self.metadata)
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

    /// Its position; 0 of devices where it can't be moved, and some count what was read.
    #[must_use]
    pub fn position(&self) -> u64 {
        match self.info.position {
            // Elsewhere to ask is not without effect: views of /proc may be read anew.
            position if self.file_type() != libc::S_IFCHR => position,
            _ if lseek(self.as_fd(), 0, Whence::SeekCur) == Err(Errno::ESPIPE) => 0,
            position => position,
        }
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
