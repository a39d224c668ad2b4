//! Files and directories of cgroup file systems, cgroups(7). They are views and switches: those of the sandbox's own cgroup
//! become those of the new one's, others are opened by their paths.

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, open_flags, seek};
use crate::mm::Place;
use floe_image::{codec, record::OpenFileRecord};
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
        unix::ffi::OsStrExt,
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
    /// Of the process's own cgroup.
    own: Option<Own>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Own {
    /// Its controllers, as in /proc/PID/cgroup.
    #[serde(with = "serde_bytes")]
    hierarchy: Vec<u8>,
    /// The file there; empty for the directory itself.
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
            None => body.path,
            Some(own) => new_path(&own, record, context)?,
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

/// Where a file of the own cgroup is now.
fn new_path(own: &Own, record: &OpenFileRecord, context: &OpenContext<'_>) -> Result<Vec<u8>, FileError> {
    let lacking = |what: &str| FileError::Unknown {
        id: record.id,
        what: what.to_owned(),
    };
    let puppet = context.puppets.values().next();
    let pid = puppet.ok_or_else(|| lacking("there is no task whose cgroup it could be of"))?;
    let all = procfs::own_cgroups(pid.tid())?;
    let found = all.into_iter().find(|found| found.hierarchy == own.hierarchy);
    let found = found.ok_or_else(|| lacking("the new sandbox is in no cgroup of its hierarchy"))?;
    Ok(join(found.path, &own.name))
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
    let below = |own: &procfs::OwnCgroup| {
        let rest = path.strip_prefix(own.path.as_slice())?;
        let rest = if rest.is_empty() {
            rest
        } else {
            rest.strip_prefix(b"/")?
        };
        Some((own.clone(), rest.to_vec()))
    };
    let own = match all.iter().find_map(below) {
        // All cgroups are below the first one: a path leads to those that are not the tree's.
        Some((own, rest)) if own.is_top && rest.contains(&b'/') => None,
        Some((_, rest)) if rest.contains(&b'/') => {
            return Ok(Err((
                "it is of a cgroup below the sandbox's own, which is not made again",
                "close it",
            )));
        }
        Some((own, name)) if name.is_empty() || !file.metadata.is_dir() => Some(Own {
            hierarchy: own.hierarchy,
            name,
        }),
        Some((own, _)) if !own.is_top => {
            return Ok(Err((
                "it is a cgroup below the sandbox's own, which is not made again",
                "close it",
            )));
        }
        _ => None,
    };
    Ok(Ok(Body { path, own }))
}

/// A path without links, and one name.
fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    let is_name = |name: &[u8]| !name.contains(&b'/') && name != b"." && name != b"..";
    if body.path.starts_with(b"/") && body.own.as_ref().is_none_or(|own| is_name(&own.name)) {
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
