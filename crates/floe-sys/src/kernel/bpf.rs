//! bpf(2): programs of type BPF_PROG_TYPE_SYSCALL, which run once when they are asked to (Linux 5.14), programs that packets
//! pass when they come in (Linux 6.6), programs that iterators show what they find (Linux 5.8), and maps.

use crate::Pid;
use nix::errno::Errno;
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ITER_CREATE: i32 = 33;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_PROG_TYPE_SYSCALL: u32 = 31;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_TRACE_ITER: u32 = 28;
const BPF_TCX_INGRESS: u32 = 46;

/// One instruction: operation, destination and source register, offset, number.
pub(crate) type Instruction = (u8, (u8, u8), i16, i32);

/// A program that is loaded. One that runs when it is asked to has a record of words, which it reads and writes.
pub(crate) struct Program(OwnedFd);

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
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}
const _: () = assert!(size_of::<Load>() == 112);

/// The attributes of BPF_LINK_CREATE for an iterator.
#[repr(C)]
struct LinkIterator {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    unused: u32,
}
const _: () = assert!(size_of::<LinkIterator>() == 32);

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
    /// One that runs when it is asked to.
    pub(super) fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let attributes = Load {
            prog_type: BPF_PROG_TYPE_SYSCALL,
            prog_flags: BPF_F_SLEEPABLE,
            ..Load::default()
        };
        Self::load_as(&attributes, instructions)
    }

    /// One that packets pass.
    pub(crate) fn of_packets(instructions: &[Instruction]) -> io::Result<Self> {
        let attributes = Load {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            expected_attach_type: BPF_TCX_INGRESS,
            ..Load::default()
        };
        Self::load_as(&attributes, instructions)
    }

    /// One that is shown what an iterator finds: `function` is the kernel's name for its kind.
    pub(super) fn of_iterator(function: u32, instructions: &[Instruction]) -> io::Result<Self> {
        let attributes = Load {
            prog_type: BPF_PROG_TYPE_TRACING,
            expected_attach_type: BPF_TRACE_ITER,
            attach_btf_id: function,
            ..Load::default()
        };
        Self::load_as(&attributes, instructions)
    }

    fn load_as(kind: &Load, instructions: &[Instruction]) -> io::Result<Self> {
        let code: Vec<u64> = instructions.iter().copied().map(encoded).collect();
        let attributes = Load {
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            // Of the helper functions that read the kernel's memory.
            license: c"GPL".as_ptr() as u64,
            ..*kind
        };
        // SAFETY: what the structure points to lives on, and is only read.
        unsafe { create(BPF_PROG_LOAD, &attributes) }.map(Self)
    }

    /// Runs it; what it leaves in its record.
    pub(crate) fn run<const WORDS: usize>(&self, mut record: [u64; WORDS]) -> io::Result<[u64; WORDS]> {
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

    /// What one of an iterator writes of one task. Linux 6.1.
    pub(super) fn iterate(&self, task: Pid) -> io::Result<File> {
        // union bpf_iter_link_info: thread, process, its descriptor.
        let of = [task.raw() as u32, 0, 0, 0];
        let attributes = LinkIterator {
            prog_fd: self.0.as_raw_fd() as u32,
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            iter_info: of.as_ptr() as u64,
            iter_info_len: size_of_val(&of) as u32,
            unused: 0,
        };
        // SAFETY: the structure has the stated size, and is only read, as is what it points to.
        let link = unsafe { create(BPF_LINK_CREATE, &attributes) }?;
        // SAFETY: as above: link, flags.
        unsafe { create(BPF_ITER_CREATE, &[link.as_raw_fd() as u32, 0]) }.map(File::from)
    }

    /// Has what comes in by a network device pass it, in the network namespace of the calling thread, as long as what is
    /// returned is open.
    pub(crate) fn attach(&self, device: u32) -> io::Result<OwnedFd> {
        // Program, device, where, flags; in relation to which other one, and how many changes there were.
        let attributes = [self.0.as_raw_fd() as u32, device, BPF_TCX_INGRESS, 0, 0, 0, 0, 0];
        // SAFETY: the array points to nothing.
        unsafe { create(BPF_LINK_CREATE, &attributes) }
    }
}

/// A map of one socket.
pub(crate) fn map_of_a_socket() -> io::Result<OwnedFd> {
    make_map([BPF_MAP_TYPE_SOCKMAP, 4, 8, 1])
}

/// A map of so many words.
pub(crate) fn map_of_words(words: u32) -> io::Result<OwnedFd> {
    make_map([BPF_MAP_TYPE_ARRAY, 4, 8 * words, 1])
}

/// Sets what a map has: words, or the number of the socket's descriptor.
pub(crate) fn set_map(map: BorrowedFd<'_>, value: &[u64]) -> io::Result<()> {
    let key = 0_u32;
    // Map, place of the key, place of the value, flags.
    let attributes = [
        map.as_raw_fd() as u64,
        (&raw const key) as u64,
        value.as_ptr() as u64,
        0,
    ];
    // SAFETY: the array has the stated size, and is only read, as is what it points to, which is as long as the map's values.
    let result = unsafe {
        let attributes = attributes.as_ptr();
        libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, attributes, size_of::<[u64; 4]>())
    };
    Errno::result(result)?;
    Ok(())
}

/// A map of one word, of which each processor has its own.
pub(super) fn word_of_each_processor() -> io::Result<OwnedFd> {
    make_map([BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1])
}

/// Type, bytes of a key, bytes of a value, number of values.
fn make_map(attributes: [u32; 4]) -> io::Result<OwnedFd> {
    // SAFETY: the array points to nothing.
    unsafe { create(BPF_MAP_CREATE, &attributes) }
}

/// A call that makes a descriptor.
///
/// # Safety
/// What the attributes point to must be what the kernel expects of them.
unsafe fn create<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes have the stated size, and are only read; the rest is the caller's word.
    let number = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
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
