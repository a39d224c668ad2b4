//! bpf(2) programs of type BPF_PROG_TYPE_SYSCALL, which run once when they are asked to (Linux 5.14).

use nix::errno::Errno;
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: i32 = 0;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const BPF_PROG_TYPE_SYSCALL: u32 = 31;
const BPF_F_SLEEPABLE: u32 = 1 << 4;

/// One instruction: operation, destination and source register, offset, number.
pub(super) type Instruction = (u8, (u8, u8), i16, i32);

/// A program that is loaded. It has a record of words, which it reads and writes.
pub(super) struct Program(OwnedFd);

/// The beginning of the attributes of BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}
const _: () = assert!(size_of::<Load>() == 48);

/// The attributes of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct Run {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}
const _: () = assert!(size_of::<Run>() == 72);

impl Program {
    pub(super) fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let code: Vec<u64> = instructions.iter().copied().map(encoded).collect();
        let attributes = Load {
            prog_type: BPF_PROG_TYPE_SYSCALL,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            // Of the helper functions that read the kernel's memory.
            license: c"GPL".as_ptr() as u64,
            prog_flags: BPF_F_SLEEPABLE,
            ..Load::default()
        };
        // SAFETY: the structure has the stated size; what it points to lives on, and is only read.
        let number = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Load>()) };
        let number = Errno::result(number)?;
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number as i32) }))
    }

    /// Runs it; what it leaves in its record.
    pub(super) fn run<const WORDS: usize>(&self, mut record: [u64; WORDS]) -> io::Result<[u64; WORDS]> {
        let mut attributes = Run {
            prog_fd: self.0.as_raw_fd() as u32,
            ctx_size_in: size_of_val(&record) as u32,
            ctx_in: record.as_mut_ptr() as u64,
            ..Run::default()
        };
        // SAFETY: the structure has the stated size; the record lives on, and has as many bytes as are said.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Run>()) };
        Errno::result(result)?;
        Ok(record)
    }
}

/// A map of one word, of which each processor has its own.
pub(super) fn word_of_each_processor() -> io::Result<OwnedFd> {
    // Type, bytes of a key, bytes of a value, number of values.
    let attributes = [BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1];
    // SAFETY: the array has the stated size, and is only read.
    let number = unsafe {
        let attributes = attributes.as_ptr();
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attributes, size_of::<[u32; 4]>())
    };
    let number = Errno::result(number)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}

/// struct bpf_insn.
fn encoded((operation, (to, from), offset, number): Instruction) -> u64 {
    u64::from(operation)
        | u64::from(from << 4 | to) << 8
        | u64::from(offset as u16) << 16
        | u64::from(number as u32) << 32
}
