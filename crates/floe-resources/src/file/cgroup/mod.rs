//! Files and directories of cgroup file systems, cgroups(7). They are views and switches: those of the tree's own cgroup and
//! those below become those of the new ones, others are opened by their paths.

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, seek};
use crate::mm::Place;
use floe_image::{
    codec,
    record::{HierarchyRecord, OpenFileRecord},
};
use floe_sys::{descriptor::open_in_root, procfs};
use nix::{
    sys::statfs::fstatfs,
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// CGROUP_SUPER_MAGIC and CGROUP2_SUPER_MAGIC, linux/magic.h.
const FILE_SYSTEMS: [i64; 2] = [0x0027_e0eb, 0x6367_7270];

/// The kind.
pub struct Cgroup;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// Of the tree's own cgroup, or one below.
    own: Option<Own>,
    /// Whether a mount that shows that, or one below, has it at this path again.
    shown: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Own {
    /// Its controllers, as in /proc/PID/cgroup.
    #[serde(with = "serde_bytes")]
    hierarchy: Vec<u8>,
    /// Its path from there; empty for the directory itself.
    #[serde(with = "serde_bytes")]
    name: Vec<u8>,
}

/// Why a file can't be carried, and what to do.
type Reason = (&'static str, &'static str);

impl FileKind for Cgroup {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.filesystem
            .is_some_and(|filesystem| FILE_SYSTEMS.contains(&filesystem))
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        match find(file, context)? {
            Ok(body) => Ok(Some(codec::encode(&body)?)),
            Err((reason, advice)) => {
                let object = file.title();
                context.refusals.add(Some(&file.subject), object, reason, advice);
                Ok(None)
            }
        }
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body = possible(record)?;
        let path = match body.own {
            Some(own) if !body.shown => new_path(&own, record, context)?,
            _ => body.path,
        };
        let name = String::from_utf8_lossy(&path).into_owned();
        let place = Path::new(OsStr::from_bytes(&path));
        // To open something else may do something: the image has no say in that.
        let found = open_in_root(context.root(record), place, libc::O_PATH, 0)
            .and_then(|found| fstatfs(&found))
            .map_err(FileError::system("look at", name.clone()))?;
        if !FILE_SYSTEMS.contains(&found.filesystem_type().0) {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("{name} is no file of a cgroup here"),
            });
        }
        let file = open_in_root(context.root(record), place, open_flags(record), 0)
            .map_err(FileError::system("open", name.clone()))?;
        seek(file.as_fd(), record, &name)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let own = if body.own.is_some() {
            " (of the tree's own cgroup)"
        } else {
            ""
        };
        Ok(format!("{}{own}", String::from_utf8_lossy(&body.path)))
    }

    /// Those of the own cgroup are there when that is.
    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body = possible(record)?;
        if body.own.is_some() {
            return Ok(None);
        }
        let found = open_in_root(root, Path::new(OsStr::from_bytes(&body.path)), libc::O_PATH, 0);
        Ok(found
            .err()
            .map(|error| format!("{} can't be opened here: {error}", String::from_utf8_lossy(&body.path))))
    }
}

/// Where a file of the own cgroup, or of one below, is now.
fn new_path(own: &Own, record: &OpenFileRecord, context: &OpenContext<'_>) -> Result<Vec<u8>, FileError> {
    let lacking = |what: &str| FileError::Unknown {
        id: record.id,
        what: what.to_owned(),
    };
    let puppet = context.puppets.iter().next();
    let (tid, puppet) = puppet.ok_or_else(|| lacking("there is no task whose cgroup it could be of"))?;
    let all = procfs::own_cgroups(puppet.tid())?;
    let found = all.into_iter().find(|found| found.hierarchy == own.hierarchy);
    let found = found.ok_or_else(|| lacking("the new sandbox is in no cgroup of its hierarchy"))?;
    let base = without_place(&found, hierarchy(&own.hierarchy, context.cgroups), *tid);
    Ok(join(base.to_vec(), &own.name))
}

/// What is carried of a hierarchy.
fn hierarchy<'a>(name: &[u8], all: &'a [HierarchyRecord]) -> Option<&'a HierarchyRecord> {
    all.iter().find(|record| record.controllers.as_bytes() == name)
}

/// The tree's own cgroup, of which a task is in one below.
fn without_place<'a>(found: &'a procfs::OwnCgroup, hierarchy: Option<&HierarchyRecord>, tid: i32) -> &'a [u8] {
    let path = found.path.as_slice();
    let member = |record: &HierarchyRecord| {
        let position = record.members.binary_search_by_key(&tid, |(tid, _)| tid.0).ok()?;
        let place = record.cgroups.get(record.members[position].1 as usize)?;
        Some([b"/", place.path.as_slice()].concat())
    };
    let rest = hierarchy
        .and_then(member)
        .and_then(|place| path.strip_suffix(place.as_slice()));
    rest.unwrap_or(path)
}

fn join(mut folder: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !name.is_empty() {
        folder.push(b'/');
        folder.extend(name);
    }
    folder
}

/// Files of which each opened one has a state of its own, once it was written to; how their names end.
const STATEFUL: [&[u8]; 2] = [b".pressure", b".peak"];

fn find(file: &FoundFile, context: &DumpContext<'_>) -> Result<Result<Body, Reason>, FileError> {
    let Place::Named(path) = file.place(context.contents) else {
        return Ok(Err(("its cgroup is gone", "close it")));
    };
    let writes = file.flags() as i32 & libc::O_ACCMODE != libc::O_RDONLY;
    if writes && STATEFUL.iter().any(|end| path.ends_with(end)) {
        return Ok(Err(("what it was told can't be read back", "close it")));
    }
    let all = procfs::own_cgroups(file.viewer)?;
    let tid = context.tasks.get(&file.viewer).copied().unwrap_or(0);
    let below = |own: &procfs::OwnCgroup| {
        let base = without_place(own, hierarchy(&own.hierarchy, &context.cgroups.records), tid);
        let rest = path.strip_prefix(base)?;
        let rest = if rest.is_empty() {
            rest
        } else {
            rest.strip_prefix(b"/")?
        };
        Some((own.clone(), rest.to_vec()))
    };
    let Some((own, name)) = all.iter().find_map(below) else {
        let own = shown(file, &path, context)?;
        let shown = own.is_some();
        return Ok(Ok(Body { path, own, shown }));
    };
    let place = match (file.metadata.is_dir(), name.iter().rposition(|byte| *byte == b'/')) {
        (true, _) => name.as_slice(),
        (false, Some(end)) => &name[..end],
        (false, None) => b"",
    };
    // All cgroups are below the first one: a path leads to those that are not the tree's.
    if own.is_top && !place.is_empty() {
        return Ok(Ok(Body {
            path,
            own: None,
            shown: false,
        }));
    }
    let mut carried = hierarchy(&own.hierarchy, &context.cgroups.records)
        .into_iter()
        .flat_map(|record| &record.cgroups);
    if !place.is_empty() && !carried.any(|cgroup| cgroup.path == place) {
        return Ok(Err(("it is of a cgroup that is not the tree's", "close it")));
    }
    let hierarchy = own.hierarchy;
    Ok(Ok(Body {
        path,
        own: Some(Own { hierarchy, name }),
        shown: false,
    }))
}

/// What of the tree's cgroups a file is of which a mount shows only these.
fn shown(file: &FoundFile, path: &[u8], context: &DumpContext<'_>) -> Result<Option<Own>, FileError> {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let (directory, name) = match file.metadata.is_dir() {
        true => (path, &b""[..]),
        false => (&path[..end], &path[end + 1..]),
    };
    let space = file.mount_namespace(context.contents);
    let inside = context.contents.inside(space, directory);
    let found = inside.metadata().map_err(|source| FileError::System {
        action: "look at the directory of",
        object: file.title(),
        source,
    })?;
    let place = context.cgroups.place((found.dev(), found.ino()));
    Ok(place.map(|place| Own {
        hierarchy: place.hierarchy.clone().into_bytes(),
        name: match (place.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_vec(),
            (false, true) => place.path.clone(),
            (false, false) => join(place.path.clone(), name),
        },
    }))
}

/// Paths without links.
fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..");
    let is_path = |path: &[u8]| path.is_empty() || path.split(|byte| *byte == b'/').all(is_name);
    if body.path.starts_with(b"/") && body.own.as_ref().is_none_or(|own| is_path(&own.name)) {
        return Ok(body);
    }
    Err(FileError::Unknown {
        id: record.id,
        what: "there is no such file of a cgroup".to_owned(),
    })
}

/// Has a file that was read in part go on with what it says when all of the tree is there.
///
/// # Errors
/// [`FileError`].
pub(super) fn say_anew(record: &OpenFileRecord, file: &File) -> Result<(), FileError> {
    let body = possible(record)?;
    let wrap = |action| FileError::system(action, String::from_utf8_lossy(&body.path).into_owned());
    for place in [0, record.position as i64] {
        lseek(file, place, Whence::SeekSet).map_err(wrap("seek in"))?;
    }
    Ok(())
}
