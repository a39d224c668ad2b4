//! x86-64.

mod extended;
mod registers;
mod store;
mod stub;
mod vdso;

pub use extended::{components_in_use, moved_components};
pub use registers::{AUDIT_ARCH, CALL_ENTRY, GENERAL_BYTES, Registers, is_native, xfeatures};
pub use store::StoreAndCall;
pub use stub::{EXIT_ENTRY, SINGLE_ENTRY, STUB_BYTES, batch_entry, exit_state, exit_state_offset, stub_code};
pub use vdso::{call_instruction, vdso_bridge, vdso_tail};

/// io_pgetevents(2), arch/x86/entry/syscalls/syscall_64.tbl; the libc crate does not name it.
pub const IO_PGETEVENTS: u64 = 333;
