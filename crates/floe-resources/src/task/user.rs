//! Users and groups as a user namespace sees them, user_namespaces(7).

use floe_image::record::{Credentials, IdRange, NamespaceContents, NamespaceRecord};
use std::os::fd::RawFd;

/// How a task comes into its user namespace.
#[derive(Debug)]
pub enum UserEntry<'a> {
    /// It is in that of the tree's root.
    None,
    /// It enters when it has become who it was, by its descriptor of it.
    By {
        /// The descriptor.
        number: RawFd,
        /// Where it enters from.
        from: Standpoint<'a>,
        /// Whether it then has its children be born into a new PID namespace (unshare(2)).
        leaves_pids: bool,
    },
    /// It is there already.
    Inside(Standpoint<'a>),
}

/// Who a task is by now, by the numbers that floe sees, and how its user namespace sees users where that is not floe's.
#[derive(Debug, Clone)]
pub struct Standpoint<'a> {
    /// Who.
    pub now: Credentials,
    /// How.
    pub seen: Option<&'a SeenUsers>,
}

/// Users and groups that a user namespace knows; `above` is their number in the one that floe is in.
#[derive(Debug, Clone, Default)]
pub struct SeenUsers {
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

impl SeenUsers {
    /// Those of each user namespace of an image, by its number. That of the tree's root sees what floe does, and has none.
    #[must_use]
    pub fn of_all(records: &[NamespaceRecord]) -> Vec<Option<Self>> {
        let mut all: Vec<Option<Self>> = vec![None];
        for record in records {
            let NamespaceContents::User(user) = &record.contents else {
                break;
            };
            let above = all.get(record.owner as usize).and_then(Option::as_ref);
            let seen = |map: &[IdRange], above: Option<&[IdRange]>| match above {
                None => map.to_vec(),
                Some(above) => map.iter().filter_map(|range| through(above, range)).collect(),
            };
            all.push(Some(Self {
                users: seen(&user.users, above.map(|above| above.users.as_slice())),
                groups: seen(&user.groups, above.map(|above| above.groups.as_slice())),
            }));
        }
        all
    }

    /// Credentials by the numbers inside: of users, of groups, of supplementary ones those that are asked for; `None` where one
    /// of these is not known there.
    #[must_use]
    pub fn credentials(&self, seen: &Credentials, [users, groups, others]: [bool; 3]) -> Option<Credentials> {
        let four = |map: &[IdRange], ids: [u32; 4]| -> Option<[u32; 4]> {
            let inside: Vec<u32> = ids.iter().map(|id| inside(map, *id)).collect::<Option<_>>()?;
            inside.try_into().ok()
        };
        let supplementary = seen.groups.iter().map(|id| inside(&self.groups, *id));
        Some(Credentials {
            uids: if users {
                four(&self.users, seen.uids)?
            } else {
                seen.uids
            },
            gids: if groups {
                four(&self.groups, seen.gids)?
            } else {
                seen.gids
            },
            groups: if others {
                supplementary.collect::<Option<_>>()?
            } else {
                Vec::new()
            },
            ..seen.clone()
        })
    }
}

/// A range of a namespace by the numbers of the one two above, where `above` is the map of the one between.
fn through(above: &[IdRange], range: &IdRange) -> Option<IdRange> {
    let found = above.iter().find(|other| {
        let offset = range.above.checked_sub(other.inside);
        offset.is_some_and(|offset| offset < other.count)
    })?;
    Some(IdRange {
        above: found.above + (range.above - found.inside),
        ..*range
    })
}

fn inside(map: &[IdRange], id: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let offset = id.checked_sub(range.above)?;
        (offset < range.count).then(|| range.inside + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_image::record::UserNamespaceRecord;

    fn user(owner: u32, users: &[[u32; 3]]) -> NamespaceRecord {
        let range = |[inside, above, count]: &[u32; 3]| IdRange {
            inside: *inside,
            above: *above,
            count: *count,
        };
        NamespaceRecord {
            owner,
            contents: NamespaceContents::User(UserNamespaceRecord {
                users: users.iter().map(range).collect(),
                groups: vec![range(&[0, 0, 1])],
                ..UserNamespaceRecord::default()
            }),
        }
    }

    #[test]
    fn numbers_are_followed_through_all_levels() {
        let all = SeenUsers::of_all(&[
            user(0, &[[0, 1000, 1], [1, 5000, 10]]),
            user(1, &[[7, 0, 1], [100, 3, 2]]),
        ]);
        let who = |uid| Credentials {
            uids: [uid; 4],
            ..Credentials::default()
        };
        let seen = |number: usize, uid| {
            let seen = all[number].as_ref().expect("a user namespace");
            seen.credentials(&who(uid), [true; 3]).map(|inside| inside.uids[0])
        };
        assert!(all[0].is_none());
        assert_eq!((seen(1, 1000), seen(1, 5009), seen(1, 5010)), (Some(0), Some(10), None));
        assert_eq!(
            (seen(2, 1000), seen(2, 5003), seen(2, 5004)),
            (Some(7), Some(101), None)
        );
    }
}
