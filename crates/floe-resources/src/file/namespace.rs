//! Descriptors of namespaces, namespaces(7): by /proc/PID/ns, a bind mount of that, or ioctl(2) on a pidfd. Which are carried
//! is found before any descriptor is looked at, also those that a descriptor alone keeps ([`crate::ns::Held`]).

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, reopen, was_opened,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    Pid,
    descriptor::{namespace_of, open_in_root, pidfd_open},
    namespace::{Kind, Standing},
};
use floe_tracee::Puppet;
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns},
    sys::stat::Mode,
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// NSFS_MAGIC, linux/magic.h.
pub(super) const NSFS: i64 = 0x6e73_6673;

/// The kind.
pub struct Namespace;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// The name of its kind in /proc/PID/ns.
    name: String,
    /// Which of that kind: 0 for that of the tree's root.
    number: u32,
    /// The mount that it was opened by; empty where that was none, or is gone.
    #[serde(with = "serde_bytes")]
    mount: Vec<u8>,
}

impl FileKind for Namespace {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.filesystem == Some(NSFS)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let inode = file.identity().inode;
        // No two of them have the same number.
        let number = |kind: &Kind| context.others.number(*kind, inode);
        let found = Kind::ALL.iter().find_map(|kind| Some((*kind, number(kind)?)));
        let Some((kind, number)) = found else {
            let open = std::fs::File::open(format!("/proc/{}/fd/{}", file.holder, file.number));
            let kind = open.and_then(|open| Ok(Kind::of(open.as_fd())?));
            let kind = kind.map_err(|source| FileError::System {
                action: "find the kind of",
                object: file.title(),
                source,
            })?;
            let reason = context.others.why_not((kind, inode));
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "close it");
            return Ok(None);
        };
        let space = file.mount_namespace(context.contents);
        let there = std::fs::metadata(context.contents.inside(space, &file.link)).map(|found| found.ino());
        let is_there = file.link.starts_with(b"/") && there.is_ok_and(|found| found == inode);
        let mount = if is_there { file.link.clone() } else { Vec::new() };
        let name = kind.name().to_owned();
        Ok(Some(codec::encode(&Body { name, number, mount })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let Body { mount, number, .. } = decode(record)?;
        let kind = kind_of(record)?;
        if !mount.is_empty() {
            let (root, path) = (
                context.roots.of(record.mount_namespace),
                Path::new(OsStr::from_bytes(&mount)),
            );
            let opened = open_in_root(root, path, open_flags(record), 0);
            return opened.map_err(FileError::system("open", path.display().to_string()));
        }
        let lacking = || FileError::Unknown {
            id: record.id,
            what: format!("the image lacks {kind} namespace {number}"),
        };
        let by_open = was_opened(record) || record.flags & libc::O_PATH as u32 != 0;
        let task = match (number, kind) {
            (0, _) => context.puppets.values().next().map(Puppet::tid),
            (below, Kind::Pid) => context.known.first_of_pids(below),
            _ => None,
        };
        if let Some(task) = task {
            return of_task(task, kind, by_open.then(|| open_flags(record)));
        }
        let made = match kind {
            Kind::Mount => Some(context.roots.namespace(number)),
            Kind::Pid => context.known.pids(number),
            _ => context.known.made(number),
        };
        let made = made.ok_or_else(lacking)?;
        // One of PIDs that has ended can't be entered, and so not be got otherwise.
        if by_open || kind == Kind::Pid {
            return reopen(made, open_flags(record));
        }
        let stand = || setns(made, CloneFlags::from_bits_retain(kind.flag()));
        let standing = Standing::there(stand).map_err(|source| FileError::System {
            action: "enter again",
            object: format!("{kind} namespace {number}"),
            source,
        })?;
        of_task(standing.task(), kind, None)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let (kind, body) = (kind_of(record)?, decode::<Body>(record)?);
        Ok(match body.number {
            0 => format!("the tree's {kind} namespace"),
            number => format!("{kind} namespace {number}"),
        })
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let kind = kind_of(record)?;
        let exists = std::fs::symlink_metadata(format!("/proc/self/ns/{kind}")).is_ok();
        Ok((!exists).then(|| format!("this kernel has no {kind} namespaces")))
    }
}

/// The namespace that a task is in, opened with these flags, or got by a pidfd.
fn of_task(task: Pid, kind: Kind, flags: Option<i32>) -> Result<OwnedFd, FileError> {
    let path = format!("/proc/{task}/ns/{kind}");
    if let Some(flags) = flags {
        // It is a link that leads there.
        let flags = OFlag::from_bits_retain(flags & !libc::O_NOFOLLOW | libc::O_CLOEXEC);
        return nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(FileError::system("open", path));
    }
    let pidfd = pidfd_open(task).map_err(FileError::system("open a pidfd for", path.clone()))?;
    namespace_of(pidfd.as_fd(), kind).map_err(FileError::system("open by a pidfd", path))
}

fn kind_of(record: &OpenFileRecord) -> Result<Kind, FileError> {
    let body: Body = decode(record)?;
    body.name.parse().map_err(|_| FileError::Unknown {
        id: record.id,
        what: "there is no namespace of its kind".to_owned(),
    })
}
