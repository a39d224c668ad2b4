//! Whether the records of an image fit together: ids that are referred to exist, ranges are sorted and aligned, the
//! process tree is one. Restore relies on all of this.

use crate::{
    Image,
    chunk::PAGE_BYTES,
    record::{AddressSpaceRecord, ContentOwner, PageMapRecord, ProcessRecord, ProcessState, VmaSource},
};
use std::collections::{HashMap, HashSet};

const PAGE: u64 = PAGE_BYTES as u64;
/// The end of user addresses on x86-64 with four levels of page tables.
const HIGHEST: u64 = 1 << 47;
/// Bytes of the general registers' block.
const GENERAL_BYTES: usize = 27 * 8;
const SIGNAL_ACTIONS: usize = 64;
const LIMITS: usize = 16;
const SIGINFO_BYTES: usize = 128;
const HIGHEST_PID: i32 = 1 << 22;

type Finding = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Finding {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks everything; the error says what is wrong.
pub(crate) fn check(image: &Image) -> Finding {
    ids("mapped file", image.mapped_files().iter().map(|record| record.id))?;
    ids("shared memory object", image.shmems().iter().map(|record| record.id))?;
    ids("deleted file", image.ghosts().iter().map(|record| record.id))?;
    ids("open file", image.open_files().iter().map(|record| record.id))?;
    processes(image)?;
    let living: HashSet<i32> = image
        .processes()
        .iter()
        .filter(|p| is_living(p))
        .map(|p| p.pid.0)
        .collect();
    address_spaces(image, &living)?;
    tables(image, &living)?;
    page_maps(image, &living)
}

fn is_living(process: &ProcessRecord) -> bool {
    !matches!(process.state, ProcessState::Zombie { .. })
}

fn ids(what: &str, ids: impl Iterator<Item = u32>) -> Finding {
    for (position, id) in ids.enumerate() {
        ensure(id as usize == position, || {
            format!("{what} {id} stands at position {position}")
        })?;
    }
    Ok(())
}

fn processes(image: &Image) -> Finding {
    let mut seen = HashSet::new();
    let mut parents = HashMap::new();
    for process in image.processes() {
        let pid = process.pid.0;
        for id in process.threads.iter().map(|thread| thread.tid.0) {
            ensure((1..HIGHEST_PID).contains(&id) && seen.insert(id), || {
                format!("task {id} is there twice or impossible")
            })?;
        }
        ensure(
            process.threads.first().is_some_and(|thread| thread.tid == process.pid),
            || format!("process {pid} has no leading thread"),
        )?;
        ensure(process.pgid.0 > 0 && process.sid.0 > 0, || {
            format!("process {pid} has no group or session")
        })?;
        parents.insert(pid, process.ppid.0);
        if is_living(process) {
            living(image, process)?;
        } else {
            ensure(process.threads.len() == 1, || format!("zombie {pid} has threads"))?;
        }
    }
    let roots = parents.values().filter(|parent| **parent == 0).count();
    ensure(roots == 1, || format!("{roots} processes have no parent, one must"))?;
    ensure(!image.sandbox().has_init || parents.get(&1) == Some(&0), || {
        "PID 1 is not the root".to_owned()
    })?;
    for (pid, parent) in &parents {
        ensure(*parent == 0 || parents.contains_key(parent), || {
            format!("the parent {parent} of process {pid} is missing")
        })?;
    }
    no_cycles(&parents)
}

fn no_cycles(parents: &HashMap<i32, i32>) -> Finding {
    let mut fine: HashSet<i32> = HashSet::from([0]);
    for start in parents.keys() {
        let mut path = Vec::new();
        let mut at = *start;
        while !fine.contains(&at) {
            path.push(at);
            ensure(path.len() <= parents.len(), || {
                format!("process {start} is its own ancestor")
            })?;
            at = parents.get(&at).copied().unwrap_or(0);
        }
        fine.extend(path);
    }
    Ok(())
}

fn living(image: &Image, process: &ProcessRecord) -> Finding {
    let pid = process.pid;
    ensure(process.actions.len() == SIGNAL_ACTIONS, || {
        format!("process {pid} has not {SIGNAL_ACTIONS} signal actions")
    })?;
    ensure(process.limits.len() == LIMITS, || {
        format!("process {pid} has not {LIMITS} limits")
    })?;
    for thread in &process.threads {
        let tid = thread.tid;
        let registers = &thread.registers;
        ensure(
            registers.general.len() == GENERAL_BYTES && registers.extended.len() == image.header().xstate_size as usize,
            || format!("the registers of task {tid} have an impossible size"),
        )?;
        let infos = thread.pending.iter().chain(&process.pending);
        ensure(infos.clone().all(|info| info.len() == SIGINFO_BYTES), || {
            format!("a pending signal of task {tid} has an impossible size")
        })?;
        ensure(thread.comm.len() < 16, || format!("the name of task {tid} is too long"))?;
    }
    Ok(())
}

fn address_spaces(image: &Image, living: &HashSet<i32>) -> Finding {
    let mut seen = HashSet::new();
    for space in image.address_spaces() {
        let pid = space.pid;
        ensure(living.contains(&pid.0) && seen.insert(pid), || {
            format!("a second or nobody's address space: {pid}")
        })?;
        ensure((space.exe as usize) < image.mapped_files().len(), || {
            format!("process {pid} has no executable")
        })?;
        ensure(space.auxv.len() <= 1024, || {
            format!("the auxiliary vector of process {pid} is too long")
        })?;
        vmas(image, space)?;
    }
    ensure(seen.len() == living.len(), || {
        "a living process has no address space".to_owned()
    })?;
    for file in image.mapped_files() {
        let ghost = file.ghost.is_none_or(|id| (id as usize) < image.ghosts().len());
        ensure(ghost, || {
            format!("mapped file {} refers to a deleted file that is not there", file.id)
        })?;
    }
    Ok(())
}

fn vmas(image: &Image, space: &AddressSpaceRecord) -> Finding {
    let mut last = 0;
    for vma in &space.vmas {
        let place = || format!("mapping {:x}-{:x} of process {}", vma.start, vma.end, space.pid);
        let fits = vma.start >= last && vma.start < vma.end && vma.end <= HIGHEST;
        ensure(fits && vma.start % PAGE == 0 && vma.end % PAGE == 0, || {
            format!("{} is out of place", place())
        })?;
        last = vma.end;
        let known = match &vma.source {
            VmaSource::File { file, .. } => (*file as usize) < image.mapped_files().len(),
            VmaSource::Shmem { object, .. } => (*object as usize) < image.shmems().len(),
            VmaSource::Anonymous | VmaSource::Special { .. } => true,
        };
        ensure(known && vma.prot < 8, || {
            format!("{} maps something that is not there", place())
        })?;
    }
    Ok(())
}

fn tables(image: &Image, living: &HashSet<i32>) -> Finding {
    let mut seen = HashSet::new();
    for table in image.descriptor_tables() {
        let pid = table.pid;
        ensure(living.contains(&pid.0) && seen.insert(pid), || {
            format!("a second or nobody's descriptor table: {pid}")
        })?;
        let mut last = -1;
        for descriptor in &table.descriptors {
            let number = descriptor.number;
            ensure(number > last, || {
                format!("descriptor {number} of process {pid} is out of order")
            })?;
            last = number;
            ensure((descriptor.file as usize) < image.open_files().len(), || {
                format!("descriptor {number} of process {pid} refers to a file that is not there")
            })?;
        }
    }
    Ok(())
}

fn page_maps(image: &Image, living: &HashSet<i32>) -> Finding {
    let stored = image.stored_pages();
    let mut seen = HashSet::new();
    for map in image.page_maps() {
        ensure(seen.insert(map.owner), || format!("{:?} has two page maps", map.owner))?;
        let end = match map.owner {
            ContentOwner::Process(pid) if living.contains(&pid.0) => HIGHEST,
            ContentOwner::Shmem(id) => image
                .shmems()
                .get(id as usize)
                .map_or(0, |r| r.size.div_ceil(PAGE) * PAGE),
            ContentOwner::Ghost(id) => image
                .ghosts()
                .get(id as usize)
                .map_or(0, |r| r.size.div_ceil(PAGE) * PAGE),
            ContentOwner::Process(_) => 0,
        };
        runs(map, end, stored)?;
    }
    Ok(())
}

fn runs(map: &PageMapRecord, end: u64, stored: u64) -> Finding {
    let wrong = |what: &str| format!("the page map of {:?}: {what}", map.owner);
    let mut last = 0;
    for run in &map.runs {
        let bytes = run.pages.checked_mul(PAGE).ok_or_else(|| wrong("a run is too long"))?;
        let behind = run.start.checked_add(bytes).ok_or_else(|| wrong("a run is too long"))?;
        ensure(
            run.start >= last && run.start % PAGE == 0 && run.pages > 0 && behind <= end,
            || wrong("a run is out of place"),
        )?;
        let pages = run
            .first
            .0
            .checked_add(run.pages)
            .ok_or_else(|| wrong("a run is too long"))?;
        ensure(pages <= stored, || wrong("a run refers to pages that are not stored"))?;
        last = behind;
    }
    Ok(())
}
