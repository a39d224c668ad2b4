//! What of the host's the user gives for mounts: `--mount NAME=PATH` of a restore.

use floe_image::record::{MountNamespaceRecord, MountPoint, MountSource};
use floe_sys::mount::clone_mount;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use std::{
    collections::BTreeMap,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// Paths of the host, by the mount points in the sandbox that show them.
#[derive(Debug, Clone, Default)]
pub struct Given(BTreeMap<MountPoint, PathBuf>);

/// What can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GivenError {
    /// No two paths.
    #[error("{0:?} is not NAME=PATH, e.g. /data=/srv/data: a mount point in the sandbox, and a path of the host")]
    Form(String),
    /// Given twice.
    #[error("{0:?} is given twice")]
    Twice(String),
}

/// Reads `NAME=PATH`.
///
/// # Errors
/// [`GivenError::Form`].
pub fn given_mount(text: &str) -> Result<(PathBuf, PathBuf), GivenError> {
    let parts = text
        .split_once('=')
        .filter(|(name, path)| name.starts_with('/') && path.starts_with('/'));
    let (name, path) = parts.ok_or_else(|| GivenError::Form(text.to_owned()))?;
    Ok((name.into(), path.into()))
}

impl Given {
    /// All that is given.
    ///
    /// # Errors
    /// [`GivenError::Twice`].
    pub fn new(given: &[(PathBuf, PathBuf)]) -> Result<Self, GivenError> {
        let mut paths = BTreeMap::new();
        for (name, path) in given {
            let point = MountPoint(name.as_os_str().as_bytes().to_vec());
            if paths.insert(point, path.clone()).is_some() {
                return Err(GivenError::Twice(name.display().to_string()));
            }
        }
        Ok(Self(paths))
    }

    /// The same, with this one for the root directory.
    #[must_use]
    pub fn with_root(&self, path: PathBuf) -> Self {
        let mut given = self.clone();
        given.0.insert(MountPoint(b"/".to_vec()), path);
        given
    }

    /// What is given for the root directory.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.path(&MountPoint(b"/".to_vec()))
    }

    /// What is given for a mount point.
    pub(super) fn path(&self, point: &MountPoint) -> Option<&Path> {
        self.0.get(point).map(PathBuf::as_path)
    }

    /// Mount points that no mount of the image has which shows a path.
    pub(super) fn unused(&self, namespaces: &[MountNamespaceRecord]) -> impl Iterator<Item = String> {
        let mounts = namespaces.iter().flat_map(|record| &record.mounts);
        let shows_path = |source: &MountSource| matches!(source, MountSource::Path { .. });
        let known: Vec<&MountPoint> = (mounts
            .filter(|mount| shows_path(&mount.source))
            .map(|mount| &mount.point))
        .collect();
        let unused = self.0.keys().filter(|point| !known.contains(point));
        let names = unused.map(|point| String::from_utf8_lossy(&point.0).into_owned());
        names.collect::<Vec<_>>().into_iter()
    }
}

/// A mount of a path of floe's own.
pub(super) fn mount_of(path: &Path) -> Result<OwnedFd, Errno> {
    let place = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    clone_mount(place.as_fd())
}
