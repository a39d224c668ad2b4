//! Puts files that came with a sandbox in their places, and takes them away again where nothing comes of it.
//!
//! What is made is written down before (`ID.files` beside the permits), so that whoever hears that the sandbox is given up can
//! remove it, also where the process that made it was killed. Paths are walked from the root directory without following a symbolic
//! link (openat2(2)); a file gets its name by linkat(2), which replaces nothing.

use super::files::Delivery;
use crate::{
    files::{Entry, FilePath},
    link::message::Id,
    protocol::Decision,
    record,
    refusal::Refusal,
};
use floe_sandbox::StateDir;
use floe_sys::descriptor::open_beneath;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        stat::{Mode, fchmod, futimens, mkdirat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Seek, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// Something that was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Made {
    path: FilePath,
    /// Device and inode of a file; a directory goes where nothing is in it.
    file: Option<[u64; 2]>,
}

fn journal_of(state_dir: &StateDir, id: &Id) -> PathBuf {
    record::file(state_dir, id, "files")
}

/// Puts all of it in place.
pub fn place(state_dir: &StateDir, id: &Id, delivery: &Delivery) -> Result<(), Refusal> {
    if delivery.lacking.is_empty() {
        return Ok(());
    }
    let path = journal_of(state_dir, id);
    let journal = record::make_in(state_dir, |_| File::create_new(&path));
    let mut placing = Placing {
        journal: journal.map_err(|error| Refusal::of(&error))?,
        root: File::open("/").map_err(|error| Refusal::of(&error))?,
    };
    let mut directories = Vec::new();
    for (entry, content) in &delivery.lacking {
        let made = match content {
            Some(content) => placing.file(entry, content),
            None => placing.directory(entry).map(|made| directories.push((made, entry))),
        };
        made.map_err(|error| Refusal::plain(format!("put file {} in its place: {error}", entry.path)))?;
    }
    // Behind what was made in them.
    for (directory, entry) in directories.iter().rev() {
        set_times(directory, entry).map_err(|error| Refusal::of(&error))?;
    }
    Ok(())
}

struct Placing {
    journal: File,
    root: File,
}

impl Placing {
    fn note(&mut self, path: &FilePath, file: Option<[u64; 2]>) -> io::Result<()> {
        let made = Made {
            path: path.clone(),
            file,
        };
        let line = serde_json::to_string(&made)?;
        self.journal.write_all(format!("{line}\n").as_bytes())?;
        self.journal.sync_data()
    }

    fn directory(&mut self, entry: &Entry) -> io::Result<File> {
        let (above, name) = parent(&self.root, &entry.path)?;
        self.note(&entry.path, None)?;
        mkdirat(&above, name, Mode::S_IRWXU)?;
        let made = open_beneath(above.as_fd(), Path::new(name), libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)?;
        let made = File::from(made);
        set_owner_and_mode(&made, entry)?;
        Ok(made)
    }

    fn file(&mut self, entry: &Entry, content: &File) -> io::Result<()> {
        let (above, name) = parent(&self.root, &entry.path)?;
        let made = open_beneath(above.as_fd(), Path::new("."), libc::O_TMPFILE | libc::O_RDWR, 0o600)?;
        let mut made = File::from(made);
        let mut content = content.try_clone()?;
        content.rewind()?;
        io::copy(&mut content, &mut made)?;
        set_owner_and_mode(&made, entry)?;
        set_times(&made, entry)?;
        let found = made.metadata()?;
        self.note(&entry.path, Some([found.dev(), found.ino()]))?;
        let unnamed = format!("/proc/self/fd/{}", made.as_raw_fd());
        Ok(linkat(
            AT_FDCWD,
            unnamed.as_str(),
            &above,
            name,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?)
    }
}

/// The directory that a path is in, and its name there.
fn parent<'a>(root: &File, path: &'a FilePath) -> io::Result<(OwnedFd, &'a OsStr)> {
    let path = path.from_root();
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let above = path
        .parent()
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok((
        open_beneath(root.as_fd(), above, libc::O_PATH | libc::O_DIRECTORY, 0)?,
        name,
    ))
}

fn set_owner_and_mode(made: &File, entry: &Entry) -> io::Result<()> {
    // In this order: a new owner takes some bits of the mode away.
    fchown(made, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    Ok(fchmod(made, Mode::from_bits_truncate(entry.mode))?)
}

fn set_times(made: &File, entry: &Entry) -> io::Result<()> {
    let [access, change] = entry
        .times
        .map(|time| TimeSpec::new(time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000)));
    Ok(futimens(made, &access, &change)?)
}

/// What came with a sandbox stays or goes with it.
pub fn settle(state_dir: &StateDir, id: &Id, decision: Decision) -> Result<(), Refusal> {
    match decision {
        Decision::Commit => keep(state_dir, id),
        Decision::Abort => take_away(state_dir, id),
    }
}

fn keep(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    record::remove(state_dir, &journal_of(state_dir, id)).map_err(|error| Refusal::of(&error))
}

/// Takes away what came with a sandbox of which nothing came.
fn take_away(state_dir: &StateDir, id: &Id) -> Result<(), Refusal> {
    let path = journal_of(state_dir, id);
    let journal = match File::open(&path) {
        Ok(journal) => journal,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refusal::of(&error)),
    };
    let lines = BufReader::new(journal).lines().map_while(Result::ok);
    // The last line may have been cut short: then what it tells of was not made yet.
    let made: Vec<Made> = lines.map_while(|line| serde_json::from_str(&line).ok()).collect();
    let root = File::open("/").map_err(|error| Refusal::of(&error))?;
    for one in made.iter().rev() {
        remove(&root, one).map_err(|error| Refusal::plain(format!("remove file {}: {error}", one.path)))?;
    }
    keep(state_dir, id)
}

fn remove(root: &File, made: &Made) -> io::Result<()> {
    let above = match parent(root, &made.path) {
        Ok((above, _)) => above,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = Path::new(made.path.from_root().file_name().unwrap_or_default());
    let flags = match made.file {
        Some(file) => {
            let found = match open_beneath(above.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0) {
                Ok(found) => File::from(found).metadata()?,
                Err(Errno::ENOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if [found.dev(), found.ino()] != file {
                return Ok(());
            }
            UnlinkatFlags::NoRemoveDir
        }
        None => UnlinkatFlags::RemoveDir,
    };
    match unlinkat(&above, name, flags) {
        // Somebody else has put something into it, or has removed it.
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
