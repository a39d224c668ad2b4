//! What a sandbox has mounted besides a private /proc: another root directory (pivot_root(2)), paths of the host, tmpfs.
//!
//! ```text
//! check    all that is asked for is there; before anything is made
//! points   the monitor: mount points that the root directory lacks; they go again where the sandbox does not start
//! make     PID 1: mounts, then the new root in the place of the old one
//! ```

mod check;
mod devices;
mod make;
mod points;

pub use check::MountsError;
pub(crate) use make::make;
pub(crate) use points::Points;

use std::path::{Path, PathBuf};

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Mounts {
    /// Its root directory; the host's where `None`.
    pub root: Option<RootDirectory>,
    /// What is mounted below that.
    pub all: Vec<Mount>,
}

/// A directory of the host's that is the root in a sandbox. There it has /proc, /dev and, where the kernel allows, /sys of its
/// own.
#[derive(Debug, Clone)]
pub struct RootDirectory {
    /// It, by an absolute path.
    pub path: PathBuf,
    /// Whether it can't be written to.
    pub read_only: bool,
}

/// A mount.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Where, from the root of the sandbox.
    pub point: PathBuf,
    /// What it shows.
    pub shows: Shown,
}

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum Shown {
    /// A file or directory of the host's, with what is mounted on it.
    Path {
        /// It, by an absolute path.
        source: PathBuf,
        /// Whether it can't be written to there.
        read_only: bool,
    },
    /// A new tmpfs, without set-user-ID programs and devices.
    Tmpfs {
        /// Options, tmpfs(5).
        options: Vec<(String, String)>,
        /// MOUNT_ATTR_* besides.
        attributes: u32,
    },
}

impl Mounts {
    /// Those below the root in the order in which they are made: none hides an earlier one.
    fn ordered(&self) -> Vec<&Mount> {
        let mut all: Vec<&Mount> = self.all.iter().collect();
        all.sort_by_key(|mount| mount.point.components().count());
        all
    }
}

impl Mount {
    /// Whether its mount point is a directory.
    fn is_directory(&self) -> bool {
        match &self.shows {
            Shown::Path { source, .. } => source.is_dir(),
            Shown::Tmpfs { .. } => true,
        }
    }

    fn is_on(&self, other: &Path) -> bool {
        self.point.starts_with(other)
    }
}
