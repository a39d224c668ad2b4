//! Memory that can't be carried.

use super::{Check, Make};
use std::{io, os::fd::RawFd, ptr};
use victims::{
    Findings, Stage, call,
    memory::{Mapping, PAGE},
};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("host-segment", host_segment),
    ("aio-ring", aio_ring),
    ("aio-ring-part", aio_ring_part),
    ("io-uring", io_uring),
    ("perf-buffer", perf_buffer),
    ("memfd-secret", memfd_secret),
    ("device-memory", device_memory),
    ("userfaultfd", userfaultfd),
    ("protection-key", protection_key),
    ("shared-guard", shared_guard),
];

pub const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Memory that must hold what it held.
fn marked(mapping: Mapping) -> Check {
    mapping.mark(0, 7);
    Box::new(move |findings| mapping.compare(findings, "the memory", 0, 7))
}

pub fn map(len: usize, protection: i32, flags: i32, fd: RawFd, offset: i64) -> io::Result<Mapping> {
    // SAFETY: the kernel chooses the address, so no mapping is replaced.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Mapping {
        address: address as usize,
        len,
    })
}

/// The system call `number`, whose result is a descriptor.
fn descriptor(number: i64, arguments: &[usize]) -> io::Result<RawFd> {
    // SAFETY: the callers pass numbers, or pointers to what outlives the call.
    unsafe { call::raw(number, arguments) }.map(|fd| fd as RawFd)
}

fn unsafe_truncate(fd: RawFd, len: i64) -> i32 {
    // SAFETY: plain numbers.
    unsafe { libc::ftruncate(fd, len) }
}

fn host_segment(_: &Stage) -> io::Result<Check> {
    // SAFETY: plain numbers.
    let id = call::checked(unsafe { libc::shmget(libc::IPC_PRIVATE, PAGE, 0o600) }.into())?;
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::shmat(id as i32, ptr::null(), 0) };
    // It goes when nobody has it attached any more.
    // SAFETY: IPC_RMID takes no structure.
    call::checked(unsafe { libc::shmctl(id as i32, libc::IPC_RMID, ptr::null_mut()) }.into())?;
    if address as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(marked(Mapping {
        address: address as usize,
        len: PAGE,
    }))
}

/// A request that waits for somebody to write into a pipe.
fn aio_ring(_: &Stage) -> io::Result<Check> {
    const POLL: u64 = 5;
    let mut context = 0usize;
    // SAFETY: room for the context's address.
    unsafe { call::raw(libc::SYS_io_setup, &[8, &raw mut context as usize]) }?;
    let [read, _write] = call::pipe(0);
    let mut request = [0u64; 8];
    request[2] = POLL | (read as u64) << 32;
    request[3] = libc::POLLIN as u64;
    let list = [request.as_ptr()];
    // SAFETY: a list of one request.
    unsafe { call::raw(libc::SYS_io_submit, &[context, 1, list.as_ptr() as usize]) }?;
    Ok(Box::new(move |findings: &mut Findings| {
        // No event of none: asks the kernel about the context.
        // SAFETY: no room for events is needed for none.
        let events = unsafe { call::raw(libc::SYS_io_getevents, &[context, 0, 0, 0, 0]) };
        findings.same("events", &Some(0), &events.ok());
    }))
}

/// What is left of a ring without its first page.
fn aio_ring_part(_: &Stage) -> io::Result<Check> {
    let mut context = 0usize;
    // SAFETY: room for the context's address.
    unsafe { call::raw(libc::SYS_io_setup, &[1000, &raw mut context as usize]) }?;
    // SAFETY: the ring has more pages, and nothing uses it any more.
    unsafe { call::raw(libc::SYS_munmap, &[context, PAGE]) }?;
    Ok(Box::new(|_| {}))
}

fn io_uring(_: &Stage) -> io::Result<Check> {
    let mut parameters = [0u32; 30];
    let fd = descriptor(libc::SYS_io_uring_setup, &[4, parameters.as_mut_ptr() as usize])?;
    map(PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0)?;
    call::close(fd);
    Ok(Box::new(|_| {}))
}

/// A counter of the process's own page faults.
pub fn perf_event() -> io::Result<RawFd> {
    // struct perf_event_attr, version 0: type, size, config, and zeros.
    let mut attributes = [0u64; 8];
    attributes[0] = 1 | 64 << 32;
    attributes[1] = 2;
    let anyone = usize::MAX;
    descriptor(
        libc::SYS_perf_event_open,
        &[attributes.as_ptr() as usize, 0, anyone, anyone, 0],
    )
}

fn perf_buffer(_: &Stage) -> io::Result<Check> {
    let fd = perf_event()?;
    map(2 * PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0)?;
    call::close(fd);
    Ok(Box::new(|_| {}))
}

fn memfd_secret(_: &Stage) -> io::Result<Check> {
    const MEMFD_SECRET: i64 = 447;
    let fd = descriptor(MEMFD_SECRET, &[0])?;
    call::checked(i64::from(unsafe_truncate(fd, PAGE as i64)))?;
    let mapping = map(PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0)?;
    call::close(fd);
    Ok(marked(mapping))
}

fn device_memory(_: &Stage) -> io::Result<Check> {
    let fd = victims::descriptor::try_open("/dev/mem".as_ref(), libc::O_RDONLY)?;
    let mapping = map(PAGE, libc::PROT_READ, libc::MAP_SHARED, fd, 0)?;
    call::close(fd);
    Ok(Box::new(move |_| drop(mapping.read(0, 1))))
}

/// A userfaultfd that has shaken hands.
pub fn fault_descriptor() -> io::Result<RawFd> {
    const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
    let fd = descriptor(libc::SYS_userfaultfd, &[libc::O_NONBLOCK as usize])?;
    let mut api = [0xaau64, 0, 0];
    // SAFETY: `struct uffdio_api` is three words.
    call::checked(unsafe { libc::ioctl(fd, UFFDIO_API, api.as_mut_ptr()) }.into())?;
    Ok(fd)
}

fn userfaultfd(_: &Stage) -> io::Result<Check> {
    const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
    let fd = fault_descriptor()?;
    let mapping = Mapping::private(4 * PAGE);
    let check = marked(mapping);
    let mut range = [mapping.address as u64, mapping.len as u64, 1, 0];
    // SAFETY: `struct uffdio_register` is four words.
    call::checked(unsafe { libc::ioctl(fd, UFFDIO_REGISTER, range.as_mut_ptr()) }.into())?;
    Ok(check)
}

fn protection_key(_: &Stage) -> io::Result<Check> {
    // SAFETY: plain numbers.
    let key = unsafe { call::raw(libc::SYS_pkey_alloc, &[0, 0]) }?;
    let mapping = Mapping::private(PAGE);
    let arguments = [mapping.address, PAGE, READ_WRITE as usize, key as usize];
    // SAFETY: a mapping of our own, with the protection it has.
    unsafe { call::raw(libc::SYS_pkey_mprotect, &arguments) }?;
    Ok(marked(mapping))
}

/// What lies behind the guard only the host's root reads.
fn shared_guard(_: &Stage) -> io::Result<Check> {
    /// asm-generic/mman-common.h.
    const MADV_GUARD_INSTALL: i32 = 102;
    let mapping = map(4 * PAGE, READ_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)?;
    let address = (mapping.address + 2 * PAGE) as *mut libc::c_void;
    // SAFETY: a page of the mapping above, to which nothing refers.
    call::checked(unsafe { libc::madvise(address, PAGE, MADV_GUARD_INSTALL) }.into())?;
    Ok(marked(mapping))
}
