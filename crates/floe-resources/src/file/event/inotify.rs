//! inotify instances (inotify(7)). The kernel tells of each watch a handle of its file, by which its path is found.
//!
//! Numbers of watches are given in ascending order, so those that lie between are given and taken back. What comes of that,
//! and of the files that floe itself opens, is read away when all files are open.

use super::Lines;
use crate::{
    file::{
        ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, decode, open_flags, set_status,
    },
    mm::Place,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    Pid,
    descriptor::{bytes_to_read, open_by_handle, open_in_root},
    event, procfs,
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{ErrorKind, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

/// The kind.
pub struct Inotify;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// By number, lowest first.
    watches: Vec<Watch>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Watch {
    number: i32,
    /// IN_*.
    mask: u32,
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
}

/// As the kernel tells it.
struct FoundWatch {
    number: i32,
    mask: u32,
    /// Of its filesystem, 20 bits for the minor part.
    device: u32,
    handle_kind: i32,
    handle: Vec<u8>,
}

impl FileKind for Inotify {
    fn name(&self) -> &'static str {
        "inotify"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.link == b"anon_inode:inotify"
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let waiting = bytes_to_read(file.as_fd()).map_err(FileError::system("look for events in", file.title()))?;
        let mut refuse =
            |reason: String, advice| context.refusals.add(Some(&file.subject), file.title(), reason, advice);
        if waiting > 0 {
            refuse(
                "events that nobody has read can't be carried yet".to_owned(),
                "read them",
            );
            return Ok(None);
        }
        let lines = Lines::read(file)?;
        let mut watches = Vec::new();
        let mounts = Mounts::read(file.holder)?;
        for line in lines.all_words("inotify") {
            let found = FoundWatch::parse(line).ok_or_else(|| lines.malformed("inotify"))?;
            match path_of(&found, &mounts, context) {
                Some(path) => watches.push(Watch {
                    number: found.number,
                    mask: found.mask,
                    path,
                }),
                None => {
                    let reason = format!(
                        "the file of its watch {} can't be found by a path any more",
                        found.number
                    );
                    context
                        .refusals
                        .add(Some(&file.subject), file.title(), reason, "remove the watch");
                    return Ok(None);
                }
            }
        }
        watches.sort_by_key(|watch| watch.number);
        Ok(Some(codec::encode(&Body { watches })?))
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let wrap = |action| FileError::system(action, format!("open file {}", record.id));
        possible(record)?;
        let instance = event::inotify(open_flags(record) & libc::O_NONBLOCK).map_err(wrap("make an inotify as"))?;
        set_status(instance.as_fd(), record)?;
        Ok(instance)
    }

    /// Adds the watches, when all files are open.
    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body = possible(record)?;
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        let instance = holders.fetch(place)?;
        for watch in &body.watches {
            let path = Path::new(OsStr::from_bytes(&watch.path));
            let wrap = |action| FileError::system(action, path.display().to_string());
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let file = open_in_root(holders.root, path, flags, 0).map_err(wrap("open what is watched,"))?;
            loop {
                let got =
                    event::add_inotify_watch(instance.as_fd(), file.as_fd(), watch.mask).map_err(wrap("watch"))?;
                if got == watch.number {
                    break;
                }
                if got > watch.number {
                    return Err(FileError::Unknown {
                        id: record.id,
                        what: format!("watch {} can't be given its number", watch.number),
                    });
                }
                event::remove_inotify_watch(instance.as_fd(), got).map_err(wrap("take a watch back from"))?;
            }
        }
        drain(instance).map_err(|source| FileError::System {
            action: "read floe's own events from",
            object: format!("open file {}", record.id),
            source,
        })
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let paths: Vec<_> = body
            .watches
            .iter()
            .map(|watch| String::from_utf8_lossy(&watch.path))
            .collect();
        Ok(format!("watches {}", paths.join(", ")))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body = possible(record)?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let missing = body.watches.iter().find(|watch| {
            let path = Path::new(OsStr::from_bytes(&watch.path));
            open_in_root(root, path, flags, 0).is_err()
        });
        Ok(missing.map(|watch| {
            format!(
                "it watches {}, which is not there",
                String::from_utf8_lossy(&watch.path)
            )
        }))
    }
}

/// Each number once, and none that would take for ever to be given.
fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    const MOST: i32 = 1 << 24;
    let body: Body = decode(record)?;
    let mut last = 0;
    let ascend = body.watches.iter().all(|watch| {
        let fits = watch.number > last && watch.number <= MOST && watch.path.starts_with(b"/");
        last = watch.number;
        fits
    });
    if ascend {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no inotify instance with such watches".to_owned(),
        })
    }
}

fn drain(instance: OwnedFd) -> std::io::Result<()> {
    let mut file = File::from(instance);
    let mut buffer = vec![0; 64 << 10];
    while bytes_to_read(file.as_fd())? > 0 {
        match file.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            got => drop(got?),
        }
    }
    Ok(())
}

impl FoundWatch {
    /// `wd:1 ino:99 sdev:800001 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:9900000000000000`
    fn parse(line: &str) -> Option<Self> {
        let word = |key: &str| {
            let found = line.split_ascii_whitespace().filter_map(|word| word.split_once(':'));
            found.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
        };
        let number = |key| u32::from_str_radix(word(key)?, 16).ok();
        let digits = word("f_handle").unwrap_or_default().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Some(Self {
            number: number("wd")? as i32,
            mask: number("mask")?,
            device: number("sdev")?,
            handle_kind: number("fhandle-type").unwrap_or(0) as i32,
            handle: digits.chunks(2).map(byte).collect::<Option<_>>()?,
        })
    }
}

/// Where each filesystem is mounted for a process.
struct Mounts {
    holder: Pid,
    /// Device, mount point.
    all: Vec<(u32, Vec<u8>)>,
}

impl Mounts {
    fn read(holder: Pid) -> Result<Self, FileError> {
        let text = procfs::read(&format!("/proc/{holder}/mountinfo"))?;
        let all = text.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut words = line.split(|byte| *byte == b' ');
            let device = std::str::from_utf8(words.nth(2)?).ok()?;
            let (major, minor) = device.split_once(':')?;
            let device = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
            Some((device, unescaped(words.nth(1)?)))
        });
        Ok(Self {
            holder,
            all: all.collect(),
        })
    }

    /// Something open on each mount of a filesystem.
    fn of(&self, device: u32) -> impl Iterator<Item = File> {
        let points = self.all.iter().filter(move |(own, _)| *own == device);
        points.filter_map(|(_, point)| {
            let mut path = OsString::from(format!("/proc/{}/root", self.holder));
            path.push(OsStr::from_bytes(point));
            let metadata = std::fs::symlink_metadata(&path).ok()?;
            let can_be_opened = metadata.is_dir() || metadata.is_file();
            can_be_opened.then(|| File::open(&path).ok())?
        })
    }
}

/// Of `\040` and its like, as mountinfo writes blanks.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| std::str::from_utf8(behind.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    plain
}

/// The path of a watched file, as the tree sees it.
fn path_of(watch: &FoundWatch, mounts: &Mounts, context: &DumpContext<'_>) -> Option<Vec<u8>> {
    mounts.of(watch.device).find_map(|mount| {
        let file = open_by_handle(mount.as_fd(), watch.handle_kind, &watch.handle, libc::O_PATH).ok()?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let metadata = File::from(file).metadata().ok()?;
        match context.contents.place(&link.into_os_string().into_vec(), &metadata) {
            Place::Named(path) => Some(path),
            Place::Deleted(_) | Place::Elsewhere(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{FoundWatch, unescaped};

    #[test]
    fn watches_are_read() {
        let line =
            "wd:a ino:99 sdev:fe00000 mask:800afce ignored_mask:0 fhandle-bytes:4 fhandle-type:1 f_handle:990a00ff";
        let watch = FoundWatch::parse(line).expect("a watch");
        assert_eq!((watch.number, watch.device, watch.mask), (10, 0xfe0_0000, 0x800_afce));
        assert_eq!((watch.handle_kind, &watch.handle[..]), (1, &[0x99, 0x0a, 0, 0xff][..]));
        assert!(FoundWatch::parse("wd:1 ino:99").is_none());
        assert!(FoundWatch::parse(&line.replace("990a", "zz0a")).is_none());
    }

    #[test]
    fn blanks_are_plain_again() {
        assert_eq!(unescaped(br"/a\040b\134"), b"/a b\\");
        assert_eq!(unescaped(br"/a\04"), br"/a\04");
    }
}
