//! Ordinary users whose user namespaces the host's root has to do with: who such a user is, and which users and groups of the
//! host a user namespace of theirs may know. root does not enter one: it becomes that user before.
//!
//! Must not know: what is done as that user.

use crate::user::{UserError, find_ranges, owner_of_all};
use floe_sys::{Pid, fork};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{signal::Signal, wait::waitpid},
    unistd::{Gid, Uid, User, getegid, getgrouplist, getpid},
};
use std::{
    ffi::CString,
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    ops::RangeInclusive,
    os::{fd::BorrowedFd, unix::net::UnixStream},
};

/// Users or groups of a user namespace that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The first one's number inside.
    pub inside: u32,
    /// Its number on the host.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// A user namespace below the host's first one: user_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpace {
    /// User and group of whom it is.
    pub owner: (u32, u32),
    /// Users that it knows.
    pub users: Vec<Ids>,
    /// Groups.
    pub groups: Vec<Ids>,
    /// Whether setgroups(2) is allowed in it.
    pub setgroups: bool,
}

/// A user of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Their number.
    pub user: u32,
    /// Their group.
    pub group: u32,
    /// Their other groups.
    pub groups: Vec<u32>,
}

/// A user namespace that a user may not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OwnerError {
    /// Nobody by this number.
    #[error("{0} is no number of a user or group")]
    Nobody(u32),
    /// Root needs no user namespace to be itself.
    #[error("the image's user namespace is said to be root's; --owner names an ordinary user, or none")]
    IsRoot,
    /// Their group is not known.
    #[error("this host has no user {0} in its list of users; name their group, too: --owner {0}:GID")]
    NoGroup(u32),
    /// Their other groups can't be found out.
    #[error("the groups of user {0} can't be found out; name theirs: --owner {0}:GID")]
    Groups(u32),
    /// What was not given to them.
    #[error(
        "the image's user namespace had {count} {what} of the host from {host} on, which user {user} of group {group} was not given \
         here (/etc/subuid, /etc/subgid; --owner names another user)"
    )]
    NotGiven {
        /// `users` or `groups`.
        what: &'static str,
        /// The first.
        host: u32,
        /// How many.
        count: u32,
        /// To whom.
        user: u32,
        /// Of which group.
        group: u32,
    },
    /// Who gives up a group may come by what is forbidden to its members.
    #[error(
        "in the image's user namespace groups can be given up (setgroups), which only who was given some for it may have: user {0} was \
         not given those here (/etc/subgid; --owner names another user)"
    )]
    NoGroupsToGiveUp(u32),
}

impl Owner {
    /// Whoever has this number; of the group that is given, or else of theirs and with their other groups.
    ///
    /// # Errors
    /// [`OwnerError::NoGroup`] where this host does not know them; [`OwnerError::Groups`].
    pub fn new(user: u32, group: Option<u32>) -> Result<Self, OwnerError> {
        if let Some(number) = [Some(user), group].into_iter().flatten().find(|id| *id == u32::MAX) {
            return Err(OwnerError::Nobody(number));
        }
        if user == 0 {
            return Err(OwnerError::IsRoot);
        }
        if let Some(group) = group {
            return Ok(Self {
                user,
                group,
                groups: Vec::new(),
            });
        }
        let known = User::from_uid(Uid::from_raw(user)).ok().flatten();
        let known = known.ok_or(OwnerError::NoGroup(user))?;
        // Without them they would be let at what is forbidden to members of a group.
        let groups = CString::new(known.name).ok();
        let groups = groups.and_then(|name| getgrouplist(&name, known.gid).ok());
        let groups = groups.ok_or(OwnerError::Groups(user))?;
        Ok(Self {
            user,
            group: known.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        })
    }

    /// The ordinary user whose user namespace a process's other namespaces belong to, seen from the first one; none where they belong
    /// to that, or to one that root has made.
    ///
    /// # Errors
    /// [`UserError::Enter`].
    pub fn of_process(pid: Pid) -> Result<Option<Self>, UserError> {
        let find = || -> io::Result<Option<Self>> {
            let Some(found) = owner_of_all(pid)? else {
                return Ok(None);
            };
            let user = found.maker;
            if user == 0 {
                return Ok(None);
            }
            let owner = match Self::new(user, None) {
                Ok(owner) => owner,
                // Where nobody knows them they are of the group that they have made themselves there.
                Err(OwnerError::NoGroup(_)) => {
                    let groups = parse(&fs::read_to_string(format!("/proc/{pid}/gid_map"))?)?;
                    Self::new(user, Some(own_group(&groups))).map_err(io::Error::other)?
                }
                Err(error) => return Err(io::Error::other(error)),
            };
            Ok(Some(owner))
        };
        find().map_err(|source| UserError::Enter { pid, source })
    }

    /// The user namespace of an image as this user may have it: their own number in the place of the one they had, and of
    /// others those that they were given.
    ///
    /// # Errors
    /// [`OwnerError::NotGiven`].
    pub fn may_have(&self, image: &UserSpace) -> Result<UserSpace, OwnerError> {
        let given = [("/etc/subuid", self.user), ("/etc/subgid", self.group)];
        let [users, groups] = given.map(|(file, own)| (find_ranges(file, Uid::from_raw(self.user)), own));
        self.may_have_of(image, (users, groups))
    }

    fn may_have_of(&self, image: &UserSpace, (users, groups): (GivenIds, GivenIds)) -> Result<UserSpace, OwnerError> {
        let with_own = |(mut given, own): GivenIds| {
            given.push(u64::from(own)..=u64::from(own));
            given
        };
        let given_groups = groups.0.clone();
        let (users, groups) = (with_own(users), with_own(groups));
        let translate = |what, ids: &[Ids], (before, now): (u32, u32), given: &[RangeInclusive<u64>]| {
            let translate = |ids: &Ids| {
                let host = if (ids.host, ids.count) == (before, 1) {
                    now
                } else {
                    ids.host
                };
                let (first, last) = (u64::from(host), u64::from(host) + u64::from(ids.count) - 1);
                let is_given = is_in(given, first, last);
                let refused = || OwnerError::NotGiven {
                    what,
                    host,
                    count: ids.count,
                    user: self.user,
                    group: self.group,
                };
                is_given.then_some(Ids { host, ..*ids }).ok_or_else(refused)
            };
            ids.iter().map(translate).collect::<Result<Vec<_>, _>>()
        };
        let (user, group) = image.owner;
        let space = UserSpace {
            owner: (self.user, self.group),
            users: translate("users", &image.users, (user, self.user), &users)?,
            groups: translate("groups", &image.groups, (group, self.group), &groups)?,
            setgroups: image.setgroups,
        };
        // The rule of newgidmap(1). Without a group nobody can give up any.
        let was_given = |ids: &Ids| {
            let first = u64::from(ids.host);
            is_in(&given_groups, first, first + u64::from(ids.count) - 1)
        };
        if space.setgroups && !space.groups.is_empty() && !space.groups.iter().any(was_given) {
            return Err(OwnerError::NoGroupsToGiveUp(self.user));
        }
        Ok(space)
    }
}

/// What somebody was given, and their own.
type GivenIds = (Vec<RangeInclusive<u64>>, u32);

fn is_in(given: &[RangeInclusive<u64>], first: u64, last: u64) -> bool {
    given
        .iter()
        .any(|range| range.contains(&first) && range.contains(&last))
}

/// The group that somebody has by itself in a user namespace; else nobody's.
fn own_group(groups: &[Ids]) -> u32 {
    const NOBODYS: u32 = 65534;
    let own = groups.iter().find(|ids| ids.count == 1);
    own.map_or(NOBODYS, |ids| ids.host)
}

impl UserSpace {
    /// The one of a user, by the numbers of the caller's, who is in that user's group: a child enters it, whose maps tell. The
    /// caller must have one thread.
    ///
    /// # Errors
    /// Those of setns(2), and of reading /proc.
    pub(crate) fn look_at(space: BorrowedFd<'_>, user: u32) -> io::Result<Self> {
        let (mut here, mut there) = UnixStream::pair()?;
        let parent = getpid();
        let child = fork::child(|| {
            let entered = setns(space, CloneFlags::CLONE_NEWUSER);
            let entered = entered.and_then(|()| fork::signal_at_parents_end(Signal::SIGKILL, parent));
            let number = entered.map_or_else(|error| error as i32, |()| 0);
            let told = there.write_all(&number.to_le_bytes());
            // Stays until it was looked at. Whose parent has ended before it was to end with that has nobody to wait for.
            if number == 0 && told.is_ok() {
                drop(there.read(&mut [0]));
            }
            0
        })?;
        let mut look = || {
            let mut entered = [0; 4];
            here.read_exact(&mut entered)?;
            match i32::from_le_bytes(entered) {
                0 => {}
                number => return Err(io::Error::from_raw_os_error(number)),
            }
            let directory = format!("/proc/{child}");
            Ok(Self {
                owner: (user, getegid().as_raw()),
                users: parse(&fs::read_to_string(format!("{directory}/uid_map"))?)?,
                groups: parse(&fs::read_to_string(format!("{directory}/gid_map"))?)?,
                setgroups: fs::read_to_string(format!("{directory}/setgroups"))?.trim() == "allow",
            })
        };
        let found = look();
        // The child has this end open, too.
        here.shutdown(Shutdown::Both)?;
        while waitpid(child, None) == Err(Errno::EINTR) {}
        found
    }

    /// Gives its users and groups to the user namespace that a process has just made. Takes root of the one above.
    ///
    /// # Errors
    /// Those of writing /proc/PID/uid_map and its like.
    pub fn give_to(&self, process: Pid) -> io::Result<()> {
        let text = |ids: &[Ids]| -> String {
            let line = |ids: &Ids| format!("{} {} {}\n", ids.inside, ids.host, ids.count);
            ids.iter().map(line).collect()
        };
        if !self.setgroups {
            fs::write(format!("/proc/{process}/setgroups"), "deny")?;
        }
        // One that nobody has written can be left so.
        for (file, ids) in [("gid_map", &self.groups), ("uid_map", &self.users)] {
            if !ids.is_empty() {
                fs::write(format!("/proc/{process}/{file}"), text(ids))?;
            }
        }
        Ok(())
    }
}

fn parse(map: &str) -> io::Result<Vec<Ids>> {
    let ids = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut number = || numbers.next()?.ok();
        Some(Ids {
            inside: number()?,
            host: number()?,
            count: number()?,
        })
    };
    let read = |line| ids(line).ok_or_else(|| io::Error::other(format!("a map says {line:?}")));
    map.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::{Ids, Owner, OwnerError, RangeInclusive, UserSpace, parse};

    fn ids(inside: u32, host: u32, count: u32) -> Ids {
        Ids { inside, host, count }
    }

    fn space() -> UserSpace {
        UserSpace {
            owner: (1000, 100),
            users: vec![ids(0, 1000, 1), ids(1, 100_000, 10)],
            groups: vec![ids(0, 100, 1)],
            setgroups: false,
        }
    }

    #[test]
    fn users_have_themselves_and_what_they_were_given() {
        let owner = Owner::new(1000, Some(100)).expect("somebody");
        let may = |space: &UserSpace, given| owner.may_have_of(space, ((vec![given], 1000), (Vec::new(), 100)));
        assert_eq!(may(&space(), 100_000..=165_535), Ok(space()));
        let expected = OwnerError::NotGiven {
            what: "users",
            host: 100_000,
            count: 10,
            user: 1000,
            group: 100,
        };
        assert_eq!(may(&space(), 100_001..=165_535), Err(expected));
        let mut roots = space();
        roots.users[1] = ids(1, 0, 1);
        assert!(may(&roots, 100_000..=165_535).is_err());
        let mut roots = space();
        roots.groups[0].host = 0;
        assert!(may(&roots, 100_000..=165_535).is_err());
    }

    #[test]
    fn others_stand_in_for_them() {
        let owner = Owner::new(7, Some(8)).expect("somebody");
        let mut own = space();
        own.users.pop();
        let has = owner
            .may_have_of(&own, ((Vec::new(), 7), (Vec::new(), 8)))
            .expect("a namespace");
        assert_eq!(has.owner, (7, 8));
        assert_eq!((has.users, has.groups), (vec![ids(0, 7, 1)], vec![ids(0, 8, 1)]));
    }

    #[test]
    fn groups_are_given_up_only_where_some_were_given() {
        let owner = Owner::new(1000, Some(100)).expect("somebody");
        let mut own = space();
        own.users.pop();
        own.setgroups = true;
        let may = |space: &UserSpace, given: RangeInclusive<u64>| {
            owner.may_have_of(space, ((Vec::new(), 1000), (vec![given], 100)))
        };
        assert_eq!(may(&own, 100_000..=165_535), Err(OwnerError::NoGroupsToGiveUp(1000)));
        assert_eq!(may(&own, 100..=100), Ok(own.clone()));
        own.groups.push(ids(1, 100_000, 10));
        assert_eq!(may(&own, 100_000..=165_535), Ok(own.clone()));
        own.groups.clear();
        assert_eq!(may(&own, 100_000..=165_535), Ok(own.clone()));
    }

    #[test]
    fn nobody_is_not_taken_for_a_number() {
        assert_eq!(Owner::new(u32::MAX, Some(0)), Err(OwnerError::Nobody(u32::MAX)));
        assert_eq!(Owner::new(1, Some(u32::MAX)), Err(OwnerError::Nobody(u32::MAX)));
        assert_eq!(Owner::new(0, Some(0)), Err(OwnerError::IsRoot));
    }

    #[test]
    fn maps_are_lines_of_three_numbers() {
        assert_eq!(
            parse("         0      54321          1\n").expect("a map"),
            [ids(0, 54321, 1)]
        );
        assert!(parse("0 1\n").is_err());
    }
}
