//! Makes a filesystem with its files, before it is mounted anywhere: nobody else can reach it.

use super::{filesystems::new_filesystem, make::MountError};
use floe_image::record::{ContentOwner, FilesystemRecord, NodeKind, NodeRecord};
use floe_sys::descriptor::set_attribute_of_link;
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat},
};
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{OpenOptionsExt, PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
};

/// Writes the content of a file, whose size is set already.
pub type Fill<'a, E> = dyn FnMut(ContentOwner, &File, u64) -> Result<(), E> + 'a;

/// Makes it; `fill` writes contents.
///
/// # Errors
/// [`MountError`], and what `fill` says.
pub fn populate<E: From<MountError>>(record: &FilesystemRecord, fill: &mut Fill<'_, E>) -> Result<OwnedFd, E> {
    let wrap = |what: String| {
        let number = record.id;
        move |error: io::Error| MountError {
            object: format!("tmpfs {number}"),
            action: format!("make {what}"),
            source: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    };
    let here = File::open("/").map_err(wrap("it".to_owned()))?;
    let root = new_filesystem(record, here.as_fd()).map_err(|error| wrap("it".to_owned())(error.into()))?;
    let mut paths: Vec<PathBuf> = Vec::with_capacity(record.nodes.len());
    for (number, node) in (0..).zip(&record.nodes) {
        if number == 0 {
            paths.push(PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd())));
            continue;
        }
        // Checked when the image was opened: the directory comes before, and a name is no path.
        let path = paths[node.parent as usize].join(OsStr::from_bytes(&node.name));
        let name = || String::from_utf8_lossy(&node.name).into_owned();
        let file = make(node, &path, &paths).map_err(|error| wrap(name())(error))?;
        if let (Some(file), NodeKind::File { size }) = (file, &node.kind) {
            let owner = ContentOwner::Node {
                filesystem: record.id,
                node: number,
            };
            fill(owner, &file, *size)?;
        }
        paths.push(path);
    }
    for (node, path) in record.nodes.iter().zip(&paths) {
        let name = || format!("the attributes of {}", String::from_utf8_lossy(&node.name));
        set_attributes(node, path).map_err(|error| wrap(name())(error))?;
    }
    Ok(root)
}

fn make(node: &NodeRecord, path: &Path, paths: &[PathBuf]) -> io::Result<Option<File>> {
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    let special = |kind: SFlag, number: u64| mknod(path, kind, private, number).map_err(io::Error::from);
    match &node.kind {
        NodeKind::Directory => fs::create_dir(path)?,
        NodeKind::File { size } => {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
            file.set_len(*size)?;
            return Ok(Some(file));
        }
        NodeKind::Symlink { target } => symlink(OsStr::from_bytes(target), path)?,
        NodeKind::Fifo => special(SFlag::S_IFIFO, 0)?,
        NodeKind::Socket => special(SFlag::S_IFSOCK, 0)?,
        NodeKind::Device { block: true, number } => special(SFlag::S_IFBLK, *number)?,
        NodeKind::Device { block: false, number } => special(SFlag::S_IFCHR, *number)?,
        NodeKind::Link { to } => fs::hard_link(&paths[*to as usize], path)?,
    }
    Ok(None)
}

/// Owner before mode and attributes, which a change of owner takes away.
fn set_attributes(node: &NodeRecord, path: &Path) -> io::Result<()> {
    if matches!(node.kind, NodeKind::Link { .. }) {
        return Ok(());
    }
    let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
    fchownat(
        nix::fcntl::AT_FDCWD,
        path,
        owner.0,
        owner.1,
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    if !matches!(node.kind, NodeKind::Symlink { .. }) {
        fs::set_permissions(path, Permissions::from_mode(node.mode))?;
    }
    for attribute in &node.attributes {
        set_attribute_of_link(path, &attribute.name, &attribute.value)?;
    }
    let [accessed, modified] =
        (node.times).map(|nanos| TimeSpec::new(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000)));
    let nofollow = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &accessed, &modified, nofollow)?;
    Ok(())
}
