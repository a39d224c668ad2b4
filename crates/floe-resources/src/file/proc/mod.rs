//! Files and directories of /proc, proc(5): about tasks of the tree, about tasks that have ended, and about the system. They
//! are views, so what is carried is the path and the position.
//!
//! One about a task that has ended answers ESRCH for ever. It is made again with a process that ends when it is open.

mod find;

pub(super) use find::Shown;

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext,
    cgroup::{self, Cgroup},
    decode, open_flags, seek,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::descriptor::open_in_root;
use nix::{
    sys::statfs::fstatfs,
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::Path,
};

/// PROC_SUPER_MAGIC, linux/magic.h.
const PROC: i64 = 0x9fa0;

/// The kind.
pub struct Proc;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// Of a task that has ended as it was before.
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// The task that has ended.
    ended: Option<i32>,
}

impl FileKind for Proc {
    fn name(&self) -> &'static str {
        "proc"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.filesystem == Some(PROC)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let found = find::find(file, context.contents, &context.shown);
        match found {
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
        let path = match body.ended {
            Some(task) => {
                let lacking = || FileError::Unknown {
                    id: record.id,
                    what: format!("no task {task} that ends was made"),
                };
                let own = context.ended.get(&task).ok_or_else(lacking)?;
                find::about_another(&body.path, *own)
            }
            None => body.path,
        };
        let name = String::from_utf8_lossy(&path).into_owned();
        let place = Path::new(OsStr::from_bytes(&path));
        // To open something else may do something: the image has no say in that.
        let is_view = open_in_root(context.root(record), place, libc::O_PATH, 0)
            .and_then(|found| fstatfs(&found))
            .map_err(FileError::system("look at", name.clone()))?;
        if is_view.filesystem_type().0 != PROC {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("{name} is no file of /proc here"),
            });
        }
        let file = open_in_root(context.root(record), place, open_flags(record), 0)
            .map_err(FileError::system("open", name.clone()))?;
        seek(file.as_fd(), record, &name)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let ended = if body.ended.is_some() {
            " (the task has ended)"
        } else {
            ""
        };
        Ok(format!("{}{ended}", String::from_utf8_lossy(&body.path)))
    }

    /// Files about tasks are there when those are.
    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body = possible(record)?;
        if body.ended.is_some() || find::task_of(&body.path).is_some() {
            return Ok(None);
        }
        let found = open_in_root(root, Path::new(OsStr::from_bytes(&body.path)), libc::O_PATH, 0);
        Ok(found
            .err()
            .map(|error| format!("{} can't be opened here: {error}", String::from_utf8_lossy(&body.path))))
    }
}

/// Has a file that was read in part go on with what it says when all of the tree is there: the kernel reads ahead as much
/// as it says at once, which was done when the position was set. One about a task that has ended says nothing any more.
///
/// # Errors
/// [`FileError`].
pub fn say_anew(record: &OpenFileRecord, file: &File) -> Result<(), FileError> {
    if record.kind == Cgroup.name() {
        return cgroup::say_anew(record, file);
    }
    let body = possible(record)?;
    let wrap = |action| FileError::system(action, String::from_utf8_lossy(&body.path).into_owned());
    if body.ended.is_some() {
        // Any other place than the one where it is; the error is what is wanted.
        let _ = file.read_at(&mut [0], record.position.wrapping_add(1));
        return Ok(());
    }
    for place in [0, record.position as i64] {
        lseek(file, place, Whence::SeekSet).map_err(wrap("seek in"))?;
    }
    Ok(())
}

/// Whether [`say_anew`] is about this one.
#[must_use]
pub fn is_view(record: &OpenFileRecord) -> bool {
    [Proc.name(), Cgroup.name()].contains(&record.kind.as_str())
        && record.position != 0
        && record.flags & libc::O_PATH as u32 == 0
}

/// The tasks that have ended, and that files of /proc are about.
///
/// # Errors
/// [`FileError`].
pub fn ended_tasks(files: &[OpenFileRecord]) -> Result<BTreeSet<i32>, FileError> {
    let files = files.iter().filter(|record| record.kind == Proc.name());
    let bodies = files.map(|record| Ok(possible(record)?.ended));
    let ended = bodies.collect::<Result<Vec<_>, FileError>>()?;
    Ok(ended.into_iter().flatten().collect())
}

fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    let fits = match body.ended {
        Some(task) => find::last_task_of(&body.path) == Some(task),
        None => find::is_inside(&body.path),
    };
    if fits {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no such file of /proc".to_owned(),
        })
    }
}
