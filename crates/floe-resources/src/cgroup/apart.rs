//! Cgroups of the tree's that are not below its own one of a hierarchy, or where it has none beside the one that its root shares with
//! others. Such a one comes back below the new sandbox's own, by the last part of its path, if nobody but the tree is in it.
//!
//! ```text
//! found                        made, below the sandbox's own
//! /session  root, and others   .          or ./session, where ./job needs a controller of version 2: a cgroup
//! /job      a task             ./job      that has tasks hands none on (cgroup-v2, no internal process constraint)
//! ```

use super::{
    dump::{Seat, holds_only, refuse_place, usual},
    knobs,
};
use crate::{refusal::Refusals, tree::FoundTree};
use floe_image::record::CgroupRecord;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The name of a shared cgroup that has none: the first one of a hierarchy.
const FIRST: &str = "first";

/// The highest of cgroups that are apart, and what it is to be called.
pub(super) type Top = (PathBuf, Vec<u8>);

/// The highest cgroups of the tree's that are apart, and what each is to be called. `usual` is where its tasks are but for that, of
/// which all below is the tree's if it is its `own`.
pub(super) fn find(
    tree: &FoundTree,
    (usual, is_own): (&Path, bool),
    seats: &[Seat<'_>],
    refusals: &mut Refusals,
) -> Vec<Top> {
    let is_usual = |seat: &&Seat<'_>| match is_own {
        true => seat.directory.starts_with(usual),
        false => seat.directory == usual,
    };
    let mut found: Vec<Top> = Vec::new();
    for seat in seats.iter().filter(|seat| !is_usual(seat)) {
        if found.iter().any(|(top, _)| seat.directory.starts_with(top)) {
            continue;
        }
        let is_trees =
            |path: &&Path| !usual.starts_with(path) && !is_threaded(path) && holds_only(path, tree).unwrap_or(false);
        let Some(top) = seat.directory.ancestors().take_while(is_trees).last() else {
            let reason = format!(
                "it is not below the tree's, {}, and has tasks of others",
                usual.display()
            );
            refuse_place(seat, &reason, refusals);
            continue;
        };
        let name = top.file_name().unwrap_or_default().as_bytes().to_vec();
        let is_taken = is_own && usual.join(OsStr::from_bytes(&name)).exists();
        if is_taken || found.iter().any(|(_, known)| *known == name) {
            let reason = format!(
                "the tree has another cgroup of this name, below {} or beside",
                usual.display()
            );
            refuse_place(seat, &reason, refusals);
        }
        found.push((top.to_owned(), name));
    }
    found
}

/// Whether threads alone may be in it, which are told of in the cgroup above.
fn is_threaded(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.type")).is_ok_and(|text| text.trim() == "threaded")
}

/// Refuses those that could not be as they were below the tree's own one.
pub(super) fn refuse_confined(
    (base, own): (&Path, &CgroupRecord),
    seats: &[Seat<'_>],
    tops: &[(PathBuf, CgroupRecord)],
    refusals: &mut Refusals,
) {
    let lacking = needed(tops)
        .into_iter()
        .find(|controller| !own.hands_on.contains(controller));
    let reason = match lacking {
        _ if !own.settings.is_empty() => format!(
            "it is not below the tree's, {}, whose limits do not hold there",
            base.display()
        ),
        Some(controller) => format!(
            "it is not below the tree's, {}, which does not hand on {controller}",
            base.display()
        ),
        None => return,
    };
    for (top, _) in tops {
        if let Some(seat) = seats.iter().find(|seat| seat.directory.starts_with(top)) {
            refuse_place(seat, &reason, refusals);
        }
    }
}

/// The controllers of version 2 that cgroups need from the one above.
fn needed(tops: &[(PathBuf, CgroupRecord)]) -> BTreeSet<String> {
    let of = |record: &CgroupRecord| {
        let set = record.settings.iter().filter_map(|(name, _)| knobs::controller(name));
        let set: Vec<String> = set.map(str::to_owned).collect();
        set.into_iter().chain(record.hands_on.clone())
    };
    tops.iter().flat_map(|(_, record)| of(record)).collect()
}

/// What stands for the cgroup that the root shares with others: the sandbox's own one; or that, which hands on what the others
/// need, and one below it. The last is where the tree's tasks are.
pub(super) fn in_place_of_shared(shared: &Path, is_v2: bool, tops: &[(PathBuf, CgroupRecord)]) -> Vec<CgroupRecord> {
    let new = |path: &[u8]| CgroupRecord {
        path: path.to_vec(),
        access: usual(),
        ..CgroupRecord::default()
    };
    let mut own = new(b"");
    own.hands_on = if is_v2 {
        needed(tops).into_iter().collect()
    } else {
        Vec::new()
    };
    if own.hands_on.is_empty() {
        return vec![own];
    }
    let mut name = shared.file_name().unwrap_or(OsStr::new(FIRST)).as_bytes().to_vec();
    while tops.iter().any(|(_, record)| record.path == name) {
        name.push(b'+');
    }
    vec![own, new(&name)]
}
