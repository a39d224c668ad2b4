//! Processes and their threads: include/linux/sched.h.

use super::KernelMemory;
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
    let ids = |task| memory.member("task_struct", task, "thread_pid");
    let level = memory.number("pid", ids(own)?, "level")?;
    let first = memory.types.offset("pid", "numbers")?;
    // struct upid: the number and the namespace.
    let numbers = first + 16 * u64::from(level);
    let namespace = memory.member("upid", ids(own)? + numbers, "ns")?;
    let node = memory.types.offset("task_struct", "tasks")?;
    let mut found = HashMap::new();
    let mut task = own;
    for _ in 0..MOST_PROCESSES {
        let id = ids(task)?;
        // The list begins with the idle task, and passes tasks that are just ending.
        if id != 0 && memory.number("pid", id, "level")? >= level {
            let place = id + numbers;
            if memory.member("upid", place, "ns")? == namespace {
                found.insert(memory.number("upid", place, "nr")? as i32, task);
            }
        }
        task = memory.word(task + node)?.wrapping_sub(node);
        if task == own {
            return Ok(found);
        }
    }
    Err(Errno::ESRCH.into())
}

/// What a member that points to something points to, each once: of all threads of a process.
pub(super) fn of_threads(memory: &KernelMemory, leader: u64, member: &str) -> io::Result<BTreeSet<u64>> {
    let signal = memory.member("task_struct", leader, "signal")?;
    let head = signal + memory.types.offset("signal_struct", "thread_head")?;
    let node = memory.types.offset("task_struct", "thread_node")?;
    let mut found = BTreeSet::new();
    let mut thread = memory.word(head)?;
    for _ in 0..MOST_PROCESSES {
        if thread == head {
            found.remove(&0);
            return Ok(found);
        }
        found.insert(memory.member("task_struct", thread.wrapping_sub(node), member)?);
        thread = memory.word(thread)?;
    }
    Err(Errno::ESRCH.into())
}
