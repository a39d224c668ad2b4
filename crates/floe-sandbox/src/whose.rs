//! Whose a sandbox is that the host's root is told to deal with. That is decided before anything is read of what another user
//! may have written there, and by descriptors: paths may lead elsewhere the next time.

use crate::{
    owner::Owner,
    sandbox::{Sandbox, SandboxError},
    state::{SandboxState, StateDir, StateError},
};
use floe_sys::{Pid, namespace::is_in_first_user, procfs::Stat};
use nix::{
    fcntl::{OFlag, open, openat},
    sys::{
        stat::{FileStat, Mode, fstat, stat},
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
    },
    unistd::geteuid,
};
use std::{fs::File, io, path::Path};

/// A sandbox as the host's root finds it.
#[derive(Debug)]
pub enum Found {
    /// Root's own.
    Own(Box<Sandbox>),
    /// An ordinary user's.
    Of(Owner),
}

impl Sandbox {
    /// The one with this name, by the host's root: its own where the state directory, the sandbox's folder and its state are
    /// root's and nobody else may write there; a user's where all three are that user's.
    ///
    /// # Errors
    /// [`SandboxError`]; [`StateError::Mixed`] where they are of several.
    pub fn open_as_root(state_dir: &StateDir, name: &str) -> Result<Found, SandboxError> {
        let folder = state_dir.folder(name)?;
        let path = folder.join("state.json");
        let wrap = |at: &Path| {
            let path = at.to_owned();
            move |source: nix::errno::Errno| match source {
                nix::errno::Errno::ENOENT => StateError::Unknown(name.to_owned()),
                source => StateError::File {
                    action: "open",
                    path,
                    source: source.into(),
                },
            }
        };
        let is_folder = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let all = open(state_dir.path(), is_folder, Mode::empty()).map_err(wrap(state_dir.path()))?;
        let own = openat(&all, name, is_folder, Mode::empty()).map_err(wrap(&folder))?;
        let file = openat(&own, "state.json", SandboxState::FLAGS, Mode::empty()).map_err(wrap(&path))?;
        let found = [
            fstat(&all).map_err(wrap(state_dir.path()))?,
            fstat(&own).map_err(wrap(&folder))?,
            fstat(&file).map_err(wrap(&path))?,
        ];
        let user = whose(&found).ok_or_else(|| StateError::Mixed(folder.clone()))?;
        // What is read is what was looked at.
        let read = || SandboxState::read_file(File::from(file), &path);
        if user == 0 {
            let state = read()?;
            return Ok(Found::Own(Box::new(Self { state, folder })));
        }
        // Whom the host does not know is of the group that they have in the user namespace that they have made.
        let owner = match Owner::new(user, None) {
            Ok(owner) => owner,
            Err(unknown @ crate::owner::OwnerError::NoGroup(_)) => {
                match Owner::of_process(Pid::new(read()?.monitor))? {
                    Some(owner) if owner.user == user => owner,
                    _ => return Err(wrap_owner(&folder, unknown).into()),
                }
            }
            Err(error) => return Err(wrap_owner(&folder, error).into()),
        };
        Ok(Found::Of(owner))
    }
}

fn wrap_owner(folder: &Path, error: crate::owner::OwnerError) -> StateError {
    StateError::File {
        action: "find out whose this is:",
        path: folder.to_owned(),
        source: io::Error::other(error),
    }
}

/// Refuses, as the host's root, a state that an ordinary user has written where it names processes or cgroups that are not theirs:
/// root would end, freeze or set what is others'.
pub(crate) fn refuse_others(state: &SandboxState, user: u32, folder: &Path) -> Result<(), StateError> {
    if user == 0 || !geteuid().is_root() || !is_in_first_user().unwrap_or(false) {
        return Ok(());
    }
    let others = |what: String| StateError::Others {
        path: folder.join("state.json"),
        what,
        user,
    };
    for (number, start) in [(state.monitor, state.monitor_start), (state.pid1, state.pid1_start)] {
        let pid = Pid::new(number);
        // One that has ended is nobody's, and is not taken for the sandbox's.
        let lives = Stat::of(pid).is_ok_and(|stat| stat.starttime == start && stat.state != b'Z');
        let is_theirs = || Owner::of_process(pid).is_ok_and(|owner| owner.is_some_and(|owner| owner.user == user));
        if lives && !is_theirs() {
            return Err(others(format!("process {number}")));
        }
    }
    for path in state.cgroup.iter().chain(&state.further_cgroups) {
        if path.exists() && !is_cgroup_of(path, user) {
            return Err(others(format!("cgroup {}", path.display())));
        }
    }
    Ok(())
}

/// Whether this is a cgroup of that user's, and stays so: no link leads to it, and nobody else mounts cgroups.
fn is_cgroup_of(path: &Path, user: u32) -> bool {
    let is_plain = path.canonicalize().is_ok_and(|found| found == path);
    let kinds = [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    let is_cgroup = statfs(path).is_ok_and(|found| kinds.contains(&found.filesystem_type()));
    is_plain && is_cgroup && stat(path).is_ok_and(|found| found.st_uid == user)
}

/// The one user whose these are, if nobody else may write to what is root's.
fn whose(found: &[FileStat; 3]) -> Option<u32> {
    let user = found[0].st_uid;
    let is_theirs = |status: &FileStat| status.st_uid == user && (user != 0 || status.st_mode & 0o022 == 0);
    found.iter().all(is_theirs).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::whose;
    use nix::sys::stat::stat;
    use std::path::Path;

    #[test]
    fn three_of_one_user() {
        let here = stat(Path::new("/proc/self/exe")).expect("a file");
        let of = |users: [(u32, u32); 3]| {
            let found = users.map(|(user, mode)| {
                let mut found = here;
                (found.st_uid, found.st_mode) = (user, mode);
                found
            });
            whose(&found)
        };
        assert_eq!(of([(0, 0o755); 3]), Some(0));
        assert_eq!(of([(5, 0o777); 3]), Some(5));
        assert_eq!(of([(0, 0o1777), (5, 0o700), (5, 0o600)]), None);
        assert_eq!(of([(0, 0o755), (0, 0o755), (5, 0o600)]), None);
        assert_eq!(of([(5, 0o755), (0, 0o755), (0, 0o600)]), None);
        assert_eq!(of([(0, 0o755), (0, 0o755), (0, 0o620)]), None);
        assert_eq!(of([(0, 0o1777), (0, 0o755), (0, 0o600)]), None);
    }
}
