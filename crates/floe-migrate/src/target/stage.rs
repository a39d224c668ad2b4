//! A tree that is being made: below a temporary name, in a directory that nobody else may enter, by descriptors alone and
//! following no link. What is in it is written down as it is made, and compared with the tree itself in the end.

use crate::{
    files::sha256,
    tree::{Bytes, Fault, Found, Kind, Node, TreePath, walk},
};
use floe_sys::descriptor::{attributes_of_link, open_on_same_mount, remove_attribute_of_link, set_attribute_of_link};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, Whence, fchownat, geteuid, linkat, lseek, symlinkat, unlinkat},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// Bytes that are copied at once.
const PIECE: usize = 1 << 18;

/// The tree, as far as it is made.
#[derive(Debug)]
pub struct Stage {
    top: OwnedFd,
    /// The tree that was there before.
    old: Option<OwnedFd>,
    /// What is in it, with the content that has come.
    staged: BTreeMap<TreePath, Node>,
    /// Directories that do not have their owners, modes and times yet.
    open: BTreeSet<TreePath>,
}

/// What can't be made.
#[derive(Debug, thiserror::Error)]
#[error("put file {path} in its place")]
pub struct StageError {
    path: TreePath,
    #[source]
    source: io::Error,
}

fn wrap<T>(path: &TreePath, made: io::Result<T>) -> Result<T, StageError> {
    made.map_err(|source| StageError {
        path: path.clone(),
        source,
    })
}

impl Stage {
    /// One in an empty directory.
    pub fn new(top: OwnedFd, old: Option<OwnedFd>) -> Self {
        Self {
            top,
            old,
            staged: BTreeMap::new(),
            open: BTreeSet::new(),
        }
    }

    /// Makes something, or makes what is there it; whether the content of a regular file is lacking then. `tick` is called
    /// now and then, and ends it where it fails.
    pub fn put<E: From<StageError>>(
        &mut self,
        node: &Node,
        tick: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let path = &node.path;
        let there = self.staged.get(path).map(|there| there.kind.clone());
        match (&there, &node.kind) {
            (Some(Kind::Directory), Kind::Directory) => wrap(path, self.enter(path))?,
            (Some(Kind::File { .. }), Kind::File { .. }) if there.as_ref() == Some(&node.kind) => {
                wrap(path, self.finish(node))?;
            }
            // Its other names stay those of it.
            (Some(kind @ Kind::File { .. }), Kind::File { .. }) => {
                let staged = Node {
                    kind: kind.clone(),
                    ..node.clone()
                };
                self.staged.insert(path.clone(), staged);
                return Ok(true);
            }
            (there, _) => {
                if there.is_some() {
                    self.remove(path)?;
                }
                let made = wrap(path, self.make(node))?;
                if let (Some(file), Kind::File { size, sha256: sum }) = (made, &node.kind) {
                    let is_whole = self.copy_old((path, *size, sum), &file, tick)?;
                    let kind = match is_whole {
                        true => node.kind.clone(),
                        false => empty(),
                    };
                    let staged = Node { kind, ..node.clone() };
                    wrap(path, self.finish(&staged))?;
                    let lacks = staged.kind != node.kind;
                    self.staged.insert(path.clone(), staged);
                    return Ok(lacks);
                }
                if !matches!(node.kind, Kind::Directory | Kind::Link { .. }) {
                    wrap(path, self.finish(node))?;
                }
            }
        }
        self.staged.insert(path.clone(), node.clone());
        Ok(false)
    }

    /// A regular file, without content, to which that is written.
    pub fn content(&mut self, path: &TreePath) -> Result<File, StageError> {
        let mut open = || {
            self.enter_above(path)?;
            let (above, name) = self.above(path)?;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            fchmodat(&above, name.as_os_str(), mode, FchmodatFlags::FollowSymlink)?;
            let flags = libc::O_RDWR | libc::O_TRUNC | libc::O_NOFOLLOW;
            Ok(File::from(open_on_same_mount(above.as_fd(), name.as_ref(), flags, 0)?))
        };
        let opened: io::Result<File> = open();
        wrap(path, opened)
    }

    /// That this came.
    pub fn filled(&mut self, path: &TreePath, (size, sha256): (u64, String)) -> Result<(), StageError> {
        let Some(node) = self.staged.get_mut(path) else {
            return wrap(path, Err(io::ErrorKind::NotFound.into()));
        };
        node.kind = Kind::File { size, sha256 };
        let node = node.clone();
        wrap(path, self.finish(&node))
    }

    /// Removes something, in which nothing is any more.
    pub fn remove(&mut self, path: &TreePath) -> Result<(), StageError> {
        let Some(node) = self.staged.remove(path) else {
            return Ok(());
        };
        let flags = match node.kind {
            Kind::Directory => UnlinkatFlags::RemoveDir,
            _ => UnlinkatFlags::NoRemoveDir,
        };
        self.open.remove(path);
        let removed = self.enter_above(path).and_then(|()| {
            let (above, name) = self.above(path)?;
            Ok(unlinkat(above, name.as_os_str(), flags)?)
        });
        wrap(path, removed)
    }

    /// Gives directories their owners, modes and times; the top itself in the end only, as until then nobody is to enter it.
    pub fn close(&mut self, in_the_end: bool) -> Result<(), StageError> {
        let open = std::mem::take(&mut self.open);
        for path in open.into_iter().rev() {
            if !in_the_end && path == TreePath::default() {
                self.open.insert(path);
                continue;
            }
            if let Some(node) = self.staged.get(&path) {
                wrap(&path, self.finish(node))?;
            }
        }
        Ok(())
    }

    /// Finds what is other than it is to be: as it was written down, and as it is on the disk.
    pub fn differences<E: From<Fault>>(
        &self,
        expected: &BTreeMap<TreePath, Node>,
        tick: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Vec<String>, E> {
        let found = walk(self.top.as_fd(), (false, &|_, _| None), tick)?;
        let mut all = Vec::new();
        for (path, node) in expected {
            let is_there = found.get(path).is_some_and(|found| is_it(node, found));
            let came = self.staged.get(path).is_some_and(|staged| staged.kind == node.kind);
            match (came, is_there) {
                (true, true) => {}
                (false, _) => all.push(format!("file {path}: it did not arrive as it was offered")),
                (true, false) => all.push(format!(
                    "file {path}: this filesystem did not keep it as it is at the source"
                )),
            }
        }
        let more = found.keys().filter(|path| !expected.contains_key(path));
        all.extend(more.map(|path| format!("file {path}: it is not at the source")));
        Ok(all)
    }

    /// The directory that something is in, and its name there.
    fn above(&self, path: &TreePath) -> io::Result<(OwnedFd, OsString)> {
        let (above, name) = match path.parent() {
            Some((above, name)) => (above, name.to_owned()),
            None => (TreePath::default(), OsString::from(".")),
        };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        Ok((open_on_same_mount(self.top.as_fd(), above.as_path(), flags, 0)?, name))
    }

    /// Has an ordinary user, too, work in a directory that is to have another mode in the end, and in all that it is in.
    fn enter(&mut self, path: &TreePath) -> io::Result<()> {
        if self.open.contains(path) {
            return Ok(());
        }
        self.enter_above(path)?;
        let (above, name) = self.above(path)?;
        fchmodat(&above, name.as_os_str(), Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
        self.open.insert(path.clone());
        Ok(())
    }

    fn enter_above(&mut self, path: &TreePath) -> io::Result<()> {
        path.parent().map_or(Ok(()), |(above, _)| self.enter(&above))
    }

    fn make(&mut self, node: &Node) -> io::Result<Option<File>> {
        self.enter_above(&node.path)?;
        if node.path == TreePath::default() {
            self.open.insert(TreePath::default());
            return Ok(None);
        }
        let (above, name) = self.above(&node.path)?;
        let name = name.as_os_str();
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let special = |kind: SFlag, number| mknodat(&above, name, kind, private, number);
        match &node.kind {
            Kind::Directory => {
                mkdirat(&above, name, Mode::S_IRWXU)?;
                self.open.insert(node.path.clone());
            }
            Kind::File { .. } => {
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                let file = open_on_same_mount(above.as_fd(), Path::new(name), flags, private.bits())?;
                return Ok(Some(File::from(file)));
            }
            Kind::Symlink { target } => symlinkat(target.as_os_str(), &above, name)?,
            Kind::Link { to } => {
                let (from, old) = self.above(to)?;
                linkat(&from, old.as_os_str(), &above, name, AtFlags::empty())?;
            }
            Kind::Fifo => special(SFlag::S_IFIFO, 0)?,
            Kind::Socket => special(SFlag::S_IFSOCK, 0)?,
            Kind::Device { block, major, minor } => {
                let kind = if *block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
                special(kind, makedev(u64::from(*major), u64::from(*minor)))?;
            }
        }
        Ok(None)
    }

    /// Owner before mode and attributes, which a change of owner takes away.
    fn finish(&self, node: &Node) -> io::Result<()> {
        let (above, name) = self.above(&node.path)?;
        let name = name.as_os_str();
        let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        fchownat(&above, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let place = PathBuf::from(format!("/proc/self/fd/{}", above.as_raw_fd())).join(name);
        set_attributes(&place, node)?;
        let [accessed, changed] =
            (node.times).map(|nanos| TimeSpec::new(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000)));
        Ok(utimensat(
            &above,
            name,
            &accessed,
            &changed,
            UtimensatFlags::NoFollowSymlink,
        )?)
    }

    /// Takes the content from the tree that was there before; whether that has it.
    fn copy_old<E: From<StageError>>(
        &self,
        (path, size, sum): (&TreePath, u64, &str),
        to: &File,
        tick: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let failed = |source| StageError {
            path: path.clone(),
            source,
        };
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let old = self
            .old
            .as_ref()
            .map(|old| open_on_same_mount(old.as_fd(), path.as_path(), flags, 0));
        // Something else may be there now, or nothing that can be opened.
        let Some(Ok(old)) = old.map(|old| old.map(File::from)) else {
            return Ok(size == 0 && sha256(to, tick)?.map_err(failed)? == sum);
        };
        let found = old.metadata().map_err(failed)?;
        if !found.is_file() || found.len() != size {
            return Ok(false);
        }
        copy(&old, (to, size), tick, &failed)?;
        let is_it = sha256(to, tick)?.map_err(failed)? == sum;
        if !is_it {
            to.set_len(0).map_err(failed)?;
        }
        Ok(is_it)
    }
}

/// A regular file of which nothing has come.
fn empty() -> Kind {
    Kind::File {
        size: 0,
        sha256: String::new(),
    }
}

/// Copies all but the holes.
fn copy<E: From<StageError>>(
    from: &File,
    (to, size): (&File, u64),
    tick: &mut dyn FnMut() -> Result<(), E>,
    failed: &dyn Fn(io::Error) -> StageError,
) -> Result<(), E> {
    to.set_len(size).map_err(failed)?;
    let seek = |from: &File, offset: u64, whence| lseek(from, offset.cast_signed(), whence).map(i64::cast_unsigned);
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < size {
        let begin = match seek(from, offset, Whence::SeekData) {
            Ok(begin) => begin,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(failed(errno.into()).into()),
        };
        let end = seek(from, begin, Whence::SeekHole).map_err(|errno| failed(errno.into()))?;
        offset = begin;
        while offset < end.min(size) {
            tick()?;
            let most = PIECE.min(usize::try_from(end.min(size) - offset).unwrap_or(PIECE));
            let got = from.read_at(&mut buffer[..most], offset).map_err(failed)?;
            if got == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..got], offset).map_err(failed)?;
            offset += got as u64;
        }
    }
    Ok(())
}

fn set_attributes(place: &Path, node: &Node) -> io::Result<()> {
    let listed = attributes_of_link(place)?;
    let wanted = |name: &[u8]| node.attributes.iter().any(|(Bytes(wanted), _)| wanted == name);
    // Those of a directory that others get from it, for one.
    for name in listed
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !wanted(name))
    {
        if !crate::tree::is_label(name) {
            remove_attribute_of_link(place, name)?;
        }
    }
    if !matches!(node.kind, Kind::Symlink { .. }) {
        let mode = Mode::from_bits_truncate(node.mode);
        fchmodat(nix::fcntl::AT_FDCWD, place, mode, FchmodatFlags::FollowSymlink)?;
    }
    for (name, value) in &node.attributes {
        set_attribute_of_link(place, &name.0, &value.0)?;
    }
    Ok(())
}

/// Whether what was found is what is to be there; its content is known otherwise.
fn is_it(node: &Node, found: &Found) -> bool {
    let mut node = node.clone();
    if let Kind::File { sha256, .. } = &mut node.kind {
        sha256.clear();
    }
    found.node.is_same(&node)
}

/// Removes what has a name in a directory, with all in it; nothing of what is mounted there.
pub fn remove_all(above: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(above, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let open = |flags| {
        open_on_same_mount(
            above.as_fd(),
            Path::new(name),
            flags | libc::O_DIRECTORY | libc::O_NOFOLLOW,
            0,
        )
    };
    // Root looks into all, and removes from all; an ordinary user's own may be closed to that one.
    if !geteuid().is_root() {
        let there = open(libc::O_PATH)?;
        std::fs::set_permissions(
            format!("/proc/self/fd/{}", there.as_raw_fd()),
            PermissionsExt::from_mode(0o700),
        )?;
    }
    let directory = open(libc::O_RDONLY)?;
    let names = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    let names: Vec<OsString> = names.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.iter().try_for_each(|inner| remove_all(&directory, inner))?;
    Ok(unlinkat(above, name, UnlinkatFlags::RemoveDir)?)
}
