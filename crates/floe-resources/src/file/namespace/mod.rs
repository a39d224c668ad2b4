//! Descriptors of namespaces, namespaces(7): by /proc/PID/ns, a bind mount of that, or ioctl(2) on a pidfd. Those that the
//! tree is in are carried; of others, which the descriptor alone keeps alive, those whose names are all that is in them.

mod left;

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, was_opened};
use crate::mm::FileIdentity;
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::{NamespaceOf, namespace_of, pidfd_open};
use left::Left;
use nix::{fcntl::OFlag, sys::stat::Mode};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// NSFS_MAGIC, linux/magic.h.
pub(super) const NSFS: i64 = 0x6e73_6673;

/// The kind.
pub struct Namespace;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// Its name in /proc/PID/ns.
    name: String,
    /// Where no task is in it.
    left: Option<Left>,
}

/// All namespaces of a task, and what gives one by a pidfd. Those for children come last: most are the task's own.
const NAMES: [(&str, NamespaceOf); 10] = [
    ("cgroup", NamespaceOf::Cgroup),
    ("ipc", NamespaceOf::Ipc),
    ("mnt", NamespaceOf::Mount),
    ("net", NamespaceOf::Network),
    ("pid", NamespaceOf::Pid),
    ("time", NamespaceOf::Time),
    ("user", NamespaceOf::User),
    ("uts", NamespaceOf::Uts),
    ("pid_for_children", NamespaceOf::PidForChildren),
    ("time_for_children", NamespaceOf::TimeForChildren),
];

impl FileKind for Namespace {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.filesystem == Some(NSFS)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        // All tasks of the tree have the same ones.
        let is_it = |name: &str| {
            let there = std::fs::metadata(format!("/proc/{}/ns/{name}", file.viewer));
            there.is_ok_and(|there| FileIdentity::from(&there) == file.identity())
        };
        match NAMES.iter().find(|(name, _)| is_it(name)) {
            Some((name, _)) => Ok(Some(codec::encode(&Body {
                name: (*name).to_owned(),
                left: None,
            })?)),
            None => match left::look(file)? {
                Some(left) => Ok(Some(codec::encode(&Body {
                    name: "uts".to_owned(),
                    left: Some(left),
                })?)),
                None => {
                    let reason = "a namespace that no task of the tree is in can't be carried";
                    context
                        .refusals
                        .add(Some(&file.subject), file.title(), reason, "close it");
                    Ok(None)
                }
            },
        }
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let (name, kind, left) = possible(record)?;
        if let Some(left) = left {
            return left.open(record, context);
        }
        let is_inside = |pid: &i32| context.mount_namespace_of(*pid) == Some(record.mount_namespace);
        let mut puppets = context.puppets.iter().filter(|(pid, _)| is_inside(pid));
        let (_, puppet) = puppets.next().ok_or_else(|| FileError::Unknown {
            id: record.id,
            what: "there is no task whose namespace it could be".to_owned(),
        })?;
        let path = format!("/proc/{}/ns/{name}", puppet.tid());
        if was_opened(record) || record.flags & libc::O_PATH as u32 != 0 {
            // It is a link that leads there.
            let flags = OFlag::from_bits_retain(open_flags(record) & !libc::O_NOFOLLOW | libc::O_CLOEXEC);
            return nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(FileError::system("open", path));
        }
        let pidfd = pidfd_open(puppet.tid()).map_err(FileError::system("open a pidfd for", path.clone()))?;
        namespace_of(pidfd.as_fd(), kind).map_err(FileError::system("open by a pidfd", path))
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let (name, _, left) = possible(record)?;
        Ok(match left {
            None => format!("the tree's {name} namespace"),
            Some(_) => format!("another {name} namespace"),
        })
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let (name, ..) = possible(record)?;
        let exists = std::fs::symlink_metadata(format!("/proc/self/ns/{name}")).is_ok();
        Ok((!exists).then(|| format!("this kernel has no {name} namespaces")))
    }
}

fn possible(record: &OpenFileRecord) -> Result<(&'static str, NamespaceOf, Option<Left>), FileError> {
    let body: Body = decode(record)?;
    let mut known = NAMES.iter();
    let found = known.find(|(name, _)| *name == body.name && (body.left.is_none() || body.name == "uts"));
    let (name, kind) = found.ok_or_else(|| FileError::Unknown {
        id: record.id,
        what: "there is no namespace of its kind".to_owned(),
    })?;
    Ok((name, *kind, body.left))
}
