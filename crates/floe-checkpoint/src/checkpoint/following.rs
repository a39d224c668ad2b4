//! What a tree wrote since an image was made of it, where that is followed: by userfaultfds that the sandbox's monitor
//! keeps from one checkpoint to the next ([`Tracker`]).
//!
//! ```text
//! ask the monitor ─► recognise (mappings that are followed, what was written) ─► … ─► forget, mark anew ─► hand to the monitor
//! ```
//! What the monitor keeps is told to be of one image. That it is forgotten before pages are marked anew, and handed over
//! when the new image has its name, makes a killed floe harmless: then nothing is known, and memory is compared.

use super::seize::{HeldTree, SeizeError};
use floe_image::record::ImageId;
use floe_resources::{
    mm::{FOLLOWED_FLAG, Seen, TrackError, Tracker},
    refusal::Subject,
    task::HeldProcess,
    tree::FoundProcess,
};
use floe_sandbox::{AttachError, KeptFiles};
use floe_sys::{
    Pid,
    kcmp::{self, Resource},
    procfs::Mapping,
};
use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    ops::Range,
    os::fd::OwnedFd,
    path::Path,
};

/// What is followed of a tree.
#[derive(Default)]
pub(super) struct Following {
    /// The image that was made when all pages were marked.
    since: Option<ImageId>,
    /// By PID, with when each process began, by which it is known from another one of its number.
    processes: HashMap<(Pid, u64), Tracker>,
    /// Mappings of the held tree that are followed, by PID.
    ranges: HashMap<Pid, Vec<Range<u64>>>,
    /// Whether pages were marked anew.
    has_begun: bool,
}

/// A note of a process: its PID, and when it began.
fn note(pid: Pid, began: u64) -> Vec<u8> {
    [&pid.raw().to_le_bytes()[..], &began.to_le_bytes()].concat()
}

fn read_note(note: &[u8]) -> Option<(Pid, u64)> {
    let (pid, began) = note.split_first_chunk()?;
    Some((
        Pid::new(i32::from_le_bytes(*pid)),
        u64::from_le_bytes(began.try_into().ok()?),
    ))
}

impl Following {
    /// What the monitor of the sandbox in `folder` keeps. Where nobody answers nobody follows.
    pub fn ask(folder: &Path) -> Self {
        let kept = KeptFiles::ask(folder).unwrap_or_else(|error| {
            tracing::info!(%error, "nothing is known of what was written");
            KeptFiles::default()
        });
        let resume = |(note, file): (Vec<u8>, OwnedFd)| {
            let (pid, began) = read_note(&note)?;
            Some(((pid, began), Tracker::resume(file)))
        };
        Self {
            since: kept.note.try_into().ok().map(ImageId),
            processes: kept.files.into_iter().filter_map(resume).collect(),
            ranges: HashMap::new(),
            has_begun: false,
        }
    }

    /// Finds which mappings of a held tree are followed, and takes the flag off them that tells so: it is not the program's.
    ///
    /// Where something is followed and nobody knows by which userfaultfd, all is forgotten: what is followed then is not by
    /// floe.
    ///
    /// # Errors
    /// [`SeizeError`].
    pub fn recognise(&mut self, held: &mut HeldTree, folder: Option<&Path>) -> Result<(), SeizeError> {
        self.find_ranges(held);
        let (Some(folder), Some(unknown)) = (folder, self.unknown(held)) else {
            return Ok(());
        };
        tracing::info!(process = %unknown, "its memory is followed, and nobody knows by whom: all that is known is forgotten");
        self.ranges.clear();
        self.processes.clear();
        self.since = None;
        match KeptFiles::forget(folder) {
            Ok(_) => held.read_mappings(),
            Err(error) => {
                tracing::info!(%error, "the monitor keeps what it has");
                Ok(())
            }
        }
    }

    /// A process with memory of its own of which something is followed, not by what is known.
    fn unknown(&self, held: &HeldTree) -> Option<Subject> {
        let known: Vec<Pid> = (held.tree.living())
            .filter(|process| self.ranges.contains_key(&process.pid))
            .map(FoundProcess::task)
            .collect();
        let shares = |task: Pid| known.iter().any(|other| *other != task && share_memory(*other, task));
        held.tree.living().find_map(|process| {
            let mappings = held.mappings.get(&process.task())?;
            let is_followed = mappings.iter().any(|mapping| mapping.has(FOLLOWED_FLAG));
            (is_followed && !shares(process.task())).then(|| process.subject())
        })
    }

    fn find_ranges(&mut self, held: &mut HeldTree) {
        self.ranges.clear();
        for process in held.tree.living() {
            let Some(tracker) = self.processes.get(&(process.pid, process.stat.starttime)) else {
                continue;
            };
            let Some(mappings) = held.mappings.get_mut(&process.task()) else {
                continue;
            };
            let ranges = tracker.followed(mappings);
            for mapping in mappings.iter_mut().filter(|mapping| is_among(mapping, &ranges)) {
                mapping.flags.retain(|flag| flag != FOLLOWED_FLAG);
            }
            self.ranges.insert(process.pid, ranges);
        }
    }

    /// What the processes of a held tree wrote since the image `base` was made, by their numbers in the tree. Of those that
    /// are missing nothing is known.
    pub fn seen(&self, held: &HeldTree, base: ImageId) -> HashMap<i32, Seen> {
        let mut all = HashMap::new();
        if self.since != Some(base) {
            tracing::info!("nobody has followed what was written since the base was made: memory is compared with it");
            return all;
        }
        for process in held.tree.living() {
            let tracker = self.processes.get(&(process.pid, process.stat.starttime));
            let looked = match (tracker, self.ranges.get(&process.pid)) {
                (Some(tracker), Some(ranges)) => tracker.look(process.task(), ranges).map_err(|error| told(&error)),
                _ => Err("nobody follows it".to_owned()),
            };
            match looked {
                Ok(seen) => drop(all.insert(process.ns_pid, seen)),
                Err(why) => tracing::info!(
                    process = %process.subject(), why, "what it wrote is not known: its memory is compared"
                ),
            }
        }
        all
    }

    /// Follows all processes of a held tree that are `owners` of their memory from now on, and forgets what was known.
    /// Processes that can't be followed are told, and why: what they write is not known then, and nothing else comes of it.
    pub fn begin(&mut self, held: &HeldTree, owners: &HashSet<i32>, folder: Option<&Path>) -> Vec<String> {
        self.has_begun = true;
        let mut before = std::mem::take(&mut self.processes);
        let mut not_followed = Vec::new();
        let room = match folder.map(KeptFiles::forget) {
            Some(Ok(room)) => room,
            Some(Err(error)) => return vec![format!("the tree: {}", told(&error))],
            None => return vec!["the tree: there is no monitor to keep what it takes".to_owned()],
        };
        for process in held.tree.living() {
            // Others have their parent's memory.
            if !owners.contains(&process.ns_pid) {
                continue;
            }
            let key = (process.pid, process.stat.starttime);
            let begun = if self.processes.len() >= room {
                Err(format!("the monitor keeps no more than {room} userfaultfds"))
            } else {
                let ranges = self.ranges.get(&process.pid).map_or(&[][..], Vec::as_slice);
                mark_all(&held.process(process), before.remove(&key), ranges).map_err(|error| told(&error))
            };
            match begun {
                Ok(tracker) => drop(self.processes.insert(key, tracker)),
                Err(why) => not_followed.push(format!("{}: {why}", process.subject())),
            }
        }
        not_followed
    }

    /// Gives what has begun into the monitor's care, as what is written since `image` was made; why not, where that fails.
    pub fn hand(self, image: ImageId, folder: Option<&Path>) -> Option<String> {
        let folder = folder.filter(|_| self.has_begun)?;
        let handed = self.hand_to(image, folder);
        handed.err().map(|error| format!("the tree: {}", told(&error)))
    }

    fn hand_to(self, image: ImageId, folder: &Path) -> Result<(), AttachError> {
        let files = self.processes.iter();
        let files = files.map(|((pid, began), tracker)| (note(*pid, *began), tracker.file()));
        KeptFiles::hand(folder, &image.0, files).map(drop)
    }
}

fn share_memory(first: Pid, second: Pid) -> bool {
    kcmp::compare(Resource::Memory, (first, 0), (second, 0)).is_ok_and(Ordering::is_eq)
}

fn is_among(mapping: &Mapping, ranges: &[Range<u64>]) -> bool {
    ranges.binary_search_by_key(&mapping.start, |range| range.start).is_ok()
}

/// Follows a process and marks all its pages. What was `followed` before keeps its marks.
fn mark_all(held: &HeldProcess<'_>, before: Option<Tracker>, followed: &[Range<u64>]) -> Result<Tracker, TrackError> {
    // One that has executed something since has another address space.
    let tracker = match before.filter(|_| !followed.is_empty()) {
        Some(tracker) => tracker,
        None => Tracker::start(held)?,
    };
    let mut mappings = held.mappings.to_vec();
    for mapping in mappings.iter_mut().filter(|mapping| is_among(mapping, followed)) {
        mapping.flags.push(*FOLLOWED_FLAG);
    }
    let task = held.found.task();
    tracker.next_round(task, &tracker.follow(task, &mappings)?)?;
    Ok(tracker)
}

/// An error with its causes, in a line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
