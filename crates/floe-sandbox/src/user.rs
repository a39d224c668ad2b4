//! Ordinary users: user_namespaces(7). floe does for them what it does for root, as root of a user namespace of their own, in
//! which the sandbox's other namespaces are. What the kernel keeps for the host's root stays out of reach there.
//!
//! Must not know: what is done as that root.

use floe_sys::Pid;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, getegid, geteuid},
};
use std::{fs::File, io, os::unix::fs::MetadataExt};

/// A user namespace that can't be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Making it.
    #[error(
        "make a user namespace, in which user {user} is root (the host may forbid it: user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor)"
    )]
    Make {
        /// Who.
        user: Uid,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Its maps.
    #[error("write {file}")]
    Map {
        /// Which file.
        file: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Entering another one.
    #[error("enter the user namespace of process {pid}")]
    Enter {
        /// Whose.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Makes an ordinary user root of a new user namespace, in which there is nobody else; does nothing for root. The caller must
/// have one thread.
///
/// # Errors
/// [`UserError`].
pub fn become_root() -> Result<(), UserError> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|source| UserError::Make { user, source })?;
    map(user, group)
}

/// Maps the caller alone. A group can be mapped without the right to do so only when groups can't be dropped any more.
fn map(user: Uid, group: Gid) -> Result<(), UserError> {
    let lines = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ];
    for (file, line) in lines {
        std::fs::write(file, line).map_err(|source| UserError::Map { file, source })?;
    }
    Ok(())
}

/// Enters the user namespace of a process, where that is another one than the caller's. The caller must have one thread.
///
/// # Errors
/// [`UserError::Enter`].
pub fn join(pid: Pid) -> Result<(), UserError> {
    let enter = || -> io::Result<()> {
        let theirs = File::open(format!("/proc/{pid}/ns/user"))?;
        if theirs.metadata()?.ino() != std::fs::metadata("/proc/self/ns/user")?.ino() {
            setns(theirs, CloneFlags::CLONE_NEWUSER)?;
        }
        Ok(())
    };
    enter().map_err(|source| UserError::Enter { pid, source })
}
