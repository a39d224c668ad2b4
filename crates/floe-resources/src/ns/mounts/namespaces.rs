//! The mount namespaces of a new sandbox, one for each of the image.

use super::make::errno;
use floe_image::Image;
use floe_sys::{
    Pid,
    namespace::{Standing, age_of_mounts, enter_user},
    procfs::{MountInfo, mounts_in},
    sched::{affinity, set_affinity},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
};
use std::{
    cell::Cell,
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Namespaces that a thread enters in turn. The thread shares its directories with no other one.
#[derive(Debug)]
pub struct Spaces {
    /// By number.
    all: Vec<OwnedFd>,
    /// floe's own /proc, by which a thread finds itself wherever it is.
    proc: OwnedFd,
    current: Cell<u32>,
    /// How many the image has.
    count: u32,
}

impl Spaces {
    /// That of the calling thread, which is as a new sandbox has it, and copies of it for all others of an image; and one more
    /// where filesystems are to be mounted `apart`.
    ///
    /// # Errors
    /// Those of unshare(2), setns(2).
    pub(super) fn make(image: &Image, proc: OwnedFd, apart: bool) -> Result<Self, Errno> {
        let count = image.mount_namespaces().len() as u32;
        let mut made = Self {
            all: Vec::new(),
            proc,
            current: Cell::new(0),
            count,
        };
        made.all.push(made.namespace()?);
        for _ in 1..count + u32::from(apart) {
            unshare(CloneFlags::CLONE_NEWNS)?;
            made.all.push(made.namespace()?);
            setns(&made.all[0], CloneFlags::CLONE_NEWNS)?;
        }
        Ok(made)
    }

    /// That of the calling thread.
    fn namespace(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&self.proc, "thread-self/ns/mnt", flags, Mode::empty())
    }

    /// Replaces one, which the calling thread is in, by a copy, of a user namespace's where there is one. What is mounted in such
    /// a one by now is locked together (mount_namespaces(7)), as it was where that user namespace's root made it.
    ///
    /// # Errors
    /// Those of setns(2), unshare(2), sched_setaffinity(2).
    pub(super) fn renew(&mut self, user: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let copied = self.younger(user)?;
        self.replace(copied)
    }

    fn replace(&mut self, copied: OwnedFd) -> Result<(), Errno> {
        setns(&copied, CloneFlags::CLONE_NEWNS)?;
        self.all[self.current.get() as usize] = copied;
        Ok(())
    }

    /// The number of the one where filesystems are mounted apart.
    pub(super) fn apart(&self) -> u32 {
        self.count
    }

    /// Adds one, in which something is mounted that goes elsewhere: a copy of the one that the calling thread is in, which
    /// is in it then. Its number.
    ///
    /// # Errors
    /// Those of unshare(2).
    pub(super) fn add_aside(&mut self) -> Result<u32, Errno> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let number = self.all.len() as u32;
        self.all.push(self.namespace()?);
        self.current.set(number);
        Ok(number)
    }

    /// Replaces that by a copy of a user namespace's. None of its mounts keeps another one, so its age does not matter.
    ///
    /// # Errors
    /// Those of setns(2), unshare(2).
    pub(super) fn lock_aside(&mut self, user: BorrowedFd<'_>) -> Result<(), Errno> {
        let copied = self.copy(Some(user))?;
        self.replace(copied)
    }

    /// Takes that away, when the calling thread is in another one.
    pub(super) fn remove_aside(&mut self) {
        self.all.pop();
    }

    /// A copy of the one that the calling thread is in, which the kernel takes to be younger than all that come before. A mount
    /// can keep none but younger ones, by numbers that Linux 6.18 gives each processor some of: the one that the last came from
    /// has a higher one next.
    fn younger(&self, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
        let number = self.current.get() as usize;
        let ages = self.all[..number].iter().map(|space| age_of_mounts(space.as_fd()));
        let oldest = ages.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().max();
        let own = Pid::new(0);
        let before = affinity(own)?;
        let mut copied = self.copy(user)?;
        for processor in &before {
            if age_of_mounts(copied.as_fd())? >= oldest {
                break;
            }
            set_affinity(own, &[*processor])?;
            copied = self.copy(user)?;
        }
        set_affinity(own, &before)?;
        Ok(copied)
    }

    fn copy(&self, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
        let copy = || {
            if let Some(user) = user {
                enter_user(user)?;
            }
            unshare(CloneFlags::CLONE_NEWNS)
        };
        let standing = Standing::there(copy).map_err(|error| errno(&error))?;
        let path = format!("{}/ns/mnt", standing.task());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&self.proc, path.as_str(), flags, Mode::empty())
    }

    /// Has the calling thread be in one.
    ///
    /// # Errors
    /// Those of setns(2).
    pub(super) fn enter(&self, number: u32) -> Result<(), Errno> {
        if self.current.get() != number {
            setns(self.of(number), CloneFlags::CLONE_NEWNS)?;
            self.current.set(number);
        }
        Ok(())
    }

    /// Takes up a thread that is in number 0.
    pub(super) fn begin_anew(&self) {
        self.current.set(0);
    }

    /// One of them.
    pub(super) fn of(&self, number: u32) -> BorrowedFd<'_> {
        // Checked when the image was opened: there is none above these.
        self.all[number as usize].as_fd()
    }

    /// One of them, for others.
    pub(super) fn duplicate(&self, number: u32) -> Result<OwnedFd, Errno> {
        let again = self.of(number).try_clone_to_owned();
        again.map_err(|error| errno(&error))
    }

    /// The root directory of the one that the calling thread is in.
    pub(super) fn root(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open("/", flags, Mode::empty())
    }

    /// What is mounted in that.
    pub(super) fn mounts(&self) -> Result<Vec<MountInfo>, Errno> {
        let mut text = Vec::new();
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let read =
            File::from(openat(&self.proc, "thread-self/mountinfo", flags, Mode::empty())?).read_to_end(&mut text);
        read.map_err(|error| errno(&error))?;
        Ok(mounts_in(&text))
    }
}
