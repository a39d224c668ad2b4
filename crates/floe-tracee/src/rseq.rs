//! Restartable sequences: rseq(2), include/uapi/linux/rseq.h, Documentation/userspace-api/rseq.rst.
//!
//! A thread that is taken off its processor within a critical section goes on at the section's abort handler: the kernel
//! sees to that on the way back to user code. A thread whose registers lead elsewhere by then (into the stub, or into
//! another thread's life) would come back into the middle of a section that nobody watches any more.

use crate::{Stopped, TraceError};
use floe_sys::memory;

/// Offset of `rseq_cs` in `struct rseq`.
const SECTION_POINTER: u64 = 8;
/// `struct rseq_cs`: version u32, flags u32, start_ip, post_commit_offset, abort_ip.
const SECTION_BYTES: usize = 32;

impl Stopped {
    /// Sends a thread that stands within a critical section to its abort handler, as the kernel would.
    ///
    /// # Errors
    /// [`TraceError::Request`].
    pub fn abort_critical_section(&self) -> Result<(), TraceError> {
        let Some(rseq) = self.rseq()? else { return Ok(()) };
        let place = rseq.address + SECTION_POINTER;
        let mut registers = self.registers()?;
        let Some(abort) = self.abort_address(place, registers.instruction(), rseq.signature) else {
            return Ok(());
        };
        registers.set_instruction(abort);
        self.set_registers(&registers)?;
        memory::write(self.tid(), place, &[0; 8]).map_err(|source| TraceError::Request {
            action: "leave the critical section",
            tid: self.tid(),
            source,
        })
    }

    /// Where the section goes on that the thread stands in; `None` where it is in none, or where the kernel would find
    /// the section malformed (it then ends the thread, which is not floe's to do).
    fn abort_address(&self, place: u64, instruction: u64, signature: u32) -> Option<u64> {
        let section = self.word(place).filter(|section| *section != 0)?;
        let mut bytes = [0; SECTION_BYTES];
        memory::read(self.tid(), section, &mut bytes).ok()?;
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (start, length, abort) = (word(8), word(16), word(24));
        let inside = instruction.wrapping_sub(start) < length;
        let mut before = [0; 4];
        memory::read(self.tid(), abort.checked_sub(4)?, &mut before).ok()?;
        (inside && u32::from_ne_bytes(before) == signature).then_some(abort)
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        memory::read(self.tid(), address, &mut bytes).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }
}
