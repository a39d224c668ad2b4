//! Namespaces: their kinds, and those that descriptors hold: namespaces(7), ioctl_nsfs(2), linux/nsfs.h.

mod ended;
mod standing;

pub use ended::ended_pids;
pub use standing::{Standing, beside_in_user, enter_user, read_inside, write_inside};

use crate::{
    descriptor::owned,
    procfs::{ProcError, read_text},
};
use nix::errno::Errno;
use std::{
    fmt,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    str::FromStr,
};

const NS_GET_USERNS: libc::Ioctl = nix::request_code_none!(0xb7, 1);
const NS_GET_PARENT: libc::Ioctl = nix::request_code_none!(0xb7, 2);
const NS_GET_OWNER_UID: libc::Ioctl = nix::request_code_none!(0xb7, 4);
const NS_GET_MNTNS_ID: libc::Ioctl = nix::request_code_read!(0xb7, 5, size_of::<u64>());
const NS_GET_NSTYPE: libc::Ioctl = nix::request_code_none!(0xb7, 3);

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "their names are all there is to say")]
pub enum Kind {
    Mount,
    Network,
    Ipc,
    User,
    Pid,
    Uts,
    Cgroup,
    Time,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Mount,
        Self::Network,
        Self::Ipc,
        Self::User,
        Self::Pid,
        Self::Uts,
        Self::Cgroup,
        Self::Time,
    ];

    /// Its name in /proc/PID/ns.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// Its flag: CLONE_NEW*.
    #[must_use]
    pub const fn flag(self) -> i32 {
        match self {
            Self::Mount => libc::CLONE_NEWNS,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => crate::time_namespace::CLONE_NEWTIME,
        }
    }

    /// That of a namespace.
    ///
    /// # Errors
    /// ENOTTY for another file; EBADF for one of O_PATH.
    pub fn of(namespace: BorrowedFd<'_>) -> Result<Self, Errno> {
        let flag = kind(namespace)?;
        Self::ALL
            .into_iter()
            .find(|kind| kind.flag() == flag)
            .ok_or(Errno::EINVAL)
    }

    /// Whether namespaces of this kind have parents of the same kind.
    #[must_use]
    pub const fn is_nested(self) -> bool {
        matches!(self, Self::Pid | Self::User)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no kind of namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are no namespaces of the kind {0:?}: mnt, net, ipc, user, pid, uts, cgroup, time")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// A namespace's kind and inode number, which is its identity, of a text like `net:[4026531833]`: links of /proc/PID/ns
/// and of descriptors, and the root of mounts of nsfs, look so.
#[must_use]
pub fn parse_link(text: &[u8]) -> Option<(Kind, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (name, number) = text.strip_suffix(']')?.split_once(":[")?;
    // What children will be in is a namespace like any other, and its link says so.
    Some((name.parse().ok()?, number.parse().ok()?))
}

/// Its kind: CLONE_NEW*.
///
/// # Errors
/// EBADF for one of O_PATH.
pub fn kind(namespace: BorrowedFd<'_>) -> Result<i32, Errno> {
    // SAFETY: no argument is read.
    Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) })
}

/// The namespace that it was made in, of the same kind.
///
/// # Errors
/// EPERM where the caller does not see that one, as of the first of all; EINVAL for kinds that don't nest.
pub fn parent(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument is read.
    owned(i64::from(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) }))
}

/// The user namespace whose privileges count in it; of a user namespace its parent.
///
/// # Errors
/// EPERM where the caller does not see that one.
pub fn owner(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument is read.
    owned(i64::from(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) }))
}

/// The number by which the kernel tells which of two mount namespaces came first; none where it tells nobody (before Linux
/// 6.12).
///
/// # Errors
/// EINVAL for another kind.
pub fn age_of_mounts(namespace: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let mut found: u64 = 0;
    // SAFETY: `found` is room for the answer.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_MNTNS_ID, &raw mut found) };
    match Errno::result(result) {
        Ok(_) => Ok(Some(found)),
        Err(Errno::ENOTTY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The user that made a user namespace, by its number in the caller's.
///
/// # Errors
/// EINVAL for another kind.
pub fn maker(user: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut found: libc::uid_t = 0;
    // SAFETY: `found` is room for the answer.
    let result = unsafe { libc::ioctl(user.as_raw_fd(), NS_GET_OWNER_UID, &raw mut found) };
    Errno::result(result).map(|_| found)
}

/// Whether the caller is in the first user namespace, the only one that maps all users to themselves.
///
/// # Errors
/// [`ProcError`].
pub fn is_in_first_user() -> Result<bool, ProcError> {
    let map = read_text("/proc/self/uid_map")?;
    Ok(map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

/// The users (`uid_map`) or groups (`gid_map`) that the caller's user namespace knows, by their numbers in it.
///
/// # Errors
/// [`ProcError`].
pub fn known_ids(map: &str) -> Result<Vec<Range<u64>>, ProcError> {
    Ok(ids_in(&read_text(&format!("/proc/self/{map}"))?))
}

/// First numbers and counts of a map, as ranges of numbers inside.
fn ids_in(map: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (first, count): (u64, u64) = (words.next()?.parse().ok()?, words.nth(1)?.parse().ok()?);
        Some(first..first.saturating_add(count))
    };
    map.lines().filter_map(range).collect()
}

/// Sets the NIS domain name of the caller's UTS namespace.
///
/// # Errors
/// Those of setdomainname(2).
pub fn set_domain_name(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: the bytes have the stated length, and are read.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{Kind, kind, owner, parent, parse_link};
    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn links_are_read() {
        assert_eq!(parse_link(b"net:[4026531833]"), Some((Kind::Network, 4_026_531_833)));
        for text in [
            &b"socket:[1]"[..],
            b"net:4026531833",
            b"net:[]",
            b"/etc",
            b"net:[1] (deleted)",
            b"\xff",
        ] {
            assert_eq!(parse_link(text), None);
        }
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
    }

    #[test]
    fn what_is_made_has_the_parent_and_the_owner_it_was_made_in() {
        let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}")).expect("one's own");
        let before = open("user");
        unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID).expect("namespaces");
        let inode = |file: &dyn AsFd| nix::sys::stat::fstat(file.as_fd()).expect("a file").st_ino;
        let uts = open("uts");
        assert_eq!(kind(uts.as_fd()), Ok(libc::CLONE_NEWUTS));
        assert_eq!(inode(&owner(uts.as_fd()).expect("an owner")), inode(&before));
        assert_eq!(parent(uts.as_fd()).err(), Some(Errno::EINVAL));
    }
}
