//! Pipes whose other end somebody outside of the tree holds: those can't be carried, for that end would stay behind.

use super::super::{FileError, FoundFile, outside::who_holds};
use super::ByIdentity;
use super::contents::OwnPipes;
use crate::{
    mm::FileIdentity,
    refusal::{Refusals, Subject},
};
use floe_sys::{
    Pid,
    descriptor::{pidfd_getfd, pidfd_open},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
};

#[derive(Debug)]
struct FoundPipe {
    subject: Subject,
    title: String,
    link: Vec<u8>,
    read: bool,
    write: bool,
    has_contents: bool,
    /// Task and number of the end that was seen first. There may be more pipes than floe may have files open.
    end: (Pid, i32),
}

/// The pipes and fifos of the tree.
#[derive(Debug, Default)]
pub struct FoundPipes {
    numbers: ByIdentity,
    pipes: Vec<FoundPipe>,
    /// What they are looked at through.
    pub own: OwnPipes,
}

impl FoundPipes {
    /// Notes an end; returns the pipe's number and whether it is new.
    pub fn note(&mut self, file: &FoundFile) -> (u32, bool) {
        let identity: FileIdentity = file.identity();
        let next = self.pipes.len() as u32;
        let id = *self.numbers.entry(identity).or_insert(next);
        if id == next {
            self.pipes.push(FoundPipe {
                subject: file.subject.clone(),
                title: file.title(),
                link: file.link.clone(),
                read: false,
                write: false,
                has_contents: false,
                end: (file.holder, file.number),
            });
        }
        let mode = file.flags() as i32 & libc::O_ACCMODE;
        let pipe = &mut self.pipes[id as usize];
        pipe.read |= mode != libc::O_WRONLY;
        pipe.write |= mode != libc::O_RDONLY;
        (id, id == next)
    }

    pub fn has_contents(&self, id: u32) -> bool {
        self.pipes[id as usize].has_contents
    }

    pub fn set_has_contents(&mut self, id: u32) {
        self.pipes[id as usize].has_contents = true;
    }

    /// Refuses pipes that have an end outside of the processes `inside`.
    pub fn refuse_outside_ends(
        &self,
        inside: &HashSet<Pid>,
        search_all: bool,
        refusals: &mut Refusals,
    ) -> Result<(), FileError> {
        let mut suspects: HashMap<Vec<u8>, bool> = HashMap::new();
        for pipe in &self.pipes {
            let other_end = match pipe.read && pipe.write {
                true => OtherEnd::Closed,
                false => OtherEnd::look(pipe)?,
            };
            if other_end != OtherEnd::Closed || search_all {
                suspects.insert(pipe.link.clone(), other_end == OtherEnd::Open);
            }
        }
        if suspects.is_empty() {
            return Ok(());
        }
        let holders = who_holds(&suspects, inside);
        for pipe in &self.pipes {
            let holder = holders.get(&pipe.link);
            if suspects.get(&pipe.link) == Some(&true) || holder.is_some() {
                let who = holder.map_or("a process floe can't see".to_owned(), |(pid, name)| {
                    format!("{name} ({pid})")
                });
                refusals.add(
                    Some(&pipe.subject),
                    pipe.title.clone(),
                    format!("an end of this pipe is held outside of the tree, by {who}"),
                    format!(
                        "end that process, start the workload with its streams in files (or by floe run), or give another \
                         one when it is restored (--external {}=NAME)",
                        String::from_utf8_lossy(&pipe.link)
                    ),
                );
            }
        }
        Ok(())
    }
}

/// Whether anybody has the end of a pipe of which the tree has the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherEnd {
    Closed,
    Open,
    /// A reader of a fifo that never had a writer looks like one that has a writer who is silent.
    Unknown,
}

impl OtherEnd {
    fn look(pipe: &FoundPipe) -> Result<Self, FileError> {
        let (holder, number) = pipe.end;
        let system = |action| FileError::system(action, pipe.title.clone());
        let pidfd = pidfd_open(holder).map_err(system("open a pidfd to fetch"))?;
        let end = pidfd_getfd(pidfd.as_fd(), number).map_err(system("fetch"))?;
        if hung_up(end.as_fd(), &pipe.title)? {
            return Ok(Self::Closed);
        }
        let is_fifo = !pipe.link.starts_with(b"pipe:");
        Ok(if pipe.read && is_fifo {
            Self::Unknown
        } else {
            Self::Open
        })
    }
}

/// Whether poll(2) says of an end that the other one is closed.
pub fn hung_up(end: BorrowedFd<'_>, title: &str) -> Result<bool, FileError> {
    let mut ask = [PollFd::new(end, PollFlags::empty())];
    poll(&mut ask, PollTimeout::ZERO).map_err(FileError::system("poll", title))?;
    let events = ask[0].revents().unwrap_or(PollFlags::empty());
    Ok(events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}
