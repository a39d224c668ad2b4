//! The sandbox's own streams and log. The monitor keeps still from the survey on until this is dropped: what it holds
//! goes into the image, and no input may move meanwhile.

use super::{InspectError, Target};
use floe_image::record::{ConsoleRecord, ContentOwner, InputRecord, TerminalRecord};
use floe_resources::{
    file::{
        ConsoleLinks,
        terminal::{self, Unreadable},
    },
    mm::{ContentPlace, ContentSource, Contents},
    refusal::Refusals,
};
use floe_sandbox::Survey;
use floe_sys::{
    Pid,
    descriptor::open_in_root,
    kernel::Terminals,
    terminal::{TerminalSettings, number},
};
use nix::errno::Errno;
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// The streams of a sandbox, or none.
pub struct Streams {
    /// What restore needs to make them again; the input lacks what is in the workload's own pipe.
    pub record: ConsoleRecord,
    /// Bytes of the log.
    pub log: Option<u64>,
    _survey: Option<Survey>,
}

impl Streams {
    /// Asks the monitor; `root` is the root directory of the tree's mount namespace.
    pub fn survey(
        target: &Target,
        root: BorrowedFd<'_>,
        contents: &mut Contents,
        refusals: &mut Refusals,
    ) -> Result<Self, InspectError> {
        let links = target.links();
        let Target::Sandbox { folder, .. } = target else {
            let record = match &links.terminal {
                Some(path) => terminal(path, None, target.root(), root, refusals)?,
                None => ConsoleRecord::None,
            };
            return Ok(Self {
                record,
                log: None,
                _survey: None,
            });
        };
        let survey = Survey::take(folder).map_err(InspectError::Survey)?;
        let record = match &links.terminal {
            Some(path) => terminal(path, Some(&survey), target.root(), root, refusals)?,
            None => ConsoleRecord::Pipes {
                stdin: input(links, &survey),
            },
        };
        contents.sources.push(ContentSource {
            owner: ContentOwner::Log,
            place: ContentPlace::Link(survey.log.clone()),
            size: survey.log_bytes,
        });
        Ok(Self {
            record,
            log: Some(survey.log_bytes),
            _survey: Some(survey),
        })
    }

    /// The record, with what was in the workload's own pipe.
    pub fn record(&self, in_pipe: &[u8]) -> ConsoleRecord {
        let mut record = self.record.clone();
        if let ConsoleRecord::Pipes { stdin: Some(input) } = &mut record {
            input.waiting.splice(..0, in_pipe.iter().copied());
        }
        record
    }
}

fn input(links: &ConsoleLinks, survey: &Survey) -> Option<InputRecord> {
    links.pipes[0].map(|_| InputRecord {
        waiting: survey.waiting.clone(),
        ended: survey.input_ended,
    })
}

fn terminal(
    path: &[u8],
    survey: Option<&Survey>,
    pid: Pid,
    root: BorrowedFd<'_>,
    refusals: &mut Refusals,
) -> Result<ConsoleRecord, InspectError> {
    let wrap = |source: Errno| InspectError::Read {
        what: "the terminal",
        pid,
        source: source.into(),
    };
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let file = open_in_root(root, Path::new(OsStr::from_bytes(path)), flags, 0).map_err(wrap)?;
    let mut record = match read(file.as_fd(), survey) {
        Ok(record) => record,
        Err(Unreadable::Failed(source)) => {
            let what = "the terminal";
            return Err(InspectError::Read { what, pid, source });
        }
        Err(Unreadable::Refused(reason, advice)) => {
            refusals.add(
                None,
                format!("terminal {}", String::from_utf8_lossy(path)),
                reason,
                advice,
            );
            return Ok(ConsoleRecord::None);
        }
    };
    record
        .input
        .beyond
        .extend(survey.iter().flat_map(|survey| &survey.waiting));
    Ok(ConsoleRecord::Terminal(record))
}

fn read(file: BorrowedFd<'_>, survey: Option<&Survey>) -> Result<TerminalRecord, Unreadable> {
    let stat = nix::sys::stat::fstat(file)?;
    let index = nix::sys::stat::minor(stat.st_rdev) as u32;
    let name = (index, [stat.st_uid, stat.st_gid], stat.st_mode);
    let kernel = match Terminals::open() {
        Ok(kernel) => kernel,
        Err(error) => {
            tracing::debug!(%error, "what waits in the terminal is not seen");
            return read_unseen(file, survey, name);
        }
    };
    let end = kernel.end(file)?;
    terminal::read((&kernel, end), file, name).map(|(record, _)| record)
}

/// Where the kernel's memory can't be read, nothing may wait in it.
fn read_unseen(
    file: BorrowedFd<'_>,
    survey: Option<&Survey>,
    name: (u32, [u32; 2], u32),
) -> Result<TerminalRecord, Unreadable> {
    let record = terminal::read_settings(file, name)?;
    let settings = TerminalSettings::read(file.as_raw_fd())?;
    // Of one that is not the sandbox's own nobody can tell.
    let unfinished = settings.is_canonical() && survey.is_none_or(|survey| survey.unfinished_line);
    if unfinished || number(file, libc::FIONREAD)? > 0 {
        return Err(Unreadable::Refused(
            "it holds input that no program has read yet, and floe may not read the kernel's memory (bpf(2))",
            "let the program read it, or delete the line, and try again",
        ));
    }
    if number(file, libc::TIOCGETD)? != 0 {
        return Err(Unreadable::Refused(
            "another line discipline than the usual one is not carried yet",
            "switch back to N_TTY",
        ));
    }
    Ok(record)
}
