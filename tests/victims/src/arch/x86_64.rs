//! x86-64: all registers at once.

use std::{
    arch::{asm, naked_asm},
    sync::atomic::{AtomicU32, Ordering},
};

/// Register contents: what [`hold`] loads and what it finds afterwards.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// rax rbx rcx rdx rsi rdi rbp r8 … r15, then the flags (found only).
    pub general: [u64; 16],
    /// An fxsave image: x87, MXCSR, xmm.
    pub fx: [u8; 512],
    /// zmm0 … zmm31, or ymm in the lower halves.
    pub vector: [[u8; 64]; 32],
    /// k0 … k7.
    pub mask: [u64; 8],
}

const _: () = assert!(std::mem::offset_of!(Block, fx) == 128);
const _: () = assert!(std::mem::offset_of!(Block, vector) == 640);
const _: () = assert!(std::mem::offset_of!(Block, mask) == 2688);

/// The direction flag.
pub const DIRECTION: u64 = 0x400;

/// What the task does while its registers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Mode {
    /// Spins in user mode.
    Spin = 0,
    /// Sleeps in the kernel, nanosleep after nanosleep; rdi and rsi are its arguments.
    Sleep = 1,
}

static RELEASE: AtomicU32 = AtomicU32::new(0);

impl Block {
    /// Zeros.
    #[must_use]
    pub fn zeroed() -> Box<Self> {
        Box::new(Self {
            general: [0; 16],
            fx: [0; 512],
            vector: [[0; 64]; 32],
            mask: [0; 8],
        })
    }
}

/// The widest registers that this CPU and kernel give: 0 SSE, 1 AVX, 2 AVX-512.
#[must_use]
pub fn level() -> u32 {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        2
    } else {
        u32::from(is_x86_feature_detected!("avx"))
    }
}

/// Lets [`hold`] return (true), or hold (false).
pub fn release(now: bool) {
    RELEASE.store(now.into(), Ordering::SeqCst);
}

/// Loads all registers from `load`, holds them until [`release`], stores them.
///
/// # Safety
/// `load.fx` is a valid fxsave image, `level` at most [`level()`], and with [`Mode::Sleep`] rdi and rsi of `load` are
/// good arguments of nanosleep.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(load: *const Block, store: *mut Block, level: u32, mode: Mode) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // From the top of the stack: where to store, the level, the mode.
        "push rcx",
        "push rdx",
        "push rsi",
        "fxrstor64 [rdi+128]",
        "cmp edx, 1",
        "jb 3f",
        "je 2f",
        "vmovups zmm0, [rdi+640]; vmovups zmm1, [rdi+704]; vmovups zmm2, [rdi+768]; vmovups zmm3, [rdi+832]",
        "vmovups zmm4, [rdi+896]; vmovups zmm5, [rdi+960]; vmovups zmm6, [rdi+1024]; vmovups zmm7, [rdi+1088]",
        "vmovups zmm8, [rdi+1152]; vmovups zmm9, [rdi+1216]; vmovups zmm10, [rdi+1280]; vmovups zmm11, [rdi+1344]",
        "vmovups zmm12, [rdi+1408]; vmovups zmm13, [rdi+1472]; vmovups zmm14, [rdi+1536]; vmovups zmm15, [rdi+1600]",
        "vmovups zmm16, [rdi+1664]; vmovups zmm17, [rdi+1728]; vmovups zmm18, [rdi+1792]; vmovups zmm19, [rdi+1856]",
        "vmovups zmm20, [rdi+1920]; vmovups zmm21, [rdi+1984]; vmovups zmm22, [rdi+2048]; vmovups zmm23, [rdi+2112]",
        "vmovups zmm24, [rdi+2176]; vmovups zmm25, [rdi+2240]; vmovups zmm26, [rdi+2304]; vmovups zmm27, [rdi+2368]",
        "vmovups zmm28, [rdi+2432]; vmovups zmm29, [rdi+2496]; vmovups zmm30, [rdi+2560]; vmovups zmm31, [rdi+2624]",
        "kmovq k0, [rdi+2688]; kmovq k1, [rdi+2696]; kmovq k2, [rdi+2704]; kmovq k3, [rdi+2712]",
        "kmovq k4, [rdi+2720]; kmovq k5, [rdi+2728]; kmovq k6, [rdi+2736]; kmovq k7, [rdi+2744]",
        "jmp 3f",
        "2:",
        "vmovups ymm0, [rdi+640]; vmovups ymm1, [rdi+704]; vmovups ymm2, [rdi+768]; vmovups ymm3, [rdi+832]",
        "vmovups ymm4, [rdi+896]; vmovups ymm5, [rdi+960]; vmovups ymm6, [rdi+1024]; vmovups ymm7, [rdi+1088]",
        "vmovups ymm8, [rdi+1152]; vmovups ymm9, [rdi+1216]; vmovups ymm10, [rdi+1280]; vmovups ymm11, [rdi+1344]",
        "vmovups ymm12, [rdi+1408]; vmovups ymm13, [rdi+1472]; vmovups ymm14, [rdi+1536]; vmovups ymm15, [rdi+1600]",
        "3:",
        "mov rax, [rdi+0]; mov rbx, [rdi+8]; mov rcx, [rdi+16]; mov rdx, [rdi+24]; mov rsi, [rdi+32]",
        "mov rbp, [rdi+48]; mov r8, [rdi+56]; mov r9, [rdi+64]; mov r10, [rdi+72]; mov r11, [rdi+80]",
        "mov r12, [rdi+88]; mov r13, [rdi+96]; mov r14, [rdi+104]; mov r15, [rdi+112]",
        "mov rdi, [rdi+40]",
        "std",
        "cmp qword ptr [rsp+16], 0",
        "jne 5f",
        // Spin.
        "4:",
        "pause",
        "cmp dword ptr [rip + {flag}], 0",
        "je 4b",
        "jmp 6f",
        // Sleep in the kernel, again and again, as long as that succeeds.
        "5:",
        "mov eax, 35",
        "syscall",
        "test rax, rax",
        "jnz 6f",
        "cmp dword ptr [rip + {flag}], 0",
        "je 5b",
        "6:",
        "push rdi",
        "mov rdi, [rsp+8]",
        "mov [rdi+0], rax; mov [rdi+8], rbx; mov [rdi+16], rcx; mov [rdi+24], rdx; mov [rdi+32], rsi",
        "mov [rdi+48], rbp; mov [rdi+56], r8; mov [rdi+64], r9; mov [rdi+72], r10; mov [rdi+80], r11",
        "mov [rdi+88], r12; mov [rdi+96], r13; mov [rdi+104], r14; mov [rdi+112], r15",
        "pop rax",
        "mov [rdi+40], rax",
        "pushfq",
        "pop rax",
        "mov [rdi+120], rax",
        "cld",
        "fxsave64 [rdi+128]",
        "cmp dword ptr [rsp+8], 1",
        "jb 8f",
        "je 7f",
        "vmovups [rdi+640], zmm0; vmovups [rdi+704], zmm1; vmovups [rdi+768], zmm2; vmovups [rdi+832], zmm3",
        "vmovups [rdi+896], zmm4; vmovups [rdi+960], zmm5; vmovups [rdi+1024], zmm6; vmovups [rdi+1088], zmm7",
        "vmovups [rdi+1152], zmm8; vmovups [rdi+1216], zmm9; vmovups [rdi+1280], zmm10; vmovups [rdi+1344], zmm11",
        "vmovups [rdi+1408], zmm12; vmovups [rdi+1472], zmm13; vmovups [rdi+1536], zmm14; vmovups [rdi+1600], zmm15",
        "vmovups [rdi+1664], zmm16; vmovups [rdi+1728], zmm17; vmovups [rdi+1792], zmm18; vmovups [rdi+1856], zmm19",
        "vmovups [rdi+1920], zmm20; vmovups [rdi+1984], zmm21; vmovups [rdi+2048], zmm22; vmovups [rdi+2112], zmm23",
        "vmovups [rdi+2176], zmm24; vmovups [rdi+2240], zmm25; vmovups [rdi+2304], zmm26; vmovups [rdi+2368], zmm27",
        "vmovups [rdi+2432], zmm28; vmovups [rdi+2496], zmm29; vmovups [rdi+2560], zmm30; vmovups [rdi+2624], zmm31",
        "kmovq [rdi+2688], k0; kmovq [rdi+2696], k1; kmovq [rdi+2704], k2; kmovq [rdi+2712], k3",
        "kmovq [rdi+2720], k4; kmovq [rdi+2728], k5; kmovq [rdi+2736], k6; kmovq [rdi+2744], k7",
        "jmp 8f",
        "7:",
        "vmovups [rdi+640], ymm0; vmovups [rdi+704], ymm1; vmovups [rdi+768], ymm2; vmovups [rdi+832], ymm3",
        "vmovups [rdi+896], ymm4; vmovups [rdi+960], ymm5; vmovups [rdi+1024], ymm6; vmovups [rdi+1088], ymm7",
        "vmovups [rdi+1152], ymm8; vmovups [rdi+1216], ymm9; vmovups [rdi+1280], ymm10; vmovups [rdi+1344], ymm11",
        "vmovups [rdi+1408], ymm12; vmovups [rdi+1472], ymm13; vmovups [rdi+1536], ymm14; vmovups [rdi+1600], ymm15",
        "8:",
        "fninit",
        "mov dword ptr [rsp], 0x1f80",
        "ldmxcsr [rsp]",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        flag = sym RELEASE,
    )
}

/// The base of GS, which nothing else uses in a 64-bit program.
#[must_use]
pub fn gs_base() -> u64 {
    const ARCH_GET_GS: usize = 0x1004;
    let mut base = 0_u64;
    // SAFETY: the kernel writes eight bytes into `base`.
    let _ = unsafe { crate::call::raw(libc::SYS_arch_prctl, &[ARCH_GET_GS, &raw mut base as usize]) };
    base
}

/// Sets the base of GS.
pub fn set_gs_base(base: u64) {
    const ARCH_SET_GS: usize = 0x1001;
    // SAFETY: no code of this program addresses through GS.
    unsafe { crate::call::raw(libc::SYS_arch_prctl, &[ARCH_SET_GS, base as usize]) }.expect("ARCH_SET_GS");
}

/// Machine code of a function that returns `value`.
#[must_use]
pub fn returning(value: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(value.to_le_bytes());
    code.push(0xc3);
    code
}

/// Where the C library registered the calling thread's rseq area, if it did.
#[must_use]
pub fn rseq_area() -> Option<usize> {
    const ARCH_GET_FS: usize = 0x1003;
    unsafe extern "C" {
        #[link_name = "__rseq_offset"]
        static OFFSET: isize;
        #[link_name = "__rseq_size"]
        static SIZE: u32;
    }
    // SAFETY: a constant of the C library.
    let size = unsafe { SIZE };
    // SAFETY: a constant of the C library.
    let offset = unsafe { OFFSET };
    let mut base = 0_usize;
    // SAFETY: the kernel writes eight bytes into `base`.
    unsafe { crate::call::raw(libc::SYS_arch_prctl, &[ARCH_GET_FS, &raw mut base as usize]) }.ok()?;
    (size != 0).then(|| base.wrapping_add_signed(offset))
}

/// Spins in a restartable sequence (rseq(2)) of the area at `area` until `*release` is no longer `seen`. Returns whether it
/// was aborted, and, where it was not, what stood in the area's `rseq_cs` at its end: the kernel clears that when it finds
/// the thread outside of a sequence.
///
/// # Safety
/// `area` is where the calling thread's area is registered, with glibc's signature.
#[must_use]
pub unsafe fn spin_in_sequence(area: usize, release: &AtomicU32, seen: u32) -> (bool, u64) {
    let (aborted, found): (u32, u64);
    // SAFETY: the sequence reads `release` and the area only; at its abort no register has changed that is not an output.
    unsafe {
        asm!(
            ".pushsection .data.rel.rseq_sequence, \"aw\"",
            ".balign 32",
            "72: .long 0, 0",
            ".quad 73f, 74f - 73f, 75f",
            ".popsection",
            "lea {found}, [rip + 72b]",
            "mov qword ptr [{area} + 8], {found}",
            "73:",
            "mov {aborted:e}, dword ptr [{release}]",
            "cmp {aborted:e}, {seen:e}",
            "je 73b",
            "mov {found}, qword ptr [{area} + 8]",
            "74:",
            "xor {aborted:e}, {aborted:e}",
            "jmp 76f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "75:",
            "mov {aborted:e}, 1",
            "76:",
            "mov qword ptr [{area} + 8], 0",
            area = in(reg) area,
            release = in(reg) release.as_ptr(),
            seen = in(reg) seen,
            found = out(reg) found,
            aborted = out(reg) aborted,
            options(nostack),
        );
    }
    (aborted == 1, found)
}
