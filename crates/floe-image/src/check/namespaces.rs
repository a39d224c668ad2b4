//! Namespaces that not all tasks of the tree are in, or none.

use super::{ensure, time};
use crate::{
    Image,
    record::{IdRange, NamespaceContents, OwnerRecord, ProcessRecord, TaskNamespaces, UserNamespaceRecord},
};

use std::collections::HashSet;

/// The kernel has room for 340 ranges, user_namespaces(7).
const MOST_RANGES: usize = 340;
/// The kernel has 32 user namespaces one below the other, and the host's above them.
const LEVELS: usize = 33;
/// __NEW_UTS_LEN of linux/utsname.h.
const NAME_BYTES: usize = 64;

/// Namespaces that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceFault {
    /// One whose owner is no user namespace, or is not before it.
    #[error("namespace {0} belongs to no user namespace before it, or is on a level that does not exist")]
    Owner(u32),
    /// A user namespace behind another kind.
    #[error("user namespace {0} does not come before those of other kinds")]
    Order(u32),
    /// Users or groups that no namespace has so.
    #[error("user namespace {0} has a map that can't have been written")]
    Map(u32),
    /// One that belongs to nobody, or whose users and groups can't be those of a user namespace.
    #[error("the user namespace that the tree was in can't be one")]
    Whole,
    /// Names that are too long.
    #[error("UTS namespace {0} has a name of more than {NAME_BYTES} bytes")]
    Name(u32),
    /// Clocks that the kernel could not be made to show.
    #[error("the clocks of time namespace {0} show a time too late")]
    Clock(u32),
    /// A namespace that the image lacks, or of another kind.
    #[error("task {task} is in {kind} namespace {number}, which the image lacks")]
    Unknown {
        /// Who.
        task: i32,
        /// The kind.
        kind: &'static str,
        /// Which.
        number: u32,
    },
    /// A thread in a namespace that only a whole process can be in.
    #[error("threads of process {0} are in different user or time namespaces")]
    Threads(i32),
    /// Children in a time namespace that is not their parent's, nor made by it.
    #[error("children of process {0} are in a time namespace that it can't have made")]
    Children(i32),
    /// A root in what counts as others' namespaces.
    #[error("process {0}, the tree's root, is in namespaces of others")]
    OfOthers(i32),
    /// A cgroup namespace that begins nowhere.
    #[error("cgroup namespace {0} begins at a cgroup that is missing, that has threads alone, or that every tree has")]
    Root(u32),
    /// A mount namespace that belongs to no user namespace.
    #[error("mount namespace {0} belongs to no user namespace that the image has")]
    Mount(u32),
    /// A PID namespace that belongs to no user namespace.
    #[error("PID namespace {0} belongs to no user namespace that the image has")]
    Pid(u32),
}

pub(super) fn check(image: &Image) -> Result<(), NamespaceFault> {
    image.owner().map_or(Ok(()), owner)?;
    let namespaces = &image.sandbox().namespaces;
    // How deep user namespaces are.
    let mut levels = vec![1];
    for (number, record) in (1..).zip(namespaces) {
        let owner = levels.get(record.owner as usize).copied();
        let level = owner.ok_or(NamespaceFault::Owner(number))?;
        match &record.contents {
            NamespaceContents::User(user) => {
                ensure(levels.len() == number as usize, || NamespaceFault::Order(number))?;
                ensure(level < LEVELS, || NamespaceFault::Owner(number))?;
                levels.push(level + 1);
                ensure(possible(user), || NamespaceFault::Map(number))?;
            }
            NamespaceContents::Uts { host, domain } => {
                let fits = host.len() <= NAME_BYTES && domain.len() <= NAME_BYTES;
                ensure(fits, || NamespaceFault::Name(number))?;
            }
            NamespaceContents::Time(clocks) => {
                ensure(time::possible(*clocks), || NamespaceFault::Clock(number))?;
            }
            NamespaceContents::Cgroup(roots) => {
                let mut known = HashSet::new();
                let possible = roots.iter().all(|place| {
                    let cgroup = place.find(&image.sandbox().cgroups);
                    known.insert(&place.hierarchy)
                        && cgroup.is_some_and(|found| !found.path.is_empty() && !found.threaded)
                });
                ensure(possible, || NamespaceFault::Root(number))?;
            }
            NamespaceContents::Ipc(_) | NamespaceContents::Network => {}
        }
    }
    image.processes().iter().try_for_each(|process| tasks(image, process))?;
    children(image)?;
    for (number, record) in (1..).zip(&image.sandbox().pid_namespaces) {
        let exists = (record.owner as usize) < levels.len();
        ensure(exists, || NamespaceFault::Pid(number))?;
    }
    for (number, record) in (0..).zip(image.mount_namespaces()) {
        // That of the root is the one that the sandbox has.
        let exists = (record.owner as usize) < levels.len() && (number != 0 || record.owner == 0);
        ensure(exists, || NamespaceFault::Mount(number))?;
    }
    Ok(())
}

/// Checks whose user namespace the tree was in.
pub(super) fn owner(owner: &OwnerRecord) -> Result<(), NamespaceFault> {
    let (user, group) = owner.namespace.maker;
    let is_somebody = user != u32::MAX && group != u32::MAX;
    ensure(is_somebody && possible(&owner.namespace), || NamespaceFault::Whole)
}

fn possible(user: &UserNamespaceRecord) -> bool {
    [&user.users, &user.groups].into_iter().all(|map| {
        let disjoint = |first: fn(&IdRange) -> u32| {
            let mut ranges: Vec<_> = (map.iter())
                .map(|range| u64::from(first(range))..u64::from(first(range)) + u64::from(range.count))
                .collect();
            ranges.sort_unstable_by_key(|range| range.start);
            let fits = ranges
                .iter()
                .all(|range| range.start < range.end && range.end <= 1 << 32);
            fits && ranges.windows(2).all(|two| two[0].end <= two[1].start)
        };
        map.len() <= MOST_RANGES && disjoint(|range| range.inside) && disjoint(|range| range.above)
    })
}

/// Only who makes a time namespace is not in the one of its children, and the tree's root has all that is not another's, but for
/// its user namespace: it may have entered that when it had the others.
fn children(image: &Image) -> Result<(), NamespaceFault> {
    let mut led = HashSet::new();
    for process in image.processes() {
        let Some(leader) = process.threads.first() else {
            continue;
        };
        let (own, children) = (leader.namespaces.time, process.time_of_children);
        let makes = own == children || children != 0 && led.insert(children);
        ensure(makes, || NamespaceFault::Children(process.pid.0))?;
        let of_root = TaskNamespaces {
            user: leader.namespaces.user,
            cgroup: leader.namespaces.cgroup,
            ..TaskNamespaces::default()
        };
        let others = leader.namespaces != of_root;
        ensure(!others || process.ppid.0 != 0, || {
            NamespaceFault::OfOthers(process.pid.0)
        })?;
    }
    Ok(())
}

fn tasks(image: &Image, process: &ProcessRecord) -> Result<(), NamespaceFault> {
    let known = |number: u32, is_it: fn(&NamespaceContents) -> bool| {
        let place = (number as usize).checked_sub(1);
        let found = place.map(|place| image.sandbox().namespaces.get(place));
        found.is_none_or(|found| found.is_some_and(|found| is_it(&found.contents)))
    };
    let fault = |task, kind, number| NamespaceFault::Unknown { task, kind, number };
    // Who is born into a user namespace could not enter the one that another makes.
    let owner = |number: u32| {
        (number as usize)
            .checked_sub(1)
            .map(|place| image.sandbox().namespaces[place].owner)
    };
    let is_time = |contents: &NamespaceContents| matches!(contents, NamespaceContents::Time(_));
    let first = process.threads.first().map(|leader| leader.namespaces);
    for thread in &process.threads {
        let task = thread.tid.0;
        let TaskNamespaces {
            user,
            uts,
            ipc,
            network,
            time,
            cgroup,
        } = thread.namespaces;
        let is_user = |contents: &NamespaceContents| matches!(contents, NamespaceContents::User(_));
        ensure(known(user, is_user), || fault(task, "user", user))?;
        let is_uts = |contents: &NamespaceContents| matches!(contents, NamespaceContents::Uts { .. });
        ensure(known(uts, is_uts), || fault(task, "UTS", uts))?;
        let is_ipc = |contents: &NamespaceContents| matches!(contents, NamespaceContents::Ipc(_));
        ensure(known(ipc, is_ipc), || fault(task, "IPC", ipc))?;
        let is_network = |contents: &NamespaceContents| matches!(contents, NamespaceContents::Network);
        ensure(known(network, is_network), || fault(task, "network", network))?;
        ensure(known(time, is_time), || fault(task, "time", time))?;
        let is_cgroup = |contents: &NamespaceContents| matches!(contents, NamespaceContents::Cgroup(_));
        ensure(known(cgroup, is_cgroup), || fault(task, "cgroup", cgroup))?;
        ensure(owner(time).is_none_or(|owner| owner == 0), || {
            NamespaceFault::Owner(time)
        })?;
        let same = first.is_none_or(|first| (first.user, first.time) == (user, time));
        ensure(same, || NamespaceFault::Threads(process.pid.0))?;
    }
    let children = process.time_of_children;
    ensure(known(children, is_time), || fault(process.pid.0, "time", children))?;
    ensure(owner(children).is_none_or(|owner| owner == 0), || {
        NamespaceFault::Owner(children)
    })
}
