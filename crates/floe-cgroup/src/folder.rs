//! Cgroups as directories: made where floe may, looked through, and removed with all below them.

use crate::{
    CgroupError,
    group::{END, wrap},
};
use floe_sys::Pid;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// floe's own part of each hierarchy.
pub(crate) const PARENT: &str = "floe";

/// Makes the cgroup `name` below `parent`, which is made first; in version 2 with controllers.
pub(crate) fn create_below(parent: &Path, name: &str, controllers: &[String]) -> Result<PathBuf, CgroupError> {
    /// How often others may remove and make the parent meanwhile.
    const TRIES: usize = 100;
    let mut tries = 0;
    loop {
        match fs::create_dir(parent) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(wrap("make cgroup", parent)(error)),
        }
        let path = parent.join(name);
        let made =
            hand_on(parent, controllers).and_then(|()| fs::create_dir(&path).map_err(wrap("make cgroup", &path)));
        tries += 1;
        match made {
            Ok(()) => return Ok(path),
            // Another floe just removed the parent because it was empty; a third one may have made it again.
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

/// Has the children of a version 2 cgroup, which is floe's part of the hierarchy, have controllers.
fn hand_on(parent: &Path, controllers: &[String]) -> Result<(), CgroupError> {
    let above = parent.parent().filter(|_| parent.ends_with(PARENT));
    for directory in above.into_iter().chain([parent]) {
        enable(directory, controllers)?;
    }
    Ok(())
}

/// Has the children of a version 2 cgroup have controllers.
pub(crate) fn enable(directory: &Path, controllers: &[String]) -> Result<(), CgroupError> {
    if controllers.is_empty() {
        return Ok(());
    }
    let path = directory.join("cgroup.subtree_control");
    let known = fs::read_to_string(&path).map_err(wrap("read", &path))?;
    for controller in controllers {
        if !known.split_whitespace().any(|known| known == controller) {
            fs::write(&path, format!("+{controller}")).map_err(wrap("write", &path))?;
        }
    }
    Ok(())
}

/// Whether a cgroup has vanished: its directory, or what a file of it stood for.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The cgroups below one, parents first.
///
/// # Errors
/// [`CgroupError::File`].
pub fn below(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = Vec::new();
    let mut rest = vec![path.to_owned()];
    while let Some(directory) = rest.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(wrap("list", &directory)(error)),
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.map_err(wrap("list", &directory))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                children.push(entry.path());
            }
        }
        children.sort();
        found.extend(children.iter().cloned());
        rest.extend(children);
    }
    Ok(found)
}

/// Removes a cgroup and all below it, once the last tasks have left; and floe's own parent, where that is empty then.
pub(crate) fn remove_all(path: &Path) -> Result<(), CgroupError> {
    let started = Instant::now();
    loop {
        let removed = below(path)?
            .iter()
            .rev()
            .map(PathBuf::as_path)
            .chain([path])
            .try_for_each(fs::remove_dir);
        match removed {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The kernel takes tasks that have ended out of it a moment later, and tells nobody when.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && started.elapsed() < END => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(error) => return Err(wrap("remove cgroup", path)(error)),
        }
    }
    if let Some(parent) = path.parent().filter(|parent| parent.ends_with(PARENT))
        && let Err(error) = fs::remove_dir(parent)
    {
        tracing::trace!(%error, "floe's parent cgroup stays");
    }
    Ok(())
}

/// The processes that are in just this cgroup; none where it is gone, or has threads alone: those are in the cgroup above
/// that has their processes.
///
/// # Errors
/// [`CgroupError::File`].
pub fn members(directory: &Path) -> Result<Vec<Pid>, CgroupError> {
    let path = directory.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let members = text.lines().filter_map(|line| line.parse().ok());
            Ok(members.filter(|pid| *pid != 0).map(Pid::new).collect())
        }
        Err(error) if is_gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(wrap("read", &path)(error)),
    }
}
