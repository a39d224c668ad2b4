//! Contexts of asynchronous I/O (io_setup(2)) and their rings, which are mappings that only the kernel can make.
//!
//! Events that wait in a ring are carried, requests that are under way are not: those that end by themselves do so while
//! the tree stands still, and are waited for. How many there are only the kernel's own memory tells ([`floe_sys::kernel`]).
//!
//! A ring is brought to where it stood by requests that end at once, because the kernel has a position of its own besides
//! the one in the ring: reads of an eventfd that counts down.

use super::build::BuildError;
use floe_image::record::{AioEvent, AioRing, VmaRecord, VmaSource};
use floe_sys::{
    Pid,
    kernel::{AioContext, aio_contexts},
    memory,
};
use floe_tracee::Script;
use std::time::Duration;

/// How long requests that are under way are waited for. Those to a disk take milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// struct aio_ring of fs/aio.c: bytes before the events, and of each of these.
const HEADER: usize = 32;
const EVENT: usize = 32;
const MAGIC: u32 = 0xa10a_10a1;

/// struct iocb, linux/aio_abi.h.
const IOCB: usize = 64;
const IOCB_CMD_PREAD: u16 = 0;

/// As much as is submitted at once.
const ROUND: u32 = 64;

/// The contexts of one process, looked at when the first ring is found.
#[derive(Debug, Default)]
pub(super) struct FoundContexts(Option<Result<Vec<AioContext>, String>>);

/// Why a ring can't be carried, and what can be done.
pub(super) type Reason = (String, &'static str);

impl FoundContexts {
    /// The ring that is mapped at these addresses of a process that stands still.
    pub(super) fn ring(&mut self, pid: Pid, start: u64, end: u64) -> Result<AioRing, Reason> {
        let contexts = self
            .0
            .get_or_insert_with(|| aio_contexts(pid, PATIENCE).map_err(|error| error.to_string()));
        let contexts = contexts.as_ref().map_err(|error| {
            let reason = format!("which requests are under way can't be read from the kernel's memory: {error}");
            (reason, "io_destroy, or run floe as root where bpf(2) may be used")
        })?;
        let Some(context) = contexts.iter().find(|context| context.address == start) else {
            let reason = "it belongs to no context: it is a part of a ring, or was inherited by fork";
            return Err((reason.to_owned(), "unmap it"));
        };
        match context.under_way {
            0 => read_ring(pid, *context, end - start),
            some => Err((
                format!("{some} requests are under way, and did not end within a second"),
                "wait for them (io_getevents), cancel them (io_cancel), or try again",
            )),
        }
    }
}

fn read_ring(pid: Pid, context: AioContext, bytes: u64) -> Result<AioRing, Reason> {
    let mut ring = vec![0; bytes as usize];
    memory::read(pid, context.address, &mut ring)
        .map_err(|error| (format!("it can't be read: {error}"), "io_destroy, or do without"))?;
    let header = Header::parse(&ring);
    let strange = || {
        let reason = "its header is none that the kernel makes".to_owned();
        Err((reason, "io_destroy, or do without"))
    };
    let fits = u64::from(header.events) * EVENT as u64 + HEADER as u64 <= bytes;
    if header.magic != MAGIC || header.events < 2 || !fits {
        return strange();
    }
    let count = header.events;
    let (head, tail) = (header.head % count, header.tail % count);
    let waiting = (tail + count - head) % count;
    let event = |index: u32| event_of(&ring[place((head + index) % count)..][..EVENT]);
    Ok(AioRing {
        most: context.most,
        events: count,
        head,
        waiting: (0..waiting).map(event).collect(),
    })
}

/// Where an event stands in a ring.
fn place(index: u32) -> usize {
    HEADER + EVENT * index as usize
}

/// struct io_event.
fn event_of(bytes: &[u8]) -> AioEvent {
    let word = |index: usize| u64::from_ne_bytes(bytes[8 * index..8 * index + 8].try_into().expect("8 bytes"));
    AioEvent {
        data: word(0),
        obj: word(1),
        res: word(2) as i64,
        res2: word(3) as i64,
    }
}

fn bytes_of(event: &AioEvent) -> Vec<u8> {
    let words = [event.data, event.obj, event.res as u64, event.res2 as u64];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

struct Header {
    events: u32,
    head: u32,
    tail: u32,
    magic: u32,
}

impl Header {
    fn parse(ring: &[u8]) -> Self {
        let word = |index: usize| u32::from_ne_bytes(ring[4 * index..4 * index + 4].try_into().expect("4 bytes"));
        Self {
            events: word(1),
            head: word(2),
            tail: word(3),
            magic: word(4),
        }
    }

    fn read(pid: Pid, ring: u64) -> Result<Self, BuildError> {
        let mut bytes = [0; HEADER];
        memory::read(pid, ring, &mut bytes).map_err(|source| BuildError::Ring {
            pid,
            start: ring,
            what: format!("it can't be read: {source}"),
        })?;
        Ok(Self::parse(&bytes))
    }
}

/// Makes the rings among these mappings, and puts into them what waited there.
pub(super) fn make_all<'a>(
    script: &mut Script<'_>,
    vmas: impl Iterator<Item = &'a VmaRecord>,
) -> Result<(), BuildError> {
    for vma in vmas {
        if let VmaSource::AioRing(ring) = &vma.source {
            make(script, vma, ring)?;
        }
    }
    Ok(())
}

fn make(script: &mut Script<'_>, vma: &VmaRecord, ring: &AioRing) -> Result<(), BuildError> {
    let pid = script.puppet().tid();
    let (start, bytes) = (vma.start, vma.end - vma.start);
    let differs = |what: String| BuildError::Ring { pid, start, what };
    script.run()?;
    let batch = script.reserve(2, 64)?;
    let id = batch.room(8);
    batch.call("make an AIO context", libc::SYS_io_setup, &[u64::from(ring.most), id]);
    let flags = (libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) as u64;
    let counter = batch.call("make an eventfd", libc::SYS_eventfd2, &[u64::from(u32::MAX), flags]);
    let done = script.run()?;
    let file = done.result(counter) as u64;
    let now = u64::from_ne_bytes(done.bytes(id, 8).try_into().expect("8 bytes"));
    // The kernel makes more room than was asked for, by the number of processors too.
    let made = Header::read(pid, now)?.events;
    if made != ring.events {
        return Err(differs(format!(
            "it has room for {made} events instead of {}: this machine has another number of processors",
            ring.events
        )));
    }
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    script.call("move an AIO ring", libc::SYS_mremap, &[now, bytes, bytes, flags, start])?;
    advance(script, (start, file), ring.head, true)?;
    advance(script, (start, file), ring.waiting.len() as u32, false)?;
    script.call("close", libc::SYS_close, &[file])?;
    script.run()?;
    for (index, event) in ring.waiting.iter().enumerate() {
        let at = place((ring.head + index as u32) % ring.events) as u64;
        memory::write(pid, start + at, &bytes_of(event))
            .map_err(|error| differs(format!("an event can't be written into it: {error}")))?;
    }
    let header = Header::read(pid, start)?;
    let waiting = (header.tail % made + made - header.head % made) % made;
    if (header.head % made, waiting as usize) != (ring.head, ring.waiting.len()) {
        return Err(differs("it does not stand where it should".to_owned()));
    }
    if vma.prot != (libc::PROT_READ | libc::PROT_WRITE) as u32 {
        script.call(
            "protect an AIO ring",
            libc::SYS_mprotect,
            &[start, bytes, u64::from(vma.prot)],
        )?;
    }
    Ok(())
}

/// Has so many requests end in a context, and takes their events out again where they are not to wait.
fn advance(script: &mut Script<'_>, (context, file): (u64, u64), mut count: u32, take: bool) -> Result<(), BuildError> {
    while count > 0 {
        let now = count.min(ROUND);
        let batch = script.reserve(2, 2 * IOCB + 8 * now as usize + EVENT * now as usize + 64)?;
        let counted = batch.room(8);
        let mut request = [0; IOCB];
        request[16..18].copy_from_slice(&IOCB_CMD_PREAD.to_ne_bytes());
        request[20..24].copy_from_slice(&(file as u32).to_ne_bytes());
        request[24..32].copy_from_slice(&counted.to_ne_bytes());
        request[32..40].copy_from_slice(&8_u64.to_ne_bytes());
        let request = batch.data(&request);
        let list = batch.data(&request.to_ne_bytes().repeat(now as usize));
        let (now, answer) = (u64::from(now), i64::from(now));
        batch.expect("requests submitted", libc::SYS_io_submit, &[context, now, list], answer);
        if take {
            let events = batch.room(EVENT * now as usize);
            let arguments = [context, now, now, events, 0];
            batch.expect("events taken", libc::SYS_io_getevents, &arguments, answer);
        }
        count -= now as u32;
    }
    Ok(())
}
