//! Names of unix sockets: paths, for which there is a file, and abstract ones, which begin with a NUL.

use super::{
    Body,
    elsewhere::{self, Place},
    leftover,
};
use crate::{
    file::{
        FileError, OpenContext,
        socket::{Maker, fetch, system},
    },
    ns::inside::root_directory,
};
use floe_image::record::NsPid;
use floe_sys::{
    descriptor::{open_in_root, pidfd_getfd, pidfd_open},
    procfs::{self, Descriptors},
    socket::unix_sockets,
};
use floe_tracee::{Puppet, Script};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, major, minor},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{OsStr, OsString},
    fs::Metadata,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
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
    /// From whose root or working directory a path is looked up.
    pub holder: NsPid,
    /// Permissions and owner of the file; none of an abstract name, or of a path that does not stand for it any more.
    pub file: Option<SocketFile>,
}

/// Permissions and owner of a socket's file: that which a path stands for, or its own inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SocketFile {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl SocketFile {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }

    /// User and group.
    pub(super) fn owner(self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Gives them to a socket's inode.
    pub(super) fn set(self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        fchown(socket, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(socket, Mode::from_bits_retain(self.mode))
    }
}

/// Whether a name is one that a socket can have.
pub(super) fn is_possible(name: &[u8]) -> bool {
    let is_abstract = name.first() == Some(&0);
    !name.is_empty() && name.len() <= ROOM && (is_abstract || !name.contains(&0))
}

pub(in crate::file) fn shown(name: &[u8]) -> String {
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

pub(super) fn is_path(name: &[u8]) -> bool {
    name.first() != Some(&0)
}

/// Binds a socket of floe's, that is closed soon, to a name; where it is, if that is a path.
pub(super) fn bind_for_a_moment(socket: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Place>, Errno> {
    if is_path(name) {
        elsewhere::bind(socket, name).map(Some)
    } else {
        floe_sys::message::bind(socket, &address(name)).map(|()| None)
    }
}

/// The file of a bound socket, of which the kernel tells device and inode number; `None` where it is there no longer.
pub(super) fn file_of(
    viewer: floe_sys::Pid,
    name: &[u8],
    (device, inode): (u32, u32),
) -> Result<Option<SocketFile>, FileError> {
    let from = if name.starts_with(b"/") { "root" } else { "cwd" };
    let from = format!("/proc/{viewer}/{from}");
    let folder = std::fs::File::open(&from).map_err(|source| FileError::System {
        action: "open",
        object: from,
        source,
    })?;
    file_below(folder.as_fd(), viewer, name, (device, inode))
}

/// The same of a path from the root directory of a task's mount namespace, where the task has another one.
pub(super) fn file_outside_of_root(
    viewer: floe_sys::Pid,
    name: &[u8],
    identity: (u32, u32),
) -> Result<Option<SocketFile>, FileError> {
    match outer_root(viewer)? {
        Some(root) if name.starts_with(b"/") => file_below(root.as_fd(), viewer, name, identity),
        _ => Ok(None),
    }
}

/// The root directory of a task's mount namespace, where the task has another one.
pub(super) fn outer_root(task: floe_sys::Pid) -> Result<Option<OwnedFd>, FileError> {
    let place = format!("/proc/{task}/root");
    let wrap = |source| FileError::System {
        action: "look at",
        object: place.clone(),
        source,
    };
    let root = root_directory(task).map_err(|error| wrap(std::io::Error::other(error)))?;
    let found = fstat(&root).map_err(|error| wrap(error.into()))?;
    let own = std::fs::metadata(&place).map_err(wrap)?;
    Ok(((found.st_dev, found.st_ino) != (own.dev(), own.ino())).then_some(root))
}

fn file_below(
    folder: BorrowedFd<'_>,
    viewer: floe_sys::Pid,
    name: &[u8],
    (device, inode): (u32, u32),
) -> Result<Option<SocketFile>, FileError> {
    let path = Path::new(OsStr::from_bytes(name));
    let flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let Ok(file) = open_in_root(folder, path, flags, 0) else {
        return Ok(None);
    };
    let found = fstat(&file).map_err(FileError::system("stat the socket", shown(name)))?;
    let is_socket = found.st_mode & libc::S_IFMT == libc::S_IFSOCK;
    let (own_device, own_inode) = kernel_identity(&found);
    let is_it = is_socket
        && if own_device == device {
            own_inode == inode
        } else {
            // Some filesystems tell programs of other devices and inode numbers than they have themselves.
            device_of_mount(viewer, file.as_fd())? == Some(device)
        };
    Ok(is_it.then_some(SocketFile {
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
    }))
}

/// The device of the filesystem that is mounted where a file is.
fn device_of_mount(viewer: floe_sys::Pid, file: BorrowedFd<'_>) -> Result<Option<u32>, FileError> {
    let own = floe_sys::Pid::new(std::process::id() as i32);
    let mount = Descriptors::open(own)?.info(file.as_raw_fd())?.mount;
    let text = procfs::read_text(&format!("/proc/{viewer}/mountinfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{mount} ")));
    let device = line.and_then(|rest| rest.split(' ').nth(1)?.split_once(':'));
    Ok(device.and_then(|(major, minor)| Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)))
}

/// A device's number as the kernel has it, 20 bits for the minor part.
fn kernel_device(device: u64) -> u32 {
    (major(device) << 20 | minor(device) & 0xf_ffff) as u32
}

impl Name {
    pub(super) fn shown(&self) -> String {
        shown(&self.bytes)
    }

    /// Whether it is a path that does not stand for the socket any more.
    pub(super) fn is_elsewhere(&self) -> bool {
        is_path(&self.bytes) && self.file.is_none()
    }

    /// Whether somebody in floe's own network namespace has it, where it is no path, with a socket of the same kind.
    pub(super) fn taken(&self, kind: i32) -> Result<Option<String>, FileError> {
        if self.bytes.first() != Some(&0) {
            return Ok(None);
        }
        let wrap = |action| FileError::system(action, self.shown());
        let listed = unix_sockets().map_err(wrap("list the sockets beside"))?;
        let mut named = listed.values().filter(|socket| socket.kind == kind);
        let is_used = named.any(|socket| socket.name.as_ref() == Some(&self.bytes));
        Ok(is_used.then(|| format!("a process of this host has a socket at {}", self.shown())))
    }

    /// What is in the way of a path in `root`, the root directory of its holder.
    pub(super) fn obstacle(&self, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        if !self.bytes.starts_with(b"/") || self.is_elsewhere() {
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

/// Where the file of a socket is, with its device and inode number.
pub type FilePlace = (PathBuf, (u64, u64));

/// Files of sockets that were bound anew. Dropped, they are removed, unless [`BoundNames::keep`] was called.
#[derive(Debug, Default)]
pub struct BoundNames(Vec<(OwnedFd, OsString)>);

impl BoundNames {
    /// Where they are in the mount namespace that they were made in, and the device and inode number of each.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn places(&self) -> Result<Vec<FilePlace>, FileError> {
        let place = |(folder, name): &(OwnedFd, OsString)| {
            let wrap = |action| FileError::system(action, Path::new(name).display().to_string());
            let found = fstatat(folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(wrap("stat"))?;
            let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
            let folder = nix::fcntl::readlink(link.as_str()).map_err(wrap("find the folder of"))?;
            Ok((Path::new(&folder).join(name), (found.st_dev, found.st_ino)))
        };
        self.0.iter().map(place).collect()
    }

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

/// Binds the socket that is `number` in a task; to a path the task does so that knows what it means.
pub(super) fn bind(
    (id, body): (u32, &Body),
    (puppet, number): (&Puppet, i32),
    name: &Name,
    context: &mut OpenContext<'_>,
) -> Result<(), FileError> {
    let wrap = |action| FileError::system(action, format!("open file {id}"));
    let own = || {
        let pidfd = pidfd_open(puppet.tid()).map_err(wrap("open a pidfd to fetch"))?;
        pidfd_getfd(pidfd.as_fd(), number).map_err(wrap("fetch"))
    };
    if name.is_elsewhere() {
        let own = own()?;
        let place = elsewhere::bind(own.as_fd(), &name.bytes).map_err(wrap("bind"))?;
        context.unix.unsent.places.insert(body.socket, place);
        return Ok(());
    }
    let holder = Maker::of(name.holder.0).puppet(id, context)?;
    if !is_path(&name.bytes) || holder.tid() == puppet.tid() {
        return bind_here((id, body), (puppet, number), name, context);
    }
    let numbers = context.channel.give(&mut Script::new(holder), &[own()?.as_fd()])?;
    bind_here((id, body), (holder, numbers[0]), name, context)?;
    fetch(id, holder, &numbers).map(drop)
}

/// Has a task bind a socket. What is left there of the socket that had the name before is removed. All of it the task does
/// itself: a path means to others what its own root and links make of it.
fn bind_here(
    (id, body): (u32, &Body),
    (puppet, number): (&Puppet, i32),
    name: &Name,
    context: &mut OpenContext<'_>,
) -> Result<(), FileError> {
    let path = is_path(&name.bytes).then(|| with_nul(&name.bytes));
    let is_left = match &path {
        Some(path) => leftover::is_there(id, puppet, path)?,
        None => false,
    };
    let mut batch = puppet.batch();
    if let (Some(path), true) = (&path, is_left) {
        let place = batch.data(path);
        batch.call("remove an old socket", libc::SYS_unlinkat, &[AT_FDCWD, place, 0]);
    }
    if let Some(file) = name.file {
        // The file gets the permissions of the socket. By its path it could be another one's by then.
        batch.call("clear the umask", libc::SYS_umask, &[0]);
        let mode = [number as u64, u64::from(file.mode)];
        batch.call("set the permissions of a socket", libc::SYS_fchmod, &mode);
    }
    let bytes = address(&name.bytes);
    let place = batch.data(&bytes);
    let arguments = [number as u64, place, bytes.len() as u64];
    batch.call("bind a socket", libc::SYS_bind, &arguments);
    puppet.run(&mut batch)?;
    let (Some(path), Some(file)) = (path, name.file) else {
        return Ok(());
    };
    let (folder, own) = split(&name.bytes);
    let mut batch = puppet.batch();
    let place = batch.data(&with_nul(folder));
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    let opened = batch.call(
        "open the directory of a socket",
        libc::SYS_openat,
        &[AT_FDCWD, place, flags],
    );
    let place = batch.data(&path);
    let flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    let found = batch.call("open the file of a socket", libc::SYS_openat, &[AT_FDCWD, place, flags]);
    puppet.run(&mut batch)?;
    let numbers = [opened, found].map(|call| batch.result(call) as i32);
    if let Ok([folder, found]) = <[OwnedFd; 2]>::try_from(fetch(id, puppet, &numbers)?) {
        if body.is_reached() {
            let folder = folder.try_clone().map_err(|source| system("duplicate", id, source))?;
            context
                .unix
                .unsent
                .places
                .insert(body.socket, Place::new(folder, own, found));
        }
        context.unix.bound.0.push((folder, own.to_owned()));
    }
    let mut batch = puppet.batch();
    let place = batch.data(&path);
    let owner = [
        AT_FDCWD,
        place,
        u64::from(file.uid),
        u64::from(file.gid),
        libc::AT_SYMLINK_NOFOLLOW as u64,
    ];
    batch.call("set the owner of a socket", libc::SYS_fchownat, &owner);
    Ok(puppet.run(&mut batch)?)
}

pub(super) const AT_FDCWD: u64 = libc::AT_FDCWD as u64;

fn with_nul(path: &[u8]) -> Vec<u8> {
    [path, &[0]].concat()
}

/// The directory, and the name in it.
pub(super) fn split(path: &[u8]) -> (&[u8], &OsStr) {
    let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&b"/"[..], &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b"."[..], path),
    };
    (folder, OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::{address, is_possible, shown, split};
    use std::ffi::OsStr;

    #[test]
    fn paths_are_taken_apart() {
        let told = |path: &'static str| {
            let (folder, name) = split(path.as_bytes());
            (folder.to_vec(), name.to_owned())
        };
        let expected = |folder: &str, name: &str| (folder.as_bytes().to_vec(), OsStr::new(name).to_owned());
        assert_eq!(told("/run/a/b"), expected("/run/a", "b"));
        assert_eq!(told("/b"), expected("/", "b"));
        assert_eq!(told("b"), expected(".", "b"));
        assert_eq!(told("./a/b"), expected("./a", "b"));
    }

    #[test]
    fn names_are_paths_or_abstract() {
        for possible in [&b"/run/x"[..], b"\0x\0y", b"\0"] {
            assert!(is_possible(possible), "{possible:?}");
        }
        for none in [&b""[..], b"a\0b", &[b'a'; 109]] {
            assert!(!is_possible(none), "{none:?}");
        }
        assert_eq!(address(b"x").len(), 2 + 2);
        assert_eq!(address(b"\0x").len(), 2 + 2);
        assert_eq!(address(&[b'a'; 108]).len(), 2 + 108);
        assert_eq!(shown(b"\0job"), "@job");
    }
}
