//! epoll instances and what they watch. A watch is known by the file and the number it had when it was added, which may be
//! closed by now, or stand for another file.

use super::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, Unsent, decode,
    event::{Lines, is_anonymous},
    set_status,
};
use crate::refusal::{Refusals, Subject};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    Pid,
    event::{self, BusyPoll},
    kcmp::is_watched,
};
use floe_tracee::Script;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The kind.
pub struct Epoll;

const NAME: &str = "epoll";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Body {
    watches: Vec<Watch>,
    busy: Busy,
}

/// How it asks network cards before it waits (EPIOCSPARAMS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Busy {
    microseconds: u32,
    /// Packets at once.
    budget: u16,
    /// Whether interrupts are put off.
    prefer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Watch {
    /// The number it was added by.
    number: i32,
    /// Which open file.
    file: u32,
    /// EPOLL*.
    events: u32,
    /// What epoll_wait(2) tells with it.
    data: u64,
}

/// An instance that was found, and what /proc says that it watches: numbers, events, data.
pub(super) struct FoundEpoll {
    holder: Pid,
    number: i32,
    title: String,
    subject: Subject,
    watches: Vec<(u32, u32, u64)>,
    busy: Busy,
}

impl FileKind for Epoll {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "eventpoll")
    }

    /// What it watches may be found only later: [`resolve`] completes the body.
    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let lines = Lines::read(file)?;
        let busy = match BusyPoll::of(file.as_fd()) {
            Ok(found) => Busy {
                microseconds: found.microseconds,
                budget: found.budget,
                prefer: found.prefer != 0,
            },
            // Before Linux 6.9.
            Err(Errno::ENOTTY | Errno::EINVAL) => Busy::default(),
            Err(error) => return Err(FileError::system("read the settings of", file.title())(error)),
        };
        let watches = lines.all("tfd").map(parse_watch).collect::<Option<Vec<_>>>();
        context.epolls.push(FoundEpoll {
            holder: file.holder,
            number: file.number,
            title: file.title(),
            subject: file.subject.clone(),
            watches: watches.ok_or_else(|| lines.malformed("tfd"))?,
            busy,
        });
        Ok(Some(codec::encode(&Body::default())?))
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let wrap = |action| FileError::system(action, format!("open file {}", record.id));
        let instance = event::epoll().map_err(wrap("make an epoll instance as"))?;
        let busy = decode::<Body>(record)?.busy;
        if busy != Busy::default() {
            BusyPoll::new(busy.microseconds, busy.budget, busy.prefer)
                .set(instance.as_fd())
                .map_err(wrap("have network cards asked by"))?;
        }
        set_status(instance.as_fd(), record)?;
        Ok(instance)
    }

    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        let body: Body = decode(record)?;
        // An instance that nobody has open is not in the image.
        let Some((pid, instance)) = holders.first(record.id) else {
            return Ok(());
        };
        let mut script = Script::new(holders.puppet(pid)?);
        for watch in &body.watches {
            add(&mut script, (pid, instance), watch, holders)?;
        }
        Ok(script.run().map(drop)?)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(format!("watches {} files", body.watches.len()))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        decode::<Body>(record).map(|_| None)
    }
}

/// `tfd:        3 events:       19 data: deadbeef  pos:0 ino:40e sdev:10`, without its first word.
fn parse_watch(line: &str) -> Option<(u32, u32, u64)> {
    let mut words = line.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut hexadecimal = |name| (words.next() == Some(name)).then(|| words.next()).flatten();
    let events = u32::from_str_radix(hexadecimal("events:")?, 16).ok()?;
    let data = u64::from_str_radix(hexadecimal("data:")?, 16).ok()?;
    Some((number, events, data))
}

/// Completes the records of the instances in `epolls`, in the order in which they were found, now that all files are
/// known: `known` are a holder of each with its number there, and the file's number in the image unless it was refused.
///
/// # Errors
/// [`FileError`].
pub(super) fn resolve(
    epolls: &[FoundEpoll],
    records: &mut [OpenFileRecord],
    known: &[(Pid, i32, Option<u32>)],
    refusals: &mut Refusals,
) -> Result<(), FileError> {
    let instances = records.iter_mut().filter(|record| record.kind == NAME);
    for (record, epoll) in instances.zip(epolls) {
        let mut body = Body {
            watches: Vec::new(),
            busy: epoll.busy,
        };
        let mut seen: HashMap<u32, u32> = HashMap::new();
        for &(number, events, data) in &epoll.watches {
            let index = seen.entry(number).or_insert(0);
            match epoll.target((number, *index), known)? {
                Some(Some(file)) => body.watches.push(Watch {
                    number: number as i32,
                    file,
                    events,
                    data,
                }),
                // The file itself was refused.
                Some(None) => {}
                None => refusals.add(
                    Some(&epoll.subject),
                    epoll.title.clone(),
                    format!("it watches a file, once descriptor {number}, that no task of the tree has open"),
                    "take it out (EPOLL_CTL_DEL), or close it everywhere",
                ),
            }
            *index += 1;
        }
        record.body = codec::encode(&body)?;
    }
    Ok(())
}

impl FoundEpoll {
    /// The file behind a watch; `None` where none of those that are known is it.
    fn target(&self, watch: (u32, u32), known: &[(Pid, i32, Option<u32>)]) -> Result<Option<Option<u32>>, FileError> {
        // In most cases the one of this number.
        let likely = known.iter().filter(|(_, number, _)| *number == watch.0 as i32);
        for (pid, number, file) in likely.chain(known) {
            match is_watched((*pid, *number), (self.holder, self.number), watch) {
                Ok(true) => return Ok(Some(*file)),
                Ok(false) => {}
                Err(error) => {
                    return Err(FileError::system("compare what is watched by", self.title.clone())(
                        error,
                    ));
                }
            }
        }
        Ok(None)
    }
}

/// Adds a watch under its number, where another file may stand for the moment.
fn add(
    script: &mut Script<'_>,
    (pid, instance): (i32, i32),
    watch: &Watch,
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    if holders.file((pid, watch.number)).map(|(file, _)| file) == Some(watch.file) {
        return control(script, instance, watch);
    }
    let lacking = || FileError::Unknown {
        id: watch.file,
        what: "it is watched, but nobody has it open".to_owned(),
    };
    let (owner, number) = holders.first(watch.file).ok_or_else(lacking)?;
    let file = holders.fetch((owner, number))?;
    let landed = holders.channel.give(script, &[file.as_fd()])?[0];
    let there = holders.file((pid, watch.number));
    // The channel's own numbers are taken too, though by nobody of the image.
    let occupied = there.is_some() || holders.is_own(watch.number);
    if landed == watch.number {
        control(script, instance, watch)?;
        return Ok(script.call("close a watched file", libc::SYS_close, &[landed as u64])?);
    }
    let wanted = watch.number as u64;
    let aside = if occupied {
        Some(set_aside(script, watch.number)?)
    } else {
        None
    };
    // It may be the instance's own number.
    let instance = aside.filter(|_| watch.number == instance).unwrap_or(instance);
    script.call(
        "place a watched file",
        libc::SYS_dup3,
        &[landed as u64, wanted, libc::O_CLOEXEC as u64],
    )?;
    control(script, instance, watch)?;
    match aside {
        Some(aside) => {
            let flags = match there {
                Some((_, close_on_exec)) if !close_on_exec => 0,
                _ => libc::O_CLOEXEC,
            };
            script.call("put a file back", libc::SYS_dup3, &[aside as u64, wanted, flags as u64])?;
            script.call("close its other number", libc::SYS_close, &[aside as u64])?;
        }
        None => script.call("close a watched file", libc::SYS_close, &[wanted])?,
    }
    Ok(script.call("close a watched file", libc::SYS_close, &[landed as u64])?)
}

/// Another number for the file at `number`.
fn set_aside(script: &mut Script<'_>, number: i32) -> Result<i32, FileError> {
    let batch = script.reserve(1, 0)?;
    let arguments = [number as u64, libc::F_DUPFD_CLOEXEC as u64, 0];
    let call = batch.call("set a file aside", libc::SYS_fcntl, &arguments);
    Ok(script.run()?.result(call) as i32)
}

fn control(script: &mut Script<'_>, instance: i32, watch: &Watch) -> Result<(), FileError> {
    let batch = script.reserve(1, 16)?;
    // struct epoll_event is packed: 4 bytes of events, 8 of data.
    let event = batch.data(&[&watch.events.to_ne_bytes()[..], &watch.data.to_ne_bytes()].concat());
    let arguments = [instance as u64, libc::EPOLL_CTL_ADD as u64, watch.number as u64, event];
    batch.call("watch a file", libc::SYS_epoll_ctl, &arguments);
    Ok(())
}
