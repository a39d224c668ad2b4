//! Where in a task's address space the stub and its tables stand.

use crate::arch;

/// Addresses of the stub's code and of its memory for tables and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arena {
    /// First byte of the stub's code.
    pub code: u64,
    /// First byte of the memory.
    pub memory: u64,
    /// Bytes of the memory.
    pub bytes: u64,
}

impl Arena {
    pub(crate) fn batch_entry(&self) -> u64 {
        self.code + arch::batch_entry()
    }

    pub(crate) fn single_entry(&self) -> u64 {
        self.code + arch::SINGLE_ENTRY
    }

    pub(crate) fn exit_entry(&self) -> u64 {
        self.code + arch::EXIT_ENTRY
    }

    pub(crate) fn exit_state(&self) -> u64 {
        self.code + arch::exit_state_offset()
    }

    /// The stub's code, to be written at [`Arena::code`].
    #[must_use]
    pub fn code_bytes() -> &'static [u8] {
        arch::stub_code()
    }

    /// How many bytes of room the code needs.
    #[must_use]
    pub const fn code_room() -> usize {
        arch::STUB_BYTES
    }
}
