//! The stub: some 300 bytes of machine code and as many words as it loads, that issue one call or a table of calls, and
//! then put the task back into the state it was taken from *by themselves*.
//!
//! ```text
//! single:  syscall                         tracer stops it at the exit of this call
//! exit:    *selector = 0                   from here on only when the tracer has died; see below
//!          rt_sigprocmask(SIG_SETMASK, all)
//!          munmap(scratch)
//!          flags, stack pointer
//!          rt_sigprocmask(SIG_SETMASK, mask)
//!          *selector = what it was
//!          all general registers, jmp *ip
//! batch:   for each entry {number, 6 arguments, result} of the table in rbx, r12 of them: syscall
//!          tgkill(r13, r14, r15)           a signal that the task ignores; the tracer stops it at its delivery
//!          jmp exit
//! state:   23 words that `exit` loads
//! ```
//!
//! The selector is the byte that has a thread's calls turned into signals (syscall user dispatch), where it has one.
//!
//! System calls change no vector or x87 register, so those need no saving. The stub uses no stack: below the stack
//! pointer there may be somebody else's memory (goroutines, coroutines). Signals are blocked, also where the tracer
//! died before it had blocked them, until the stack pointer is right again, so that one that comes finds a good stack.
//! An int3 at the end, a bare system call or single-stepping would each kill the task when its tracer dies.

use super::Registers;

core::arch::global_asm!(
    ".pushsection .rodata.floe_stub, \"a\"",
    ".balign 16",
    ".globl floe_stub_start",
    ".hidden floe_stub_start",
    "floe_stub_start:",
    "    syscall",
    "2:", // exit
    "    mov rcx, [rip + 93f]",
    "    jrcxz 4f",
    "    mov byte ptr [rcx], 0",
    "4:",
    "    mov eax, 14",
    "    mov edi, 2",
    "    lea rsi, [rip + 92f]",
    "    mov edx, 0",
    "    mov r10d, 8",
    "    syscall",
    "    mov eax, 11",
    "    mov rdi, [rip + 90f]",
    "    mov rsi, [rip + 91f]",
    "    syscall",
    "    lea rsp, [rip + 87f]",
    "    popfq",
    "    mov rsp, [rip + 86f]",
    "    mov eax, 14",
    "    mov edi, 2",
    "    lea rsi, [rip + 88f]",
    "    mov edx, 0",
    "    mov r10d, 8",
    "    syscall",
    "    mov rcx, [rip + 93f]",
    "    jrcxz 5f", // leaves the flags alone
    "    mov al, [rip + 94f]",
    "    mov [rcx], al",
    "5:",
    "    mov r15, [rip + 70f]",
    "    mov r14, [rip + 71f]",
    "    mov r13, [rip + 72f]",
    "    mov r12, [rip + 73f]",
    "    mov rbp, [rip + 74f]",
    "    mov rbx, [rip + 75f]",
    "    mov r11, [rip + 76f]",
    "    mov r10, [rip + 77f]",
    "    mov r9, [rip + 78f]",
    "    mov r8, [rip + 79f]",
    "    mov rax, [rip + 80f]",
    "    mov rcx, [rip + 81f]",
    "    mov rdx, [rip + 82f]",
    "    mov rsi, [rip + 83f]",
    "    mov rdi, [rip + 84f]",
    "    jmp [rip + 85f]",
    ".globl floe_stub_batch",
    ".hidden floe_stub_batch",
    "floe_stub_batch:",
    "3:",
    "    mov rax, [rbx]",
    "    mov rdi, [rbx + 8]",
    "    mov rsi, [rbx + 16]",
    "    mov rdx, [rbx + 24]",
    "    mov r10, [rbx + 32]",
    "    mov r8, [rbx + 40]",
    "    mov r9, [rbx + 48]",
    "    syscall",
    "    mov [rbx + 56], rax",
    "    add rbx, 64",
    "    dec r12",
    "    jnz 3b",
    "    mov eax, 234",
    "    mov rdi, r13",
    "    mov rsi, r14",
    "    mov rdx, r15",
    "    syscall",
    "    jmp 2b",
    ".balign 8",
    "92: .quad -1", // the set of all signals
    ".globl floe_stub_state",
    ".hidden floe_stub_state",
    "floe_stub_state:",
    "70: .quad 0",
    "71: .quad 0",
    "72: .quad 0",
    "73: .quad 0",
    "74: .quad 0",
    "75: .quad 0",
    "76: .quad 0",
    "77: .quad 0",
    "78: .quad 0",
    "79: .quad 0",
    "80: .quad 0",
    "81: .quad 0",
    "82: .quad 0",
    "83: .quad 0",
    "84: .quad 0",
    "85: .quad 0",
    "86: .quad 0",
    "87: .quad 0",
    "88: .quad 0",
    "90: .quad 0",
    "91: .quad 0",
    "93: .quad 0",
    "94: .quad 0",
    ".globl floe_stub_end",
    ".hidden floe_stub_end",
    "floe_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static floe_stub_start: u8;
    static floe_stub_batch: u8;
    static floe_stub_state: u8;
    static floe_stub_end: u8;
}

/// Where a single call's `syscall` instruction stands in the stub.
pub const SINGLE_ENTRY: u64 = 0;
/// Where its way out begins, which needs nothing but its words.
pub const EXIT_ENTRY: u64 = 2;
/// How many bytes the stub may take; its true length is checked against it.
pub const STUB_BYTES: usize = 512;
/// How many words `exit` loads.
const STATE_WORDS: usize = 23;

fn span(from: &'static u8, to: &'static u8) -> usize {
    std::ptr::from_ref(to) as usize - std::ptr::from_ref(from) as usize
}

fn symbols() -> (&'static u8, &'static u8, &'static u8, &'static u8) {
    // SAFETY: a symbol of the block above.
    let start = unsafe { &floe_stub_start };
    // SAFETY: a symbol of the block above.
    let batch = unsafe { &floe_stub_batch };
    // SAFETY: a symbol of the block above.
    let state = unsafe { &floe_stub_state };
    // SAFETY: the byte behind the block is in the same section or its padding; only its address is used.
    let end = unsafe { &floe_stub_end };
    (start, batch, state, end)
}

/// Where the batch loop begins in the stub.
#[must_use]
pub fn batch_entry() -> u64 {
    let (start, batch, ..) = symbols();
    span(start, batch) as u64
}

/// Where the words of [`exit_state`] stand in the stub.
#[must_use]
pub fn exit_state_offset() -> u64 {
    let (start, _, state, _) = symbols();
    span(start, state) as u64
}

/// The stub's bytes, position-independent.
#[must_use]
pub fn stub_code() -> &'static [u8] {
    let (start, _, _, end) = symbols();
    let bytes = span(start, end);
    debug_assert!(bytes <= STUB_BYTES);
    // SAFETY: `floe_stub_start` to `floe_stub_end` is one initialised, read-only block of this program.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// The words that bring a task back: its registers, its signal mask, the scratch mapping to be removed, and address and
/// value of the selector of its calls (0 for none).
#[must_use]
pub fn exit_state(registers: &Registers, signal_mask: u64, scratch: (u64, u64), selector: (u64, u8)) -> Vec<u8> {
    let mut words = Vec::with_capacity(STATE_WORDS);
    words.extend_from_slice(&registers.exit_words());
    words.extend_from_slice(&[signal_mask, scratch.0, scratch.1, selector.0, u64::from(selector.1)]);
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::{STATE_WORDS, STUB_BYTES, batch_entry, exit_state_offset, stub_code};

    #[test]
    fn the_block_is_whole_and_small() {
        let code = stub_code();
        assert!(code.len() <= STUB_BYTES, "{} bytes", code.len());
        assert_eq!(&code[..2], [0x0f, 0x05]);
        assert_eq!(&code[batch_entry() as usize..][..3], [0x48, 0x8b, 0x03]);
        assert_eq!(code.len() - exit_state_offset() as usize, STATE_WORDS * 8);
    }
}
