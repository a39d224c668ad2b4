//! Contexts of asynchronous I/O, io_setup(2): fs/aio.c.

use super::KernelMemory;
use crate::Pid;
use nix::errno::Errno;
use std::{
    io,
    time::{Duration, Instant},
};

/// A context, whose ring is mapped in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AioContext {
    /// Where its ring is mapped, which is its id too.
    pub address: u64,
    /// How many requests were asked for.
    pub most: u32,
    /// How many are under way: submitted, and neither ended nor in the ring.
    pub under_way: u32,
}

const STRUCTURES: [&str; 8] = [
    "task_struct",
    "signal_struct",
    "pid",
    "upid",
    "mm_struct",
    "kioctx_table",
    "kioctx",
    "kioctx_cpu",
];

/// The contexts of a process that stands still, so that its requests can only end. Where some are under way, they are
/// looked at again and again until none is, or `patience` has passed.
///
/// # Errors
/// EPERM for who may not load programs of bpf(2), or where the kernel is locked down; ENOSYS, EINVAL, ENOENT where it
/// knows no such programs, or tells no types; ESRCH.
pub fn aio_contexts(pid: Pid, patience: Duration) -> io::Result<Vec<AioContext>> {
    let memory = KernelMemory::open(&STRUCTURES)?;
    let space = address_space(&memory, pid)?;
    let table = memory.member("mm_struct", space, "ioctx_table")?;
    if table == 0 {
        return Ok(Vec::new());
    }
    let processors = memory.processors()?;
    let count = memory.number("kioctx_table", table, "nr")?;
    let first = table + memory.types.offset("kioctx_table", "table")?;
    let mut contexts = Vec::new();
    for place in 0..u64::from(count) {
        contexts.push(memory.word(first + 8 * place)?);
    }
    contexts.retain(|context| *context != 0);
    let end = Instant::now() + patience;
    loop {
        let look = |context: &u64| look_at(&memory, *context, &processors);
        let found: Vec<AioContext> = contexts.iter().map(look).collect::<io::Result<_>>()?;
        if found.iter().all(|context| context.under_way == 0) || Instant::now() >= end {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn look_at(memory: &KernelMemory, context: u64, processors: &[u64]) -> io::Result<AioContext> {
    let number = |member| memory.number("kioctx", context, member);
    let mut free = number("reqs_available")?;
    let own = memory.member("kioctx", context, "cpu")?;
    for distance in processors {
        let place = own.wrapping_add(*distance);
        free = free.wrapping_add(memory.number("kioctx_cpu", place, "reqs_available")?);
    }
    // Places in the ring are free, taken by a request, or by an event that has not been noticed to be taken out.
    let all = number("nr_events")?.wrapping_sub(1);
    let under_way = all.wrapping_sub(free).wrapping_sub(number("completed_events")?);
    Ok(AioContext {
        address: memory.member("kioctx", context, "user_id")?,
        most: number("max_reqs")?,
        under_way,
    })
}

/// The `mm_struct` of a process, whose first thread may have ended.
fn address_space(memory: &KernelMemory, pid: Pid) -> io::Result<u64> {
    // Processes of the host end while the list is walked, which can lead astray.
    let tries = (0..3).map(|_| find(memory, pid));
    let found = tries.into_iter().find_map(Result::ok);
    let leader = found.ok_or(Errno::ESRCH)?;
    let signal = memory.member("task_struct", leader, "signal")?;
    let head = signal + memory.types.offset("signal_struct", "thread_head")?;
    let node = memory.types.offset("task_struct", "thread_node")?;
    let mut thread = memory.word(head)?;
    while thread != head {
        let space = memory.member("task_struct", thread.wrapping_sub(node), "mm")?;
        if space != 0 {
            return Ok(space);
        }
        thread = memory.word(thread)?;
    }
    Err(Errno::ESRCH.into())
}

/// PID_MAX_LIMIT, linux/threads.h.
const MOST_PROCESSES: u32 = 4 << 20;

/// The `task_struct` of a process with an id of the caller's namespace.
fn find(memory: &KernelMemory, pid: Pid) -> io::Result<u64> {
    // First threads are in the list of tasks, the others are not.
    let own = memory.member("task_struct", memory.current_task()?, "group_leader")?;
    let ids = |task| memory.member("task_struct", task, "thread_pid");
    let level = memory.number("pid", ids(own)?, "level")?;
    let first = memory.types.offset("pid", "numbers")?;
    // struct upid: the number and the namespace.
    let numbers = first + 16 * u64::from(level);
    let namespace = memory.member("upid", ids(own)? + numbers, "ns")?;
    let node = memory.types.offset("task_struct", "tasks")?;
    let mut task = own;
    for _ in 0..MOST_PROCESSES {
        let id = ids(task)?;
        // The list begins with the idle task, and passes tasks that are just ending.
        if id != 0 && memory.number("pid", id, "level")? >= level {
            let place = id + numbers;
            let is_his = memory.number("upid", place, "nr")? == pid.raw() as u32;
            if is_his && memory.member("upid", place, "ns")? == namespace {
                return Ok(task);
            }
        }
        task = memory.word(task + node)?.wrapping_sub(node);
        if task == own {
            break;
        }
    }
    Err(Errno::ESRCH.into())
}

#[cfg(test)]
mod tests {
    use super::aio_contexts;
    use crate::Pid;
    use std::time::Duration;

    fn io_setup(most: u32) -> u64 {
        let mut context = 0_u64;
        // SAFETY: room for the id.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, most, &raw mut context) };
        assert_eq!(result, 0, "io_setup");
        context
    }

    /// Submits a request: operation, descriptor, and what it polls for.
    fn submit(context: u64, operation: u16, file: i32, argument: u64) {
        let mut request = [0_u8; 64];
        request[16..18].copy_from_slice(&operation.to_ne_bytes());
        request[20..24].copy_from_slice(&file.to_ne_bytes());
        request[24..32].copy_from_slice(&argument.to_ne_bytes());
        let list = [request.as_ptr()];
        // SAFETY: a list of one request.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, context, 1_i64, list.as_ptr()) };
        assert_eq!(result, 1, "io_submit");
    }

    #[test]
    fn requests_under_way_are_counted() {
        const POLL: u16 = 5;
        let own = Pid::new(std::process::id() as i32);
        let (quiet, busy) = (io_setup(10), io_setup(500));
        let (read, write) = crate::pipe::close_on_exec().expect("a pipe");
        let (read, write) = (
            std::os::fd::AsRawFd::as_raw_fd(&read),
            std::os::fd::AsRawFd::as_raw_fd(&write),
        );
        // Three that wait, two that end at once.
        for (file, events) in [(read, 1), (read, 1), (write, 4), (read, 1), (write, 4)] {
            submit(busy, POLL, file, events);
        }
        let found = aio_contexts(own, Duration::ZERO).expect("as root");
        let of = |address| found.iter().find(|context| context.address == address).copied();
        let (quiet, busy) = (of(quiet).expect("found"), of(busy).expect("found"));
        assert_eq!((quiet.most, quiet.under_way), (10, 0));
        assert_eq!((busy.most, busy.under_way), (500, 3));
    }
}
