//! What a group watches: a file, a mount, or a filesystem.

use crate::file::{
    DumpContext, FileError,
    event::watched::{Handle, Mounts, number, path_of},
};
use floe_sys::{descriptor::open_in_root, fanotify, procfs};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Events that wait for an answer: FAN_PRE_ACCESS, _OPEN_PERM, _ACCESS_PERM, _OPEN_EXEC_PERM.
const QUESTIONS: u32 = 0x0010_0000 | 0x0001_0000 | 0x0002_0000 | 0x0004_0000;

/// A mark.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    of: Of,
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    masks: Masks,
}

/// What is at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Of {
    /// The file itself.
    File,
    /// A mount.
    Mount,
    /// A mount of the filesystem.
    Filesystem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Masks {
    /// FAN_* that it tells of.
    told: u32,
    /// FAN_* that it does not tell of.
    ignored: u32,
    /// FAN_MARK_EVICTABLE, and those of the ignored ones: _IGNORED_SURV_MODIFY, _IGNORE.
    flags: u32,
}

/// A mark as the kernel tells it.
pub(super) struct FoundMark {
    on: On,
    masks: Masks,
}

enum On {
    File(Handle),
    /// By its number.
    Mount(u32),
    /// By its device.
    Filesystem(u32),
}

impl Masks {
    fn parse(line: &str) -> Option<Self> {
        Some(Self {
            told: number(line, "mask")?,
            ignored: number(line, "ignored_mask")?,
            flags: number(line, "mflags")?,
        })
    }
}

impl FoundMark {
    /// `ino:9 sdev:8 mflags:0 mask:2 ignored_mask:0 fhandle-…`, or `mnt_id:1e mflags:…`, or `sdev:1b mflags:…`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let masks = Masks::parse(line)?;
        let on = if let Some(mount) = number(line, "mnt_id") {
            On::Mount(mount)
        } else if number(line, "ino").is_some() {
            On::File(Handle::parse(line)?)
        } else {
            On::Filesystem(number(line, "sdev")?)
        };
        Some(Self { on, masks })
    }

    /// What it is about, as the tree sees it; or why that can't be told.
    pub(super) fn resolve(self, mounts: &Mounts, context: &DumpContext<'_>) -> Result<Mark, String> {
        let masks = self.masks;
        if (masks.told | masks.ignored) & QUESTIONS != 0 {
            return Err("a fanotify group is asked for permission: others wait for it while it is away".to_owned());
        }
        let (of, path) = match self.on {
            On::File(handle) => (Of::File, path_of(&handle, mounts, context)),
            On::Mount(id) => (Of::Mount, mounts.path_of(|mount| mount.id == id, context)),
            On::Filesystem(device) => (Of::Filesystem, mounts.path_of(|mount| mount.device == device, context)),
        };
        let path = path.ok_or("what a fanotify group has marked can't be found by a path any more")?;
        Ok(Mark { of, path, masks })
    }
}

impl Mark {
    fn open(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let path = Path::new(OsStr::from_bytes(&self.path));
        open_in_root(root, path, flags, 0).map_err(FileError::system("open what is marked,", self.describe()))
    }

    pub(super) fn describe(&self) -> String {
        let path = String::from_utf8_lossy(&self.path);
        match self.of {
            Of::File => path.into_owned(),
            Of::Mount => format!("the mount at {path}"),
            Of::Filesystem => format!("the filesystem at {path}"),
        }
    }

    pub(super) fn add(&self, group: BorrowedFd<'_>, root: BorrowedFd<'_>) -> Result<(), FileError> {
        let file = self.open(root)?;
        let of = match self.of {
            Of::File => 0,
            Of::Mount => libc::FAN_MARK_MOUNT,
            Of::Filesystem => libc::FAN_MARK_FILESYSTEM,
        };
        let how = libc::FAN_MARK_ADD | of | self.masks.flags & libc::FAN_MARK_EVICTABLE;
        let lasting = self.masks.flags & libc::FAN_MARK_IGNORED_SURV_MODIFY;
        let ignore = match self.masks.flags & libc::FAN_MARK_IGNORE {
            0 => libc::FAN_MARK_IGNORED_MASK,
            new => new,
        };
        for (flags, mask) in [(how, self.masks.told), (how | ignore | lasting, self.masks.ignored)] {
            if mask & !QUESTIONS != 0 {
                let mask = u64::from(mask & !QUESTIONS);
                let wrap = FileError::system("mark", self.describe());
                fanotify::mark(group, std::os::fd::AsFd::as_fd(&file), flags, mask).map_err(wrap)?;
            }
        }
        Ok(())
    }

    pub(super) fn obstacle(&self, root: BorrowedFd<'_>) -> Option<String> {
        let lacking = self.open(root).is_err();
        lacking.then(|| format!("it watches {}, which is not there", self.describe()))
    }
}

/// Whether a group of floe's has marks with these masks, and no others.
pub(super) fn all_are_there(wanted: &[Mark], group: BorrowedFd<'_>) -> Result<bool, FileError> {
    let text = procfs::read_text(&format!("/proc/self/fdinfo/{}", group.as_raw_fd()))?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("fanotify "));
    let mut there: Vec<Masks> = lines.filter_map(Masks::parse).collect();
    let mut wanted: Vec<Masks> = wanted.iter().map(|mark| mark.masks).collect();
    there.sort_unstable();
    wanted.sort_unstable();
    Ok(there == wanted)
}

#[cfg(test)]
mod tests {
    use super::{FoundMark, Masks, On};

    #[test]
    fn marks_are_read() {
        let parse = |line| FoundMark::parse(line).expect("a mark");
        let file = parse(
            "ino:98 sdev:fe00000 mflags:440 mask:48000020 ignored_mask:2 fhandle-bytes:4 fhandle-type:1 f_handle:4ac09800",
        );
        let wanted = Masks {
            told: 0x4800_0020,
            ignored: 2,
            flags: 0x440,
        };
        assert!(file.masks == wanted && matches!(file.on, On::File(handle) if handle.device == 0xfe0_0000));
        let mount = parse("mnt_id:1e mflags:0 mask:20 ignored_mask:0");
        assert!(matches!(mount.on, On::Mount(0x1e)));
        let filesystem = parse("sdev:1b mflags:0 mask:38 ignored_mask:0");
        assert!(matches!(filesystem.on, On::Filesystem(0x1b)));
        assert!(FoundMark::parse("mnt_ns:4026531841 mflags:0 mask:1000 ignored_mask:0").is_none());
    }
}
