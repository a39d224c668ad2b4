//! What a mount is, by what mountinfo says of it alone: whether such a one can be made again, and where it is.

use floe_image::record::{FilesystemKind, MountPoint};
use floe_sys::procfs::MountInfo;

/// What to do about most of it.
pub(super) const UNMOUNT: &str = "unmount it, or mount it on the host before the sandbox starts";

/// What to do about those that share mounts.
pub(super) const PRIVATE: &str = "make its mounts private: mount --make-rprivate /";

/// Why a mount can't be made again, and what to do.
pub(super) type Refused = (String, &'static str);

/// How findings name a mount.
pub(super) fn title(mount: &MountInfo) -> String {
    let (point, kind) = (
        String::from_utf8_lossy(&mount.path),
        String::from_utf8_lossy(&mount.kind),
    );
    format!("mount {point} ({kind})")
}

/// Whether it is all of a filesystem of which a namespace has one, however often it is mounted: only that says what it was
/// made of.
pub(super) fn is_view(mount: &MountInfo) -> bool {
    let kind = FilesystemKind::named(&mount.kind);
    mount.root == b"/" && matches!(kind, Some(FilesystemKind::Sysfs | FilesystemKind::Mqueue))
}

pub(super) fn refuse_shape(mount: &MountInfo) -> Result<(), Refused> {
    let deleted = |path: &[u8]| path.ends_with(b"//deleted");
    if mount.is_mapped {
        return Err(("it shows other owners than there are (idmapped)".to_owned(), UNMOUNT));
    }
    if deleted(&mount.root) || deleted(&mount.path) {
        return Err(("what it shows, or is mounted on, was deleted".to_owned(), UNMOUNT));
    }
    if mount.root.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err(("it shows a cgroup outside of floe's own".to_owned(), UNMOUNT));
    }
    Ok(())
}

/// The type of a filesystem that is made anew; why others are not.
pub(super) fn kind_of(mount: &MountInfo) -> Result<FilesystemKind, Refused> {
    if let Some(kind) = FilesystemKind::named(&mount.kind) {
        return Ok(kind);
    }
    let reason = match mount.kind.as_slice() {
        b"cgroup" | b"cgroup2" => "the host has not mounted its hierarchy",
        b"ramfs" => "ramfs has no limit by which floe could know how much it takes; tmpfs has",
        b"hugetlbfs" => "files of huge pages are not carried",
        b"nfs" | b"nfs4" | b"cifs" | b"smb3" | b"9p" | b"ceph" | b"afs" | b"virtiofs" => {
            "a filesystem of the network would have to be asked for anew, with what it takes to be let in"
        }
        kind if kind.starts_with(b"fuse") => "the process that serves it has a state of its own",
        _ if mount.source.starts_with(b"/dev/loop") => "a loop device is not carried",
        _ if mount.source.starts_with(b"/dev/") => "floe mounts no devices that the host has not mounted",
        _ => "a filesystem of this type is not made again",
    };
    Err((reason.to_owned(), UNMOUNT))
}

/// The part of an absolute path that is below another one.
pub(super) fn below<'a>(path: &'a [u8], above: &[u8]) -> Option<&'a [u8]> {
    if above == b"/" {
        return path.strip_prefix(b"/");
    }
    match path.strip_prefix(above)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

pub(super) fn joined(path: &[u8], rest: &[u8]) -> MountPoint {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if rest.is_empty() && !path.is_empty() {
        return MountPoint(path.to_vec());
    }
    MountPoint([path, b"/", rest].concat())
}
