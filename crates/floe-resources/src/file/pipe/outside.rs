//! Pipes whose other end somebody outside of the tree holds: those can't be carried, for that end would stay behind.

use super::super::{FileError, FoundFile, comm};
use super::ByIdentity;
use crate::{
    mm::FileIdentity,
    refusal::{Refusals, Subject},
};
use floe_sys::Pid;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

#[derive(Debug)]
struct FoundPipe {
    subject: Subject,
    title: String,
    link: Vec<u8>,
    read: bool,
    write: bool,
    has_contents: bool,
    /// A duplicate of one end, where only one kind of end was seen.
    end: Option<OwnedFd>,
}

/// The pipes and fifos of the tree.
#[derive(Debug, Default)]
pub struct FoundPipes {
    numbers: ByIdentity,
    pipes: Vec<FoundPipe>,
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
                end: file.duplicate().ok(),
            });
        }
        let mode = file.flags() as i32 & libc::O_ACCMODE;
        let pipe = &mut self.pipes[id as usize];
        pipe.read |= mode != libc::O_WRONLY;
        pipe.write |= mode != libc::O_RDONLY;
        if pipe.read && pipe.write {
            pipe.end = None;
        }
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
        &mut self,
        inside: &HashSet<Pid>,
        search_all: bool,
        refusals: &mut Refusals,
    ) -> Result<(), FileError> {
        let mut suspects: HashMap<Vec<u8>, bool> = HashMap::new();
        for pipe in &self.pipes {
            let open_elsewhere = !(pipe.read && pipe.write) && other_end_is_open(pipe)?;
            if open_elsewhere || search_all {
                suspects.insert(pipe.link.clone(), open_elsewhere);
            }
        }
        // The duplicates floe holds must not be taken for somebody's ends.
        self.pipes.iter_mut().for_each(|pipe| pipe.end = None);
        if suspects.is_empty() {
            return Ok(());
        }
        let holders = holders_outside(&suspects, inside);
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
                    "end that process, or start the workload with its streams in files (or by floe run)",
                );
            }
        }
        Ok(())
    }
}

fn other_end_is_open(pipe: &FoundPipe) -> Result<bool, FileError> {
    let Some(end) = &pipe.end else { return Ok(false) };
    let (ask, gone) = if pipe.read {
        (PollFlags::POLLIN, PollFlags::POLLHUP)
    } else {
        (PollFlags::POLLOUT, PollFlags::POLLERR)
    };
    let mut ask = [PollFd::new(end.as_fd(), ask)];
    poll(&mut ask, PollTimeout::ZERO).map_err(FileError::system("poll", pipe.title.clone()))?;
    Ok(!ask[0].revents().unwrap_or(PollFlags::empty()).contains(gone))
}

fn holders_outside(suspects: &HashMap<Vec<u8>, bool>, inside: &HashSet<Pid>) -> HashMap<Vec<u8>, (Pid, String)> {
    use std::os::unix::ffi::OsStrExt;
    let mut found = HashMap::new();
    let own = Pid::new(std::process::id() as i32);
    let Ok(processes) = Path::new("/proc").read_dir() else {
        return found;
    };
    let pids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::new);
    for pid in pids.filter(|pid| *pid != own && !inside.contains(pid)) {
        // Processes come and go while this runs; one that is gone holds nothing.
        let Ok(descriptors) = Path::new(&format!("/proc/{pid}/fd")).read_dir() else {
            continue;
        };
        for target in descriptors
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        {
            let link = target.as_os_str().as_bytes();
            if suspects.contains_key(link) {
                found.entry(link.to_vec()).or_insert_with(|| (pid, comm(pid)));
            }
        }
    }
    found
}
