//! x86-64.

mod registers;
mod stub;
mod vdso;

pub use registers::{AUDIT_ARCH, CALL_ENTRY, GENERAL_BYTES, Registers, is_native, xfeatures};
pub use stub::{EXIT_ENTRY, SINGLE_ENTRY, STUB_BYTES, batch_entry, exit_state, exit_state_offset, stub_code};
pub use vdso::{call_instruction, vdso_tail};
