//! Whether all is there that is to be mounted.

use super::{Mount, Mounts, Shown};
use floe_sys::descriptor::open_in_root;
use nix::errno::Errno;
use std::{
    fs::{File, Metadata},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

/// What can't be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// The root directory, or what is to be shown, is not there.
    #[error("{} is not there", path.display())]
    Missing {
        /// It.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The root directory is none.
    #[error("{} is no directory", .0.display())]
    NoDirectory(PathBuf),
    /// A mount point that can't be one.
    #[error("{} can't be mounted on: {}", point.display(), reason)]
    Point {
        /// Where.
        point: PathBuf,
        /// Why not.
        reason: &'static str,
    },
}

impl Mounts {
    /// Looks whether all is there.
    ///
    /// # Errors
    /// [`MountsError`].
    pub fn check(&self) -> Result<(), MountsError> {
        if let Some(root) = &self.root
            && !look(&root.path)?.is_dir()
        {
            return Err(MountsError::NoDirectory(root.path.clone()));
        }
        if self.all.is_empty() {
            return Ok(());
        }
        let top = self.root.as_ref().map_or(Path::new("/"), |root| &root.path);
        let top = OwnedFd::from(File::open(top).map_err(missing(top))?);
        let ordered = self.ordered();
        for (index, mount) in ordered.iter().enumerate() {
            if let Shown::Path { source, .. } = &mount.shows {
                look(source)?;
            }
            let refuse = |reason| {
                let point = mount.point.clone();
                Err(MountsError::Point { point, reason })
            };
            let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
            if !mount.point.is_absolute() || !mount.point.components().all(plain) {
                return refuse("give an absolute path in the sandbox, without ..");
            }
            if mount.point == Path::new("/") {
                return refuse("the root directory is given by --rootfs");
            }
            let before = &ordered[..index];
            if before.iter().any(|other| other.point == mount.point) {
                return refuse("it is given twice");
            }
            // What it will be on is not there yet.
            if before.iter().any(|other| mount.is_on(&other.point)) || self.is_made(mount) {
                continue;
            }
            match open_in_root(top.as_fd(), &mount.point, libc::O_PATH, 0).map(File::from) {
                Ok(point) if is_directory(&point, mount)? == mount.is_directory() => {}
                Ok(_) => return refuse("one of it and what is mounted there is a directory, the other a file"),
                // It is made.
                Err(Errno::ENOENT) if self.root.is_some() => {}
                Err(Errno::ENOENT) => return refuse("it is not there; mount points are made in a --rootfs alone"),
                Err(error) => return Err(missing(&mount.point)(error.into())),
            }
        }
        Ok(())
    }

    /// Whether it is on what a sandbox with a root of its own has there in any case.
    fn is_made(&self, mount: &Mount) -> bool {
        self.root.is_some()
            && ["/proc", "/dev", "/sys"]
                .into_iter()
                .any(|made| mount.is_on(Path::new(made)))
    }
}

fn look(path: &Path) -> Result<Metadata, MountsError> {
    path.metadata().map_err(missing(path))
}

fn missing(path: &Path) -> impl FnOnce(io::Error) -> MountsError {
    let path = path.to_owned();
    move |source| MountsError::Missing { path, source }
}

fn is_directory(file: &File, mount: &Mount) -> Result<bool, MountsError> {
    let found = file.metadata().map_err(missing(&mount.point))?;
    Ok(found.is_dir())
}
