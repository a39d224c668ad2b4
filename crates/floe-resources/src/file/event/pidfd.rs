//! Descriptors of processes (pidfd_open(2)).

use super::{Lines, is_anonymous};
use crate::file::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, set_status};
use floe_image::{
    codec,
    record::{NsPid, OpenFileRecord},
};
use floe_sys::{
    Pid,
    descriptor::{PIDFD_THREAD, pidfd_of_thread, pidfd_open},
    fork,
};
use nix::{errno::Errno, sys::wait::waitpid};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The kind.
pub struct PidFd;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// A process of the tree, or none where it has ended and was waited for.
    pid: Option<NsPid>,
}

impl FileKind for PidFd {
    fn name(&self) -> &'static str {
        "pidfd"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "pidfd")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let lines = Lines::read(file)?;
        let host = lines.all("Pid").next().and_then(|value| value.parse::<i32>().ok());
        let host = host.ok_or_else(|| lines.malformed("Pid"))?;
        let pid = match context.processes.get(&Pid::new(host)) {
            Some(pid) => Some(NsPid(*pid)),
            None if host < 0 => None,
            None => {
                context.refusals.add(
                    Some(&file.subject),
                    file.title(),
                    "it stands for a zombie, a process that is not in the tree, or a thread that is not its process's first",
                    "close it, or wait for its process",
                );
                return Ok(None);
            }
        };
        Ok(Some(codec::encode(&Body { pid })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let open = if record.flags & PIDFD_THREAD as u32 == 0 {
            pidfd_open
        } else {
            pidfd_of_thread
        };
        let opened = match body.pid {
            Some(pid) => {
                let puppet = context.puppets.get(&pid.0).ok_or_else(|| FileError::Unknown {
                    id: record.id,
                    what: format!("it stands for process {pid}, which the image lacks"),
                })?;
                open(puppet.tid())
            }
            None => of_an_ended_one(open),
        };
        let opened = opened.map_err(FileError::system("open", describe(&body)))?;
        set_status(opened.as_fd(), record)?;
        Ok(opened)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(describe(&body))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let _known: Body = decode(record)?;
        Ok(None)
    }
}

fn describe(body: &Body) -> String {
    match body.pid {
        Some(pid) => format!("process {pid}"),
        None => "a process that has ended".to_owned(),
    }
}

/// One that has ended is like another.
fn of_an_ended_one(open: impl FnOnce(Pid) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let child = fork::child(|| 0)?;
    let opened = open(Pid::new(child.as_raw()));
    while let Err(Errno::EINTR) = waitpid(child, None) {}
    opened
}
