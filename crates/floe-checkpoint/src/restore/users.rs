//! Users and groups of an image's tasks that floe's user namespace may not know: user_namespaces(7).

use floe_image::record::{Credentials, IdRange, UserNamespaceRecord};
use floe_sys::{
    namespace::known_ids,
    procfs::{ProcError, Status, read_text},
};
use std::ops::Range;

/// Who is known here.
pub(super) struct KnownUsers {
    users: Vec<Range<u64>>,
    groups: Vec<Range<u64>>,
    /// Whether supplementary groups can be changed.
    changes_groups: bool,
    /// Those that floe has, and all that it makes.
    own: Vec<u32>,
}

impl KnownUsers {
    pub(super) fn here(own: &Status) -> Result<Self, ProcError> {
        let setgroups = read_text("/proc/self/setgroups")?;
        Ok(Self {
            users: known_ids("uid_map")?,
            groups: known_ids("gid_map")?,
            changes_groups: setgroups.trim() != "deny",
            own: own.groups.clone(),
        })
    }

    /// Whom a user namespace knows, or was made by, that this one does not.
    pub(super) fn lacks(&self, below: &UserNamespaceRecord) -> Option<String> {
        let has = |known: &[Range<u64>], range: &IdRange| {
            let (first, last) = (u64::from(range.above), u64::from(range.above) + u64::from(range.count));
            known.iter().any(|known| known.start <= first && last <= known.end)
        };
        let text = |what: &str, range: &IdRange| {
            Some(format!(
                "it has {} {what} from {} on, which this user namespace does not know",
                range.count, range.above
            ))
        };
        if let Some(range) = below.users.iter().find(|range| !has(&self.users, range)) {
            return text("users", range);
        }
        if let Some(range) = below.groups.iter().find(|range| !has(&self.groups, range)) {
            return text("groups", range);
        }
        let (user, group) = below.maker;
        let makes = |known: &[Range<u64>], id: u32| known.iter().any(|range| range.contains(&u64::from(id)));
        let made = makes(&self.users, user) && makes(&self.groups, group);
        (!made).then(|| format!("user {user} of group {group} made it, whom this user namespace does not know"))
    }

    /// What of a task's users and groups can't be set here.
    pub(super) fn obstacle(&self, wanted: &Credentials) -> Option<String> {
        let unknown = |known: &[Range<u64>], id: &u32| !known.iter().any(|range| range.contains(&u64::from(*id)));
        if let Some(user) = wanted.uids.iter().find(|user| unknown(&self.users, user)) {
            return Some(format!(
                "it is of user {user}, whom this user namespace does not know (--map-user, --map-auto)"
            ));
        }
        let groups = if wanted.groups == self.own {
            &[][..]
        } else {
            &wanted.groups
        };
        if let Some(group) = wanted
            .gids
            .iter()
            .chain(groups)
            .find(|group| unknown(&self.groups, group))
        {
            return Some(format!(
                "it is of group {group}, which this user namespace does not know (--map-user, --map-auto)"
            ));
        }
        let changes = !groups.is_empty() || wanted.groups.len() != self.own.len();
        (changes && !self.changes_groups).then(|| {
            "it has other supplementary groups than floe, which can't be changed in this user namespace".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Credentials, IdRange, KnownUsers, UserNamespaceRecord};

    fn somebody(user: u32, groups: &[u32]) -> Credentials {
        Credentials {
            uids: [user; 4],
            groups: groups.to_vec(),
            ..Credentials::default()
        }
    }

    #[test]
    fn roots_know_everybody() {
        let all = 0..4_294_967_295;
        let known = KnownUsers {
            users: vec![all.clone()],
            groups: vec![all],
            changes_groups: true,
            own: vec![0],
        };
        assert_eq!(known.obstacle(&somebody(1000, &[27, 100])), None);
    }

    #[test]
    fn ordinary_users_make_namespaces_of_themselves_alone() {
        let known = KnownUsers {
            users: std::iter::once(0..1).collect(),
            groups: std::iter::once(0..1).collect(),
            changes_groups: false,
            own: vec![65534],
        };
        let range = |above, count| IdRange {
            inside: 7,
            above,
            count,
        };
        let below = |users: &[IdRange], groups: &[IdRange], maker| UserNamespaceRecord {
            users: users.to_vec(),
            groups: groups.to_vec(),
            maker,
            setgroups: false,
        };
        let text = |below: &UserNamespaceRecord| known.lacks(below).unwrap_or_default();
        let own = below(&[range(0, 1)], &[range(0, 1)], (0, 0));
        assert_eq!(known.lacks(&own), None);
        assert!(text(&below(&[range(0, 2)], &[], (0, 0))).starts_with("it has 2 users from 0 on"));
        assert!(text(&below(&[], &[range(5, 1)], (0, 0))).starts_with("it has 1 groups from 5 on"));
        assert!(text(&below(&[], &[], (7, 0))).starts_with("user 7 of group 0 made it"));
    }

    #[test]
    fn ordinary_users_know_themselves() {
        let known = KnownUsers {
            users: std::iter::once(0..1).collect(),
            groups: std::iter::once(0..1).collect(),
            changes_groups: false,
            own: vec![65534],
        };
        assert_eq!(known.obstacle(&somebody(0, &[65534])), None);
        let text = |wanted| known.obstacle(&wanted).unwrap_or_default();
        assert!(text(somebody(33, &[65534])).starts_with("it is of user 33"));
        assert!(text(somebody(0, &[27])).starts_with("it is of group 27"));
        assert!(text(somebody(0, &[])).starts_with("it has other supplementary groups"));
    }
}
