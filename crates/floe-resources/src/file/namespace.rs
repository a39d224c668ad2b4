//! Descriptors of namespaces, namespaces(7): by /proc/PID/ns, a bind mount of that, or ioctl(2) on a pidfd. Which are carried
//! is found before any descriptor is looked at, also those that a descriptor alone keeps ([`crate::ns::Held`]).

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, reopen, was_opened,
};
use crate::ns::stand_inside;
use floe_image::{
    codec,
    record::{NamespaceKind, OpenFileRecord},
};
use floe_sys::{
    Pid,
    descriptor::{namespace_of, open_in_root, pidfd_open},
    namespace::Kind,
};
use floe_tracee::Puppet;
use nix::sys::stat::fstat;
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
        let made = match kind {
            Kind::Mount => Some(context.roots.namespace(number)),
            _ => NamespaceKind::named(kind.name()).and_then(|kind| context.known.one(kind, number)),
        };
        let made = made.ok_or_else(lacking)?;
        if by_open {
            return reopen(made, open_flags(record));
        }
        let first = (kind == Kind::Pid).then(|| context.known.first_of_pids(number));
        if let Some(task) = first.flatten().or_else(|| somebody_in((kind, made), context)) {
            return of_task(task, kind);
        }
        // One of PIDs that has ended can't be entered, and so not be got otherwise.
        if kind == Kind::Pid {
            return reopen(made, open_flags(record));
        }
        let standing = stand_inside(made).map_err(|source| FileError::System {
            action: "enter again",
            object: format!("{kind} namespace {number}"),
            source,
        })?;
        of_task(standing.task(), kind)
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

/// A task that is in a namespace by now: one of the tree's, or floe, as in those of the host.
fn somebody_in((kind, namespace): (Kind, BorrowedFd<'_>), context: &OpenContext<'_>) -> Option<Pid> {
    let inode = fstat(namespace).ok()?.st_ino;
    let is_there = |task: &Pid| {
        let own = std::fs::metadata(format!("/proc/{task}/ns/{kind}"));
        own.is_ok_and(|own| own.ino() == inode)
    };
    let own = Pid::new(nix::unistd::getpid().as_raw());
    let mut all = context.puppets.values().map(Puppet::tid).chain([own]);
    all.find(is_there)
}

/// The namespace that a task is in, got by a pidfd.
fn of_task(task: Pid, kind: Kind) -> Result<OwnedFd, FileError> {
    let path = format!("/proc/{task}/ns/{kind}");
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
