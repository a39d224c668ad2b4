//! Mount points that a root directory lacks.

use super::Mounts;
use crate::first::{Failure, failed};
use floe_sys::descriptor::open_in_root;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    ffi::OsString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Where a sandbox with a root directory of its own has something in any case.
pub(super) const USUAL: [&str; 3] = ["/proc", "/dev", "/sys"];

/// Those that were made, which go again when this is dropped.
#[derive(Debug, Default)]
pub struct Points(Vec<Made>);

#[derive(Debug)]
struct Made {
    folder: OwnedFd,
    name: OsString,
    is_directory: bool,
}

impl Points {
    /// Makes those that are missing in the root directory itself; others come with what they are on.
    pub fn make(mounts: &Mounts) -> Result<Self, Failure> {
        let mut points = Self::default();
        let Some(root) = &mounts.root else { return Ok(points) };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = open(&root.path, flags, Mode::empty())
            .map_err(failed(format!("open the root directory {}", root.path.display())))?;
        for point in USUAL {
            points.add(top.as_fd(), (Path::new(point), true), &|_| Ok(true))?;
        }
        let ordered = mounts.ordered();
        for (index, mount) in ordered.iter().enumerate() {
            let is_on_another = ordered[..index].iter().any(|other| mount.is_on(&other.point))
                || USUAL.into_iter().any(|point| mount.is_on(Path::new(point)));
            if !is_on_another {
                points.add(top.as_fd(), (&mount.point, mount.is_directory()), &|_| Ok(true))?;
            }
        }
        Ok(points)
    }

    /// The mount point, which is made in those directories that `may` allows, with the directories that it is in.
    pub fn add(
        &mut self,
        top: BorrowedFd<'_>,
        (point, is_directory): (&Path, bool),
        may: &dyn Fn(&OwnedFd) -> Result<bool, Errno>,
    ) -> Result<OwnedFd, Failure> {
        let wrap = || failed(format!("make the mount point {}", point.display()));
        let inside = |path: &Path| open_in_root(top, path, libc::O_PATH, 0);
        let mut path = PathBuf::from("/");
        let mut folder = inside(&path).map_err(wrap())?;
        let names: Vec<OsString> = (point.components().skip(1))
            .map(|name| name.as_os_str().to_owned())
            .collect();
        for (left, name) in (0..names.len()).rev().zip(names) {
            path.push(&name);
            let next = match inside(&path) {
                Err(Errno::ENOENT) if may(&folder).map_err(wrap())? => {
                    let is_directory = left > 0 || is_directory;
                    make(&folder, &name, is_directory).map_err(wrap())?;
                    let made = inside(&path).map_err(wrap())?;
                    self.0.push(Made {
                        folder,
                        name,
                        is_directory,
                    });
                    made
                }
                found => found.map_err(wrap())?,
            };
            folder = next;
        }
        Ok(folder)
    }

    /// Leaves them.
    pub fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        while let Some(made) = self.0.pop() {
            let how = if made.is_directory {
                UnlinkatFlags::RemoveDir
            } else {
                UnlinkatFlags::NoRemoveDir
            };
            if let Err(error) = unlinkat(&made.folder, made.name.as_os_str(), how) {
                tracing::error!(%error, name = ?made.name, "remove a mount point of a sandbox that did not start");
            }
        }
    }
}

fn make(folder: &OwnedFd, name: &OsString, is_directory: bool) -> Result<(), Errno> {
    if is_directory {
        return mkdirat(folder, name.as_os_str(), Mode::from_bits_truncate(0o755));
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(folder, name.as_os_str(), flags, Mode::from_bits_truncate(0o644)).map(drop)
}
