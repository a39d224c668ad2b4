//! x86-64.

pub mod processor;

/// The flag that open(2) sets by itself in a 64-bit program and pipe(2) does not (asm-generic/fcntl.h); libc says 0.
pub const O_LARGEFILE: u32 = 0o100_000;

/// `e_machine` of an ELF file, elf(5): EM_X86_64.
pub const ELF_MACHINE: u16 = 62;

/// Closes descriptor 1, reads from descriptor 0 until that ends, then exits.
pub const WAIT_FOR_END: &[u8] = &[
    0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, 1
    0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, 3     close
    0x0f, 0x05, //                   syscall
    0x48, 0x83, 0xec, 0x10, //       sub rsp, 16
    0x31, 0xff, //             1:    xor edi, edi
    0x48, 0x89, 0xe6, //             mov rsi, rsp
    0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1
    0x31, 0xc0, //                   xor eax, eax    read
    0x0f, 0x05, //                   syscall
    0x83, 0xf8, 0xfc, //             cmp eax, -4     EINTR
    0x74, 0xed, //                   je 1b
    0x31, 0xff, //                   xor edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60     exit
    0x0f, 0x05, //                   syscall
];
