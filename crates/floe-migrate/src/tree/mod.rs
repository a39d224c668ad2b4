//! A root tree that goes with a sandbox (`--files rootfs`): what source and target say to each other of it, and what of a sandbox
//! is one.

mod walk;

pub use walk::{Fault, Found, walk};
pub(crate) use walk::{is_label, witness};

use crate::refusal::Refusal;
use floe_image::{Image, ImageFiles, record::MountSource};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Files of all kinds, and their names, that a tree may have.
pub const MOST: usize = 1 << 20;
/// Bytes of names and values of extended attributes that a file may have: as JSON they fit into a message.
pub const ATTRIBUTES: usize = 128 << 10;
/// PATH_MAX, with the NUL behind it.
const PATH_BYTES: usize = 4096;

/// Bytes, in JSON a string of which each character stands for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = text.chars().map(|character| u8::try_from(u32::from(character)));
        bytes
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|_| "a character that stands for no byte")
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.0.into_iter().map(char::from).collect()
    }
}

impl Bytes {
    /// As part of a path.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// A path in a tree, from its top on, which leads straight to its end: no component of it is empty, `.` or `..`. The empty one
/// is that of the top.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct TreePath(Vec<u8>);

impl TryFrom<Bytes> for TreePath {
    type Error = &'static str;

    fn try_from(Bytes(path): Bytes) -> Result<Self, Self::Error> {
        let is_straight = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        let is_path = path.is_empty() || path.split(|byte| *byte == b'/').all(is_straight);
        match is_path && path.len() < PATH_BYTES {
            true => Ok(Self(path)),
            false => Err("no path that leads straight down a tree"),
        }
    }
}

impl From<TreePath> for Bytes {
    fn from(path: TreePath) -> Self {
        Self(path.0)
    }
}

impl TreePath {
    /// What is in it by a name; `None` where that is too long.
    #[must_use]
    pub fn join(&self, name: &OsStr) -> Option<Self> {
        let parts = match self.0.is_empty() {
            true => vec![name.as_bytes()],
            false => vec![&self.0[..], name.as_bytes()],
        };
        Self::try_from(Bytes(parts.join(&b'/'))).ok()
    }

    /// As openat2(2) takes it.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        match self.0.is_empty() {
            true => Path::new("."),
            false => Path::new(OsStr::from_bytes(&self.0)),
        }
    }

    /// The directory that it is in, and its name there; the top is in none.
    #[must_use]
    pub fn parent(&self) -> Option<(Self, &OsStr)> {
        if self.0.is_empty() {
            return None;
        }
        let (above, name) = match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[][..], &self.0[..]),
        };
        Some((Self(above.to_vec()), OsStr::from_bytes(name)))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

/// A file of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Where.
    pub path: TreePath,
    /// What it is. What follows is the first name's where this is [`Kind::Link`].
    pub kind: Kind,
    /// Permissions: the lowest twelve bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access and last change, in nanoseconds since 1970.
    pub times: [i64; 2],
    /// Extended attributes, ascending: access control lists and capabilities among them.
    pub attributes: Vec<(Bytes, Bytes)>,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in inode(7)")]
pub enum Kind {
    Directory,
    /// Bytes, and SHA-256 of them as hexadecimal digits.
    File {
        size: u64,
        sha256: String,
    },
    Symlink {
        target: Bytes,
    },
    /// Another name of a file that was told of before, and is none itself.
    Link {
        to: TreePath,
    },
    Fifo,
    Socket,
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
}

impl Node {
    /// Bytes of what is not of one size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let target = match &self.kind {
            Kind::Symlink { target } => target.0.len(),
            Kind::Link { to } => to.bytes().len(),
            _ => 0,
        };
        let attributes = self.attributes.iter().map(|(name, value)| name.0.len() + value.0.len());
        self.path.bytes().len() + target + attributes.sum::<usize>()
    }

    /// Whether both are the same but for the last access.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let mut as_read = self.clone();
        as_read.times[0] = other.times[0];
        as_read == *other
    }
}

/// The directory of its host that is the root directory of the tree of an image, with all in it but what is mounted there.
///
/// # Errors
/// Where there is none, or another mount of the tree shows something of it.
pub fn root_of(records: &File) -> Result<PathBuf, Refusal> {
    let records = records.try_clone().map_err(|error| Refusal::of(&error))?;
    let image = Image::open(ImageFiles::from(records)).map_err(|error| Refusal::of(&error))?;
    let spaces = image.mount_namespaces();
    let root = spaces.first().and_then(|space| space.mounts.first());
    let root = match root.map(|root| &root.source) {
        Some(MountSource::Path { path, .. }) => path,
        None | Some(MountSource::Inherited) => return Err(no_root_of_its_own()),
        Some(_) => {
            let text = "its root directory is a filesystem that was mounted for it alone, from which no tree is sent (--files rootfs)";
            return Err(Refusal::plain(text));
        }
    };
    let below = |path: &[u8]| path == root.0 || path.starts_with(&[&root.0[..], b"/"].concat());
    let mut findings = Vec::new();
    for (number, mount) in spaces.iter().flat_map(|space| space.mounts.iter().enumerate()) {
        let MountSource::Path { path, .. } = &mount.source else {
            continue;
        };
        let shown = String::from_utf8_lossy(&path.0);
        let point = String::from_utf8_lossy(&mount.point.0);
        match number {
            0 if path == root => {}
            0 => findings.push(format!("mount {point}: it is another root directory, {shown}")),
            _ if below(&path.0) => findings.push(format!(
                "mount {point}: it shows {shown}, which lies in the root tree that is sent (--files rootfs)"
            )),
            _ => {}
        }
    }
    match findings.len() {
        0 => Ok(PathBuf::from(OsStr::from_bytes(&root.0))),
        _ => Err(Refusal {
            reason: "of its root tree more is mounted than the root directory".to_owned(),
            findings,
        }),
    }
}

/// That a sandbox has the host's root directory.
#[must_use]
pub fn no_root_of_its_own() -> Refusal {
    Refusal::plain(
        "it has no root directory of its own (--rootfs) that could be sent (--files rootfs); --files used sends what it uses",
    )
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Kind, Node, TreePath};
    use std::ffi::OsStr;

    fn path(text: &[u8]) -> Result<TreePath, &'static str> {
        TreePath::try_from(Bytes(text.to_vec()))
    }

    #[test]
    fn only_what_leads_straight_down_is_a_path() {
        for good in [&b""[..], b"a", b"a/b.c", b"a/...", b"\xff\x01/ "] {
            let path = path(good).expect("a path");
            let text = serde_json::to_string(&path).expect("JSON");
            assert_eq!(serde_json::from_str::<TreePath>(&text).expect("a path"), path, "{text}");
        }
        for bad in [
            &b"/"[..],
            b"/a",
            b"a/",
            b"a//b",
            b"..",
            b"a/../b",
            b"./a",
            b"a/.",
            b"a\0b",
            &[b'a'; 4096],
        ] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<TreePath>("\"\u{100}\"").is_err());
        let inner = path(b"a/b").expect("a path");
        let (above, name) = inner.parent().expect("it is in one");
        assert_eq!((above.bytes(), name), (&b"a"[..], OsStr::new("b")));
        assert_eq!(above.join(name), Some(inner));
        assert_eq!(above.parent().map(|(above, _)| above), Some(TreePath::default()));
        assert!(TreePath::default().parent().is_none());
        assert!(above.join(OsStr::new("..")).is_none());
    }

    #[test]
    fn all_bytes_go_through_json() {
        let all = Bytes((0..=255).collect());
        let node = Node {
            path: TreePath::default(),
            kind: Kind::Symlink { target: all.clone() },
            mode: 0o777,
            uid: 1,
            gid: 2,
            times: [-1, i64::MAX],
            attributes: vec![(Bytes(b"user.a".to_vec()), all)],
        };
        let text = serde_json::to_string(&node).expect("JSON");
        assert_eq!(serde_json::from_str::<Node>(&text).expect("a node"), node);
    }
}
