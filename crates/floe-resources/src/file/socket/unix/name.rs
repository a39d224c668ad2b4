//! Names of unix sockets: paths, for which there is a file, and abstract ones, which begin with a NUL.

use crate::file::{FileError, OpenContext, socket::system};
use floe_image::record::NsPid;
use floe_sys::{descriptor::open_in_root, socket::unix_sockets};
use floe_tracee::Puppet;
use nix::{
    sys::stat::{FileStat, fstat, major, minor},
    unistd::{UnlinkatFlags, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown},
        },
    },
    path::{Path, PathBuf},
};

/// Bytes of `sun_path`.
const ROOM: usize = 108;

/// What a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Name {
    /// As in `sun_path`; a path without its NUL.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Whose root or working directory a path is looked up from.
    pub holder: NsPid,
    /// Permissions and owner of the file.
    pub file: Option<SocketFile>,
}

/// The file that a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SocketFile {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Whether a name is one that a socket can have.
pub(super) fn is_possible(name: &[u8]) -> bool {
    let is_abstract = name.first() == Some(&0);
    !name.is_empty() && name.len() <= ROOM && (is_abstract || !name.contains(&0))
}

pub(super) fn shown(name: &[u8]) -> String {
    match name.split_first() {
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
        _ => String::from_utf8_lossy(name).into_owned(),
    }
}

/// struct sockaddr_un.
pub(super) fn address(name: &[u8]) -> Vec<u8> {
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend(name);
    if name.first() != Some(&0) && name.len() < ROOM {
        bytes.push(0);
    }
    bytes
}

fn is_path(name: &[u8]) -> bool {
    name.first() != Some(&0)
}

/// The file that a path stands for to a process of floe's namespace.
fn seen_by(process: impl std::fmt::Display, name: &[u8]) -> PathBuf {
    let from = if name.starts_with(b"/") { "root" } else { "cwd" };
    let mut path = OsString::from(format!("/proc/{process}/{from}/"));
    path.push(OsStr::from_bytes(name));
    path.into()
}

/// The file of a bound socket, of which the kernel tells device and inode number; `None` where it is there no longer.
pub(super) fn file_of(
    holder: floe_sys::Pid,
    name: &[u8],
    (device, inode): (u32, u32),
) -> Result<Option<SocketFile>, FileError> {
    let path = seen_by(holder, name);
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(FileError::System {
                action: "stat the socket",
                object: shown(name),
                source,
            });
        }
    };
    let same_device = kernel_device(metadata.dev()) == device;
    let is_it = metadata.file_type().is_socket() && (!same_device || metadata.ino() as u32 == inode);
    Ok(is_it.then(|| SocketFile {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }))
}

/// A device's number as the kernel has it, 20 bits for the minor part.
fn kernel_device(device: u64) -> u32 {
    (major(device) << 20 | minor(device) & 0xf_ffff) as u32
}

impl Name {
    pub(super) fn shown(&self) -> String {
        shown(&self.bytes)
    }

    /// What is in the way of a path in `root`.
    pub(super) fn obstacle(&self, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        if !self.bytes.starts_with(b"/") {
            return Ok(None);
        }
        let path = Path::new(OsStr::from_bytes(&self.bytes));
        let open = |path: &Path| open_in_root(root, path, libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0);
        let Ok(file) = open(path) else {
            let folder = path.parent().unwrap_or(Path::new("/"));
            let missing = open_in_root(root, folder, libc::O_PATH | libc::O_CLOEXEC, 0).is_err();
            return Ok(missing.then(|| format!("the directory of {} does not exist", path.display())));
        };
        let wrap = |action| FileError::system(action, path.display().to_string());
        let found = fstat(&file).map_err(wrap("stat"))?;
        if found.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Ok(Some(format!("{} is no socket here", path.display())));
        }
        let listed = unix_sockets().map_err(wrap("list the sockets beside"))?;
        let is_used = listed
            .values()
            .any(|socket| socket.file == Some(kernel_identity(&found)));
        Ok(is_used.then(|| format!("a process of this host has a socket at {}", path.display())))
    }
}

fn kernel_identity(found: &FileStat) -> (u32, u32) {
    (kernel_device(found.st_dev), found.st_ino as u32)
}

/// Files of sockets that were bound anew. Dropped, they are removed, unless [`BoundNames::keep`] was called.
#[derive(Debug, Default)]
pub struct BoundNames(Vec<(OwnedFd, OsString)>);

impl BoundNames {
    /// Lets the files stay.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for BoundNames {
    fn drop(&mut self) {
        for (folder, name) in &self.0 {
            if let Err(error) = unlinkat(folder.as_fd(), name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                tracing::debug!(?name, %error, "the file of a socket stays");
            }
        }
    }
}

/// Binds the socket that is `number` in a task. What is left there of the socket that had the name before is removed.
pub(super) fn bind(
    id: u32,
    (puppet, number): (&Puppet, i32),
    name: &Name,
    context: &mut OpenContext<'_>,
) -> Result<(), FileError> {
    let finder = context.puppets.get(&name.holder.0).unwrap_or(puppet);
    let path = seen_by(finder.tid(), &name.bytes);
    if is_path(&name.bytes) {
        make_room(&path).map_err(|source| system("make room for the name of", id, source))?;
    }
    let mut batch = puppet.batch();
    let bytes = address(&name.bytes);
    let place = batch.data(&bytes);
    batch.call(
        "bind a socket",
        libc::SYS_bind,
        &[number as u64, place, bytes.len() as u64],
    );
    puppet.run(&mut batch)?;
    if let Some(file) = name.file {
        let made = bound(&path).map_err(|source| system("find the name of", id, source))?;
        context.unix.bound.0.push(made);
        lchown(&path, Some(file.uid), Some(file.gid))
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode)))
            .map_err(|source| system("set the owner of the name of", id, source))?;
    }
    Ok(())
}

/// Removes a socket's file; anything else stays.
fn make_room(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn bound(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    Ok((std::fs::File::open(folder)?.into(), name.to_owned()))
}
