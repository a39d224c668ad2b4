//! Whom a command runs as: users and groups by their numbers, or by their names in passwd(5) and group(5) of a root directory.

use std::{
    fs::File,
    io::{self, Read},
    num::ParseIntError,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    str::FromStr,
};

/// A user or group that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

impl FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "give it as UID[:GID] or NAME[:GROUP]";
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let number: Result<u32, ParseIntError> = text.parse();
        match number {
            // (uid_t) -1 means nobody to the kernel.
            Ok(u32::MAX) => Err("4294967295 is no user and no group"),
            Ok(number) => Ok(Self::Number(number)),
            Err(_) if text.is_empty() || is_number || text.contains(['\n', ',']) => Err(WRONG),
            Err(_) => Ok(Self::Name(text.to_owned())),
        }
    }
}

/// The user, and perhaps the group, that a command is to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    user: Id,
    group: Option<Id>,
}

impl FromStr for RunAs {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        Ok(Self {
            user: user.parse()?,
            group: group.map(str::parse).transpose()?,
        })
    }
}

/// The credentials of a user, and what a login would tell a program of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What environ(7) has of a user that is in passwd(5): names and values.
    pub variables: Vec<(&'static str, String)>,
}

/// The content of a file that somebody else may have put there; what is no regular one, or enormous, is not read.
fn regular(path: &Path) -> io::Result<Vec<u8>> {
    const MOST: u64 = 1 << 24;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = Vec::new();
    file.take(MOST).read_to_end(&mut content)?;
    Ok(content)
}

/// A user or a group: the highest number says that it stays as it is, setresuid(2).
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

impl RunAs {
    /// Who that is by the files of the root directory `root`.
    ///
    /// # Errors
    /// What is not known there.
    pub(crate) fn find(&self, root: &Path) -> Result<Account, String> {
        // Where there is no such file nobody is known.
        let read = |name: &str| regular(&root.join("etc").join(name)).unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        self.find_in(&text(read("passwd")), &text(read("group")))
    }

    fn find_in(&self, passwd: &str, group: &str) -> Result<Account, String> {
        let line = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let (name, user, group) = (*fields.first()?, id(fields.get(2)?)?, id(fields.get(3)?)?);
            let meant = match &self.user {
                Id::Number(number) => *number == user,
                Id::Name(wanted) => wanted == name,
            };
            meant.then(|| {
                (
                    name.to_owned(),
                    user,
                    group,
                    fields.get(5).copied().unwrap_or("").to_owned(),
                )
            })
        });
        let (name, user, primary, home) = match (line, &self.user) {
            (Some((name, user, group, home)), _) => (Some(name), user, group, home),
            (None, Id::Number(number)) => (None, *number, 0, String::new()),
            (None, Id::Name(name)) => return Err(format!("there is no user {name} in /etc/passwd")),
        };
        let known = || group.lines().filter_map(group_of);
        let (own, groups) = match &self.group {
            // Who names a group wants no others.
            Some(Id::Number(number)) => (*number, Vec::new()),
            Some(Id::Name(wanted)) => {
                let found = known().find(|(name, ..)| name == wanted);
                let lacking = || format!("there is no group {wanted} in /etc/group");
                (found.ok_or_else(lacking)?.1, Vec::new())
            }
            None => {
                let has = |members: &str| {
                    name.as_deref()
                        .is_some_and(|name| members.split(',').any(|one| one == name))
                };
                let mut groups: Vec<u32> = known()
                    .filter(|(_, _, members)| has(members))
                    .map(|(_, number, _)| number)
                    .chain(name.as_ref().map(|_| primary))
                    .collect();
                groups.sort_unstable();
                groups.dedup();
                (primary, groups)
            }
        };
        let home = if home.is_empty() { "/" } else { &home };
        let variables = name.map_or_else(Vec::new, |name| {
            vec![("HOME", home.to_owned()), ("USER", name.clone()), ("LOGNAME", name)]
        });
        Ok(Account {
            user,
            group: own,
            groups,
            variables,
        })
    }
}

/// Name, number and members of a line of group(5).
fn group_of(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let number = id(fields.nth(1)?)?;
    Some((name, number, fields.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::RunAs;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# no line\nbob:x:1001:100:Bob,,,:/home/bob:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\naudio:x:29:alice,bob\nvideo:x:44:bob\nbobs:x:1001:\n";

    fn found(text: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let wanted: RunAs = text.parse().map_err(str::to_owned)?;
        let account = wanted.find_in(PASSWD, GROUP)?;
        Ok((account.user, account.group, account.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(found("bob"), Ok((1001, 100, vec![29, 44, 100])));
        assert_eq!(found("1001"), found("bob"));
        assert_eq!(found("bob:bobs"), Ok((1001, 1001, vec![])));
        assert_eq!(found("1001:7"), Ok((1001, 7, vec![])));
        assert_eq!(found("0"), Ok((0, 0, vec![0])));
        // Nobody by name.
        assert_eq!(found("4000"), Ok((4000, 0, vec![])));
        assert_eq!(found("4000:audio"), Ok((4000, 29, vec![])));
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert_eq!(found("eve"), Err("there is no user eve in /etc/passwd".to_owned()));
        assert_eq!(found("bob:eve"), Err("there is no group eve in /etc/group".to_owned()));
        for wrong in ["", ":", "bob:", "-1:", "4294967295", "4294967296", "a,b"] {
            assert!(found(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_known_user_has_a_home() {
        let wanted: RunAs = "bob".parse().expect("a name");
        let account = wanted.find_in(PASSWD, GROUP).expect("bob");
        let variables = account.variables.iter().map(|(name, value)| format!("{name}={value}"));
        assert!(variables.eq(["HOME=/home/bob", "USER=bob", "LOGNAME=bob"]));
    }
}
