//! Contexts of asynchronous I/O, io_setup(2): fs/aio.c.

use super::{KernelMemory, tasks};
use crate::Pid;
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

const STRUCTURES: [&str; 4] = ["mm_struct", "kioctx_table", "kioctx", "kioctx_cpu"];

/// The contexts of a process that stands still, so that its requests can only end. Where some are under way, they are
/// looked at again and again until none is, or `patience` has passed.
///
/// # Errors
/// EPERM for who may not load programs of bpf(2), or where the kernel is locked down; ENOSYS, EINVAL, ENOENT where it
/// knows no such programs, or tells no types; ESRCH.
pub fn aio_contexts(pid: Pid, patience: Duration) -> io::Result<Vec<AioContext>> {
    let memory = KernelMemory::open(&[&STRUCTURES[..], &tasks::STRUCTURES].concat())?;
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
    let all = tasks::all(memory)?;
    let leader = *all.get(&pid.raw()).ok_or(io::ErrorKind::NotFound)?;
    let spaces = tasks::of_threads(memory, leader, "mm")?;
    spaces.first().copied().ok_or_else(|| io::ErrorKind::NotFound.into())
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
