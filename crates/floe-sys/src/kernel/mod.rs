//! What only the kernel's own memory tells. It is read by programs of bpf(2), which root may load where the kernel is not
//! locked down, at places that its description of its types (BTF) names.

mod aio;
pub(crate) mod bpf;
mod bpf_map;
mod btf;
mod connections;
mod datagrams;
mod dnotify;
mod errors;
mod fanotify;
mod files;
mod gathered;
mod hidden;
mod inotify;
mod mqueue;
mod semaphores;
mod tasks;
mod terminals;
mod unaccepted;
mod urgent;
mod vmas;

pub use aio::{AioContext, aio_contexts};
pub use bpf_map::MapUse;
pub use connections::WaitingConnection;
pub use datagrams::{SocketState, WaitingPacket};
pub use dnotify::DirectoryNotice;
pub use errors::QueuedError;
pub use fanotify::FanotifyGroup;
pub use files::FileMemory;
pub use gathered::GatheredPacket;
pub use hidden::HiddenOption;
pub use inotify::{InotifyEvent, InotifyQueue};
pub use mqueue::{MessageQueue, PriorityMessage};
pub use semaphores::{Adjustments, semaphore_adjustments};
pub use terminals::{StoppedOutput, TerminalEnd, TerminalLook, Terminals, WaitingInput};
pub use unaccepted::{SentMessage, UnacceptedConnection};
pub use urgent::{MarkedQueue, UrgentByte, UrgentMark};
pub use vmas::VmaFlags;

use bpf::Program;
use btf::Btf;
use std::{
    cell::OnceCell,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Structures on the way to the memory of each processor.
const OWN: [&str; 5] = ["task_struct", "files_struct", "fdtable", "file", "bpf_array"];

/// The kernel's memory, to be read.
struct KernelMemory {
    types: Btf,
    reader: Program,
    block_reader: Program,
    direct_map: OnceCell<(u64, u64)>,
}

/// Reads a word of the kernel's memory: whether that is possible here.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_PERFMON, or where the kernel is locked down; ENOENT where it does not tell its types.
pub fn try_reading() -> io::Result<()> {
    let memory = KernelMemory::open(&[])?;
    memory.member("task_struct", memory.current_task()?, "files").map(drop)
}

/// How many words a block has: programs have a frame of 512 bytes.
const BLOCK: usize = 32;

/// Reads a block. Record: address; result of reading; the words.
fn block_reader() -> io::Result<Program> {
    let frame = -(8 * BLOCK as i32);
    let mut code = vec![
        (0xbf, (6, 1), 0, 0),      // r6 = record
        (0x79, (3, 6), 0, 0),      // r3 = address
        (0xbf, (1, 10), 0, 0),     // r1 = frame
        (0x07, (1, 0), 0, frame),  //      - bytes
        (0xb7, (2, 0), 0, -frame), // r2 = bytes
        (0x85, (0, 0), 0, helper::PROBE_READ_KERNEL),
        (0x7b, (6, 0), 8, 0), // result = r0
    ];
    for word in 0..BLOCK as i16 {
        code.push((0x79, (1, 10), frame as i16 + 8 * word, 0)); // r1 = a word of the frame
        code.push((0x7b, (6, 1), 16 + 8 * word, 0)); // to its place in the record
    }
    code.extend([(0xb7, (0, 0), 0, 0), (0x95, (0, 0), 0, 0)]);
    Program::load(&code)
}

/// include/uapi/linux/bpf.h: functions that programs call.
mod helper {
    pub const GET_CURRENT_TASK: i32 = 35;
    pub const PROBE_READ_KERNEL: i32 = 113;
    pub const SEQ_WRITE: i32 = 127;
    pub const MAP_LOOKUP_PERCPU_ELEM: i32 = 195;
}

impl KernelMemory {
    /// `structures` are those whose members will be asked for.
    fn open(structures: &[&'static str]) -> io::Result<Self> {
        // Record: address, or 0 for that of the calling task; answer; result of reading.
        let reader = Program::load(&[
            (0xbf, (6, 1), 0, 0),                        // r6 = record
            (0x79, (3, 6), 0, 0),                        // r3 = address
            (0x55, (3, 0), 4, 0),                        // if it is not 0, go on below
            (0x85, (0, 0), 0, helper::GET_CURRENT_TASK), // r0 = the task
            (0x7b, (6, 0), 8, 0),                        // answer = r0
            (0xb7, (0, 0), 0, 0),                        // r0 = 0
            (0x95, (0, 0), 0, 0),                        // exit
            (0xbf, (1, 10), 0, 0),                       // r1 = frame
            (0x07, (1, 0), 0, -8),                       //      - 8
            (0xb7, (2, 0), 0, 8),                        // r2 = 8 bytes
            (0x85, (0, 0), 0, helper::PROBE_READ_KERNEL),
            (0x7b, (6, 0), 16, 0),  // result = r0
            (0x79, (1, 10), -8, 0), // answer = the word
            (0x7b, (6, 1), 8, 0),
            (0xb7, (0, 0), 0, 0),
            (0x95, (0, 0), 0, 0),
        ])?;
        let types = Btf::read(&[structures, &OWN].concat())?;
        let block_reader = block_reader()?;
        Ok(Self {
            types,
            reader,
            block_reader,
            direct_map: OnceCell::new(),
        })
    }

    /// The address of the calling task's structure.
    fn current_task(&self) -> io::Result<u64> {
        self.reader.run([0; 3]).map(|record| record[1])
    }

    /// Eight bytes.
    fn word(&self, address: u64) -> io::Result<u64> {
        let [_, word, result] = self.reader.run([address, 0, 0])?;
        match result as i64 {
            0 => Ok(word),
            error => Err(io::Error::from_raw_os_error(-error as i32)),
        }
    }

    /// Eight bytes of a member of the structure at an address.
    fn member(&self, structure: &'static str, address: u64, member: &str) -> io::Result<u64> {
        self.word(address + self.types.offset(structure, member)?)
    }

    /// Four bytes of one.
    fn number(&self, structure: &'static str, address: u64, member: &str) -> io::Result<u32> {
        self.member(structure, address, member).map(|word| word as u32)
    }

    fn block(&self, address: u64) -> io::Result<[u64; BLOCK]> {
        let mut record = [0; BLOCK + 2];
        record[0] = address;
        let record = self.block_reader.run(record)?;
        match record[1] as i64 {
            0 => Ok(std::array::from_fn(|word| record[word + 2])),
            error => Err(io::Error::from_raw_os_error(-error as i32)),
        }
    }

    /// Any number of bytes.
    fn bytes(&self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes: Vec<u8> = Vec::new();
        while bytes.len() < length {
            let place = address + bytes.len() as u64;
            if length - bytes.len() < 8 * BLOCK {
                bytes.extend(self.word(place)?.to_ne_bytes());
            } else {
                bytes.extend(self.block(place)?.iter().flat_map(|word| word.to_ne_bytes()));
            }
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Where the kernel sees the `struct page` of memory's first page, and that page itself. Where it chooses places by
    /// chance it tells them in variables; else they are fixed, arch/x86/include/asm/page_64_types.h.
    fn direct_map(&self) -> io::Result<(u64, u64)> {
        match self.direct_map.get() {
            Some(known) => Ok(*known),
            None => self
                .find_direct_map()
                .map(|found| *self.direct_map.get_or_init(|| found)),
        }
    }

    fn find_direct_map(&self) -> io::Result<(u64, u64)> {
        if !cfg!(target_arch = "x86_64") {
            return Err(io::Error::other("where this machine's kernel sees memory is not known"));
        }
        let symbols = std::fs::read_to_string("/proc/kallsyms")?;
        let variable = |name: &str, fixed: u64| {
            let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(name));
            let place = line.and_then(|line| u64::from_str_radix(line.split(' ').next()?, 16).ok());
            match place {
                None => Ok(fixed),
                Some(0) => Err(io::Error::other("the kernel hides its symbols (kernel.kptr_restrict)")),
                Some(place) => self.word(place),
            }
        };
        Ok((
            variable("vmemmap_base", 0xffff_ea00_0000_0000)?,
            variable("page_offset_base", 0xffff_8880_0000_0000)?,
        ))
    }

    /// The `struct file` behind a descriptor of the caller's.
    fn file(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        let files = self.member("task_struct", self.current_task()?, "files")?;
        let table = self.member("files_struct", files, "fdt")?;
        self.word(self.member("fdtable", table, "fd")? + 8 * file.as_raw_fd() as u64)
    }

    /// How far each processor's own memory is from what pointers to such memory say. Found by a map, of which the kernel
    /// has such a pointer, and gives programs the real places.
    fn processors(&self) -> io::Result<Vec<u64>> {
        let map = bpf::word_of_each_processor()?;
        // Record: processor; answer, 0 where there is none.
        let program = Program::load(&[
            (0xbf, (6, 1), 0, 0),               // r6 = record
            (0x18, (1, 1), 0, map.as_raw_fd()), // r1 = the map (BPF_PSEUDO_MAP_FD), in two halves
            (0x00, (0, 0), 0, 0),
            (0x62, (10, 0), -4, 0), // the first word's key
            (0xbf, (2, 10), 0, 0),  // r2 = frame
            (0x07, (2, 0), 0, -4),  //      - 4
            (0x61, (3, 6), 0, 0),   // r3 = processor
            (0x85, (0, 0), 0, helper::MAP_LOOKUP_PERCPU_ELEM),
            (0x7b, (6, 0), 8, 0), // answer = r0
            (0xb7, (0, 0), 0, 0),
            (0x95, (0, 0), 0, 0),
        ])?;
        let map = self.member("file", self.file(map.as_fd())?, "private_data")?;
        let pointer = self.member("bpf_array", map, "pptrs")?;
        let mut found = Vec::new();
        for processor in 0.. {
            match program.run([processor, 0, 0])?[1] {
                0 => break,
                place => found.push(place.wrapping_sub(pointer)),
            }
        }
        Ok(found)
    }
}
