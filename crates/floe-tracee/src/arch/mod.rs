//! What differs between architectures: the register block, system-call conventions, the stub's machine code.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{
    AUDIT_ARCH, CALL_ENTRY, EXIT_ENTRY, GENERAL_BYTES, IO_PGETEVENTS, Registers, SINGLE_ENTRY, STUB_BYTES,
    StoreAndCall, batch_entry, call_instruction, components_in_use, exit_state, exit_state_offset, is_native,
    moved_components, stub_code, vdso_bridge, vdso_tail, xfeatures,
};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("floe runs on x86-64; another architecture needs a folder beside arch/x86_64");
