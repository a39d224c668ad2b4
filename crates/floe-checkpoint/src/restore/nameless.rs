//! Files that have lost the path by which they are open: deleted directories, and files that have other names. Each is given
//! a path, opened there, and loses it at once, as it did before.
//!
//! A process of its own does that, which shares floe's descriptors: no name stays should floe be killed meanwhile.

use super::RestoreError;
use floe_image::record::{GhostKind, GhostRecord};
use floe_resources::ns::Roots;
use floe_sys::{
    descriptor::{adopt, open_by_handle, open_in_root},
    fork, memfd,
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        stat::{Mode, fstat, mkdirat},
        wait::{WaitStatus, waitpid},
    },
    unistd::{UnlinkatFlags, linkat, unlinkat},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Component, Path, PathBuf},
};

const FOLDER: i32 = libc::O_PATH | libc::O_DIRECTORY;
/// Bytes of a descriptor's number in the answer.
const NUMBER: usize = size_of::<RawFd>();

/// A path, and the root directory that it counts from.
type Place<'a> = (BorrowedFd<'a>, &'a Path);

/// What loses its path.
enum Wanted {
    /// A directory that is made.
    Directory,
    /// A file that is there.
    Linked(OwnedFd),
}

/// Opens all records that are such files: directories for reading, files by O_PATH.
pub fn make<'a>(roots: &Roots, records: &'a [GhostRecord]) -> Result<Vec<(&'a GhostRecord, OwnedFd)>, RestoreError> {
    let mut wanted = Vec::new();
    for record in records {
        let path = (
            roots.of(record.mount_namespace),
            Path::new(OsStr::from_bytes(&record.path)),
        );
        match &record.kind {
            GhostKind::Directory => wanted.push((record, path, Wanted::Directory)),
            GhostKind::Linked { .. } => {
                let action = format!("find a file that was {}", path.1.display());
                let file = open_linked(path.0, record).map_err(RestoreError::system(action))?;
                wanted.push((record, path, Wanted::Linked(file)));
            }
            GhostKind::File | GhostKind::Memfd(_) => {}
        }
    }
    let records: Vec<&GhostRecord> = wanted.iter().map(|(record, ..)| *record).collect();
    let wanted: Vec<(Place<'_>, Wanted)> = wanted.into_iter().map(|(_, path, wanted)| (path, wanted)).collect();
    let opened = make_elsewhere(&wanted)?;
    Ok(records.into_iter().zip(opened).collect())
}

/// A file that has lost its path but has a name: by its handle where it is on this host, or else by that name.
pub fn open_linked(root: BorrowedFd<'_>, record: &GhostRecord) -> Result<OwnedFd, Errno> {
    let GhostKind::Linked { name, kind, handle } = &record.kind else {
        return Err(Errno::EINVAL);
    };
    let mut parts = Path::new(OsStr::from_bytes(&record.path)).ancestors();
    // A handle is opened by no descriptor of O_PATH.
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let mount = parts.find_map(|part| open_in_root(root, part, flags, 0).ok());
    let by_handle = match mount {
        Some(mount) if !handle.is_empty() => open_by_handle(mount.as_fd(), *kind, handle, libc::O_PATH),
        Some(_) | None => Err(Errno::ESTALE),
    };
    let opened = match by_handle {
        Err(_) if !name.is_empty() => open_in_root(root, Path::new(OsStr::from_bytes(name)), libc::O_PATH, 0),
        found => found,
    }?;
    let is_file = fstat(opened.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFREG;
    if is_file { Ok(opened) } else { Err(Errno::ESTALE) }
}

fn make_elsewhere(wanted: &[(Place<'_>, Wanted)]) -> Result<Vec<OwnedFd>, RestoreError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |action: &str| RestoreError::system(format!("{action} deleted directories and links again"));
    let answer = memfd::create(c"floe-nameless", 0).map_err(failed("make room to make"))?;
    let answer = File::from(answer);
    let child = fork::child_with_files(|| {
        // From here on only SIGKILL to this very process keeps it from what it has to do.
        if let Err(error) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
            return error as i32;
        }
        let numbers = match make_and_remove(wanted) {
            Ok(opened) => opened.into_iter().map(IntoRawFd::into_raw_fd),
            Err(error) => return error as i32,
        };
        let bytes: Vec<u8> = numbers.flat_map(RawFd::to_ne_bytes).collect();
        answer.write_all_at(&bytes, 0).map_or(libc::EIO, |()| 0)
    })
    .map_err(failed("fork to make"))?;
    let status = loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            ended => break ended.map_err(failed("wait for who makes"))?,
        }
    };
    match status {
        WaitStatus::Exited(_, 0) => {}
        WaitStatus::Exited(_, error) => return Err(failed("make")(Errno::from_raw(error))),
        _ => return Err(failed("make")(Errno::ECANCELED)),
    }
    let mut bytes = vec![0; wanted.len() * NUMBER];
    answer
        .read_exact_at(&mut bytes, 0)
        .map_err(|source| RestoreError::System {
            action: "read which deleted directories were made".to_owned(),
            source,
        })?;
    let numbers = bytes.chunks_exact(NUMBER);
    let number = |bytes: &[u8]| RawFd::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(numbers.map(|bytes| adopt(number(bytes))).collect())
}

/// A name that was made.
struct Made {
    parent: OwnedFd,
    name: OsString,
    how: UnlinkatFlags,
}

fn make_and_remove(wanted: &[(Place<'_>, Wanted)]) -> Result<Vec<OwnedFd>, Errno> {
    let mut made = Vec::new();
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    // Those above before those inside.
    order.sort_by_key(|index| wanted[*index].0.1.components().count());
    let opened = order
        .into_iter()
        .map(|index| {
            let opened = match &wanted[index] {
                ((root, path), Wanted::Directory) => make_directory(*root, path, &mut made)?,
                ((root, path), Wanted::Linked(file)) => link(*root, path, file.as_fd(), &mut made)?,
            };
            Ok((index, opened))
        })
        .collect::<Result<Vec<_>, Errno>>();
    let removed = made
        .iter()
        .rev()
        .map(|made| unlinkat(&made.parent, made.name.as_os_str(), made.how))
        .fold(Ok(()), Result::and);
    let mut opened = opened?;
    removed?;
    opened.sort_by_key(|(index, _)| *index);
    Ok(opened.into_iter().map(|(_, opened)| opened).collect())
}

/// One at its path, with what is missing above it; under another name where that one is taken.
fn make_directory(root: BorrowedFd<'_>, path: &Path, made: &mut Vec<Made>) -> Result<OwnedFd, Errno> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    let names: Vec<&OsStr> = names.collect();
    let (last, above) = names.split_last().ok_or(Errno::EINVAL)?;
    let mut at = PathBuf::from("/");
    let mut parent = open_in_root(root, &at, FOLDER, 0)?;
    for name in above {
        at.push(name);
        parent = match open_in_root(root, &at, FOLDER, 0) {
            Err(Errno::ENOENT) => {
                add_directory(parent, name, made)?;
                open_in_root(root, &at, FOLDER, 0)?
            }
            // A file has that name now.
            Err(Errno::ENOTDIR) => break,
            found => found?,
        };
    }
    let again = parent.try_clone().map_err(|_| Errno::EMFILE)?;
    match add_directory(parent, last, made) {
        Err(Errno::EEXIST) => {
            let mut other = last.to_os_string();
            other.push(format!(".floe-{}-{}", std::process::id(), made.len()));
            add_directory(again, &other, made)
        }
        added => added,
    }
}

fn add_directory(parent: OwnedFd, name: &OsStr, made: &mut Vec<Made>) -> Result<OwnedFd, Errno> {
    mkdirat(parent.as_fd(), name, Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(parent.as_fd(), name, flags, Mode::empty());
    made.push(Made {
        parent,
        name: name.to_owned(),
        how: UnlinkatFlags::RemoveDir,
    });
    opened
}

/// Another link to a file at its path; the file as it is where there can be none.
fn link(root: BorrowedFd<'_>, path: &Path, file: BorrowedFd<'_>, made: &mut Vec<Made>) -> Result<OwnedFd, Errno> {
    let as_it_is = || file.try_clone_to_owned().map_err(|_| Errno::EMFILE);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return as_it_is();
    };
    let Ok(parent) = open_in_root(root, folder, FOLDER, 0) else {
        return as_it_is();
    };
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    if linkat(AT_FDCWD, own.as_str(), &parent, name, AtFlags::AT_SYMLINK_FOLLOW).is_err() {
        return as_it_is();
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(parent.as_fd(), name, flags, Mode::empty());
    made.push(Made {
        parent,
        name: name.to_owned(),
        how: UnlinkatFlags::NoRemoveDir,
    });
    opened
}

#[cfg(test)]
mod tests {
    use super::{Wanted, make_and_remove};
    use std::{
        fs::{File, create_dir, hard_link, read_dir, read_link, write},
        os::{
            fd::{AsFd, AsRawFd},
            unix::fs::MetadataExt,
        },
        path::Path,
    };

    #[test]
    fn they_have_no_names_and_nothing_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = File::open(folder.path()).expect("open it");
        let there = |name: &str| folder.path().join(name);
        create_dir(there("taken")).expect("a folder");
        write(there("file"), "").expect("a file");
        let file = || Wanted::Linked(File::open(there("file")).expect("open it").into());
        let directories = ["/new/inner/deep", "/new", "/taken", "/taken", "/file/below", "/new"];
        let place = |path| (root.as_fd(), Path::new(path));
        let wanted = directories.map(|path| (place(path), Wanted::Directory)).into_iter();
        let links = ["/taken/old name", "/taken", "/nowhere/name"].map(|path| (place(path), file()));
        let wanted: Vec<_> = wanted.chain(links).collect();
        let opened = make_and_remove(&wanted).expect("all of them");
        let name = |at: usize| {
            let link = read_link(format!("/proc/self/fd/{}", opened[at].as_raw_fd())).expect("its link");
            let path = link.strip_prefix(folder.path()).expect("a path in there");
            path.display().to_string()
        };
        assert_eq!(name(0), "new/inner/deep (deleted)");
        assert_eq!(name(1), "new (deleted)");
        for (at, start) in [(2, "taken.floe-"), (3, "taken.floe-"), (4, "below"), (5, "new.floe-")] {
            assert!(
                name(at).starts_with(start) && name(at).ends_with(" (deleted)"),
                "{}",
                name(at)
            );
        }
        assert_eq!(
            [name(6), name(7), name(8)],
            ["taken/old name (deleted)", "file", "file"]
        );
        let found = File::open(there("file")).and_then(|file| file.metadata()).expect("it");
        assert_eq!(found.nlink(), 1);
        hard_link(there("file"), there("taken/other")).expect("the folder is as it was");
        let mut left: Vec<_> = read_dir(folder.path())
            .expect("list it")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["file", "taken"]);
    }
}
