//! Mounts of a test's own.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::mkdir,
};
use std::{fs, os::unix::fs::symlink, path::Path};

/// Moves the calling thread into a new mount namespace with a /dev of its own, in which there is what programs need: what it
/// starts from now on sees what is made there, and nobody else does.
///
/// # Panics
/// Without the right to do so.
pub fn enter_own_mounts() {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).expect("mounts of one's own");
    let before = fs::File::open("/dev").expect("open /dev");
    mount(
        Some("tmpfs"),
        "/dev",
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755"),
    )
    .expect("a /dev");
    let mode = Mode::from_bits_retain(0o666);
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        let path = Path::new("/dev").join(name);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(1, minor)).expect("a device");
    }
    mknod("/dev/tty", SFlag::S_IFCHR, mode, makedev(5, 0)).expect("a device");
    for folder in ["pts", "shm", "mqueue"] {
        let path = Path::new("/dev").join(folder);
        mkdir(&path, Mode::from_bits_retain(0o755)).expect("a folder");
        let old = format!("/proc/self/fd/{}/{folder}", std::os::fd::AsRawFd::as_raw_fd(&before));
        if Path::new(&old).exists() {
            mount(
                Some(old.as_str()),
                &path,
                NONE,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                NONE,
            )
            .expect("bind");
        }
    }
    symlink("pts/ptmx", "/dev/ptmx").expect("a link");
    symlink("/proc/self/fd", "/dev/fd").expect("a link");
}
