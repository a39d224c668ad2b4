//! Descriptors of namespaces, namespaces(7): by /proc/PID/ns, a bind mount of that, or ioctl(2) on a pidfd. Those that the
//! tree is in are carried; of others, which the descriptor alone keeps alive, those whose names are all that is in them.

mod left;

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, reopen, was_opened,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    Pid,
    descriptor::{namespace_of, pidfd_open},
    namespace::{Kind, Standing},
};
use floe_tracee::Puppet;
use left::Left;
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns},
    sys::stat::Mode,
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    /// Where no task is in it.
    left: Option<Left>,
}

impl FileKind for Namespace {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.filesystem == Some(NSFS)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let number = |kind: &Kind| context.others.number(*kind, file.identity().inode);
        let found = Kind::ALL.iter().find_map(|kind| Some((*kind, number(kind)?)));
        if let Some((kind, number)) = found {
            return Ok(Some(codec::encode(&Body {
                name: kind.name().to_owned(),
                number,
                left: None,
            })?));
        }
        match left::look(file)? {
            Some(left) => Ok(Some(codec::encode(&Body {
                name: Kind::Uts.name().to_owned(),
                number: 0,
                left: Some(left),
            })?)),
            None => {
                let reason = "a namespace that no task of the tree is in can't be carried";
                context
                    .refusals
                    .add(Some(&file.subject), file.title(), reason, "close it");
                Ok(None)
            }
        }
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let (kind, number, left) = possible(record)?;
        if let Some(left) = left {
            return left.open(record, context);
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
            _ => context.known.made(number),
        };
        let made = made.ok_or_else(lacking)?;
        if by_open {
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
        let (kind, number, left) = possible(record)?;
        Ok(match (left, number) {
            (None, 0) => format!("the tree's {kind} namespace"),
            (None, number) => format!("{kind} namespace {number}"),
            (Some(_), _) => format!("another {kind} namespace"),
        })
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let (kind, ..) = possible(record)?;
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

fn possible(record: &OpenFileRecord) -> Result<(Kind, u32, Option<Left>), FileError> {
    let body: Body = decode(record)?;
    let kind = body.name.parse().ok();
    let found = kind.filter(|kind| body.left.is_none() || *kind == Kind::Uts);
    let kind = found.ok_or_else(|| FileError::Unknown {
        id: record.id,
        what: "there is no namespace of its kind".to_owned(),
    })?;
    Ok((kind, body.number, body.left))
}
