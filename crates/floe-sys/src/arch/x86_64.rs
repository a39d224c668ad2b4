//! x86-64.

/// `e_machine` of an ELF file, elf(5): EM_X86_64.
pub(crate) const ELF_MACHINE: u16 = 62;
