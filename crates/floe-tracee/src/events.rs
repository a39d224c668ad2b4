//! io_getevents(2) that was stopped in the middle: it waits for at least `min_nr` events, takes each from the ring as it
//! comes, and answers with fewer where a signal, a stop or the freezer wakes it (fs/aio.c, read_events: only an answer of
//! none becomes EINTR). A program that asked without a time-out does not expect that.
//!
//! The events go back into the ring, where their slots still hold them, and the call is issued again:
//!
//! ```text
//! ring before   ... [a][b][c]  head -> [d] ...     the call took a, b, c and answers 3
//! ring behind   ... head -> [a][b][c][d] ...       the call is about to begin
//! ```
//!
//! Ring and registers can't change in one step. Between the two the thread's registers lead to some code in the unused
//! tail of the vDSO that does what is left, for the case that floe dies there.
//!
//! The kernel may have given the places of events that were taken to new requests. Where these might not find room when
//! they end, the events stay taken; how many are under way its own memory tells.

use crate::{InterruptionError, Stopped, arch, arch::Registers, has_handled_signal_pending};
use floe_sys::{
    Pid,
    kernel::{AioContext, aio_contexts},
    memory::{self, MemoryFile},
    procfs::{Mapping, Status},
};
use std::time::Duration;

/// struct aio_ring of fs/aio.c: bytes before the events, of each of these, and where the position stands.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
const HEAD: u64 = 8;
const MAGIC: u32 = 0xa10a_10a1;

/// Undoes what calls of io_getevents and io_pgetevents without a time-out took before they were stopped, and sets their
/// threads up to issue them again. Whatever runs in the memory of these threads must be among them.
///
/// What can't be put back, because somebody has taken or got events behind it, there might be no room, or the kernel's
/// memory can't be read, stays with the call, which answers short.
///
/// # Errors
/// [`InterruptionError`].
pub fn give_events_back<'a>(threads: impl IntoIterator<Item = &'a Stopped>) -> Result<(), InterruptionError> {
    let mut taken = Vec::new();
    for thread in threads {
        taken.extend(Taken::find(thread)?);
    }
    // Who took last must give back first.
    loop {
        let before = taken.len();
        let mut left = Vec::new();
        for events in taken {
            if !events.give_back()? {
                left.push(events);
            }
        }
        taken = left;
        if taken.len() == before {
            return Ok(());
        }
    }
}

/// A call that answers with fewer events than it was to wait for.
struct Taken<'a> {
    thread: &'a Stopped,
    registers: Registers,
    call: u32,
    /// The ring and how many requests are under way there.
    context: AioContext,
    /// The events, as the ring and the caller's buffer hold them.
    events: Vec<u8>,
}

impl<'a> Taken<'a> {
    fn find(thread: &'a Stopped) -> Result<Option<Self>, InterruptionError> {
        let registers = thread.registers()?;
        let call = match registers.call() {
            Some(call) if [libc::SYS_io_getevents as u64, arch::IO_PGETEVENTS].contains(&call) => call as u32,
            _ => return Ok(None),
        };
        let [ring, least, _, buffer, timeout, _] = registers.arguments();
        let count = registers.result();
        if timeout != 0 || count <= 0 || count as u64 >= least {
            return Ok(None);
        }
        let status = Status::read(&format!("/proc/{}", thread.tid()))?;
        if has_handled_signal_pending(&status) {
            return Ok(None);
        }
        let mut events = vec![0; count as usize * EVENT as usize];
        // Memory that its owner has unmapped meanwhile is no longer of interest to anybody.
        if memory::read(thread.tid(), buffer, &mut events).is_err() {
            return Ok(None);
        }
        let contexts = match aio_contexts(Pid::new(status.tgid), Duration::ZERO) {
            Ok(contexts) => contexts,
            Err(error) => {
                tracing::debug!(%error, "events that io_getevents took stay taken");
                return Ok(None);
            }
        };
        let context = contexts.into_iter().find(|context| context.address == ring);
        Ok(context.map(|context| Self {
            thread,
            registers,
            call,
            context,
            events,
        }))
    }

    /// Whether the events are in the ring again.
    fn give_back(&self) -> Result<bool, InterruptionError> {
        let Some((before, head)) = self.places() else {
            return Ok(false);
        };
        let Some((memory, code)) = self.tail()? else {
            return Ok(false);
        };
        let mut again = self.registers;
        again.reissue(self.call.into());
        let bytes = arch::StoreAndCall {
            address: self.context.address + HEAD,
            before,
            after: head,
            call: self.call,
            instruction: again.instruction(),
            answer: self.registers.result() as u32,
        }
        .code();
        let mut clean = vec![0; bytes.len()];
        if memory.read(code, &mut clean).is_err() || memory.write(code, &bytes).is_err() {
            return Ok(false);
        }
        let mut on_its_own = self.registers;
        on_its_own.leave_call();
        on_its_own.set_instruction(code);
        self.thread.set_registers(&on_its_own)?;
        let done = memory.write(self.context.address + HEAD, &head.to_ne_bytes());
        // A ring that its owner has write-protected; the call keeps what it has.
        let behind = if done.is_ok() { &again } else { &self.registers };
        self.thread.set_registers(behind)?;
        if let Err(error) = memory.write(code, &clean) {
            tracing::debug!(tid = self.thread.tid().raw(), %error, "some code stays in the vDSO");
        }
        Ok(done.is_ok())
    }

    /// Where the ring begins, and where it does once the events are back; `None` where they are not those just before its
    /// head, or there might be no room for what is under way.
    fn places(&self) -> Option<(u32, u32)> {
        let ring = self.context.address;
        let tid = self.thread.tid();
        let mut header = [0; HEADER as usize];
        memory::read(tid, ring, &mut header).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let (room, before, tail) = (word(4), word(8), word(12));
        if word(16) != MAGIC || room == 0 {
            return None;
        }
        let (head, tail, room) = (u64::from(before % room), u64::from(tail % room), u64::from(room));
        let count = self.events.len() as u64 / EVENT;
        let waiting = (tail + room - head) % room;
        if waiting + count + u64::from(self.context.under_way) >= room {
            return None;
        }
        let first = (head + room - count) % room;
        let is_there = |(index, event): (usize, &[u8])| {
            let mut slot = [0; EVENT as usize];
            let at = ring + HEADER + EVENT * ((first + index as u64) % room);
            memory::read(tid, at, &mut slot).is_ok() && slot == event
        };
        let mut events = self.events.chunks_exact(EVENT as usize).enumerate();
        events.all(is_there).then_some((before, first as u32))
    }

    /// Room for code in the process; `None` where it has no vDSO, or one without room.
    fn tail(&self) -> Result<Option<(MemoryFile, u64)>, InterruptionError> {
        let tid = self.thread.tid();
        let mappings = Mapping::read_all(tid)?;
        let Some(vdso) = mappings.iter().find(|mapping| mapping.path == b"[vdso]") else {
            return Ok(None);
        };
        let Ok(memory) = MemoryFile::open(tid) else {
            return Ok(None);
        };
        let mut image = vec![0; vdso.len() as usize];
        if memory.read(vdso.start, &mut image).is_err() {
            return Ok(None);
        }
        let tail = arch::vdso_tail(&image).filter(|tail| image.len() - tail >= arch::STUB_BYTES);
        Ok(tail.map(|tail| (memory, vdso.start + tail as u64)))
    }
}
