//! x86-64.

/// The flag that open(2) sets by itself in a 64-bit program and pipe(2) does not (asm-generic/fcntl.h); libc says 0.
pub const O_LARGEFILE: u32 = 0o100_000;

/// `e_machine` of an ELF file, elf(5): EM_X86_64.
pub const ELF_MACHINE: u16 = 62;
