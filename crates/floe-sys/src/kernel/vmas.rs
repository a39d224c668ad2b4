//! Flags of mappings, from the kernel's own `struct vm_area_struct`. /proc/PID/smaps tells them too, but it walks through
//! all pages to add up what floe does not ask for: 26 ms for a GiB in small pages.
//!
//! Which bit is which flag differs between kernels, so it is learned from mappings of floe's own, of which smaps tells the
//! names: it names them in the order of their bits, fs/proc/task_mmu.c.

use super::{bpf::Program, btf::Btf, helper};
use crate::{
    Pid,
    procfs::{Mapping, ProcError, VmFlag},
    userfault::Userfault,
};
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use std::{
    collections::HashMap,
    ffi::c_void,
    io::{self, Read},
    num::NonZeroUsize,
    ptr::NonNull,
};

/// The function by which the kernel knows this kind of iterator, kernel/bpf/task_iter.c.
const ITERATOR: &str = "bpf_iter_task_vma";
const VMA: &str = "vm_area_struct";
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not 0");
/// Words that the program writes of each mapping: first byte, first byte behind it, flags.
const WORDS: usize = 3;

/// Reads mappings with their flags, but not through their pages. Linux 5.12.
pub struct VmaFlags {
    program: Program,
    /// What each bit is called, where it is known.
    names: [Option<VmFlag>; 64],
    /// Mappings that are no process's own and all have ([vsyscall]), by their first byte.
    of_all: HashMap<u64, Vec<VmFlag>>,
}

impl VmaFlags {
    /// Loads the program, and learns the names of flags.
    ///
    /// # Errors
    /// EPERM without CAP_BPF and CAP_PERFMON, or where the kernel is locked down; others where it does not tell its types,
    /// or names flags in another way.
    pub fn learn() -> io::Result<Self> {
        let program = program(&Btf::read(&[VMA])?)?;
        let _samples = samples();
        let own = Pid::new(std::process::id() as i32);
        let found = read(&program, own)?;
        let mut all = Self {
            program,
            names: [None; 64],
            of_all: HashMap::new(),
        };
        for mapping in Mapping::read_all(own).map_err(io::Error::other)? {
            match found.iter().find(|[start, ..]| *start == mapping.start) {
                Some([_, end, bits]) if *end == mapping.end => all.learn_from(*bits, &mapping.flags)?,
                Some(_) => {}
                None if mapping.path == b"[vsyscall]" => {
                    all.of_all.insert(mapping.start, mapping.flags);
                }
                None => {}
            }
        }
        Ok(all)
    }

    fn learn_from(&mut self, bits: u64, names: &[VmFlag]) -> io::Result<()> {
        // A bit without a name would move those behind it.
        if bits.count_ones() as usize != names.len() {
            return Ok(());
        }
        for (bit, name) in bits_of(bits).zip(names) {
            if *self.names[bit].get_or_insert(*name) != *name {
                return Err(io::Error::other("a flag of mappings has two names"));
            }
        }
        Ok(())
    }

    /// All mappings of a process, as [`Mapping::read_all`] reads them; `None` where some have flags that are not known. Its
    /// tasks must stand still.
    ///
    /// # Errors
    /// [`ProcError`], and those of reading from the program.
    pub fn mappings(&self, pid: Pid) -> io::Result<Option<Vec<Mapping>>> {
        let gone = |error: ProcError| io::Error::other(error);
        let mut mappings = Mapping::read_all_without_flags(pid).map_err(gone)?;
        let found = read(&self.program, pid)?;
        let mut found = found.iter().peekable();
        for mapping in &mut mappings {
            let own = found.next_if(|[start, end, _]| (*start, *end) == (mapping.start, mapping.end));
            let flags = match own {
                Some([.., bits]) => bits_of(*bits).map(|bit| self.names[bit]).collect(),
                None => self.of_all.get(&mapping.start).cloned(),
            };
            match flags {
                Some(flags) => mapping.flags = flags,
                None => return Ok(None),
            }
        }
        Ok(found.next().is_none().then_some(mappings))
    }
}

fn bits_of(word: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |bit| word >> bit & 1 != 0)
}

/// Writes three words of each mapping that it is shown.
fn program(types: &Btf) -> io::Result<Program> {
    let member = |name| types.offset(VMA, name).map(|offset| offset as i16);
    // The context: what the iterator is at, the task, the mapping, include/linux/bpf.h.
    let mut code = vec![
        (0xbf, (6, 1), 0, 0),  // r6 = context
        (0x79, (7, 6), 16, 0), // r7 = the mapping
        (0x15, (7, 0), 12, 0), // none: go to the end
    ];
    for (word, name) in ["vm_start", "vm_end", "vm_flags"].into_iter().enumerate() {
        code.push((0x79, (1, 7), member(name)?, 0)); // r1 = member
        code.push((0x7b, (10, 1), 8 * (word as i16 - WORDS as i16), 0)); // to its place in the frame
    }
    let bytes = 8 * WORDS as i32;
    code.extend([
        (0x79, (1, 6), 0, 0),      // r1 = what the iterator is at
        (0x79, (1, 1), 0, 0),      // r1 = its file
        (0xbf, (2, 10), 0, 0),     // r2 = frame
        (0x07, (2, 0), 0, -bytes), //      - bytes
        (0xb7, (3, 0), 0, bytes),  // r3 = bytes
        (0x85, (0, 0), 0, helper::SEQ_WRITE),
        (0xb7, (0, 0), 0, 0), // the end: r0 = 0
        (0x95, (0, 0), 0, 0), // exit
    ]);
    Program::of_iterator(types.function(ITERATOR)?, &code)
}

/// First byte, first byte behind it and flags of each mapping of a task, by address.
fn read(program: &Program, task: Pid) -> io::Result<Vec<[u64; WORDS]>> {
    let mut file = program.iterate(task)?;
    // The kernel gathers whole records, in less room than this (kernel/bpf/bpf_iter.c).
    let mut buffer = vec![0; 64 << 10];
    let mut all: Vec<[u64; WORDS]> = Vec::new();
    loop {
        let got = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let records = buffer[..got].chunks_exact(8 * WORDS);
        let records = records.map(|of| std::array::from_fn::<u64, WORDS, _>(|word| word_at(of, word)));
        // Behind the last one of a single task the kernel finds that again, without end.
        let last = all.last().map_or(0, |[_, end, _]| *end);
        let before = all.len();
        all.extend(records.filter(|[start, ..]| *start >= last));
        if all.len() == before {
            return Ok(all);
        }
    }
}

fn word_at(bytes: &[u8], word: usize) -> u64 {
    u64::from_ne_bytes(bytes[8 * word..8 * word + 8].try_into().expect("8 bytes"))
}

/// A mapping of one page, and what it is registered with.
struct Sample(NonNull<c_void>, Option<Userfault>);

impl Sample {
    fn map(flags: MapFlags) -> Option<Self> {
        // SAFETY: a new mapping, at a place that the kernel chooses.
        unsafe { mman::mmap_anonymous(None, PAGE, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
            .ok()
            .map(|place| Self(place, None))
    }

    fn advised(advice: MmapAdvise) -> Option<Self> {
        let sample = Self::map(MapFlags::MAP_PRIVATE)?;
        // SAFETY: the page is nobody else's, and nothing is in it.
        unsafe { mman::madvise(sample.0, PAGE.get(), advice) }
            .ok()
            .map(|()| sample)
    }

    /// One of which the kernel notes what is written.
    fn followed() -> Option<Self> {
        let mut sample = Self::map(MapFlags::MAP_PRIVATE)?;
        let userfault = Userfault::of_caller().ok()?;
        let start = sample.0.as_ptr() as u64;
        userfault.register(start..start + PAGE.get() as u64).ok()?;
        sample.1 = Some(userfault);
        Some(sample)
    }

    fn locked() -> Option<Self> {
        let sample = Self::map(MapFlags::MAP_PRIVATE)?;
        // SAFETY: the page is there.
        unsafe { mman::mlock(sample.0, PAGE.get()) }.ok().map(|()| sample)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nothing refers to it.
        let unmapped = unsafe { mman::munmap(self.0, PAGE.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// Mappings with flags that other mappings of floe's may not have. What can't be had here is left out.
fn samples() -> Vec<Sample> {
    const ADVICE: [MmapAdvise; 7] = [
        MmapAdvise::MADV_HUGEPAGE,
        MmapAdvise::MADV_NOHUGEPAGE,
        MmapAdvise::MADV_DONTFORK,
        MmapAdvise::MADV_DONTDUMP,
        MmapAdvise::MADV_WIPEONFORK,
        MmapAdvise::MADV_RANDOM,
        MmapAdvise::MADV_SEQUENTIAL,
    ];
    let mapped = [MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE, MapFlags::MAP_SHARED];
    mapped
        .into_iter()
        .map(Sample::map)
        .chain(ADVICE.into_iter().map(Sample::advised))
        .chain([Sample::locked(), Sample::followed()])
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{VmaFlags, samples};
    use crate::{Pid, fork, procfs::Mapping};
    use nix::sys::{
        signal::{Signal, kill},
        wait::waitpid,
    };

    #[test]
    fn tells_what_smaps_tells() {
        let flags = VmaFlags::learn().expect("the kernel's memory");
        // More of them than come in one piece.
        let _samples: Vec<_> = (0..400).map(|_| samples()).collect();
        let other = fork::child(|| {
            loop {
                nix::unistd::pause();
            }
        });
        let child = other.expect("a child");
        let other = Pid::new(child.as_raw());
        let (expected, found) = (Mapping::read_all(other), flags.mappings(other));
        kill(child, Signal::SIGKILL).expect("it is there");
        waitpid(child, None).expect("it ends");
        let expected = expected.expect("smaps");
        assert!(expected.len() > 2000);
        assert_eq!(found.expect("the kernel's memory"), Some(expected));
    }
}
