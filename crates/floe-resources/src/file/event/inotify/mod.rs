//! inotify instances (inotify(7)), with events that nobody has read.
//!
//! Until all instances are as they were no watch tells of anything that could happen by floe itself: each is *silent*, but
//! for the moment in which an event is caused.

mod cause;
mod find;
mod waiting;

use super::{
    Lines,
    watched::{Mounts, path_of},
};
use crate::{
    file::{
        ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, Unsent, decode, open_flags,
        set_status,
    },
    refusal::Passing,
};
use find::FoundWatch;
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    descriptor::{bytes_to_read, open_in_root},
    event::{add_inotify_watch, inotify, set_next_inotify_watch},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};
use waiting::Event;

/// The kind.
pub struct Inotify;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// By number, lowest first.
    watches: Vec<Watch>,
    /// At which number that of the next one is looked for; 0 where that is not known.
    next: i32,
    /// What nobody has read, first one first.
    events: Vec<Event>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Watch {
    number: i32,
    /// IN_*.
    mask: u32,
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
}

impl Watch {
    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    fn open(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let name = self.path().display().to_string();
        open_in_root(root, self.path(), flags, 0).map_err(FileError::system("open what is watched,", name))
    }
}

impl FileKind for Inotify {
    fn name(&self) -> &'static str {
        "inotify"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.link == b"anon_inode:inotify"
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(watches) = watches(file, context)? else {
            return Ok(None);
        };
        let waiting = bytes_to_read(file.as_fd()).map_err(FileError::system("look for events in", file.title()))?;
        let mut refuse = |object: String, reason: String| {
            let advice = "try again when it has read them";
            context.refusals.add(Some(&file.subject), object, reason, advice);
            context.refusals.last_passes(Passing::OfItself);
        };
        let queue = match context.memory.inotify(file.as_fd()) {
            Ok(queue) => Some(queue),
            Err(_) if waiting == 0 => None,
            Err(error) => {
                let reason =
                    format!("events that nobody has read can't be read from the kernel's memory by floe: {error}");
                refuse(file.title(), reason);
                return Ok(None);
            }
        };
        let next = queue.as_ref().map_or(0, |queue| queue.next);
        let events: Vec<Event> = queue.map(waiting::from_kernel).unwrap_or_default();
        if let Some(reason) = waiting::obstacle(&events, &watches) {
            refuse(file.title(), reason);
            return Ok(None);
        }
        let body = Body { watches, next, events };
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let wrap = |action| FileError::system(action, format!("open file {}", record.id));
        possible(record)?;
        let instance = inotify(open_flags(record) & libc::O_NONBLOCK).map_err(wrap("make an inotify as"))?;
        set_status(instance.as_fd(), record)?;
        Ok(instance)
    }

    /// Adds the watches, when all files are open, and causes the events.
    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        let body = possible(record)?;
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        let instance = holders.fetch(place)?;
        for watch in &body.watches {
            let file = watch.open(holders.root(record))?;
            cause::add_silent(instance.as_fd(), file.as_fd(), watch.number)?;
        }
        cause::all(instance.as_fd(), &body, holders.root(record))?;
        let next = match body.next {
            0 => body.watches.last().map_or(1, |watch| watch.number + 1),
            next => next,
        };
        set_next_inotify_watch(instance.as_fd(), next).map_err(FileError::system(
            "choose the next watch's number of",
            format!("open file {}", record.id),
        ))
    }

    /// Has the watches tell of what they told of.
    fn complete(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body = possible(record)?;
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        let instance = holders.fetch(place)?;
        for watch in &body.watches {
            let file = watch.open(holders.root(record))?;
            let name = watch.path().display().to_string();
            let number = add_inotify_watch(instance.as_fd(), file.as_fd(), watch.mask);
            if number.map_err(FileError::system("watch", name))? != watch.number {
                return Err(FileError::Unknown {
                    id: record.id,
                    what: format!("what watch {} is about was replaced meanwhile", watch.number),
                });
            }
        }
        Ok(())
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let paths: Vec<_> = body
            .watches
            .iter()
            .map(|watch| String::from_utf8_lossy(&watch.path))
            .collect();
        let waiting = match body.events.len() {
            0 => String::new(),
            number => format!(", {number} events wait"),
        };
        Ok(format!("watches {}{waiting}", paths.join(", ")))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body = possible(record)?;
        let missing = body.watches.iter().find(|watch| watch.open(root).is_err());
        if let Some(watch) = missing {
            let path = watch.path().display();
            return Ok(Some(format!("it watches {path}, which is not there")));
        }
        Ok(cause::missing(&body, root).map(|path| {
            let path = path.display();
            format!("an event that waits is about {path}, which is not there, or another kind of file")
        }))
    }
}

/// What an instance watches, by number; `None` where that was refused.
fn watches(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<Watch>>, FileError> {
    let lines = Lines::read(file)?;
    let mut watches = Vec::new();
    let mounts = Mounts::read(file.viewer)?;
    for line in lines.all_words("inotify") {
        let found = FoundWatch::parse(line).ok_or_else(|| lines.malformed("inotify"))?;
        let Some(path) = path_of(&found.file, &mounts, context) else {
            let reason = format!(
                "the file of its watch {} can't be found by a path any more",
                found.number
            );
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "remove the watch");
            return Ok(None);
        };
        watches.push(Watch {
            number: found.number,
            mask: found.mask,
            path,
        });
    }
    watches.sort_by_key(|watch| watch.number);
    Ok(Some(watches))
}

/// Each number once, and events that can be caused.
fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    let mut last = 0;
    let ascend = body.watches.iter().all(|watch| {
        let fits = watch.number > last && watch.number < i32::MAX && watch.path.starts_with(b"/");
        last = watch.number;
        fits
    });
    if ascend && body.next >= 0 && waiting::obstacle(&body.events, &body.watches).is_none() {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no inotify instance with such watches and events".to_owned(),
        })
    }
}
