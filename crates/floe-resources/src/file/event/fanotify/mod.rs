//! fanotify groups (fanotify(7)) without events that wait: those name processes, and ask them to be let go on.

mod mark;

use super::{Lines, is_anonymous, watched::Mounts};
use crate::{
    file::{
        ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, Unsent, decode, set_status,
    },
    refusal::Passing,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{descriptor::bytes_to_read, fanotify};
use mark::{FoundMark, Mark};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The kind.
pub struct Fanotify;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// FAN_* of fanotify_init(2).
    flags: u32,
    /// open(2) flags of files that its events bring.
    event_flags: u32,
    /// Last one first.
    marks: Vec<Mark>,
}

impl FileKind for Fanotify {
    fn name(&self) -> &'static str {
        "fanotify"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "fanotify")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let found = match obstacle(file, context)? {
            None => body(file, context)?,
            Some(obstacle) => Err(obstacle),
        };
        match found {
            Ok(body) => Ok(Some(codec::encode(&body)?)),
            Err(Obstacle {
                reason,
                advice,
                passing,
            }) => {
                context.refusals.add(Some(&file.subject), file.title(), reason, advice);
                if let Some(passing) = passing {
                    context.refusals.last_passes(passing);
                }
                Ok(None)
            }
        }
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let wrap = FileError::system("make a fanotify group as", format!("open file {}", record.id));
        let group = fanotify::group(body.flags, body.event_flags).map_err(wrap)?;
        set_status(group.as_fd(), record)?;
        Ok(group)
    }

    fn connect(&self, _record: &OpenFileRecord, _holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        Ok(())
    }

    /// Marks what it watches, when all else is done that could be told of.
    fn complete(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body: Body = decode(record)?;
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        let group = holders.fetch(place)?;
        for mark in body.marks.iter().rev() {
            mark.add(group.as_fd(), holders.root(record))?;
        }
        if mark::all_are_there(&body.marks, group.as_fd())? {
            return Ok(());
        }
        // An ignored mask is taken and left out while somebody has the file open for writing.
        Err(FileError::Unknown {
            id: record.id,
            what: "this kernel does not take the marks of a fanotify group as they were".to_owned(),
        })
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let marks: Vec<_> = body.marks.iter().map(Mark::describe).collect();
        Ok(format!("watches {}", marks.join(", ")))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        if let Err(error) = fanotify::group(body.flags, body.event_flags) {
            return Ok(Some(format!("no such fanotify group can be made here: {error}")));
        }
        Ok(body.marks.iter().find_map(|mark| mark.obstacle(root)))
    }
}

/// Why a group can't be carried, and what to do.
struct Obstacle {
    reason: String,
    advice: &'static str,
    passing: Option<Passing>,
}

/// What stands in the way, but for its marks.
fn obstacle(file: &FoundFile, context: &DumpContext<'_>) -> Result<Option<Obstacle>, FileError> {
    let waiting = bytes_to_read(file.as_fd()).map_err(FileError::system("look for events in", file.title()))?;
    let lasting = |reason: String| Obstacle {
        reason,
        advice: "use inotify",
        passing: None,
    };
    let passing = |reason: &str| Obstacle {
        reason: reason.to_owned(),
        advice: "try again when it has read its events",
        passing: Some(Passing::OfItself),
    };
    Ok(match context.memory.fanotify(file.as_fd()) {
        Err(error) => Some(lasting(format!(
            "who made a fanotify group can't be read from the kernel's memory by floe: {error}"
        ))),
        Ok(group) if group.unprivileged => Some(lasting(
            "a fanotify group that was made without CAP_SYS_ADMIN is told less than floe could make one".to_owned(),
        )),
        Ok(group) if group.unanswered => Some(passing("a fanotify group has not answered what it was asked")),
        Ok(_) if waiting != 0 => Some(passing(
            "events of fanotify that nobody has read name processes that caused them",
        )),
        Ok(_) => None,
    })
}

fn body(file: &FoundFile, context: &DumpContext<'_>) -> Result<Result<Body, Obstacle>, FileError> {
    let lines = Lines::read(file)?;
    let mut all = lines.all_words("fanotify");
    let group = all.next().ok_or_else(|| lines.malformed("fanotify"))?;
    let number = |key| super::watched::number(group, key).ok_or_else(|| lines.malformed("fanotify"));
    let mut body = Body {
        flags: number("flags")?,
        event_flags: number("event-flags")?,
        marks: Vec::new(),
    };
    let mounts = Mounts::read(file.viewer)?;
    for line in all {
        let unknown = || format!("a fanotify group has a mark of a kind that floe does not know ({line})");
        let found = FoundMark::parse(line).ok_or_else(unknown);
        match found.and_then(|found| found.resolve(&mounts, context)) {
            Ok(mark) => body.marks.push(mark),
            Err(reason) => {
                return Ok(Err(Obstacle {
                    reason,
                    advice: "remove the mark",
                    passing: None,
                }));
            }
        }
    }
    Ok(Ok(body))
}
