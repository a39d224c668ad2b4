//! Ordinary users: user_namespaces(7). floe does for them what it does for root, as root of a user namespace of their own, in
//! which the sandbox's other namespaces are. What the kernel keeps for the host's root stays out of reach there.
//!
//! Must not know: what is done as that root.

use crate::owner::UserSpace;
use floe_sys::{
    Pid,
    namespace::{self, Kind, is_in_first_user},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::stat::fstat,
    unistd::{Gid, Uid, User, getegid, geteuid},
};
use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
    ops::RangeInclusive,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
};

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
    /// Root has no use for it.
    #[error("--map-user says as what an ordinary user appears; root gives another user by --user")]
    IsRoot,
    /// Its maps.
    #[error("write {file}")]
    Map {
        /// Which file.
        file: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its maps, which another process is to write.
    #[error("have users and groups mapped by the host's root")]
    Give(#[source] io::Error),
    /// More users to be in it.
    #[error("user {user} has no range of users and groups in {file}; usermod --add-subuids and --add-subgids give one")]
    NoRange {
        /// Who.
        user: Uid,
        /// Where it was looked for.
        file: &'static str,
    },
    /// newuidmap(1), newgidmap(1).
    #[error("map users and groups by newuidmap and newgidmap (package uidmap): {told}")]
    Mapper {
        /// What they said.
        told: String,
        /// What came of it.
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

/// Who is in a user namespace, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdMap {
    /// Its maker alone, as root.
    #[default]
    Root,
    /// Its maker as root; and users and groups from 1 on, as many as were given to the maker in /etc/subuid and /etc/subgid,
    /// subuid(5).
    RootAndGiven,
    /// Its maker alone, as this user of this group.
    As(u32, u32),
}

/// Has an ordinary user all rights in a new user namespace; does nothing for root. The caller must have one thread.
///
/// # Errors
/// [`UserError`].
pub fn become_root(ids: IdMap) -> Result<(), UserError> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return match ids {
            IdMap::As(..) => Err(UserError::IsRoot),
            IdMap::Root | IdMap::RootAndGiven => Ok(()),
        };
    }
    let mapper = match ids {
        IdMap::Root | IdMap::As(..) => None,
        IdMap::RootAndGiven => Some(Mapper::start(user, group)?),
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|source| UserError::Make { user, source })?;
    match (mapper, ids) {
        (Some(mapper), _) => mapper.map(),
        (None, IdMap::As(inside, inside_group)) => map((user, inside), (group, inside_group)),
        (None, _) => map((user, 0), (group, 0)),
    }
}

/// Has the caller all rights in a new user namespace, whose users and groups somebody else gives it in `give`: one above. The
/// caller must have one thread.
///
/// # Errors
/// [`UserError`].
pub fn become_root_by(give: impl FnOnce() -> io::Result<()>) -> Result<(), UserError> {
    let user = geteuid();
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|source| UserError::Make { user, source })?;
    give().map_err(UserError::Give)
}

/// A process that maps others, as the programs that may do so must be started from outside of the new namespace.
struct Mapper(Child);

impl Mapper {
    fn start(user: Uid, group: Gid) -> Result<Self, UserError> {
        const SCRIPT: &str =
            r#"read -r go && newuidmap "$1" 0 "$2" 1 1 "$3" "$4" && newgidmap "$1" 0 "$5" 1 1 "$6" "$7""#;
        let (users, groups) = (range(user, "/etc/subuid")?, range(user, "/etc/subgid")?);
        let numbers = [
            std::process::id().into(),
            user.as_raw().into(),
            users.0,
            users.1,
            group.as_raw().into(),
            groups.0,
            groups.1,
        ];
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .args(numbers.map(|number: u64| number.to_string()));
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        piped.spawn().map(Self).map_err(|source| UserError::Mapper {
            told: "sh".to_owned(),
            source,
        })
    }

    fn map(mut self) -> Result<(), UserError> {
        let failed = |told: String, source| UserError::Mapper { told, source };
        let asked = self.0.stdin.take().map(|mut input| input.write_all(b"go\n"));
        asked
            .unwrap_or(Ok(()))
            .map_err(|source| failed("sh".to_owned(), source))?;
        let output = self.0.wait_with_output();
        let output = output.map_err(|source| failed("sh".to_owned(), source))?;
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(told, io::Error::other(output.status.to_string())))
    }
}

/// The first range that a user was given: its first number, and how many.
fn range(user: Uid, file: &'static str) -> Result<(u64, u64), UserError> {
    let first = find_ranges(file, user).into_iter().next();
    let first = first.ok_or(UserError::NoRange { user, file })?;
    Ok((*first.start(), first.end() - first.start() + 1))
}

/// The ranges that a user was given by a file.
pub(crate) fn find_ranges(file: &str, user: Uid) -> Vec<RangeInclusive<u64>> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let name = User::from_uid(user).ok().flatten().map(|user| user.name);
    ranges_of(&text, (user, name.as_deref())).collect()
}

fn ranges_of(text: &str, (user, name): (Uid, Option<&str>)) -> impl Iterator<Item = RangeInclusive<u64>> {
    let number = user.to_string();
    text.lines().filter_map(move |line| {
        let mut words = line.trim().split(':');
        let whose = words.next()?;
        let (first, count): (u32, u32) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let last = u64::from(first) + u64::from(count.checked_sub(1)?);
        (Some(whose) == name || whose == number).then_some(first.into()..=last)
    })
}

/// Maps the caller, who has just made a user namespace, and nobody else: user and group, each with what it is inside. A group can be mapped without the right to do so only when groups can't be dropped any more.
///
/// # Errors
/// [`UserError::Map`].
pub fn map((user, inside): (Uid, u32), (group, inside_group): (Gid, u32)) -> Result<(), UserError> {
    let lines = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{inside} {user} 1")),
        ("/proc/self/gid_map", format!("{inside_group} {group} 1")),
    ];
    for (file, line) in lines {
        std::fs::write(file, line).map_err(|source| UserError::Map { file, source })?;
    }
    Ok(())
}

/// Enters the user namespace that a process's other namespaces belong to, where that is another one than the caller's: the one
/// that the process is in, or one above (bubblewrap makes a second one when all is set up). The caller must have one thread.
/// Tells of it where the caller comes from the first one. The host's root stays outside: whoever made the namespace has all
/// rights over what is in it.
///
/// # Errors
/// [`UserError::Enter`].
pub fn join(pid: Pid) -> Result<Option<UserSpace>, UserError> {
    let enter = || -> io::Result<Option<UserSpace>> {
        let is_first = is_in_first_user().map_err(io::Error::other)?;
        if geteuid().is_root() && is_first {
            return Ok(None);
        }
        let Some(theirs) = owner_of_all(pid)? else {
            return Ok(None);
        };
        let mut told = None;
        if is_first {
            told = Some(UserSpace::look_at(theirs.space.as_fd(), theirs.maker)?);
        }
        setns(theirs.space, CloneFlags::CLONE_NEWUSER)?;
        Ok(told)
    };
    enter().map_err(|source| UserError::Enter { pid, source })
}

/// A user namespace below the caller's.
pub(crate) struct Below {
    pub(crate) space: OwnedFd,
    /// Who made the one that it is, or that it is below of, right below the caller's.
    pub(crate) maker: u32,
}

/// The highest of the user namespaces below the caller's that a process is in, or that one of its other namespaces belongs to.
pub(crate) fn owner_of_all(pid: Pid) -> io::Result<Option<Below>> {
    let inode = |file: &OwnedFd| fstat(file).map(|status| status.st_ino);
    let open = |who: &str, kind: Kind| File::open(format!("/proc/{who}/ns/{kind}")).map(OwnedFd::from);
    let own = inode(&open("self", Kind::User)?)?;
    let mut owners = HashSet::new();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::User) {
        match namespace::owner(open(&pid.to_string(), kind)?.as_fd()) {
            Ok(owner) => owners.extend([inode(&owner)?]),
            // It belongs to one above the caller's.
            Err(Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (mut found, mut maker) = (None, 0);
    let mut next = open(&pid.to_string(), Kind::User)?;
    while inode(&next)? != own {
        let above = namespace::owner(next.as_fd());
        maker = namespace::maker(next.as_fd())?;
        if found.is_none() || owners.contains(&inode(&next)?) {
            found = Some(next);
        }
        next = match above {
            Ok(above) => above,
            // That of a process above the caller's, which it can't enter.
            Err(Errno::EPERM) => break,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(found.map(|space| Below { space, maker }))
}

#[cfg(test)]
mod tests {
    use super::{Uid, ranges_of};

    #[test]
    fn a_user_is_given_a_range_by_name_or_number() {
        let text = "somebody:100000:65536\n1001:165536:1000\nbroken:x:y\n";
        let user = |number, name| ranges_of(text, (Uid::from_raw(number), name)).next();
        assert_eq!(user(1000, Some("somebody")), Some(100_000..=165_535));
        assert_eq!(user(1001, None), Some(165_536..=166_535));
        assert_eq!(user(1002, Some("broken")), None);
    }
}
