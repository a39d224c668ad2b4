//! Processes and their threads: include/linux/sched.h.

use super::KernelMemory;
use crate::Pid;
use nix::errno::Errno;
use std::{
    collections::{BTreeSet, HashMap},
    io,
};

/// What is asked for here.
pub(super) const STRUCTURES: [&str; 4] = ["task_struct", "signal_struct", "pid", "upid"];

/// PID_MAX_LIMIT, linux/threads.h.
const MOST_PROCESSES: u32 = 4 << 20;

/// The `task_struct` of each process, by its id in the caller's PID namespace. Others end while the list is walked, which
/// can lead astray; so it is walked again where it was.
pub(super) fn all(memory: &KernelMemory) -> io::Result<HashMap<i32, u64>> {
    let tries = (0..3).map(|_| walk(memory));
    let mut failure = io::Error::from(Errno::ESRCH);
    for found in tries {
        match found {
            Ok(found) => return Ok(found),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn walk(memory: &KernelMemory) -> io::Result<HashMap<i32, u64>> {
    // First threads are in the list of tasks, the others are not.
    let own = memory.member("task_struct", memory.current_task()?, "group_leader")?;
    let here = Here::find(memory)?;
    let node = memory.types.offset("task_struct", "tasks")?;
    let mut found = HashMap::new();
    let mut task = own;
    for _ in 0..MOST_PROCESSES {
        // The list begins with the idle task, and passes tasks that are just ending.
        let id = memory.member("task_struct", task, "thread_pid")?;
        match here.number(memory, id)? {
            0 => {}
            number => drop(found.insert(number as i32, task)),
        }
        task = memory.word(task + node)?.wrapping_sub(node);
        if task == own {
            return Ok(found);
        }
    }
    Err(Errno::ESRCH.into())
}

/// The number that a `struct pid` has in the caller's PID namespace; 0 where it has none there.
pub(super) fn id_here(memory: &KernelMemory, id: u64) -> io::Result<u32> {
    Here::find(memory)?.number(memory, id)
}

/// The caller's PID namespace.
struct Here {
    level: u32,
    namespace: u64,
}

impl Here {
    fn find(memory: &KernelMemory) -> io::Result<Self> {
        let own = memory.member("task_struct", memory.current_task()?, "thread_pid")?;
        let level = memory.number("pid", own, "level")?;
        let namespace = memory.member("upid", own + numbers(memory, level)?, "ns")?;
        Ok(Self { level, namespace })
    }

    fn number(&self, memory: &KernelMemory, id: u64) -> io::Result<u32> {
        if id == 0 || memory.number("pid", id, "level")? < self.level {
            return Ok(0);
        }
        let place = id + numbers(memory, self.level)?;
        if memory.member("upid", place, "ns")? != self.namespace {
            return Ok(0);
        }
        memory.number("upid", place, "nr")
    }
}

/// Where a `struct pid` has its number of a level: struct upid, the number and the namespace.
fn numbers(memory: &KernelMemory, level: u32) -> io::Result<u64> {
    Ok(memory.types.offset("pid", "numbers")? + 16 * u64::from(level))
}

/// What a member that points to something points to, each once: of all threads of a process.
pub(super) fn of_threads(memory: &KernelMemory, leader: u64, member: &str) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for thread in threads(memory, leader)? {
        found.insert(memory.member("task_struct", thread, member)?);
    }
    found.remove(&0);
    Ok(found)
}

/// The same of those of its threads whose ids are `wanted`.
pub(super) fn of_some_threads(
    memory: &KernelMemory,
    leader: u64,
    wanted: &[Pid],
    member: &str,
) -> io::Result<BTreeSet<u64>> {
    let here = Here::find(memory)?;
    let mut found = BTreeSet::new();
    for thread in threads(memory, leader)? {
        let id = here.number(memory, memory.member("task_struct", thread, "thread_pid")?)?;
        if wanted.contains(&Pid::new(id as i32)) {
            found.insert(memory.member("task_struct", thread, member)?);
        }
    }
    found.remove(&0);
    Ok(found)
}

/// The `task_struct` of each thread of a process.
fn threads(memory: &KernelMemory, leader: u64) -> io::Result<Vec<u64>> {
    let signal = memory.member("task_struct", leader, "signal")?;
    let head = signal + memory.types.offset("signal_struct", "thread_head")?;
    let node = memory.types.offset("task_struct", "thread_node")?;
    let mut found = Vec::new();
    let mut thread = memory.word(head)?;
    for _ in 0..MOST_PROCESSES {
        if thread == head {
            return Ok(found);
        }
        found.push(thread.wrapping_sub(node));
        thread = memory.word(thread)?;
    }
    Err(Errno::ESRCH.into())
}
