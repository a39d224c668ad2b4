//! Looks at a tree: all that is on one filesystem's mount, by descriptors, following no link.

use super::{ATTRIBUTES, Bytes, Kind, MOST, Node, TreePath};
use floe_sys::descriptor::{attribute_of_link, attributes_of_link, is_fixed, open_on_same_mount};
use nix::{
    errno::Errno,
    fcntl::readlinkat,
    sys::stat::{major, minor},
};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::{File, Metadata},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            ffi::OsStringExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

/// What can't be looked at, or not be sent.
#[derive(Debug, thiserror::Error)]
#[error("file {path}: {reason}")]
pub struct Fault {
    /// Of the tree.
    pub path: TreePath,
    /// Why not.
    pub reason: String,
}

/// Something of a tree.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is; of a regular file without its SHA-256.
    pub node: Node,
    /// Device, inode, bytes, times of change of content and inode: whether it changed is seen by these.
    pub witness: [u64; 7],
    /// Bytes that it takes on its disk.
    pub stored: u64,
}

/// What of a file that looks like this is known already.
pub type Known<'a> = dyn Fn(&TreePath, &[u64; 7]) -> Option<Node> + 'a;

/// Walks all of it. What goes away meanwhile was not there where the tree `runs`. `tick` is called now and then, and ends it
/// where it fails.
///
/// # Errors
/// [`Fault`], and those of `tick`.
pub fn walk<E: From<Fault>>(
    top: BorrowedFd<'_>,
    (runs, known): (bool, &Known<'_>),
    tick: &mut dyn FnMut() -> Result<(), E>,
) -> Result<BTreeMap<TreePath, Found>, E> {
    let mut all = BTreeMap::new();
    let mut inodes: HashMap<[u64; 2], usize> = HashMap::new();
    let mut rest = vec![TreePath::default()];
    let is_gone = |errno: Errno| runs && matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP);
    while let Some(path) = rest.pop() {
        let wrap = |error: Errno| fault(&path, error);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let directory = match open_on_same_mount(top, path.as_path(), flags, 0) {
            Ok(directory) => File::from(directory),
            Err(errno) if is_gone(errno) => continue,
            Err(errno) => return Err(wrap(errno).into()),
        };
        if path == TreePath::default() {
            let found = look((&directory, OsStr::new(".")), path.clone(), known).map_err(wrap)?;
            all.insert(path.clone(), found);
        }
        let place = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let entries = std::fs::read_dir(&place).map_err(|error| wrap(of(&error)))?;
        for entry in entries {
            tick()?;
            let name = entry.map_err(|error| wrap(of(&error)))?.file_name();
            let Some(inner) = path.join(&name) else {
                return Err(fault(&path, Errno::ENAMETOOLONG).into());
            };
            let found = match look((&directory, &name), inner.clone(), known) {
                Ok(found) => found,
                Err(errno) if is_gone(errno) => continue,
                Err(errno) => return Err(fault(&inner, errno).into()),
            };
            match found.node.kind {
                Kind::Directory => rest.push(inner.clone()),
                _ => *inodes.entry([found.witness[0], found.witness[1]]).or_default() += 1,
            }
            all.insert(inner, found);
            if all.len() > MOST {
                let reason = format!("the tree has more than {MOST} files");
                return Err(Fault { path, reason }.into());
            }
        }
    }
    inodes.retain(|_, names| *names > 1);
    name_links(&mut all, &inodes);
    Ok(all)
}

/// A file of several names is told of by the first one, the others as links to that.
fn name_links(all: &mut BTreeMap<TreePath, Found>, inodes: &HashMap<[u64; 2], usize>) {
    let mut first: HashMap<[u64; 2], TreePath> = HashMap::new();
    for (path, found) in all {
        let inode = [found.witness[0], found.witness[1]];
        if !inodes.contains_key(&inode) || found.node.kind == Kind::Directory {
            continue;
        }
        match first.get(&inode) {
            None => drop(first.insert(inode, path.clone())),
            Some(to) => {
                found.node.kind = Kind::Link { to: to.clone() };
                found.node.attributes.clear();
                (found.node.mode, found.node.uid, found.node.gid, found.node.times) = (0, 0, 0, [0; 2]);
                found.stored = 0;
            }
        }
    }
}

fn of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn fault(path: &TreePath, errno: Errno) -> Fault {
    let reason = match errno {
        Errno::EXDEV => "something is mounted there, below which nothing is seen".to_owned(),
        Errno::EOPNOTSUPP => "it may not be changed, or only be added to (chattr), which is not sent".to_owned(),
        Errno::E2BIG => format!("it has extended attributes of more than {ATTRIBUTES} bytes"),
        Errno::ENAMETOOLONG => "a path in it is too long to be opened".to_owned(),
        errno => format!("it can't be looked at: {errno}"),
    };
    Fault {
        path: path.clone(),
        reason,
    }
}

fn look((directory, name): (&File, &OsStr), path: TreePath, known: &Known<'_>) -> Result<Found, Errno> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = File::from(open_on_same_mount(directory.as_fd(), name.as_ref(), flags, 0)?);
    let found = file.metadata().map_err(|error| of(&error))?;
    let witness = witness(&found);
    // Only what is allocated is stored; a file may be longer.
    let stored = found.blocks().saturating_mul(512);
    if let Some(node) = known(&path, &witness) {
        return Ok(Found { node, witness, stored });
    }
    if (found.is_file() || found.is_dir()) && is_fixed(file.as_fd())? {
        return Err(Errno::EOPNOTSUPP);
    }
    let place = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    let node = Node {
        kind: kind(&file, &found)?,
        path,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        times: [
            nanoseconds(found.atime(), found.atime_nsec()),
            nanoseconds(found.mtime(), found.mtime_nsec()),
        ],
        attributes: attributes(&place)?,
    };
    Ok(Found { node, witness, stored })
}

/// By which it is seen whether a file changed.
pub fn witness(found: &Metadata) -> [u64; 7] {
    let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(i64::cast_unsigned);
    let [changed, changed_rest, noted, noted_rest] = times;
    [
        found.dev(),
        found.ino(),
        found.size(),
        changed,
        changed_rest,
        noted,
        noted_rest,
    ]
}

fn kind(file: &File, found: &Metadata) -> Result<Kind, Errno> {
    let kind = found.file_type();
    let device = |block| Kind::Device {
        block,
        major: major(found.rdev()) as u32,
        minor: minor(found.rdev()) as u32,
    };
    Ok(match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_file() => Kind::File {
            size: found.size(),
            sha256: String::new(),
        },
        () if kind.is_symlink() => Kind::Symlink {
            target: Bytes(readlinkat(file, "")?.into_vec()),
        },
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_socket() => Kind::Socket,
        () => device(kind.is_block_device()),
    })
}

/// Whether an attribute is what the policy of its host calls a file: that of another host may not know it.
pub fn is_label(name: &[u8]) -> bool {
    name == b"security.selinux" || name.starts_with(b"security.SMACK64")
}

fn attributes(place: &Path) -> Result<Vec<(Bytes, Bytes)>, Errno> {
    let mut all = Vec::new();
    let mut bytes = 0;
    for name in attributes_of_link(place)?
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if is_label(name) {
            continue;
        }
        let value = match attribute_of_link(place, name) {
            Ok(value) => value,
            // It was removed meanwhile.
            Err(Errno::ENODATA) => continue,
            Err(errno) => return Err(errno),
        };
        bytes += name.len() + value.len();
        if bytes > ATTRIBUTES {
            return Err(Errno::E2BIG);
        }
        all.push((Bytes(name.to_vec()), Bytes(value)));
    }
    all.sort();
    Ok(all)
}
