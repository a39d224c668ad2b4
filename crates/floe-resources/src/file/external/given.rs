//! An open file that the user gives. It is the user's as well: what is set in it is put back unless the tree comes to have it.

use floe_sys::descriptor::{Signals, set_signals, signals};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

#[derive(Debug)]
pub(super) struct Given {
    file: OwnedFd,
    flags: OFlag,
    /// `None` of one that is open by its path only (O_PATH).
    signals: Option<Signals>,
    is_the_trees: AtomicBool,
}

impl Given {
    pub(super) fn new(file: OwnedFd) -> Result<Self, Errno> {
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        let signals = match flags.contains(OFlag::O_PATH) {
            true => None,
            false => Some(signals(file.as_fd())?),
        };
        Ok(Self {
            file,
            flags,
            signals,
            is_the_trees: AtomicBool::new(false),
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Lets it be as the tree has it.
    pub(super) fn keep(&self) {
        self.is_the_trees.store(true, Ordering::Relaxed);
    }

    fn put_back(&self) -> Result<(), Errno> {
        let Some(before) = self.signals else { return Ok(()) };
        if OFlag::from_bits_retain(fcntl(&self.file, FcntlArg::F_GETFL)?) != self.flags {
            fcntl(&self.file, FcntlArg::F_SETFL(self.flags))?;
        }
        if signals(self.as_fd())? != before {
            set_signals(self.as_fd(), before)?;
        }
        Ok(())
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if self.is_the_trees.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "the flags of a descriptor that was given are not what they were");
        }
    }
}
