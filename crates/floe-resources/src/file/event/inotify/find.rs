//! What instances watch: the kernel tells of each watch a handle of its file, by which its path is found.

use crate::{
    file::{DumpContext, FileError},
    mm::Place,
};
use floe_sys::{
    Pid,
    descriptor::open_by_handle,
    procfs::{self, MountPoint},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

/// As the kernel tells it.
pub(super) struct FoundWatch {
    pub(super) number: i32,
    pub(super) mask: u32,
    /// Of its filesystem, 20 bits for the minor part.
    device: u32,
    handle_kind: i32,
    handle: Vec<u8>,
}

impl FoundWatch {
    /// `wd:1 ino:99 sdev:800001 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:9900000000000000`
    pub(super) fn parse(line: &str) -> Option<Self> {
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
pub(super) struct Mounts {
    holder: Pid,
    all: Vec<MountPoint>,
}

impl Mounts {
    pub(super) fn read(holder: Pid) -> Result<Self, FileError> {
        let all = procfs::mount_points(&format!("/proc/{holder}"))?;
        Ok(Self { holder, all })
    }

    /// Something open on each mount of a filesystem.
    fn of(&self, device: u32) -> impl Iterator<Item = File> {
        let points = self.all.iter().filter(move |point| point.device == device);
        points.filter_map(|point| {
            let mut path = OsString::from(format!("/proc/{}/root", self.holder));
            path.push(OsStr::from_bytes(&point.path));
            let metadata = std::fs::symlink_metadata(&path).ok()?;
            let can_be_opened = metadata.is_dir() || metadata.is_file();
            can_be_opened.then(|| File::open(&path).ok())?
        })
    }
}

/// The path of a watched file, as the tree sees it.
pub(super) fn path_of(watch: &FoundWatch, mounts: &Mounts, context: &DumpContext<'_>) -> Option<Vec<u8>> {
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
    use super::FoundWatch;

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
}
