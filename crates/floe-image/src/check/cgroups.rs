//! Cgroups: paths that stay below the tree's own one, parents that exist, members that live.

use super::{PATH_BYTES, ensure, living};
use crate::{
    Image,
    cgroup_settings::usual,
    record::{CgroupRecord, HierarchyRecord},
};
use std::collections::HashSet;

/// XATTR_SIZE_MAX of linux/limits.h.
const ATTRIBUTE_BYTES: usize = 65_536;

/// A cgroup that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupFault {
    /// A hierarchy.
    #[error("the cgroup hierarchy {controllers:?} {fault}")]
    Hierarchy {
        /// Which.
        controllers: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A cgroup.
    #[error("cgroup {index} of hierarchy {controllers:?} {fault}")]
    Cgroup {
        /// Of which hierarchy.
        controllers: String,
        /// Its position.
        index: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

pub(super) fn check(image: &Image) -> Result<(), CgroupFault> {
    let alive = living(image);
    let processes = image
        .processes()
        .iter()
        .filter(|process| alive.contains(&process.pid.0));
    let threads: HashSet<i32> = processes
        .flat_map(|process| &process.threads)
        .map(|thread| thread.tid.0)
        .collect();
    let mut known = HashSet::new();
    for record in &image.sandbox().cgroups {
        let bad = |fault| CgroupFault::Hierarchy {
            controllers: record.controllers.clone(),
            fault,
        };
        for controller in record.controllers.split(',') {
            ensure(known.insert(controller), || bad("has a controller of another one"))?;
        }
        ensure(
            is_word(&record.controllers, b",=._-") || record.controllers.is_empty(),
            || bad("has no possible name"),
        )?;
        tree(record)?;
        let ascends = record.members.is_sorted_by_key(|(tid, _)| tid.0)
            && record.members.windows(2).all(|pair| pair[0].0 != pair[1].0);
        ensure(ascends, || bad("has a member twice, or not in order"))?;
        let exists = |(tid, index): &(crate::record::NsPid, u32)| {
            threads.contains(&tid.0) && *index > 0 && (*index as usize) < record.cgroups.len()
        };
        ensure(record.members.iter().all(exists), || {
            bad("has a member that does not live, or is nowhere")
        })?;
    }
    Ok(())
}

fn tree(record: &HierarchyRecord) -> Result<(), CgroupFault> {
    let mut known: HashSet<&[u8]> = HashSet::new();
    for (index, cgroup) in record.cgroups.iter().enumerate() {
        let bad = |fault| CgroupFault::Cgroup {
            controllers: record.controllers.clone(),
            index,
            fault,
        };
        let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        let parent = match cgroup.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&cgroup.path[..at], &cgroup.path[at + 1..]),
            None => (&b""[..], &cgroup.path[..]),
        };
        let fits = if index == 0 {
            cgroup.path.is_empty()
        } else {
            known.contains(parent.0) && is_name(parent.1)
        };
        ensure(fits && cgroup.path.len() < PATH_BYTES, || bad("has no possible path"))?;
        ensure(known.insert(&cgroup.path), || bad("is there twice"))?;
        files(cgroup).map_or(Ok(()), |fault| Err(bad(fault)))?;
    }
    ensure(!record.cgroups.is_empty(), || CgroupFault::Hierarchy {
        controllers: record.controllers.clone(),
        fault: "lacks the tree's own cgroup",
    })
}

/// What is wrong with what a cgroup has.
fn files(cgroup: &CgroupRecord) -> Option<&'static str> {
    let names = cgroup.settings.iter().map(|(name, _)| name);
    let names = names.chain(cgroup.files.iter().map(|(name, _)| name));
    if !names.into_iter().all(|name| is_word(name, b"._-")) {
        return Some("has a file without a possible name");
    }
    if cgroup.settings.iter().any(|(name, _)| usual(name).is_none()) {
        return Some("sets what is no known setting");
    }
    if !cgroup.hands_on.iter().all(|name| is_word(name, b"_")) {
        return Some("hands on what is no controller");
    }
    let modes = cgroup.files.iter().map(|(_, access)| access).chain([&cgroup.access]);
    if modes.into_iter().any(|access| access.mode > 0o7777) {
        return Some("has impossible permissions");
    }
    let is_bad = |name: &[u8]| name.contains(&0) || !name.contains(&b'.');
    let mut attributes = cgroup.attributes.iter();
    let found = attributes.any(|attribute| is_bad(&attribute.name) || attribute.value.len() > ATTRIBUTE_BYTES);
    found.then_some("has an impossible attribute")
}

/// A name of a file: neither a path nor hidden.
fn is_word(name: &str, besides: &[u8]) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || besides.contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits)
}
