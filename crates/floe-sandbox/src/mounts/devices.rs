//! What is in /dev of a sandbox with a root directory of its own.

use crate::first::{Failure, failed};
use floe_sys::mount::{attach, clone_mount};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, SFlag, makedev, mknodat},
    unistd::symlinkat,
};
use std::os::fd::{AsFd, BorrowedFd};

/// Names and numbers, Documentation/admin-guide/devices.txt.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes it in an empty directory.
pub fn make(dev: BorrowedFd<'_>) -> Result<(), Failure> {
    for (name, major, minor) in DEVICES {
        let wrap = || failed(format!("make /dev/{name}"));
        let mode = Mode::from_bits_truncate(0o666);
        match mknodat(dev, name, SFlag::S_IFCHR, mode, makedev(major, minor)) {
            // In a user namespace there are none but those of the host.
            Err(Errno::EPERM) => bind(dev, name).map_err(wrap())?,
            done => done.map_err(wrap())?,
        }
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name).map_err(failed(format!("make /dev/{name}")))?;
    }
    Ok(())
}

/// Shows the host's.
fn bind(dev: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let place = openat(dev, name, flags, Mode::from_bits_truncate(0o666))?;
    let device = open(
        format!("/dev/{name}").as_str(),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    attach(clone_mount(device.as_fd())?.as_fd(), place.as_fd())
}
