//! The small init's machine code.
//!
//! ```text
//! name itself after argv[0], because the kernel names it after the memfd
//! r13 = main process (argv[1], decimal)
//! block all signals
//! reap: wait4(-1, WNOHANG | __WALL); the main one's end -> exit with its status; another's -> reap again; none -> sleep
//! sleep: rt_sigtimedwait(all signals); SIGCHLD or nothing -> reap; another -> kill(main, signal), reap
//! ```

#![expect(unsafe_code, reason = "machine code, and the symbols round it")]

core::arch::global_asm!(
    ".pushsection .rodata.floe_init, \"a\"",
    ".balign 16",
    ".globl floe_init_start",
    ".hidden floe_init_start",
    "floe_init_start:",
    "    mov eax, 157", // prctl(PR_SET_NAME, argv[0])
    "    mov edi, 15",
    "    mov rsi, [rsp + 8]",
    "    syscall",
    "    mov rsi, [rsp + 16]",
    "    xor r13d, r13d",
    "2:",
    "    movzx eax, byte ptr [rsi]",
    "    sub eax, 48",
    "    cmp eax, 9",
    "    ja 3f",
    "    imul r13, r13, 10",
    "    add r13, rax",
    "    inc rsi",
    "    jmp 2b",
    "3:",
    "    sub rsp, 256",
    "    mov rax, -1",
    "    mov [rsp], rax", // the set of all signals
    "    mov eax, 14",    // rt_sigprocmask(SIG_SETMASK, all, 0, 8)
    "    mov edi, 2",
    "    mov rsi, rsp",
    "    xor edx, edx",
    "    mov r10d, 8",
    "    syscall",
    "4:",              // reap
    "    mov eax, 61", // wait4(-1, &status, WNOHANG | __WALL, 0)
    "    mov rdi, -1",
    "    lea rsi, [rsp + 16]",
    "    mov edx, 0x40000001",
    "    xor r10d, r10d",
    "    syscall",
    "    test rax, rax",
    "    jle 5f",
    "    cmp rax, r13",
    "    jne 4b",
    "    mov edi, [rsp + 16]",
    "    mov eax, edi",
    "    and eax, 127",
    "    jz 6f",
    "    lea edi, [rax + 128]",
    "    jmp 7f",
    "6:",
    "    shr edi, 8",
    "    and edi, 255",
    "7:",
    "    mov eax, 231", // exit_group
    "    syscall",
    "5:",               // sleep
    "    mov eax, 128", // rt_sigtimedwait(all, 0, 0, 8)
    "    mov rdi, rsp",
    "    xor esi, esi",
    "    xor edx, edx",
    "    mov r10d, 8",
    "    syscall",
    "    cmp rax, 17",
    "    je 4b",
    "    test rax, rax",
    "    jle 4b",
    "    mov rsi, rax",
    "    mov rdi, r13",
    "    mov eax, 62", // kill
    "    syscall",
    "    jmp 4b",
    ".globl floe_init_end",
    ".hidden floe_init_end",
    "floe_init_end:",
    "    nop",
    ".popsection",
);

unsafe extern "C" {
    static floe_init_start: u8;
    static floe_init_end: u8;
}

/// The code, position-independent; entered with a new program's stack.
#[must_use]
pub fn init_code() -> &'static [u8] {
    let (start, end) = (&raw const floe_init_start, &raw const floe_init_end);
    let bytes = end as usize - start as usize;
    // SAFETY: the two symbols enclose one initialised, read-only block of this program.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}
