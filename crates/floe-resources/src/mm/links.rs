//! Links that open what is mapped: /proc/PID/map_files, proc(5), which the kernel keeps for the host's root
//! (CAP_CHECKPOINT_RESTORE in the first user namespace). Others find a file by its path, or by a descriptor of the process,
//! and know it again by device and inode number.

use super::{ContentError, content::under};
use floe_sys::{
    Pid,
    procfs::{self, Mapping},
};
use nix::libc::{major, minor};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

/// How files that are mapped are looked at.
#[derive(Debug, Default)]
pub(super) struct MappedLinks {
    /// Whether the kernel allows the straight way, once that is known: it does for all mappings, or for none.
    allowed: Option<bool>,
    /// Files that were found by their paths, by device and inode number as mappings tell them.
    held: HashMap<(u32, u32, u64), File>,
}

impl MappedLinks {
    /// A link that opens what is mapped; `None` where nobody but the host's root has one. `root` is where paths of the
    /// tree count from.
    pub(super) fn of(&mut self, pid: Pid, mapping: &Mapping, root: &Path) -> Result<Option<String>, ContentError> {
        let straight = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
        let wrap = |source| ContentError {
            action: "look at",
            path: straight.clone(),
            source,
        };
        let allowed = match self.allowed {
            Some(known) => known,
            None => match std::fs::metadata(&straight) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
                Err(error) => return Err(wrap(error)),
                Ok(_) => true,
            },
        };
        self.allowed = Some(allowed);
        if allowed {
            return Ok(Some(straight));
        }
        self.around(pid, mapping, root).map_err(wrap)
    }

    fn around(&mut self, pid: Pid, mapping: &Mapping, root: &Path) -> io::Result<Option<String>> {
        let key = (mapping.device.0, mapping.device.1, mapping.inode);
        let is_it = |found: &std::fs::Metadata| (major(found.dev()), minor(found.dev()), found.ino()) == key;
        if let Some(held) = self.held.get(&key) {
            return Ok(Some(link(held)));
        }
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
        if let Ok(file) = options.open(under(root, &mapping.path))
            && is_it(&file.metadata()?)
        {
            return Ok(Some(link(self.held.entry(key).or_insert(file))));
        }
        let numbers = procfs::descriptors(pid).map_err(io::Error::other)?;
        let links = numbers.into_iter().map(|number| format!("/proc/{pid}/fd/{number}"));
        let links = std::iter::once(format!("/proc/{pid}/exe")).chain(links);
        let mut fitting = links.filter(|link| std::fs::metadata(link).is_ok_and(|found| is_it(&found)));
        Ok(fitting.next())
    }
}

fn link(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
