//! Where a tree that comes is put, and how it gets its name there: beside its place it is made, and it changes places with what
//! is there when the decision has fallen.
//!
//! ```text
//! .floe-ID  the new tree        .floe-ID  the old tree
//! NAME      the old tree   ->   NAME      the new tree   ->   NAME
//!           built, held                   told: runs          the old tree is removed
//! ```
//! All of that is one file, `ID.tree` beside the permits, made before the tree: whoever hears of the decision, how often ever, finds
//! by it what is left to be done.

use super::stage::remove_all;
use crate::{
    link::message::Id,
    protocol::Decision,
    record::{self, Permit, Process},
    refusal::Refusal,
    tree::Bytes,
};
use floe_sandbox::{Sandbox, StateDir};
use floe_sys::{
    descriptor::open_beneath,
    mount,
    procfs::{self, mount_points},
};
use nix::{
    errno::Errno,
    fcntl::{RenameFlags, readlink, renameat2},
    sys::{
        stat::{FileStat, Mode, fstat, fstatat, mkdirat},
        statvfs::fstatvfs,
    },
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a process that was killed may take to end.
const MOMENT: Duration = Duration::from_secs(10);

/// Where a tree is to be.
#[derive(Debug)]
pub struct Place {
    /// The directory that it is in.
    above: OwnedFd,
    name: OsString,
    /// The tree that is there.
    pub old: Option<OwnedFd>,
}

impl Place {
    /// One below the directories in which there may be trees.
    ///
    /// # Errors
    /// Why there may be none.
    pub fn find(path: &Path, roots: &[PathBuf]) -> Result<Self, String> {
        let below = roots
            .iter()
            .find_map(|root| Some((root, path.strip_prefix(root).ok()?)));
        let Some((root, rest)) = below.filter(|(_, rest)| rest.file_name().is_some()) else {
            let text = "it lies below no directory that floe receive may put trees into (--roots; --mount /=PATH gives another place)";
            return Err(text.to_owned());
        };
        let mut above = fs::canonicalize(root)
            .and_then(File::open)
            .map(OwnedFd::from)
            .map_err(|error| format!("{} can't be opened here: {error}", root.display()))?;
        refuse_of_others(&above, root)?;
        let mut parts: Vec<&OsStr> = Vec::new();
        for part in rest.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                _ => return Err("its path does not lead straight to it".to_owned()),
            }
        }
        let name = parts.pop().map(OsStr::to_owned).ok_or("its path has no name")?;
        let mut shown = root.clone();
        for part in parts {
            shown.push(part);
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            above = open_beneath(above.as_fd(), Path::new(part), flags, 0)
                .map_err(|errno| format!("{} can't be opened here: {errno}", shown.display()))?;
            refuse_of_others(&above, &shown)?;
        }
        let old = match open_beneath(above.as_fd(), Path::new(&name), libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Ok(old) => Some(old),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(format!("it can't be looked at here: {errno}")),
        };
        let place = Self { above, name, old };
        match place.hinders() {
            Ok(None) => Ok(place),
            Ok(Some(reason)) => Err(reason),
            Err(error) => Err(format!("it can't be looked at here: {error}")),
        }
    }

    /// Why what is there can't go.
    fn hinders(&self) -> io::Result<Option<String>> {
        let Some(old) = &self.old else { return Ok(None) };
        let found = fstat(old)?;
        if found.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Ok(Some("something else than a directory is there".to_owned()));
        }
        if mount::is_root(old.as_fd())? {
            return Ok(Some("something is mounted there".to_owned()));
        }
        let path = self.path()?.join(&self.name);
        let mounts = mount_points("/proc/self").map_err(io::Error::other)?;
        let on_it = mounts
            .iter()
            .find(|mount| Path::new(OsStr::from_bytes(&mount.path)).starts_with(&path));
        if let Some(on_it) = on_it {
            let point = String::from_utf8_lossy(&on_it.path);
            return Ok(Some(format!("something is mounted in it, at {point}")));
        }
        for pid in procfs::processes().map_err(io::Error::other)? {
            // One that has ended has none any more.
            let Ok(root) = fs::metadata(format!("/proc/{pid}/root")) else {
                continue;
            };
            if (root.dev(), root.ino()) == (found.st_dev, found.st_ino) {
                return Ok(Some(format!("process {pid} has it as its root directory")));
            }
        }
        Ok(None)
    }

    /// Bytes and files for which there is room; `None` where the filesystem does not say.
    pub fn room(&self) -> io::Result<(u64, Option<u64>)> {
        let found = fstatvfs(&self.above)?;
        let files = (found.files() > 0).then(|| found.files_available());
        Ok((found.blocks_available().saturating_mul(found.fragment_size()), files))
    }

    fn path(&self) -> io::Result<PathBuf> {
        let link = format!("/proc/self/fd/{}", self.above.as_raw_fd());
        Ok(PathBuf::from(readlink(link.as_str())?))
    }
}

/// Whoever else may write into a directory could put another one in the place of what is in it.
fn refuse_of_others(directory: &OwnedFd, path: &Path) -> Result<(), String> {
    let found = fstat(directory).map_err(|errno| format!("{} can't be looked at here: {errno}", path.display()))?;
    let is_own = found.st_uid == 0 || found.st_uid == geteuid().as_raw();
    let others = found.st_mode & (libc::S_IWGRP | libc::S_IWOTH) != 0 && found.st_mode & libc::S_ISVTX == 0;
    match is_own && !others {
        true => Ok(()),
        false => Err(format!(
            "{} is a directory into which others may write here",
            path.display()
        )),
    }
}

/// What is written down of a tree that comes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    above: Bytes,
    name: Bytes,
    temporary: Bytes,
    /// Who makes it.
    maker: Process,
    /// Device and inode of the new one, once it is there: another line.
    #[serde(skip)]
    tree: Option<[u64; 2]>,
}

fn journal_of(state_dir: &StateDir, id: &Id) -> PathBuf {
    record::file(state_dir, id, "tree")
}

impl Journal {
    /// `None` where there is none, or nothing was made yet.
    fn read(path: &Path) -> Result<Option<Self>, Refusal> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Refusal::plain(format!("read {}: {error}", path.display()))),
        };
        // A line that was cut short tells of what was not made yet.
        let mut lines = text.lines();
        let journal = lines.next().and_then(|line| serde_json::from_str::<Self>(line).ok());
        Ok(journal.map(|journal| Self {
            tree: lines.next().and_then(|line| serde_json::from_str(line).ok()),
            ..journal
        }))
    }

    /// The directory, and what is known of the names in it.
    fn look(&self) -> io::Result<Option<Standing>> {
        let above = match File::open(self.above.as_os_str()) {
            Ok(above) => OwnedFd::from(above),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let find = |name: &Bytes| match fstatat(&above, name.as_os_str(), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let is_new = |found: &Option<FileStat>| {
            found.map(|found| [found.st_dev, found.st_ino]) == self.tree && self.tree.is_some()
        };
        let (named, temporary) = (find(&self.name)?, find(&self.temporary)?);
        Ok(Some(Standing {
            is_in_place: is_new(&named),
            is_beside: is_new(&temporary),
            replaces: named.is_some(),
            above,
        }))
    }
}

/// How a new tree stands.
struct Standing {
    above: OwnedFd,
    is_in_place: bool,
    is_beside: bool,
    /// Whether something is at its place.
    replaces: bool,
}

/// Makes the directory for a tree, below a temporary name; where that is.
pub fn begin(state_dir: &StateDir, id: &Id, place: &Place) -> io::Result<(OwnedFd, PathBuf)> {
    let path = journal_of(state_dir, id);
    let temporary = OsString::from(format!(".floe-{}", id.as_str()));
    let journal = Journal {
        above: Bytes(place.path()?.as_os_str().as_bytes().to_vec()),
        name: Bytes(place.name.as_bytes().to_vec()),
        temporary: Bytes(temporary.as_bytes().to_vec()),
        tree: None,
        maker: Process::own(),
    };
    let mut file = record::make_in(state_dir, |_| File::create_new(&path))?;
    let mut note = |line: String| -> io::Result<()> {
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_data()
    };
    note(serde_json::to_string(&journal)?)?;
    mkdirat(&place.above, temporary.as_os_str(), Mode::S_IRWXU)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let top = open_beneath(place.above.as_fd(), Path::new(&temporary), flags, 0)?;
    let found = fstat(&top)?;
    note(serde_json::to_string(&[found.st_dev, found.st_ino])?)?;
    Ok((top, place.path()?.join(temporary)))
}

/// What was decided of the sandbox of a tree: where that is to be, the tree comes to its place.
pub fn settle(state_dir: &StateDir, id: &Id, decision: Decision) -> Result<(), Refusal> {
    let path = journal_of(state_dir, id);
    let (Decision::Commit, Some(journal)) = (decision, Journal::read(&path)?) else {
        return Ok(());
    };
    let failed = |error: io::Error| Refusal::plain(format!("put its root tree in place: {error}"));
    let Some(standing) = journal.look().map_err(failed)? else {
        return Err(failed(io::ErrorKind::NotFound.into()));
    };
    if standing.is_beside {
        let flags = match standing.replaces {
            true => RenameFlags::RENAME_EXCHANGE,
            false => RenameFlags::RENAME_NOREPLACE,
        };
        let (above, from, to) = (&standing.above, journal.temporary.as_os_str(), journal.name.as_os_str());
        renameat2(above, from, above, to, flags).map_err(|errno| failed(errno.into()))?;
        if !standing.replaces {
            return forget(state_dir, &path);
        }
    }
    Ok(())
}

/// Removes what is not needed any more of a tree that came: the old one, or the new one where nothing came of it. Not while its
/// sandbox may still be held, or runs in it.
pub fn clear(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    let path = journal_of(state_dir, id);
    let Some(journal) = Journal::read(&path)? else {
        return forget(state_dir, &path);
    };
    let failed = |error: io::Error| Refusal::plain(format!("remove a root tree that is not needed any more: {error}"));
    if let Some(standing) = journal.look().map_err(failed)? {
        if !standing.is_in_place && has_sandbox(state_dir, id)? {
            return Ok(());
        }
        remove_all(&standing.above, journal.temporary.as_os_str()).map_err(failed)?;
    }
    forget(state_dir, &path)
}

fn forget(state_dir: &StateDir, path: &Path) -> Result<(), Refusal> {
    record::remove(state_dir, path).map_err(|error| Refusal::of(&error))
}

fn has_sandbox(state_dir: &StateDir, id: &Id) -> Result<bool, Refusal> {
    let all = Sandbox::list(state_dir).map_err(|error| Refusal::of(&error))?;
    let mut own = all
        .iter()
        .filter(|sandbox| sandbox.state().handover.as_deref() == Some(id.as_str()));
    Ok(own.any(Sandbox::is_running))
}

/// The same for trees whose maker was killed.
pub fn clear_left(state_dir: &StateDir) -> Result<(), Refusal> {
    for id in record::left(state_dir, "tree").map_err(|error| Refusal::of(&error))? {
        let journal = Journal::read(&journal_of(state_dir, &id))?;
        // One that was killed may not have ended yet.
        let begin = Instant::now();
        while journal.as_ref().is_some_and(|journal| journal.maker.is_ending()) && begin.elapsed() < MOMENT {
            std::thread::sleep(Duration::from_millis(5));
        }
        if journal.is_some_and(|journal| !journal.maker.lives()) {
            // In this order: who builds a sandbox in it finds no permit any more, or has it held by now.
            Permit::revoke(state_dir, &id).map_err(|error| Refusal::of(&error))?;
            clear(state_dir, &id)?;
        }
    }
    Ok(())
}
