//! Compares what was built with the image before the first instruction runs.
//!
//! A thread is compared as soon as it is complete, by a thread of floe's own, while others are still being made; the
//! relations of processes to each other when the tree stands frozen. All is read from outside, mostly from /proc.

mod descriptors;
mod memory;
mod namespaces;
mod task;

use super::{RestoreError, contents::MadeContents, files::terminal_of_init};
use floe_image::{
    Image, Numbering,
    record::{NsPid, ProcessRecord, ProcessState},
};
use floe_resources::ns::Roots;
use floe_sys::{
    Pid,
    procfs::{self, ProcError, Status},
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::mpsc::Receiver,
};

/// A thread that is complete.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// Its process.
    pub process: &'a ProcessRecord,
    /// Its position in that one's list; with the first one the process is complete too.
    pub thread: usize,
    /// Its id in floe's namespace.
    pub tid: Pid,
    /// Whether no other process that has the same descriptors is to come.
    pub completes_table: bool,
}

/// What differs.
#[derive(Debug, Default)]
pub struct Differences(Vec<String>);

impl Differences {
    /// Notes it if something is not what it should be.
    fn note<T: PartialEq + Debug>(&mut self, whose: impl Debug, what: &str, is: &T, should: &T) {
        if is != should {
            self.add(format!("{whose:?}: {what} is {is:?}, should be {should:?}"));
        }
    }

    fn add(&mut self, text: String) {
        self.0.push(text);
    }

    /// Notes these.
    pub fn extend(&mut self, texts: Vec<String>) {
        self.0.extend(texts);
    }

    fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// An error where something differs.
    ///
    /// # Errors
    /// [`RestoreError::Differs`].
    pub fn into_result(self) -> Result<(), RestoreError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(RestoreError::Differs(self.0))
        }
    }
}

/// How differences name a process.
struct Process(NsPid);

impl Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}", self.0)
    }
}

/// How differences name a thread.
struct Thread(NsPid);

impl Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "thread {}", self.0)
    }
}

/// What is compared with: the image, and files and directories of the sandbox.
pub struct Original<'a> {
    /// The image.
    image: &'a Image,
    made: &'a MadeContents,
    roots: &'a Roots,
    spaces: HashMap<i32, usize>,
    tables: HashMap<i32, usize>,
    levels: Levels,
}

/// What a task is called from the tree's PID namespace down to its own.
#[derive(PartialEq)]
struct Ids(Vec<i32>);

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<String> = self.0.iter().map(i32::to_string).collect();
        f.write_str(&words.join(" "))
    }
}

/// How many levels of PID namespaces are above the tree's.
#[derive(Debug, Clone, Copy)]
struct Levels(usize);

impl Levels {
    fn find() -> Result<Self, ProcError> {
        Ok(Self(Status::read("/proc/self")?.ns_pid.len()))
    }

    /// Of ids on all levels those from the tree's on.
    fn inside(self, ids: &[i32]) -> &[i32] {
        ids.get(self.0..).unwrap_or_default()
    }
}

impl<'a> Original<'a> {
    /// That of a restore.
    ///
    /// # Errors
    /// [`ProcError`] of floe's own files.
    pub fn new(image: &'a Image, made: &'a MadeContents, roots: &'a Roots) -> Result<Self, ProcError> {
        let spaces = image.address_spaces().iter().map(|space| space.pid.0);
        let tables = image.descriptor_tables().iter().map(|table| table.pid.0);
        let by_owner: HashMap<i32, usize> = tables.zip(0..).collect();
        let owners = image.owners(libc::CLONE_FILES as u32).into_iter();
        Ok(Self {
            image,
            made,
            roots,
            spaces: spaces.zip(0..).collect(),
            tables: owners
                .filter_map(|(pid, owner)| Some((pid, *by_owner.get(&owner)?)))
                .collect(),
            levels: Levels::find()?,
        })
    }

    /// Compares threads as they come, until none is to come any more.
    ///
    /// # Errors
    /// [`ProcError`] where a task can't be looked at.
    pub fn compare(&self, finished: &Receiver<Finished<'_>>) -> Result<Differences, ProcError> {
        let mut differences = Differences::default();
        let mut directories = memory::Directories::default();
        for next in finished {
            let Finished {
                process, thread, tid, ..
            } = next;
            task::thread((process, thread), tid, self.levels, &mut differences)?;
            if thread > 0 {
                continue;
            }
            task::process(process, tid, &mut differences)?;
            if let Some(index) = self.spaces.get(&process.pid.0) {
                let space = &self.image.address_spaces()[*index];
                memory::compare(space, self.made, tid, &mut differences)?;
            }
            directories.compare(process, (self.made, self.roots), tid, &mut differences);
            if !next.completes_table {
                continue;
            }
            let table = self.tables.get(&process.pid.0);
            let table = table.map(|index| &self.image.descriptor_tables()[*index]);
            descriptors::compare(self.image, process, table, tid, &mut differences)?;
        }
        Ok(differences)
    }
}

/// Compares how processes stand to each other, and that each is there: `hosts` are their ids in floe's namespace.
///
/// # Errors
/// [`ProcError`] where one can't be looked at.
pub fn relations(image: &Image, hosts: &BTreeMap<i32, Pid>, differences: &mut Differences) -> Result<(), ProcError> {
    namespaces::compare(image, hosts, differences)?;
    let known = (hosts, &Numbering::of(image), Levels::find()?);
    for record in image.processes() {
        match hosts.get(&record.pid.0) {
            Some(host) => relation(image, (record, *host), known, differences)?,
            None => differences.add(format!("process {} was not made", record.pid)),
        }
    }
    Ok(())
}

fn relation(
    image: &Image,
    (record, host): (&ProcessRecord, Pid),
    (hosts, numbering, levels): (&BTreeMap<i32, Pid>, &Numbering, Levels),
    differences: &mut Differences,
) -> Result<(), ProcError> {
    let stat = procfs::Stat::of(host)?;
    let mut note = |what, is, should| differences.note(Process(record.pid), what, &is, &should);
    let groups = [record.pgid.0, record.sid.0].map(|id| hosts.get(&id));
    if let [Some(group), Some(session)] = groups
        && record.pid_namespace == 0
    {
        note("process group (host)", stat.pgrp, group.raw());
        note("session (host)", stat.session, session.raw());
    } else {
        // Named after a process that is no more, or differently in each namespace.
        let status = Status::read(&format!("/proc/{host}"))?;
        let path = numbering.path(record.pid_namespace).iter();
        let called = |task: i32| -> Vec<i32> {
            let seen = path.clone().map(|namespace| numbering.seen_from(*namespace, task));
            seen.map(|id| id.unwrap_or(0)).collect()
        };
        let inside = |ids: &[i32]| levels.inside(ids).to_vec();
        let mut note = |what, is, should| differences.note(Process(record.pid), what, &Ids(is), &Ids(should));
        note("process group", inside(&status.ns_pgid), called(record.pgid.0));
        note("session", inside(&status.ns_sid), called(record.sid.0));
    }
    let mut note = |what, is, should| differences.note(Process(record.pid), what, &is, &should);
    note("signal at its end", stat.exit_signal, record.exit_signal);
    let parent = if image.sandbox().has_init || record.ppid.0 != 0 {
        record.ppid.0
    } else {
        1
    };
    if let Some(parent) = hosts.get(&parent) {
        note("parent (host)", stat.ppid, parent.raw());
    }
    let is_zombie = matches!(record.state, ProcessState::Zombie { .. });
    let mut note = |what, is: bool, should: bool| differences.note(Process(record.pid), what, &is, &should);
    note("a zombie", stat.state == b'Z', is_zombie);
    if is_zombie {
        return Ok(());
    }
    // Whether it is stopped can't be seen yet: it is on its way from the tracer's stop to its own.
    let mut leaders = image.processes().iter().filter(|leader| leader.pid == record.sid);
    let of_init = record.sid.0 == 1 && terminal_of_init(image).is_some();
    let has_terminal = (of_init || leaders.any(|leader| leader.terminal.is_some())) && !record.no_terminal;
    note("has a controlling terminal", stat.tty_nr != 0, has_terminal);
    Ok(())
}
