//! A tiny process that thaws a cgroup should floe die while it is frozen. It waits for the end of a pipe: a byte means
//! that all is well, the bare end that floe is gone.

use crate::{Cgroup, CgroupError};
use floe_sys::{fork, pipe};
use nix::{errno::Errno, sys::wait::waitpid, unistd::Pid};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::OwnedFd,
};

/// The watcher, as seen by floe.
#[derive(Debug)]
pub struct Watcher {
    child: Pid,
    pipe: OwnedFd,
}

impl Watcher {
    /// Starts one.
    pub fn start(group: &Cgroup) -> Result<Self, CgroupError> {
        let wrap = |source| CgroupError::Watcher {
            path: group.path().to_owned(),
            source,
        };
        let (read, write) = pipe::close_on_exec().map_err(wrap)?;
        let (file, text) = group.thaw_command();
        let path = group.path().join(file);
        let control = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|source| CgroupError::File {
                action: "open",
                path,
                source,
            })?;
        let child = fork::child(|| watch(File::from(read), control, text)).map_err(wrap)?;
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

/// The watcher's whole life, in the child.
fn watch(mut pipe: File, mut control: File, text: &str) -> i32 {
    use std::os::fd::AsRawFd;
    floe_sys::fork::close_all_but(&[pipe.as_raw_fd(), control.as_raw_fd()]);
    floe_sys::fork::leave_session("floe-thaw");
    let mut byte = [0];
    match pipe.read(&mut byte) {
        Ok(1) => 0,
        Ok(_) | Err(_) => i32::from(control.write_all(text.as_bytes()).is_err()),
    }
}
