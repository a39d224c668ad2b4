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

use crate::{InterruptionError, Stopped, arch, arch::Registers, has_handled_signal_pending};
use floe_sys::{
    memory::{self, MemoryFile},
    procfs::{Mapping, Status},
};

/// struct aio_ring of fs/aio.c: bytes before the events, of each of these, and where the position stands.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
const HEAD: u64 = 8;
const MAGIC: u32 = 0xa10a_10a1;

/// Undoes what calls of io_getevents and io_pgetevents without a time-out took before they were stopped, and sets their
/// threads up to issue them again. Whatever runs in the memory of these threads must be among them.
///
/// What can't be put back, because somebody has taken or got events behind it, stays with the call, which answers short.
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
    ring: u64,
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
        if has_handled_signal_pending(&Status::read(&format!("/proc/{}", thread.tid()))?) {
            return Ok(None);
        }
        let mut events = vec![0; count as usize * EVENT as usize];
        // Memory that its owner has unmapped meanwhile is no longer of interest to anybody.
        Ok(memory::read(thread.tid(), buffer, &mut events).is_ok().then_some(Self {
            thread,
            registers,
            call,
            ring,
            events,
        }))
    }

    /// Whether the events are in the ring again.
    fn give_back(&self) -> Result<bool, InterruptionError> {
        let Some(head) = self.place() else { return Ok(false) };
        let Some((memory, code)) = self.tail()? else {
            return Ok(false);
        };
        let mut again = self.registers;
        again.reissue(self.call.into());
        let bytes = arch::store_and_call(self.ring + HEAD, head, self.call, again.instruction());
        let mut clean = vec![0; bytes.len()];
        if memory.read(code, &mut clean).is_err() || memory.write(code, &bytes).is_err() {
            return Ok(false);
        }
        let mut on_its_own = self.registers;
        on_its_own.leave_call();
        on_its_own.set_instruction(code);
        self.thread.set_registers(&on_its_own)?;
        let done = memory.write(self.ring + HEAD, &head.to_ne_bytes());
        // A ring that its owner has write-protected; the call keeps what it has.
        let behind = if done.is_ok() { &again } else { &self.registers };
        self.thread.set_registers(behind)?;
        if let Err(error) = memory.write(code, &clean) {
            tracing::debug!(tid = self.thread.tid().raw(), %error, "some code stays in the vDSO");
        }
        Ok(done.is_ok())
    }

    /// Where the ring begins once the events are back; `None` where they are not those just before its present head.
    fn place(&self) -> Option<u32> {
        let tid = self.thread.tid();
        let mut header = [0; HEADER as usize];
        memory::read(tid, self.ring, &mut header).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let (room, head, tail) = (word(4), word(8), word(12));
        if word(16) != MAGIC || room == 0 {
            return None;
        }
        let (head, tail, room) = (u64::from(head % room), u64::from(tail % room), u64::from(room));
        let count = self.events.len() as u64 / EVENT;
        let waiting = (tail + room - head) % room;
        if waiting + count >= room {
            return None;
        }
        let first = (head + room - count) % room;
        let is_there = |(index, event): (usize, &[u8])| {
            let mut slot = [0; EVENT as usize];
            let at = self.ring + HEADER + EVENT * ((first + index as u64) % room);
            memory::read(tid, at, &mut slot).is_ok() && slot == event
        };
        let mut events = self.events.chunks_exact(EVENT as usize).enumerate();
        events.all(is_there).then_some(first as u32)
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
