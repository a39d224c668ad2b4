//! The sandbox's own streams and log. The monitor keeps still from the survey on until this is dropped: what it holds
//! goes into the image, and no input may move meanwhile.

use super::{InspectError, Target};
use floe_image::record::{ConsoleRecord, ContentOwner, InputRecord};
use floe_resources::{
    file::ConsoleLinks,
    mm::{ContentSource, Contents},
    refusal::Refusals,
};
use floe_sandbox::{Survey, TerminalSettings, WindowSize};
use floe_sys::{Pid, descriptor::open_in_root, terminal::control};
use nix::errno::Errno;
use std::{
    ffi::OsStr,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
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
        let Target::Sandbox { folder, links, .. } = target else {
            return Ok(Self {
                record: ConsoleRecord::None,
                log: None,
                _survey: None,
            });
        };
        let survey = Survey::take(folder).map_err(InspectError::Survey)?;
        let record = match &links.terminal {
            Some(path) => terminal(path, &survey, target.root(), root, refusals)?,
            None => ConsoleRecord::Pipes {
                stdin: input(links, &survey),
            },
        };
        contents.sources.push(ContentSource {
            owner: ContentOwner::Log,
            link: survey.log.display().to_string(),
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
    survey: &Survey,
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
    let settings = TerminalSettings::read(file.as_raw_fd()).map_err(|source| InspectError::Read {
        what: "the settings of the terminal",
        pid,
        source,
    })?;
    let WindowSize { words: window } = WindowSize::read(file.as_raw_fd()).map_err(wrap)?;
    let unfinished = settings.is_canonical() && survey.unfinished_line;
    refuse(path, &file, unfinished || !survey.waiting.is_empty(), refusals).map_err(wrap)?;
    Ok(ConsoleRecord::Terminal {
        termios: settings.as_bytes().to_vec(),
        window,
    })
}

/// State of the terminal that is not carried.
fn refuse(path: &[u8], file: &OwnedFd, unfinished: bool, refusals: &mut Refusals) -> Result<(), Errno> {
    /// include/uapi/asm-generic/ioctls.h.
    const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
    let number = |request| {
        let mut bytes = [0; 4];
        control(file.as_raw_fd(), request, &mut bytes).map(|_| i32::from_ne_bytes(bytes))
    };
    let mut locked = [0; 36];
    control(file.as_raw_fd(), libc::TIOCGLCKTRMIOS, &mut locked)?;
    let found = [
        (
            unfinished || number(libc::FIONREAD)? > 0,
            "it holds input that no program has read yet",
            "let the program read it, or delete the line, and try again",
        ),
        (
            number(libc::TIOCGETD)? != 0,
            "another line discipline than the usual one is not carried yet",
            "switch back to N_TTY",
        ),
        (
            number(TIOCGEXCL)? != 0,
            "exclusive mode (TIOCEXCL) is not carried yet",
            "switch it off",
        ),
        (
            locked.iter().any(|byte| *byte != 0),
            "locked settings (TIOCSLCKTRMIOS) are not carried yet",
            "unlock them",
        ),
    ];
    let object = format!("terminal {}", String::from_utf8_lossy(path));
    for (_, reason, advice) in found.into_iter().filter(|(holds, ..)| *holds) {
        refusals.add(None, object.clone(), reason, advice);
    }
    Ok(())
}
