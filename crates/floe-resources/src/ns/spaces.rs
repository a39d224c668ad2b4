//! The mount namespaces that tasks of a tree are in, or that are kept otherwise, and which of them a file is in: that of the
//! mount that it is reached by.

use super::{
    held::Held,
    inside::{self, NsError},
    mounts::{self, Views},
};
use crate::tree::FoundTree;
use floe_sys::{
    Pid,
    descriptor::mount_of,
    namespace::{Kind, Standing},
    procfs::mounts_in,
};
use nix::{
    fcntl::{OFlag, open, openat},
    sched::CloneFlags,
    sys::stat::Mode,
};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
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
    inode: u64,
    /// Its root directory, as a path of floe's.
    root: PathBuf,
    _root: OwnedFd,
    views: Views,
    /// The task, where it is one of floe's.
    _standing: Option<Standing>,
}

impl MountSpaces {
    /// Those of the living tasks of a tree, that of `first`, who stands for them where there are none, and those that are
    /// `held`, to which all are added that mounts in them keep.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn find(tree: &FoundTree, first: Pid, held: &mut Held) -> Result<Self, NsError> {
        let mut found = Self {
            all: Vec::new(),
            by_task: HashMap::new(),
            by_mount: HashMap::new(),
        };
        let living = tree.living().map(crate::tree::FoundProcess::task);
        for task in std::iter::once(first).chain(living) {
            let inode = inode_of(task)?;
            let number = match found.number(inode) {
                Some(number) => number,
                None => found.add(task, inode, None)?,
            };
            found.by_task.insert(task, number);
        }
        // By the number of what it is mounted in, and the inode number.
        let mut mounted: Vec<(usize, u64)> = Vec::new();
        let mut seen = 0;
        loop {
            while let Some(space) = found.all.get(seen) {
                for (identity, file) in mounts::kept(space.task, space.views.mounts())? {
                    if identity.0 == Kind::Mount {
                        mounted.push((seen, identity.1));
                    }
                    held.add(identity, file, tree)?;
                }
                seen += 1;
            }
            let unseen = held
                .of_kind(Kind::Mount)
                .find(|(inode, _)| found.number(*inode).is_none());
            let Some((inode, file)) = unseen else { break };
            let standing = inside::stand_inside(file.as_fd()).map_err(|source| NsError::Read {
                path: format!("mount namespace mnt:[{inode}]"),
                source,
            })?;
            found.add(standing.task(), inode, Some(standing))?;
        }
        found.order(&mounted);
        Ok(found)
    }

    fn number(&self, inode: u64) -> Option<u32> {
        let found = self.all.iter().position(|space| space.inode == inode);
        found.map(|number| number as u32)
    }

    fn add(&mut self, task: Pid, inode: u64, standing: Option<Standing>) -> Result<u32, NsError> {
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
            inode,
            root: PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())),
            _root: root,
            views: Views::new(mounts)?,
            _standing: standing,
        });
        Ok(number)
    }

    /// Numbers them so that one which a mount keeps comes behind the one that the mount is in, as the kernel has it (no
    /// namespace is kept by itself); the tree root's stays the first.
    fn order(&mut self, mounted: &[(usize, u64)]) {
        let mut order: Vec<usize> = Vec::with_capacity(self.all.len());
        while order.len() < self.all.len() {
            let waits = |number: usize| {
                let inode = self.all[number].inode;
                mounted
                    .iter()
                    .any(|(on, shown)| *shown == inode && !order.contains(on) && *on != number)
            };
            let left: BTreeSet<usize> = (0..self.all.len()).filter(|number| !order.contains(number)).collect();
            let free = left.iter().copied().find(|number| *number == 0 || !waits(*number));
            // Where they wait for each other, as only for the first one they can, that is told where they are looked at.
            order.extend(free.or(left.first().copied()));
        }
        let places: HashMap<u32, u32> = order.iter().map(|old| *old as u32).zip(0..).collect();
        let mut all: Vec<Option<MountSpace>> = self.all.drain(..).map(Some).collect();
        self.all = order.iter().filter_map(|old| all[*old].take()).collect();
        for number in self.by_task.values_mut().chain(self.by_mount.values_mut()) {
            *number = places[number];
        }
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

    /// Whether the tree has one only.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.all.len() == 1
    }

    /// The one that the file is in to which `magic` leads, a link in /proc of a task.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of_link(&self, magic: &str, task: Pid) -> io::Result<u32> {
        if self.is_one() {
            return Ok(0);
        }
        let mount = mount_of(&CString::new(magic)?)?;
        Ok(self.of_mount(mount, task))
    }
}

fn inode_of(task: Pid) -> Result<u64, NsError> {
    let path = format!("/proc/{task}/ns/mnt");
    let found = std::fs::metadata(&path).map_err(|source| NsError::Read { path, source })?;
    Ok(found.ino())
}

/// mountinfo of the calling thread, by floe's own /proc.
pub(super) fn own_mountinfo(proc: &OwnedFd) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = Vec::new();
    File::from(openat(proc, "thread-self/mountinfo", flags, Mode::empty())?).read_to_end(&mut text)?;
    Ok(text)
}
