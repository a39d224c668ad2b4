//! Reads what is in a tmpfs: names, owners, times; and where contents are to be read.

use super::{parts::Part, shape::Refused};
use crate::{
    mm::{ContentPlace, ContentSource},
    ns::inside::NsError,
};
use floe_image::record::{ContentOwner, ExtendedAttribute, NodeKind, NodeRecord};
use floe_sys::descriptor::{attribute_of_link, attributes_of_link};
use nix::unistd::{getegid, geteuid};
use std::{
    collections::{HashMap, VecDeque},
    ffi::{OsStr, OsString},
    fs::{Metadata, read_dir, read_link, symlink_metadata},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Path, PathBuf},
};

/// How many files a filesystem may have: all of them stand in one record.
const MOST: usize = 1 << 20;
/// Longest path by which floe reaches a file.
const PATH_BYTES: usize = 4000;

/// The files of a filesystem so far.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    filesystem: u32,
    pub records: Vec<NodeRecord>,
    /// Where their contents are.
    pub sources: Vec<ContentSource>,
    /// Files, but directories, by inode number.
    known: HashMap<u64, u32>,
}

impl Nodes {
    /// Reads all of a filesystem that mounts show. Of directories above those parts there are but the names.
    pub(super) fn read(parts: &[Part<'_>], filesystem: u32) -> Result<Result<Self, Refused>, NsError> {
        let mut nodes = Self {
            filesystem,
            ..Self::default()
        };
        let mut folders = VecDeque::new();
        for part in parts {
            let top = PathBuf::from(format!("/proc/self/fd/{}/.", part.opened.as_raw_fd()));
            let (parent, name) = nodes.above(part.root);
            folders.push_back((nodes.records.len() as u32, top.clone()));
            nodes.add(parent, &top, OsStr::from_bytes(name))?;
        }
        while let Some((number, folder)) = folders.pop_front() {
            for name in names(&folder).map_err(unread(&folder))? {
                let path = folder.join(&name);
                if nodes.records.len() >= MOST || path.as_os_str().len() > PATH_BYTES {
                    let reason = format!("it has more than {MOST} files, or paths that are too long to be read");
                    return Ok(Err((reason, "remove some of its files")));
                }
                let added = nodes.records.len() as u32;
                if nodes.add(number, &path, &name)? {
                    folders.push_back((added, path));
                }
            }
        }
        Ok(Ok(nodes))
    }

    /// The directory that a part of the filesystem is in, and its name there; what no mount shows of the way is made up.
    fn above<'a>(&mut self, root: &'a [u8]) -> (u32, &'a [u8]) {
        let mut names = root.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let Some(last) = names.next_back() else {
            return (0, b"");
        };
        if self.records.is_empty() {
            self.records.push(unseen(0, b""));
        }
        let parent = names.fold(0, |parent, name| {
            let is_it = |node: &NodeRecord| node.parent == parent && node.name == name;
            let known = self.records.iter().position(is_it);
            known.unwrap_or_else(|| {
                self.records.push(unseen(parent, name));
                self.records.len() - 1
            }) as u32
        });
        (parent, last)
    }

    /// One of the paths of a file, from the root of its filesystem.
    pub(super) fn path_of(&self, inode: u64) -> Option<Vec<u8>> {
        let mut node = &self.records[*self.known.get(&inode)? as usize];
        let mut path = node.name.clone();
        while node.parent != 0 {
            node = &self.records[node.parent as usize];
            path = [&node.name, &b"/"[..], &path].concat();
        }
        path.insert(0, b'/');
        Some(path)
    }

    /// Adds one; whether it is a directory.
    fn add(&mut self, parent: u32, path: &Path, name: &OsStr) -> Result<bool, NsError> {
        let metadata = symlink_metadata(path).map_err(unread(path))?;
        let number = self.records.len() as u32;
        let first = self.known.get(&metadata.ino()).copied();
        let kind = match first {
            Some(to) => NodeKind::Link { to },
            None => kind(path, &metadata).map_err(unread(path))?,
        };
        if first.is_none() && !metadata.is_dir() {
            self.known.insert(metadata.ino(), number);
        }
        if let NodeKind::File { size } = kind {
            self.sources.push(ContentSource {
                owner: ContentOwner::Node {
                    filesystem: self.filesystem,
                    node: number,
                },
                place: ContentPlace::Link(path.to_owned()),
                size,
            });
        }
        let is_link = first.is_some();
        let nanos = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
        let times = [
            nanos(metadata.atime(), metadata.atime_nsec()),
            nanos(metadata.mtime(), metadata.mtime_nsec()),
        ];
        self.records.push(NodeRecord {
            parent,
            name: name.as_bytes().to_vec(),
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            times,
            attributes: if is_link {
                Vec::new()
            } else {
                attributes(path).map_err(unread(path))?
            },
        });
        Ok(metadata.is_dir())
    }
}

/// A directory that nobody sees: floe's own.
fn unseen(parent: u32, name: &[u8]) -> NodeRecord {
    NodeRecord {
        parent,
        name: name.to_vec(),
        kind: NodeKind::Directory,
        mode: 0o755,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        times: [0; 2],
        attributes: Vec::new(),
    }
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> NsError {
    let path = path.display().to_string();
    move |source| NsError::Read { path, source }
}

/// The names in a directory, oldest first: tmpfs lists the newest first, and lists them so again if they are made in this
/// order.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let listed = read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let mut names = listed.collect::<io::Result<Vec<_>>>()?;
    names.reverse();
    Ok(names)
}

fn kind(path: &Path, metadata: &Metadata) -> io::Result<NodeKind> {
    let device = |block| NodeKind::Device {
        block,
        number: metadata.rdev(),
    };
    Ok(match metadata.mode() & libc::S_IFMT {
        libc::S_IFDIR => NodeKind::Directory,
        libc::S_IFREG => NodeKind::File { size: metadata.size() },
        libc::S_IFLNK => NodeKind::Symlink {
            target: read_link(path)?.into_os_string().into_vec(),
        },
        libc::S_IFIFO => NodeKind::Fifo,
        libc::S_IFSOCK => NodeKind::Socket,
        libc::S_IFBLK => device(true),
        libc::S_IFCHR => device(false),
        other => return Err(io::Error::other(format!("a file of type {other:o}"))),
    })
}

fn attributes(path: &Path) -> io::Result<Vec<ExtendedAttribute>> {
    let names = attributes_of_link(path)?;
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let read = names.map(|name| {
        Ok(ExtendedAttribute {
            name: name.to_vec(),
            value: attribute_of_link(path, name)?,
        })
    });
    read.collect()
}
