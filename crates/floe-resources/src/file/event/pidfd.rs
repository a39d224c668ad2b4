//! Descriptors of processes and threads (pidfd_open(2)), also of those that have ended.
//!
//! Threads come when all files are open, so one of those takes its place later: [`place`].

use super::{Lines, is_anonymous};
use crate::{
    file::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, decode, set_status},
    ns::run_inside,
};
use floe_image::{
    codec,
    record::{NsPid, OpenFileRecord},
};
use floe_sys::{
    Pid,
    descriptor::{PIDFD_THREAD, pidfd_exit_status, pidfd_of_thread, pidfd_open},
    fork,
};
use floe_tracee::Script;
use nix::{errno::Errno, sched::CloneFlags, sys::wait::waitpid};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The kind.
pub struct PidFd;

const NAME: &str = "pidfd";

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// A process or thread of the tree, or none where it has ended and was waited for.
    task: Option<NsPid>,
    /// How that one ended, as wait(2) tells it.
    status: i32,
}

impl FileKind for PidFd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "pidfd")
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let lines = Lines::read(file)?;
        let host = lines.all("Pid").next().and_then(|value| value.parse::<i32>().ok());
        let host = host.ok_or_else(|| lines.malformed("Pid"))?;
        let task = context.tasks.get(&Pid::new(host)).map(|task| NsPid(*task));
        if task.is_none() && host >= 0 {
            let reason = "it stands for a process that is not in the tree";
            context
                .refusals
                .add(Some(&file.subject), file.title(), reason, "close it");
            return Ok(None);
        }
        let status = match task {
            Some(_) => 0,
            None => match pidfd_exit_status(file.as_fd()) {
                Ok(status) => status.unwrap_or(0),
                // Then nobody can ask.
                Err(Errno::ENOTTY | Errno::EINVAL) => 0,
                Err(error) => return Err(FileError::system("ask for the end of", file.title())(error)),
            },
        };
        Ok(Some(codec::encode(&Body { task, status })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let host = body.task.map(|task| context.host_pid(task.0));
        let opened = match host {
            Some(Some(host)) => open(record, host).map_err(FileError::system("open", describe(&body)))?,
            // It is another one's place for the moment.
            Some(None) => of_an_ended_one(record, 0, context)?,
            None => of_an_ended_one(record, body.status, context)?,
        };
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
    match body.task {
        Some(task) => format!("process {task}"),
        None => "a process that has ended".to_owned(),
    }
}

fn open(record: &OpenFileRecord, host: Pid) -> Result<OwnedFd, Errno> {
    if record.flags & PIDFD_THREAD as u32 == 0 {
        pidfd_open(host)
    } else {
        pidfd_of_thread(host)
    }
}

/// One that has ended is like another that ended so; nobody but who is in its PID namespace is told how.
fn of_an_ended_one(record: &OpenFileRecord, status: i32, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let error = |source| FileError::System {
        action: "have a process end that stands for",
        object: format!("open file {}", record.id),
        source,
    };
    let make = || {
        let child = fork::ended(status)?;
        let opened = open(record, Pid::new(child.as_raw()));
        while let Err(Errno::EINTR) = waitpid(child, None) {}
        Ok(opened?)
    };
    let (_, inside) = context.puppets.first_key_value().ok_or_else(|| FileError::Unknown {
        id: record.id,
        what: "there is no process".to_owned(),
    })?;
    run_inside(inside.tid(), CloneFlags::CLONE_NEWPID, make).map_err(|source| error(io::Error::other(source)))
}

/// Puts descriptors of threads, which are there by now, in their places. `known` are host ids of all that have been there
/// before, `threads` those of the others.
///
/// # Errors
/// [`FileError`].
pub fn place(
    files: &[OpenFileRecord],
    holders: &Holders<'_>,
    (known, threads): (impl Fn(i32) -> bool, &HashMap<i32, Pid>),
) -> Result<(), FileError> {
    for record in files.iter().filter(|record| record.kind == NAME) {
        let body: Body = decode(record)?;
        let Some(task) = body.task.filter(|task| !known(task.0)) else {
            continue;
        };
        let host = threads.get(&task.0).ok_or_else(|| FileError::Unknown {
            id: record.id,
            what: format!("it stands for task {task}, which the image lacks"),
        })?;
        let opened = open(record, *host).map_err(FileError::system("open", describe(&body)))?;
        set_status(opened.as_fd(), record)?;
        for ((pid, number), close_on_exec) in holders.all(record.id) {
            let mut script = Script::new(holders.puppet(pid)?);
            let landed = holders.channel.give(&mut script, &[opened.as_fd()])?[0] as u64;
            let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
            let arguments = [landed, number as u64, flags as u64];
            script.call("place the descriptor of a thread", libc::SYS_dup3, &arguments)?;
            script.call("close its other number", libc::SYS_close, &[landed])?;
            script.run()?;
        }
    }
    Ok(())
}
