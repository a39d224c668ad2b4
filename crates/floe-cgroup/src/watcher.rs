//! A tiny process that acts should floe die while it has a cgroup frozen. It waits for a byte in a pipe, which means that
//! all is well, or for floe's end.
//!
//! That end is looked for by a pidfd and not by the end of the pipe: a dying process closes its files before the kernel
//! lets go of the tasks that it traces, and the watcher may want to trace them.

use floe_sys::{Pid, descriptor::pidfd_open, fork, pipe};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::waitpid,
};
use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// The watcher, as seen by floe.
#[derive(Debug)]
pub struct Watcher {
    child: nix::unistd::Pid,
    pipe: OwnedFd,
}

impl Watcher {
    /// Starts one, which does `act` if floe dies.
    pub fn start(act: impl FnOnce()) -> Result<Self, Errno> {
        let (read, write) = pipe::close_on_exec()?;
        let floe = pidfd_open(Pid::new(std::process::id() as i32))?;
        let child = fork::child(|| {
            fork::close_all_but(&[read.as_raw_fd(), floe.as_raw_fd()]);
            fork::leave_session("floe-thaw");
            if dies_first(&floe, &read) {
                act();
            }
            0
        })?;
        Ok(Self { child, pipe: write })
    }

    /// Tells it that all is well, and waits for its end.
    pub fn dismiss(self) {
        let mut pipe = File::from(self.pipe);
        if let Err(error) = pipe.write_all(b"k") {
            tracing::debug!(%error, "the freezer's watcher is gone already");
        }
        drop(pipe);
        while let Err(Errno::EINTR) = waitpid(self.child, None) {}
    }
}

/// Waits until floe is gone, or says that all is well.
fn dies_first(floe: &OwnedFd, pipe: &OwnedFd) -> bool {
    loop {
        let mut asked = [
            PollFd::new(floe.as_fd(), PollFlags::POLLIN),
            PollFd::new(pipe.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut asked, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing can be waited for, and a tree must not stay frozen.
            Err(_) => return true,
        }
        let came = |index: usize| asked[index].revents().unwrap_or(PollFlags::empty());
        if came(1).contains(PollFlags::POLLIN) {
            return false;
        }
        if came(0).contains(PollFlags::POLLIN) {
            return true;
        }
        if came(1).contains(PollFlags::POLLHUP) {
            // floe is about to end: its files are closed. The pipe has no more to tell, its end is waited for alone.
            let mut end = [PollFd::new(floe.as_fd(), PollFlags::POLLIN)];
            while let Err(Errno::EINTR) = poll(&mut end, PollTimeout::NONE) {}
            return true;
        }
    }
}
