//! The mount namespaces that tasks of a tree are in, and which of them a file is in: that of the mount that it is reached by.

use super::{
    inside::{self, NsError},
    mounts::Views,
};
use crate::tree::FoundTree;
use floe_sys::{Pid, descriptor::mount_of, procfs::mounts_in};
use nix::{
    fcntl::{OFlag, open, openat},
    sched::CloneFlags,
    sys::stat::Mode,
};
use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The mount namespaces of a tree, by their numbers in the image.
#[derive(Debug)]
pub struct MountSpaces {
    /// That of the tree's root is the first.
    all: Vec<MountSpace>,
    by_task: HashMap<Pid, u32>,
    by_mount: HashMap<u64, u32>,
}

/// One of them.
#[derive(Debug)]
struct MountSpace {
    /// A task that is in it.
    task: Pid,
    /// Its root directory, as a path of floe's.
    root: PathBuf,
    _root: OwnedFd,
    views: Views,
}

impl MountSpaces {
    /// Those of the living tasks of a tree, and that of `first`, who stands for them where there are none.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn find(tree: &FoundTree, first: Pid) -> Result<Self, NsError> {
        let mut found = Self {
            all: Vec::new(),
            by_task: HashMap::new(),
            by_mount: HashMap::new(),
        };
        let mut numbers = HashMap::new();
        let living = tree.living().map(crate::tree::FoundProcess::task);
        for task in std::iter::once(first).chain(living) {
            let path = format!("/proc/{task}/ns/mnt");
            let link = std::fs::read_link(&path).map_err(|source| NsError::Read { path, source })?;
            let number = match numbers.get(&link) {
                Some(number) => *number,
                None => {
                    let number = found.add(task)?;
                    numbers.insert(link, number);
                    number
                }
            };
            found.by_task.insert(task, number);
        }
        Ok(found)
    }

    fn add(&mut self, task: Pid) -> Result<u32, NsError> {
        let number = self.all.len() as u32;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = open("/proc", flags, Mode::empty()).map_err(|error| NsError::Read {
            path: "/proc".to_owned(),
            source: error.into(),
        })?;
        let (root, text) = inside::run(task, CloneFlags::CLONE_NEWNS, || {
            Ok((open("/", flags, Mode::empty())?, own_mountinfo(&proc)?))
        })?;
        let mounts = mounts_in(&text);
        self.by_mount
            .extend(mounts.iter().map(|mount| (mount.id.into(), number)));
        self.all.push(MountSpace {
            task,
            root: PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())),
            _root: root,
            views: Views::new(mounts)?,
        });
        Ok(number)
    }

    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.all.len() as u32
    }

    /// A task that is in one.
    #[must_use]
    pub fn task(&self, number: u32) -> Pid {
        self.all[number as usize].task
    }

    /// The root directory of one, as a path of floe's.
    #[must_use]
    pub fn root(&self, number: u32) -> &Path {
        &self.all[number as usize].root
    }

    /// The paths at which one may show a file of a filesystem, to which a link in /proc leads by a mount that is not there.
    pub(crate) fn shown_at(&self, number: u32, device: u64, target: &[u8]) -> Vec<Vec<u8>> {
        self.all[number as usize].views.paths(device, target)
    }

    /// The one that a task is in.
    #[must_use]
    pub fn of_task(&self, task: Pid) -> u32 {
        self.by_task.get(&task).copied().unwrap_or(0)
    }

    /// The one that a mount is in. Of a mount that is in none of them, such as that of a socket, the one of the task that has
    /// the file.
    #[must_use]
    pub fn of_mount(&self, mount: u64, task: Pid) -> u32 {
        let known = self.by_mount.get(&mount).copied();
        known.unwrap_or_else(|| self.of_task(task))
    }

    /// The one that the file is in to which `magic` leads, a link in /proc of a task.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of_link(&self, magic: &str, task: Pid) -> io::Result<u32> {
        if self.all.len() == 1 {
            return Ok(0);
        }
        let mount = mount_of(&CString::new(magic)?)?;
        Ok(self.of_mount(mount, task))
    }
}

/// mountinfo of the calling thread, by floe's own /proc.
pub(super) fn own_mountinfo(proc: &OwnedFd) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = Vec::new();
    File::from(openat(proc, "thread-self/mountinfo", flags, Mode::empty())?).read_to_end(&mut text)?;
    Ok(text)
}
