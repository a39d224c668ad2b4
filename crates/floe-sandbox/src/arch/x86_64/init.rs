//! The small init's machine code and the ELF file round it.
//!
//! ```text
//! r13 = main process (argv[1], decimal)
//! block all signals
//! reap: wait4(-1, WNOHANG | __WALL); the main one's end -> exit with its status; another's -> reap again; none -> sleep
//! sleep: rt_sigtimedwait(all signals); SIGCHLD or nothing -> reap; another -> kill(main, signal), reap
//! ```

core::arch::global_asm!(
    ".pushsection .rodata.floe_init, \"a\"",
    ".balign 16",
    ".globl floe_init_start",
    ".hidden floe_init_start",
    "floe_init_start:",
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

const BASE: u64 = 0x40_0000;
const PAGE: usize = 4096;
const ENTRY_OFFSET: usize = 0x200;

fn code() -> &'static [u8] {
    let (start, end) = (&raw const floe_init_start, &raw const floe_init_end);
    let bytes = end as usize - start as usize;
    // SAFETY: the two symbols enclose one initialised, read-only block of this program.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// The ELF file: one page, loaded readable and executable.
#[must_use]
pub fn init_program() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &(BASE + ENTRY_OFFSET as u64).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(68, &5u32.to_le_bytes());
    put(80, &BASE.to_le_bytes());
    put(88, &BASE.to_le_bytes());
    put(96, &(PAGE as u64).to_le_bytes());
    put(104, &(PAGE as u64).to_le_bytes());
    put(112, &(PAGE as u64).to_le_bytes());
    put(120, &0x6474_e551_u32.to_le_bytes());
    put(124, &6u32.to_le_bytes());
    put(ENTRY_OFFSET, code());
    page
}
