//! Files on disk that are no longer what they were when the image was made: their content is not in it, so the restored tree
//! finds what is there now.

use super::{RestoreError, preflight::Obstacle};
use floe_image::{
    Image,
    record::{GhostKind, GhostRecord, MappedFileRecord, OpenFileRecord},
};
use floe_resources::{
    file::{OnDisk, on_disk},
    mm::{build_id, head_checksum},
    ns::Roots,
};
use floe_sys::descriptor::open_in_root;
use nix::{
    errno::Errno,
    sys::{
        stat::{FileStat, fstat},
        statfs::fstatfs,
    },
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Filesystems whose files are views of the kernel's state (linux/magic.h): sysfs, configfs, securityfs.
const VIEWS: [i64; 3] = [0x6265_6572, 0x6265_6570, 0x7363_6673];

/// What to do where a difference is to be accepted.
const ACCEPT: &str = "--files ignore takes it as it is";

/// What stands in the way where files changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilesMode {
    /// Nothing: it is enough that they can be opened.
    Ignore,
    /// That the tree could not go on with them: another program or library; another size of a file that it reads; less
    /// than it had written.
    #[default]
    Check,
    /// Any difference in size, time of change and, on the host where the image was made, identity.
    Strict,
}

/// How the image knows a file.
struct Known {
    size: u64,
    mtime: i64,
    identity: [u64; 2],
}

/// Who looks.
pub struct Look<'a> {
    pub image: &'a Image,
    pub roots: &'a Roots,
    pub mode: FilesMode,
    /// Paths of the tree's root to which the right files come before it is restored.
    coming: &'a BTreeSet<Vec<u8>>,
    /// Device numbers of filesystems that are made anew, whose files are in the image.
    carried: &'a BTreeSet<u64>,
    /// Whether this is the host where the image was made.
    same_host: bool,
}

impl<'a> Look<'a> {
    /// At the files of an image, below root directories; those on filesystems of the numbers `carried` are in the image.
    pub fn new(
        image: &'a Image,
        (roots, carried): (&'a Roots, &'a BTreeSet<u64>),
        (mode, coming): (FilesMode, &'a BTreeSet<Vec<u8>>),
    ) -> Result<Self, RestoreError> {
        let uname = nix::sys::utsname::uname().map_err(RestoreError::system("read the host's name"))?;
        Ok(Self {
            image,
            roots,
            mode,
            coming,
            carried,
            same_host: image.header().host == uname.nodename().to_string_lossy(),
        })
    }

    /// All obstacles.
    pub fn obstacles(&self) -> Result<Vec<Obstacle>, RestoreError> {
        let mut found = Vec::new();
        let mut add = |what: &str, path: &[u8], reason: Option<String>| {
            if let Some(reason) = reason {
                let object = format!("{what} {}", String::from_utf8_lossy(path));
                found.push(Obstacle { object, reason });
            }
        };
        for record in self.image.mapped_files().iter().filter(|record| record.ghost.is_none()) {
            add("mapped file", &record.path, self.mapped(record));
        }
        for record in self.image.ghosts() {
            add("linked file", &record.path, self.linked(record));
        }
        Ok(found)
    }

    /// Whether it is an open file that is there, whatever it holds now, and what stands in its way.
    pub fn open_file(&self, record: &OpenFileRecord) -> Result<(bool, Option<Obstacle>), RestoreError> {
        let Some(known) = on_disk(record)? else {
            return Ok((false, None));
        };
        if self.is_coming(record.mount_namespace, &known.path) {
            return Ok((true, None));
        }
        let found = look(self.roots.of(record.mount_namespace), &known.path)
            .ok()
            .filter(|(_, stat)| is_regular(stat));
        let Some((file, stat)) = found else {
            return Ok((false, None));
        };
        let reason = self.opened(record, &known, &stat).filter(|_| !is_view(&file));
        let object = format!("open file {}", String::from_utf8_lossy(&known.path));
        Ok((true, reason.map(|reason| Obstacle { object, reason })))
    }

    fn is_coming(&self, mount_namespace: u32, path: &[u8]) -> bool {
        mount_namespace == 0 && self.coming.contains(path)
    }

    fn mapped(&self, record: &MappedFileRecord) -> Option<String> {
        if self.is_coming(record.mount_namespace, &record.path) {
            return None;
        }
        let (file, stat) = match open_regular(self.roots.of(record.mount_namespace), &record.path) {
            Ok(opened) => opened,
            Err(reason) => return Some(reason),
        };
        let known = Known {
            size: record.size,
            mtime: record.mtime,
            identity: record.identity,
        };
        match self.mode {
            FilesMode::Ignore => None,
            _ if self.carried.contains(&stat.st_dev) => None,
            FilesMode::Check if record.writable => None,
            FilesMode::Check if stat.st_size as u64 != record.size => Some(other_size(&stat, record.size)),
            FilesMode::Check if mtime(&stat) == record.mtime => None,
            FilesMode::Check => other_content(&file, record),
            FilesMode::Strict => self.strictly(&stat, &known),
        }
    }

    fn linked(&self, record: &GhostRecord) -> Option<String> {
        let GhostKind::Linked { .. } = record.kind else {
            return None;
        };
        let found = super::nameless::open_linked(self.roots.of(record.mount_namespace), record)
            .and_then(|file| fstat(file.as_fd()));
        match found {
            Err(error) => Some(format!("none of its other names is found here: {error}")),
            Ok(stat) if self.mode == FilesMode::Strict => {
                let known = Known {
                    size: record.size,
                    mtime: record.times[1],
                    // Found by its handle it is the same.
                    identity: [stat.st_dev, stat.st_ino],
                };
                self.strictly(&stat, &known)
            }
            Ok(_) => None,
        }
    }

    fn opened(&self, record: &OpenFileRecord, known: &OnDisk, stat: &FileStat) -> Option<String> {
        let flags = record.flags as i32;
        let size = stat.st_size as u64;
        match (self.mode, flags & libc::O_ACCMODE) {
            (FilesMode::Ignore, _) => None,
            _ if self.carried.contains(&stat.st_dev) => None,
            (FilesMode::Strict, _) => {
                let known = Known {
                    size: known.size,
                    mtime: known.mtime,
                    identity: known.identity,
                };
                self.strictly(stat, &known)
            }
            // Only its path is open.
            (FilesMode::Check, _) if flags & libc::O_PATH != 0 => None,
            // What was written to the end of a file goes on there.
            (FilesMode::Check, libc::O_WRONLY) if flags & libc::O_APPEND != 0 => None,
            (FilesMode::Check, libc::O_WRONLY) => {
                let written = record.position.min(known.size);
                (size < written).then(|| {
                    format!("it has {size} bytes here, and {written} were written before the place where it goes on; {ACCEPT}")
                })
            }
            (FilesMode::Check, _) => (size != known.size).then(|| other_size(stat, known.size)),
        }
    }

    fn strictly(&self, stat: &FileStat, known: &Known) -> Option<String> {
        if stat.st_size as u64 != known.size {
            Some(other_size(stat, known.size))
        } else if mtime(stat) != known.mtime {
            Some(format!("it was changed since the image was made; {ACCEPT}"))
        } else if self.same_host && known.identity != [stat.st_dev, stat.st_ino] {
            Some(format!("another file has its path; {ACCEPT}"))
        } else {
            None
        }
    }
}

/// A file by its path, not opened.
fn look(root: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, FileStat), Errno> {
    let file = open_in_root(root, Path::new(OsStr::from_bytes(path)), libc::O_PATH, 0)?;
    let stat = fstat(file.as_fd())?;
    Ok((file, stat))
}

/// A regular file; why there is none at a path. To open a device or a fifo may do something, or wait: the image has no say
/// in that.
fn open_regular(root: BorrowedFd<'_>, path: &[u8]) -> Result<(File, FileStat), String> {
    let failed = |error: Errno| format!("it can't be opened here: {error}");
    let (_, stat) = look(root, path).map_err(failed)?;
    if !is_regular(&stat) {
        return Err("it is no regular file here".to_owned());
    }
    let flags = libc::O_RDONLY | libc::O_NONBLOCK;
    let file = open_in_root(root, Path::new(OsStr::from_bytes(path)), flags, 0).map_err(failed)?;
    Ok((File::from(file), stat))
}

/// Whether a file is a view of the kernel's state, whose size and times say nothing.
fn is_view(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|found| VIEWS.contains(&found.filesystem_type().0))
}

fn is_regular(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

fn mtime(stat: &FileStat) -> i64 {
    stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec
}

fn other_size(stat: &FileStat, size: u64) -> String {
    format!(
        "it has {} bytes here and had {size} when the image was made; {ACCEPT}",
        stat.st_size
    )
}

/// Of a file that may have been written anew: programs are told apart by their build-id, others by how they begin.
fn other_content(file: &File, record: &MappedFileRecord) -> Option<String> {
    if !record.build_id.is_empty() {
        let same = build_id(file).is_ok_and(|id| id == record.build_id);
        return (!same).then(|| format!("it is another build (its build-id differs); {ACCEPT}"));
    }
    let same = head_checksum(file).is_ok_and(|sum| sum == record.head_checksum);
    (!same).then(|| format!("it is another file here (its content differs); {ACCEPT}"))
}

#[cfg(test)]
mod tests {
    use super::{open_regular, other_content};
    use floe_image::record::MappedFileRecord;
    use floe_resources::mm::head_checksum;
    use nix::sys::stat::Mode;
    use std::{
        fs::{File, write},
        os::{fd::AsFd, unix::ffi::OsStrExt},
        path::Path,
    };

    /// Opening a fifo would wait for a writer, so this would not end.
    #[test]
    fn a_mapped_file_that_is_something_else_here_is_not_opened() {
        let root = File::open("/").expect("open the root directory");
        let open = |path: &Path| open_regular(root.as_fd(), path.as_os_str().as_bytes()).map(drop);
        let folder = tempfile::tempdir().expect("a folder");
        let (fifo, file) = (folder.path().join("fifo"), folder.path().join("file"));
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("make a fifo");
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/null")] {
            assert_eq!(
                open(path),
                Err("it is no regular file here".to_owned()),
                "{}",
                path.display()
            );
        }
        write(&file, "").expect("write");
        assert_eq!(open(&file), Ok(()));
    }

    #[test]
    fn files_are_told_apart_by_build_id_or_else_by_how_they_begin() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, "one").expect("write");
        let file = File::open(&path).expect("open");
        let mut record = MappedFileRecord {
            id: 0,
            path: Vec::new(),
            mount_namespace: 0,
            ghost: None,
            writable: false,
            size: 3,
            mtime: 0,
            head_checksum: head_checksum(&file).expect("read"),
            identity: [0; 2],
            build_id: Vec::new(),
        };
        assert_eq!(other_content(&file, &record), None);
        write(&path, "two").expect("write");
        assert!(other_content(&file, &record).is_some_and(|reason| reason.contains("content differs")));
        record.build_id = vec![1];
        assert!(other_content(&file, &record).is_some_and(|reason| reason.contains("build-id")));
    }
}
