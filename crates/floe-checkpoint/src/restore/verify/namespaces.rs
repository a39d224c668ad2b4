//! Which tasks are in the same namespaces.

use super::Differences;
use floe_image::{
    Image,
    record::{ProcessState, TaskNamespaces},
};
use floe_sys::{
    Pid,
    namespace::Kind,
    procfs::{self, ProcError},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::fs::MetadataExt,
};

/// How a kind is numbered.
type Numbered = (Kind, fn(&TaskNamespaces) -> u32);

const ALL: [Numbered; 6] = [
    (Kind::Time, |of| of.time),
    (Kind::User, |of| of.user),
    (Kind::Uts, |of| of.uts),
    (Kind::Ipc, |of| of.ipc),
    (Kind::Network, |of| of.network),
    (Kind::Cgroup, |of| of.cgroup),
];

fn inode(task: &str, kind: Kind) -> Result<u64, ProcError> {
    let path = format!("/proc/{task}/ns/{kind}");
    let found = std::fs::metadata(&path).map_err(|source| ProcError::Read { path, source })?;
    Ok(found.ino())
}

/// Living processes are in the same namespaces as they were; that of time, which is never floe's, tells that the clocks were
/// set.
pub(super) fn compare(
    image: &Image,
    hosts: &BTreeMap<i32, Pid>,
    differences: &mut Differences,
) -> Result<(), ProcError> {
    let all = if image.sandbox().namespaces.is_empty() {
        &ALL[..1]
    } else {
        &ALL
    };
    let living = (image.processes().iter()).filter(|p| !matches!(p.state, ProcessState::Zombie { .. }));
    let living: Vec<_> = living
        .filter_map(|process| Some((process, hosts.get(&process.pid.0)?)))
        .collect();
    for (kind, number) in all {
        let mut known: HashMap<u32, u64> = HashMap::new();
        for (process, host) in &living {
            let Some(leader) = process.threads.first() else {
                continue;
            };
            let (wanted, found) = (number(&leader.namespaces), inode(&host.to_string(), *kind)?);
            let same = *known.entry(wanted).or_insert(found) == found;
            if !same {
                differences.add(format!(
                    "process {}: it is not in the {kind} namespace of others",
                    process.pid
                ));
            }
            if process.threads.len() > 1 && !image.sandbox().namespaces.is_empty() {
                let wanted: BTreeSet<u32> = process
                    .threads
                    .iter()
                    .map(|thread| number(&thread.namespaces))
                    .collect();
                let mut found = BTreeSet::new();
                for tid in procfs::threads(**host)? {
                    found.insert(inode(&format!("{host}/task/{tid}"), *kind)?);
                }
                if wanted.len() != found.len() {
                    let (got, wanted) = (found.len(), wanted.len());
                    differences.add(format!(
                        "process {}: its threads are in {got} {kind} namespaces, not {wanted}",
                        process.pid
                    ));
                }
            }
        }
        let mut inodes: BTreeSet<u64> = known.values().copied().collect();
        if *kind == Kind::Time {
            inodes.insert(inode("self", *kind)?);
        }
        let wanted = known.len() + usize::from(*kind == Kind::Time);
        if inodes.len() != wanted {
            differences.add(format!(
                "processes are in {} {kind} namespaces, not {wanted}",
                inodes.len()
            ));
        }
    }
    Ok(())
}
