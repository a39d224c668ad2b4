//! What is in a namespace that is not the tree root's, and making one anew: user_namespaces(7), uts_namespaces(7),
//! ipc_namespaces(7), network_namespaces(7), time_namespaces(7).

use super::{
    inside::{run_in, stand_inside},
    others::Other,
};
use crate::{cgroup::FoundCgroups, refusal::Refusals};
use floe_image::record::{ClocksRecord, IdRange, IpcRecord, NamespaceContents, NamespaceRecord, UserNamespaceRecord};
use floe_sys::{
    capability,
    namespace::{self, Kind, Standing},
    time_namespace::{self, Clocks},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::utsname::uname,
    unistd::write,
};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Looks into one; objects of an IPC namespace, and what is in a network namespace, are found otherwise. One of cgroups that can't
/// be made again is refused.
pub(super) fn look(other: &Other, cgroups: &FoundCgroups, refusals: &mut Refusals) -> io::Result<NamespaceContents> {
    let file = other.file.as_fd();
    Ok(match other.kind {
        Kind::User => NamespaceContents::User(look_at_user(file)?),
        Kind::Uts => {
            let (host, domain) = run_in(file, names)?;
            NamespaceContents::Uts { host, domain }
        }
        Kind::Ipc => NamespaceContents::Ipc(IpcRecord::default()),
        Kind::Network => NamespaceContents::Network,
        Kind::Time => {
            let seen = match other.member {
                Some(member) => Clocks::seen_by(&member.to_string()),
                None => Clocks::seen_by(&stand_inside(file)?.task().to_string()),
            };
            let seen = seen.map_err(io::Error::other)?;
            NamespaceContents::Time(ClocksRecord {
                monotonic: seen.monotonic.max(0) as u64,
                boottime: seen.boottime.max(0) as u64,
            })
        }
        Kind::Cgroup => {
            let found = cgroups.beginning(file)?;
            if found.is_none() {
                let reason = "it begins at a cgroup that is not the tree's, or that is gone";
                refusals.add(None, other.title(), reason, "have it made in a cgroup of the tree's");
            }
            NamespaceContents::Cgroup(found.unwrap_or_default())
        }
        Kind::Mount | Kind::Pid => return Err(Errno::EINVAL.into()),
    })
}

/// Host and domain name.
pub(super) fn names() -> io::Result<(Vec<u8>, Vec<u8>)> {
    let names = uname()?;
    Ok((
        names.nodename().as_bytes().to_vec(),
        names.domainname().as_bytes().to_vec(),
    ))
}

/// Maps of a user namespace as they are seen from floe's.
pub(super) fn look_at_user(user: BorrowedFd<'_>) -> io::Result<UserNamespaceRecord> {
    let maker = namespace::maker(user)?;
    let standing = stand_inside(user)?;
    let directory = standing.directory();
    let map = |name: &str| ranges(&fs::read_to_string(directory.join(name))?);
    let (users, groups) = (map("uid_map")?, map("gid_map")?);
    Ok(UserNamespaceRecord {
        // Of which group it was the kernel tells nobody, and does nothing with it.
        maker: (maker, nix::unistd::getegid().as_raw()),
        users,
        groups,
        setgroups: fs::read_to_string(directory.join("setgroups"))?.trim() == "allow",
    })
}

fn ranges(text: &str) -> io::Result<Vec<IdRange>> {
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(str::parse);
        let mut word = || words.next()?.ok();
        Some(IdRange {
            inside: word()?,
            above: word()?,
            count: word()?,
        })
    };
    let all = text
        .lines()
        .map(|line| range(line).ok_or_else(|| io::Error::other(format!("a map says {line:?}"))));
    all.collect()
}

/// Turns maps as they are seen from the tree root's user namespace into those that their makers wrote, by the numbers of the
/// user namespace above. Each stands behind the one above it.
pub(super) fn maps_from_above(records: &mut [NamespaceRecord]) {
    let seen: Vec<Option<UserNamespaceRecord>> = records
        .iter()
        .map(|record| match &record.contents {
            NamespaceContents::User(user) => Some(user.clone()),
            _ => None,
        })
        .collect();
    for record in records {
        let above = (record.owner as usize).checked_sub(1).and_then(|place| seen.get(place));
        let (NamespaceContents::User(user), Some(Some(above))) = (&mut record.contents, above) else {
            continue;
        };
        // A group that is known there.
        user.maker.1 = above.groups.first().map_or(0, |range| range.above);
        for (map, above) in [(&mut user.users, &above.users), (&mut user.groups, &above.groups)] {
            for range in map {
                // The kernel took it only because one range of the map above has all of it.
                range.above = inside(above, range.above).unwrap_or(range.above);
            }
        }
    }
}

/// What a number of the user namespace above is inside.
fn inside(map: &[IdRange], number: u32) -> Option<u32> {
    let offset = |range: &IdRange| number.checked_sub(range.above).filter(|offset| *offset < range.count);
    map.iter().find_map(|range| Some(range.inside + offset(range)?))
}

/// Makes one anew, in which there are no IPC objects yet; `user` is the user namespace whose it is to be, unless that is
/// floe's own; of a user namespace the one above. What is written to `entrances` leads into the cgroups that a cgroup
/// namespace begins at.
///
/// # Errors
/// Those of unshare(2) and of what is written into it.
pub fn make(contents: &NamespaceContents, user: Option<BorrowedFd<'_>>, entrances: &[File]) -> io::Result<OwnedFd> {
    let stand_after = |first: &dyn Fn() -> Result<(), Errno>, flags: CloneFlags, maker: Option<(u32, u32)>| {
        Standing::there(|| {
            first()?;
            match (maker, user) {
                // Whoever makes it owns it, and is somebody whom the one above knows.
                (Some((owner, group)), above) => {
                    capability::become_powerful(owner, group)?;
                    if let Some(above) = above {
                        setns(above, CloneFlags::CLONE_NEWUSER)?;
                    }
                }
                (None, Some(user)) => namespace::enter_user(user)?,
                (None, None) => {}
            }
            unshare(flags)
        })
    };
    let stand = |flags, maker| stand_after(&|| Ok(()), flags, maker);
    match contents {
        NamespaceContents::User(record) => {
            let standing = stand(CloneFlags::CLONE_NEWUSER, Some(record.maker))?;
            let directory = standing.directory();
            let write = |name: &str, text: &str| {
                let path = directory.join(name);
                let named = |error: io::Error| io::Error::new(error.kind(), format!("write its {name}: {error}"));
                namespace::write_inside(user, &path, text).map_err(named)
            };
            if !record.setgroups {
                write("setgroups", "deny")?;
            }
            for (name, map) in [("uid_map", &record.users), ("gid_map", &record.groups)] {
                if !map.is_empty() {
                    write(name, &text(map))?;
                }
            }
            standing.namespace(Kind::User)
        }
        NamespaceContents::Uts { host, domain } => {
            let made = stand(CloneFlags::CLONE_NEWUTS, None)?.namespace(Kind::Uts)?;
            run_in(made.as_fd(), || {
                nix::unistd::sethostname(OsStr::from_bytes(host))?;
                Ok(namespace::set_domain_name(domain)?)
            })?;
            Ok(made)
        }
        NamespaceContents::Ipc(_) => stand(CloneFlags::CLONE_NEWIPC, None)?.namespace(Kind::Ipc),
        NamespaceContents::Network => stand(CloneFlags::CLONE_NEWNET, None)?.namespace(Kind::Network),
        NamespaceContents::Time(clocks) => time_namespace::make(shown(*clocks), user),
        NamespaceContents::Cgroup(_) => {
            let enter = || {
                for entrance in entrances {
                    write(entrance, b"0")?;
                }
                Ok(())
            };
            stand_after(&enter, CloneFlags::CLONE_NEWCGROUP, None)?.namespace(Kind::Cgroup)
        }
    }
}

/// Makes those of an image that are wanted, in which nobody is, and the user namespaces whose they are, to see what is in the
/// way; by number.
///
/// # Errors
/// Those of [`make`].
pub(super) fn rehearse(
    namespaces: &[NamespaceRecord],
    wanted: impl Fn(u32, &NamespaceContents) -> bool,
) -> io::Result<HashMap<u32, OwnedFd>> {
    let mut made: HashMap<u32, OwnedFd> = HashMap::new();
    // Owners stand before what is theirs.
    let mut owners = BTreeSet::new();
    for (number, record) in (1..).zip(namespaces).collect::<Vec<_>>().into_iter().rev() {
        if wanted(number, &record.contents) || owners.contains(&number) {
            owners.insert(record.owner);
        }
    }
    for (number, record) in (1..).zip(namespaces) {
        if wanted(number, &record.contents) || owners.contains(&number) {
            let owner = (record.owner != 0).then(|| made[&record.owner].as_fd());
            let one = make(&record.contents, owner, &[])?;
            made.insert(number, one);
        }
    }
    Ok(made)
}

/// Has the clocks of the time namespace of the children of a process, in which there is nobody yet, show `clocks` now.
///
/// # Errors
/// Those of write(2), or why the clocks can't be read.
pub fn set_clocks(process: &Path, clocks: ClocksRecord) -> io::Result<()> {
    shown(clocks).set(process)
}

fn shown(clocks: ClocksRecord) -> Clocks {
    Clocks {
        monotonic: clocks.monotonic as i64,
        boottime: clocks.boottime as i64,
    }
}

fn text(map: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.above, range.count);
    map.iter().map(line).collect()
}
