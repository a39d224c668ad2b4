//! Parents and owners of namespaces, and those that nothing but such a relation shows.

use super::{Namespace, NamespacesError};
use floe_sys::{
    namespace::{Kind, owner, parent},
    route::namespace_number,
};
use nix::{errno::Errno, sys::stat::fstat};
use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

/// Notes the relations of all that can be opened, and adds parents and owners that are not among them.
pub(super) fn relate(all: &mut BTreeMap<u64, Namespace>) -> Result<(), NamespacesError> {
    let mut waiting: Vec<OwnedFd> = Vec::new();
    for namespace in all.values_mut() {
        let Some(path) = &namespace.path else { continue };
        // It is gone, or the caller may only see that it is there.
        let Ok(file) = File::open(path) else { continue };
        // A process may have moved on meanwhile.
        if inode(file.as_fd())? == namespace.inode {
            waiting.extend(describe(namespace, file.as_fd()));
        }
    }
    while let Some(file) = waiting.pop() {
        let inode = inode(file.as_fd())?;
        if all.contains_key(&inode) {
            continue;
        }
        let mut namespace = Namespace {
            kind: kind(file.as_fd())?,
            inode,
            path: None,
            processes: 0,
            first: None,
            mounts: Vec::new(),
            parent: None,
            owner: None,
            number: None,
        };
        waiting.extend(describe(&mut namespace, file.as_fd()));
        all.insert(inode, namespace);
    }
    Ok(())
}

/// Fills in the relations of an open namespace; those that it is related to.
fn describe(namespace: &mut Namespace, file: BorrowedFd<'_>) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // The kernel does not tell of what is above the caller's own.
    let mut relation = |told: Result<OwnedFd, Errno>| {
        let other = told.ok()?;
        let number = inode(other.as_fd()).ok()?;
        found.push(other);
        Some(number)
    };
    namespace.owner = relation(owner(file));
    if namespace.kind.is_nested() {
        namespace.parent = relation(parent(file));
    }
    if namespace.kind == Kind::Network {
        namespace.number = namespace_number(file).unwrap_or_else(|error| {
            tracing::debug!(%error, "numbers of network namespaces are not told");
            None
        });
    }
    found
}

fn inode(file: BorrowedFd<'_>) -> Result<u64, NamespacesError> {
    let found = fstat(file).map_err(|error| failed(error, file))?;
    Ok(found.st_ino)
}

fn kind(file: BorrowedFd<'_>) -> Result<Kind, NamespacesError> {
    let flag = floe_sys::namespace::kind(file).map_err(|error| failed(error, file))?;
    let found = Kind::ALL.into_iter().find(|kind| kind.flag() == flag);
    found.ok_or_else(|| failed(Errno::EPROTO, file))
}

fn failed(error: Errno, file: BorrowedFd<'_>) -> NamespacesError {
    use std::os::fd::AsRawFd;
    NamespacesError::Read {
        path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
        source: error.into(),
    }
}
