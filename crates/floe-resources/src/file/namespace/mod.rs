//! Descriptors of namespaces, namespaces(7): by /proc/PID/ns, a bind mount of that, or ioctl(2) on a pidfd. Those that the
//! tree is in are carried; one that nobody of it is in would have to be kept alive by the descriptor alone.

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, was_opened};
use crate::mm::FileIdentity;
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::{NamespaceOf, namespace_of, pidfd_open};
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
        let (name, kind) = possible(record)?;
        let puppet = context.puppets.values().next().ok_or_else(|| FileError::Unknown {
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
        Ok(format!("the tree's {} namespace", possible(record)?.0))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let (name, _) = possible(record)?;
        let exists = std::fs::symlink_metadata(format!("/proc/self/ns/{name}")).is_ok();
        Ok((!exists).then(|| format!("this kernel has no {name} namespaces")))
    }
}

fn possible(record: &OpenFileRecord) -> Result<(&'static str, NamespaceOf), FileError> {
    let body: Body = decode(record)?;
    let found = NAMES.iter().find(|(name, _)| *name == body.name);
    found.copied().ok_or_else(|| FileError::Unknown {
        id: record.id,
        what: "there is no namespace of its kind".to_owned(),
    })
}
