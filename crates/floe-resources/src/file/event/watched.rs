//! What inotify and fanotify watch: the kernel tells of each file a handle, by which its path is found, and of mounts their
//! numbers.

use crate::{
    file::{DumpContext, FileError},
    mm::Place,
};
use floe_sys::{
    Pid,
    descriptor::open_by_handle,
    procfs::{self, MountInfo},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
};

/// `KEY:VALUE` among words.
pub(super) fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let found = line.split_ascii_whitespace().filter_map(|word| word.split_once(':'));
    found.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// The same as a number, which is hexadecimal.
pub(super) fn number(line: &str, key: &str) -> Option<u32> {
    u32::from_str_radix(word(line, key)?, 16).ok()
}

/// What a file is found by.
pub(super) struct Handle {
    /// Of its filesystem, 20 bits for the minor part.
    pub(super) device: u32,
    pub(super) kind: i32,
    pub(super) bytes: Vec<u8>,
}

impl Handle {
    /// `… sdev:800001 … fhandle-bytes:8 fhandle-type:1 f_handle:9900000000000000`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let digits = word(line, "f_handle").unwrap_or_default().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Some(Self {
            device: number(line, "sdev")?,
            kind: number(line, "fhandle-type").unwrap_or(0) as i32,
            bytes: digits.chunks(2).map(byte).collect::<Option<_>>()?,
        })
    }
}

/// Where each filesystem is mounted for a process.
pub(super) struct Mounts {
    holder: Pid,
    all: Vec<MountInfo>,
}

impl Mounts {
    pub(super) fn read(holder: Pid) -> Result<Self, FileError> {
        let all = procfs::mount_points(&format!("/proc/{holder}"))?;
        Ok(Self { holder, all })
    }

    fn place(&self, point: &MountInfo) -> PathBuf {
        let mut path = OsString::from(format!("/proc/{}/root", self.holder));
        path.push(OsStr::from_bytes(&point.path));
        path.into()
    }

    /// Something open on each mount of a filesystem.
    fn of(&self, device: u32) -> impl Iterator<Item = File> {
        let points = self.all.iter().filter(move |point| point.device == device);
        points.filter_map(|point| {
            let path = self.place(point);
            let metadata = std::fs::symlink_metadata(&path).ok()?;
            let can_be_opened = metadata.is_dir() || metadata.is_file();
            can_be_opened.then(|| File::open(&path).ok())?
        })
    }

    /// Where those mounts are that fit, unless something else is mounted over them.
    pub(super) fn path_of(&self, fits: impl Fn(&MountInfo) -> bool, context: &DumpContext<'_>) -> Option<Vec<u8>> {
        let points = self.all.iter().filter(|point| fits(point));
        points.into_iter().find_map(|point| {
            let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
            let file = nix::fcntl::open(&self.place(point), flags, nix::sys::stat::Mode::empty()).ok()?;
            let text = procfs::read_text(&format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
            let seen = procfs::FdInfo::parse(&text).ok()?;
            (seen.mount == u64::from(point.id)).then(|| self.path(file, context))?
        })
    }

    fn path(&self, file: OwnedFd, context: &DumpContext<'_>) -> Option<Vec<u8>> {
        let space = context.contents.spaces.of_task(self.holder);
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let metadata = File::from(file).metadata().ok()?;
        match context
            .contents
            .place(space, &link.into_os_string().into_vec(), &metadata)
        {
            Place::Named(path) => Some(path),
            Place::Deleted(_) | Place::Elsewhere(_) => None,
        }
    }
}

/// The path of a watched file, as the tree sees it.
pub(super) fn path_of(handle: &Handle, mounts: &Mounts, context: &DumpContext<'_>) -> Option<Vec<u8>> {
    mounts.of(handle.device).find_map(|mount| {
        let file = open_by_handle(mount.as_fd(), handle.kind, &handle.bytes, libc::O_PATH).ok()?;
        mounts.path(file, context)
    })
}
