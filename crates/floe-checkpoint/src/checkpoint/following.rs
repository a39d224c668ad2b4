//! What a tree wrote since an image was made of it, where that is followed: by userfaultfds that the sandbox's monitor
//! keeps from one checkpoint to the next ([`Tracker`]).
//!
//! ```text
//! ask the monitor ─► recognise (mappings that are followed, what was written) ─► … ─► forget, mark anew ─► hand to the monitor
//! ```
//! What the monitor keeps is told to be of one image. That it is forgotten before pages are marked anew, and handed over
//! when the new image has its name, makes a killed floe harmless: then nothing is known, and memory is compared.

use super::seize::HeldTree;
use floe_image::record::ImageId;
use floe_resources::{
    mm::{FOLLOWED_FLAG, Seen, TrackError, Tracker},
    task::HeldProcess,
};
use floe_sandbox::{AttachError, KeptFiles, MOST_KEPT};
use floe_sys::{Pid, procfs::Mapping};
use std::{
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
    pub fn recognise(&mut self, held: &mut HeldTree) {
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
        let forgotten = folder.map(|folder| KeptFiles::default().hand(folder));
        match forgotten {
            Some(Ok(())) => {}
            Some(Err(error)) => return vec![format!("the tree: {}", told(&error))],
            None => return vec!["the tree: there is no monitor to keep what it takes".to_owned()],
        }
        for process in held.tree.living() {
            // Others have their parent's memory.
            if !owners.contains(&process.ns_pid) {
                continue;
            }
            let key = (process.pid, process.stat.starttime);
            let begun = if self.processes.len() == MOST_KEPT {
                Err(format!("a monitor keeps no more than {MOST_KEPT} userfaultfds"))
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
        let file = |((pid, began), tracker): (&(Pid, u64), &Tracker)| {
            let file = tracker.file().try_clone_to_owned().map_err(|error| {
                AttachError::Talk(nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()))
            })?;
            Ok((note(*pid, *began), file))
        };
        let files: Result<Vec<_>, AttachError> = self.processes.iter().map(file).collect();
        let note = image.0.to_vec();
        KeptFiles { note, files: files? }.hand(folder)
    }
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
