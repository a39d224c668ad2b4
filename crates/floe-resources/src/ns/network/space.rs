//! A network namespace of a tree, as it is entered for a look.

use crate::ns::inside::{self, NsError};
use floe_sys::Pid;
use nix::sched::CloneFlags;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// A network namespace.
#[derive(Debug, Clone)]
pub struct NetworkSpace {
    /// Its number in the image; 0 is that of the tree's root.
    pub number: u32,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// The one that a task is in, which may be floe's own too.
    OfTask(Pid),
    /// Another one, with its inode number.
    Apart(Rc<OwnedFd>, u64),
}

impl NetworkSpace {
    /// That of the tree's root, which this task is in.
    #[must_use]
    pub fn of_root(task: Pid) -> Self {
        Self {
            number: 0,
            place: Place::OfTask(task),
        }
    }

    /// Another one.
    #[must_use]
    pub fn apart(number: u32, file: Rc<OwnedFd>, inode: u64) -> Self {
        Self {
            number,
            place: Place::Apart(file, inode),
        }
    }

    /// Runs a closure on a thread that has entered it.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn run<T: Send>(&self, look: impl FnOnce() -> io::Result<T> + Send) -> Result<T, NsError> {
        match &self.place {
            Place::OfTask(task) => inside::run(*task, CloneFlags::CLONE_NEWNET, look),
            Place::Apart(file, inode) => {
                inside::run_in(file.as_fd(), look).map_err(|source| NsError::Network { inode: *inode, source })
            }
        }
    }

    /// Whether it is the one that floe is in.
    ///
    /// # Errors
    /// [`NsError`].
    pub fn is_floes(&self) -> Result<bool, NsError> {
        let link = || std::fs::read_link("/proc/thread-self/ns/net");
        let own = link().map_err(NsError::New)?;
        Ok(self.run(link)? == own)
    }

    /// A descriptor of it.
    ///
    /// # Errors
    /// Those of open(2).
    pub(crate) fn file(&self) -> io::Result<Rc<OwnedFd>> {
        match &self.place {
            Place::OfTask(task) => {
                let file = std::fs::File::open(format!("/proc/{task}/ns/net"))?;
                Ok(Rc::new(file.into()))
            }
            Place::Apart(file, _) => Ok(Rc::clone(file)),
        }
    }

    /// The descriptor that it is entered by, where that is not a task.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::OfTask(_) => None,
            Place::Apart(file, _) => Some(file.as_fd()),
        }
    }

    /// How findings name what is in it.
    #[must_use]
    pub fn title(&self, object: impl Into<String>) -> String {
        let object = object.into();
        match &self.place {
            Place::OfTask(_) => object,
            Place::Apart(_, inode) => format!("{object}, in network namespace net:[{inode}]"),
        }
    }
}
