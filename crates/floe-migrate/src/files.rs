//! Files that go with a sandbox (`--files used`): what source and target say to each other of them.

use crate::hex;
use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use std::{ffi::OsStr, fs::File, io, os::unix::ffi::OsStrExt, os::unix::fs::FileExt, path::Path};

/// Files and directories of a migration at most.
pub const MOST: usize = 1 << 16;
/// PATH_MAX, with the NUL behind it.
const PATH_BYTES: usize = 4096;

/// A file, or a directory on the way to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where it is, on both hosts.
    pub path: FilePath,
    /// What is in it; `None` of a directory.
    pub content: Option<Content>,
    /// Permissions: the lowest twelve bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access and last change, in nanoseconds since 1970.
    pub times: [i64; 2],
}

/// What is in a regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// SHA-256, as hexadecimal digits.
    pub sha256: String,
}

/// An absolute path that leads straight to its end: no component of it is empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// It, without the slash at its beginning.
    #[must_use]
    pub fn from_root(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0[1..]))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directories on the way to it, from the root's entry on.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        let slashes = self.0.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
        slashes.map(|(at, _)| Self(self.0[..at].to_vec()))
    }
}

impl TryFrom<Vec<u8>> for FilePath {
    type Error = &'static str;

    fn try_from(path: Vec<u8>) -> Result<Self, Self::Error> {
        let is_straight = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        let rest = path.strip_prefix(b"/").filter(|_| path.len() < PATH_BYTES);
        match rest.is_some_and(|rest| rest.split(|byte| *byte == b'/').all(is_straight)) {
            true => Ok(Self(path)),
            false => Err("no path that leads straight from the root directory"),
        }
    }
}

impl From<FilePath> for Vec<u8> {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

impl std::fmt::Display for FilePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// SHA-256 of a whole file, or the error of pread(2). `tick` is called now and then, and ends it where it fails.
///
/// # Errors
/// Those of `tick`.
pub fn sha256<E>(file: &File, mut tick: impl FnMut() -> Result<(), E>) -> Result<io::Result<String>, E> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 18];
    let mut offset = 0;
    loop {
        tick()?;
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Ok(hex(context.finish().as_ref()))),
            Ok(got) => {
                context.update(&buffer[..got]);
                offset += got as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FilePath, sha256};
    use std::io::Write;

    #[test]
    fn only_straight_paths_are_paths() {
        for good in ["/a", "/a/b.c", "/a/...", "/\u{e4}/ "] {
            let path = FilePath::try_from(good.as_bytes().to_vec()).expect(good);
            assert_eq!(format!("/{}", path.from_root().display()), good);
        }
        for bad in [
            "", "/", "a", "a/b", "/a/", "//a", "/a//b", "/a/../b", "/..", "/./a", "/a/.", "/a\0b",
        ] {
            assert!(FilePath::try_from(bad.as_bytes().to_vec()).is_err(), "{bad:?}");
        }
        assert!(FilePath::try_from([b"/".as_slice(), &[b'a'; 4095]].concat()).is_err());
        let path = FilePath::try_from(b"/a/b/c".to_vec()).expect("a path");
        let above: Vec<String> = path.ancestors().map(|path| path.to_string()).collect();
        assert_eq!(above, ["/a", "/a/b"]);
    }

    #[test]
    fn a_file_is_known_by_its_bytes() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"abc").expect("write");
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let sum = sha256(&file, || Ok::<(), ()>(())).expect("nobody ends it");
        assert_eq!(sum.expect("its sum"), expected);
        assert!(matches!(sha256(&file, || Err("enough")), Err("enough")));
    }
}
