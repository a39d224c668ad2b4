//! Adjustments of System V semaphores at a process's end (SEM_UNDO): ipc/sem.c.

use super::{KernelMemory, tasks};
use crate::Pid;
use std::{
    collections::{HashMap, HashSet},
    io,
};

const STRUCTURES: [&str; 2] = ["sem_undo_list", "sem_undo"];

/// The adjustments of some processes: by set, and for each of its semaphores.
pub type Adjustments = Vec<(i32, Vec<i16>)>;

/// A process has an adjustment for no more sets than there can be: IPCMNI_EXTEND.
const MOST_SETS: usize = 1 << 24;

/// The adjustments of some threads of each of `processes`, which stand still, in their order. `semaphores` tells how many each
/// of the IPC namespace's sets has.
///
/// # Errors
/// Those of [`aio_contexts`](super::aio_contexts).
pub fn semaphore_adjustments(
    processes: &[(Pid, &[Pid])],
    semaphores: &HashMap<i32, usize>,
) -> io::Result<Vec<Adjustments>> {
    let memory = KernelMemory::open(&[&STRUCTURES[..], &tasks::STRUCTURES].concat())?;
    let all = tasks::all(&memory)?;
    let mut seen = HashSet::new();
    let of = |(pid, threads): &(Pid, &[Pid])| {
        let leader = *all.get(&pid.raw()).ok_or(io::ErrorKind::NotFound)?;
        // struct sysv_sem: a pointer, and no more.
        let lists = tasks::of_some_threads(&memory, leader, threads, "sysvsem")?;
        let lists: Vec<u64> = lists.into_iter().collect();
        match lists[..] {
            [] => Ok(Vec::new()),
            [list] if seen.insert(list) => read(&memory, list, semaphores),
            [_] => Err(io::Error::other("two tasks share theirs (CLONE_SYSVSEM)")),
            _ => Err(io::Error::other(
                "threads have some apart from each other (CLONE_SYSVSEM)",
            )),
        }
    };
    processes.iter().map(of).collect()
}

fn read(memory: &KernelMemory, list: u64, semaphores: &HashMap<i32, usize>) -> io::Result<Adjustments> {
    let head = list + memory.types.offset("sem_undo_list", "list_proc")?;
    let node = memory.types.offset("sem_undo", "list_proc")?;
    let mut found = Vec::new();
    let mut place = memory.word(head)?;
    for _ in 0..MOST_SETS {
        if place == head {
            return Ok(found);
        }
        let undo = place.wrapping_sub(node);
        let set = memory.number("sem_undo", undo, "semid")? as i32;
        // Of a set that was removed there is a rest, which says -1.
        if let Some(count) = semaphores.get(&set) {
            // A pointer, and later a part of the structure.
            let first = if memory.types.is_array("sem_undo", "semadj")? {
                undo + memory.types.offset("sem_undo", "semadj")?
            } else {
                memory.member("sem_undo", undo, "semadj")?
            };
            found.push((set, numbers(memory, first, *count)?));
        }
        place = memory.word(place)?;
    }
    Err(io::Error::other("the kernel's list of adjustments has no end"))
}

/// Numbers of two bytes.
fn numbers(memory: &KernelMemory, first: u64, count: usize) -> io::Result<Vec<i16>> {
    let bytes = memory.bytes(first, 2 * count)?;
    let pairs = bytes.chunks_exact(2).map(|pair| i16::from_ne_bytes([pair[0], pair[1]]));
    Ok(pairs.collect())
}
