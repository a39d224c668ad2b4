//! Turns the address space of a puppet into the one the image holds.
//!
//! Order (each step is needed by the next): unmap what goes; move the kernel's own mappings; change the executable, which
//! the kernel allows only while none of the old one is mapped; resize and map; write pages; flags of ranges; the layout
//! of code, heap, stack and arguments.

use super::{
    advice::{advise, lock, place},
    aio,
    assemble::{Assembly, Inherited, assemble},
    attach::Attach,
    fill::{FillError, Filler},
    new_memory::fill_new,
    runs::{page_work, part_huge, without},
};
use crate::{
    channel::{Channel, ChannelError},
    ns::Known,
};
use floe_image::record::{AddressSpaceRecord, HugeRun, MmLayout, PageRun, VmaRecord, VmaSource};
use floe_sys::{
    Pid,
    memory::huge_page_bits,
    procfs::{Mapping, ProcError},
};
use floe_tracee::{Puppet, PuppetError, Script};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

/// An address space that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The task.
    #[error(transparent)]
    Puppet(#[from] PuppetError),
    /// Files.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Pages.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The image refers to an object that is not there.
    #[error("the image holds no {what} {id}")]
    Missing {
        /// Kind of object.
        what: &'static str,
        /// Its number.
        id: u32,
    },
    /// The kernel locked less or more than was asked for.
    #[error("{got} bytes of process {pid} are locked instead of {wanted}")]
    Locked {
        /// Whose.
        pid: Pid,
        /// How many should be.
        wanted: u64,
        /// How many are.
        got: u64,
    },
    /// An AIO ring is not what it was.
    #[error("the AIO ring at {start:#x} of process {pid}: {what}")]
    Ring {
        /// Whose.
        pid: Pid,
        /// Where.
        start: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel put a mapping elsewhere.
    #[error("a mapping of process {pid} came to lie at {got:#x} instead of {wanted:#x}")]
    Misplaced {
        /// Whose.
        pid: Pid,
        /// Where it should be.
        wanted: u64,
        /// Where it is.
        got: i64,
    },
}

/// Open files behind mappings, by their numbers in the image.
#[derive(Debug, Default)]
pub struct Sources {
    /// Mapped files.
    pub files: HashMap<u32, OwnedFd>,
    /// Shared anonymous memory.
    pub shmems: HashMap<u32, OwnedFd>,
    /// Bytes of System V segments and of their pages, by IPC namespace and identifier.
    pub segments: HashMap<(u32, i32), (u64, u64)>,
}

/// What building address spaces needs.
#[derive(Debug)]
pub struct Builder<'a> {
    /// What writes pages.
    pub filler: &'a Filler<'a>,
    /// How files reach puppets.
    pub channel: &'a Channel,
    /// What mappings map.
    pub sources: &'a Sources,
    /// IPC namespaces, and the number of that which the puppet is in.
    pub ipc: (&'a Known, u32),
}

/// An address space with its private pages.
#[derive(Debug, Clone, Copy)]
pub struct Filled<'a> {
    /// Its mappings.
    pub space: &'a AddressSpaceRecord,
    /// Its pages, lowest address first.
    pub runs: &'a [PageRun],
    /// Where they are huge ones.
    pub huge: &'a [HugeRun],
    /// Pages of its that come later, which nobody else has.
    pub later: &'a [PageRun],
}

const PR_SET_THP_DISABLE: u64 = 41;
/// include/uapi/linux/mman.h, Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;
const MM_MAP_BYTES: u64 = 104;

impl Builder<'_> {
    /// Builds `wanted` in the script's puppet, which has inherited `heritage` (the seed has nothing). Its last calls are
    /// left in the script. Puppets have huge pages disabled, so that none comes to be where there was none.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(
        &self,
        script: &mut Script<'_>,
        heritage: Option<Filled<'_>>,
        wanted: Filled<'_>,
    ) -> Result<(), BuildError> {
        let puppet = script.puppet();
        let Filled {
            space: wanted,
            runs,
            huge,
            later,
        } = wanted;
        let new_exe = heritage.is_none_or(|old| old.space.exe != wanted.exe);
        let inherited = Inherited {
            vmas: heritage.map_or(&[], |old| &old.space.vmas),
            special: special_mappings(puppet.tid())?,
            drop_file: heritage.filter(|_| new_exe).map(|old| old.space.exe),
        };
        let plan = assemble(&inherited, wanted);
        let files = self.files_needed(&plan, wanted, new_exe)?;
        let borrowed: Vec<BorrowedFd<'_>> = files.values().copied().collect();
        clear(script, &plan, wanted)?;
        let numbers: HashMap<Key, RawFd> = files
            .keys()
            .copied()
            .zip(self.channel.give(script, &borrowed)?)
            .collect();
        if new_exe {
            let exe = numbers.get(&Key::File(wanted.exe)).copied();
            set_layout(script, &wanted.layout, &wanted.auxv, exe)?;
        }
        map_all(script, &plan, wanted, &numbers)?;
        self.attach_all(script, &plan, wanted)?;
        aio::make_all(script, plan.map.iter().map(|index| &wanted.vmas[*index]))?;
        for vma in plan.map.iter().map(|index| &wanted.vmas[*index]) {
            place(script, vma)?;
        }
        let work = page_work(heritage.map_or(&[], |old| old.runs), runs, &plan.kept);
        drop_pages(script, &work.drop)?;
        let writable: Vec<Range<u64>> = wanted
            .vmas
            .iter()
            .filter(|vma| filling_protection(vma) & libc::PROT_WRITE as u32 != 0)
            .map(|vma| vma.start..vma.end)
            .collect();
        script.run()?;
        let now = if later.is_empty() {
            work.write
        } else {
            without(&work.write, later)
        };
        let (large, small) = part_huge(&now, huge);
        let new = plan.map.iter().map(|index| &wanted.vmas[*index]);
        let small = fill_new(puppet, new, small, self.filler)?;
        self.filler.process(puppet.tid(), &small, writable.clone())?;
        if !large.is_empty() {
            script.call("enable huge pages", libc::SYS_prctl, &[PR_SET_THP_DISABLE, 0])?;
            script.run()?;
            self.filler.process(puppet.tid(), &large, writable)?;
            script.call("disable huge pages", libc::SYS_prctl, &[PR_SET_THP_DISABLE, 1])?;
        }
        finish(script, &plan, wanted, numbers.values())?;
        set_layout(script, &wanted.layout, &wanted.auxv, None)
    }

    /// Attaches segments, those of other IPC namespaces than the puppet's in there.
    fn attach_all(
        &self,
        script: &mut Script<'_>,
        plan: &Assembly,
        wanted: &AddressSpaceRecord,
    ) -> Result<(), BuildError> {
        let (_, own) = self.ipc;
        let mut now = own;
        for vma in plan.map.iter().map(|index| &wanted.vmas[*index]) {
            let VmaSource::Segment {
                namespace,
                id,
                offset,
                writable,
            } = vma.source
            else {
                continue;
            };
            let missing = BuildError::Missing {
                what: "System V segment",
                id: id as u32,
            };
            let (size, page) = *self.sources.segments.get(&(namespace, id)).ok_or(missing)?;
            if namespace != now {
                self.enter(script, namespace)?;
                now = namespace;
            }
            let attach = Attach {
                vma,
                id,
                offset,
                writable,
                size,
                aside: free_place(script.puppet(), plan, wanted, size + page).next_multiple_of(page),
            };
            attach.run(script)?;
        }
        if now != own {
            self.enter(script, own)?;
        }
        Ok(())
    }

    /// Has the puppet enter an IPC namespace.
    fn enter(&self, script: &mut Script<'_>, number: u32) -> Result<(), BuildError> {
        let missing = BuildError::Missing {
            what: "IPC namespace",
            id: number,
        };
        let file = self.ipc.0.ipc(number).ok_or(missing)?;
        let number = self.channel.give(script, &[file])?[0] as u64;
        let arguments = [number, libc::CLONE_NEWIPC as u64];
        script.call("enter an IPC namespace", libc::SYS_setns, &arguments)?;
        script.call("close it", libc::SYS_close, &[number])?;
        Ok(())
    }

    fn files_needed(
        &self,
        plan: &Assembly,
        wanted: &AddressSpaceRecord,
        new_exe: bool,
    ) -> Result<BTreeMap<Key, BorrowedFd<'_>>, BuildError> {
        let mut needed = BTreeMap::new();
        let mut keys: Vec<Key> = plan
            .map
            .iter()
            .filter_map(|index| Key::of(&wanted.vmas[*index]))
            .collect();
        keys.extend(new_exe.then_some(Key::File(wanted.exe)));
        for key in keys {
            let (table, what, id) = match key {
                Key::File(id) => (&self.sources.files, "mapped file", id),
                Key::Shmem(id) => (&self.sources.shmems, "shared memory object", id),
            };
            needed.insert(key, table.get(&id).ok_or(BuildError::Missing { what, id })?.as_fd());
        }
        Ok(needed)
    }
}

/// Unmaps what goes and moves the kernel's own mappings to their places.
fn clear(script: &mut Script<'_>, plan: &Assembly, wanted: &AddressSpaceRecord) -> Result<(), BuildError> {
    for range in &plan.unmap {
        script.call("unmap", libc::SYS_munmap, &[range.start, range.end - range.start])?;
    }
    let moves: Vec<_> = plan
        .special
        .iter()
        .filter(|(_, now, then)| now.start != then.start)
        .collect();
    let overlap = moves.iter().any(|(_, _, then)| {
        plan.special
            .iter()
            .any(|(_, now, _)| now.start < then.end && then.start < now.end)
    });
    // Where old and new places overlap, all go through a place that is free in both.
    let aside = if overlap {
        let bytes = plan.special.iter().map(|(_, now, _)| now.end - now.start).sum();
        free_place(script.puppet(), plan, wanted, bytes)
    } else {
        0
    };
    let mut at = aside;
    for (_, now, then) in &moves {
        let bytes = then.end - then.start;
        if overlap {
            remap(script, now.start, bytes, at)?;
            at += bytes;
        } else {
            remap(script, now.start, bytes, then.start)?;
        }
    }
    let mut at = aside;
    for (_, _, then) in moves.iter().filter(|_| overlap) {
        let bytes = then.end - then.start;
        remap(script, at, bytes, then.start)?;
        at += bytes;
    }
    Ok(())
}

fn remap(script: &mut Script<'_>, from: u64, bytes: u64, to: u64) -> Result<(), BuildError> {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let arguments = [from, bytes, bytes, flags, to];
    Ok(script.call("move a kernel mapping", libc::SYS_mremap, &arguments)?)
}

/// An address at which neither the puppet nor the wanted address space has anything, with so much room.
fn free_place(puppet: &Puppet, plan: &Assembly, wanted: &AddressSpaceRecord, bytes: u64) -> u64 {
    let mut taken: Vec<Range<u64>> = wanted.vmas.iter().map(|vma| vma.start..vma.end).collect();
    taken.extend(plan.special.iter().map(|(_, now, _)| now.clone()));
    taken.push(puppet.arena_range());
    first_gap(taken, bytes)
}

/// The lowest gap of `bytes` bytes between `taken` ranges, from 1 MiB on: far above vm.mmap_min_addr, below which an
/// ordinary user can't map.
#[must_use]
pub fn first_gap(mut taken: Vec<Range<u64>>, bytes: u64) -> u64 {
    const LOWEST: u64 = 0x10_0000;
    taken.sort_by_key(|range| range.start);
    let mut at = LOWEST;
    for range in taken {
        if range.start >= at && range.start - at >= bytes {
            return at;
        }
        at = at.max(range.end);
    }
    at
}

fn special_mappings(pid: Pid) -> Result<Vec<(String, Range<u64>)>, ProcError> {
    Ok(Mapping::read_all_without_flags(pid)?
        .into_iter()
        .filter(|m| m.path.starts_with(b"[v") && m.path != b"[vsyscall]")
        .map(|m| (String::from_utf8_lossy(&m.path).into_owned(), m.start..m.end))
        .collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    File(u32),
    Shmem(u32),
}

impl Key {
    fn of(vma: &VmaRecord) -> Option<Self> {
        match vma.source {
            VmaSource::File { file, .. } => Some(Self::File(file)),
            VmaSource::Shmem { object, .. } => Some(Self::Shmem(object)),
            VmaSource::Anonymous | VmaSource::Segment { .. } | VmaSource::AioRing(_) | VmaSource::Special { .. } => {
                None
            }
        }
    }
}

fn map_all(
    script: &mut Script<'_>,
    plan: &Assembly,
    wanted: &AddressSpaceRecord,
    numbers: &HashMap<Key, RawFd>,
) -> Result<(), BuildError> {
    for (start, old, new) in &plan.resize {
        script.call("resize a mapping", libc::SYS_mremap, &[*start, *old, *new, 0])?;
    }
    for vma in plan.protect.iter().map(|index| &wanted.vmas[*index]) {
        let arguments = [vma.start, vma.end - vma.start, u64::from(vma.prot)];
        script.call("change a protection", libc::SYS_mprotect, &arguments)?;
    }
    let mapped = plan.map.iter().map(|index| &wanted.vmas[*index]);
    let by_mmap = |vma: &&VmaRecord| !matches!(vma.source, VmaSource::Segment { .. } | VmaSource::AioRing(_));
    for vma in mapped.filter(by_mmap) {
        let number = Key::of(vma).map_or(-1, |key| numbers.get(&key).copied().unwrap_or(-1));
        let (flags, offset) = map_flags(vma);
        // What was writable once is accounted for still.
        let writable = vma.prot | libc::PROT_WRITE as u32;
        let prot = if vma.flags.contains(b"ac") {
            writable
        } else {
            filling_protection(vma)
        };
        let arguments = [
            vma.start,
            vma.end - vma.start,
            u64::from(prot),
            flags as u64,
            number as u64,
            offset,
        ];
        script.call("map", libc::SYS_mmap, &arguments)?;
    }
    Ok(())
}

/// With which protection a mapping is filled. Huge pages of hugetlbfs can't be written by force, as others can.
fn filling_protection(vma: &VmaRecord) -> u32 {
    let huge = vma.details.huge_page != 0;
    vma.prot | if huge { libc::PROT_WRITE as u32 } else { 0 }
}

fn map_flags(vma: &VmaRecord) -> (i32, u64) {
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    if vma.flags.contains(b"gd") {
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.flags.contains(b"nr") {
        flags |= libc::MAP_NORESERVE;
    }
    if vma.details.huge_page != 0 && vma.source == VmaSource::Anonymous {
        flags |= libc::MAP_HUGETLB | huge_page_bits(vma.details.huge_page) as i32;
    }
    match vma.source {
        VmaSource::File { offset, shared, .. } => (
            flags | if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE },
            offset,
        ),
        VmaSource::Shmem { offset, .. } | VmaSource::Segment { offset, .. } => (flags | libc::MAP_SHARED, offset),
        VmaSource::Anonymous if vma.flags.contains(b"dp") => (flags | MAP_DROPPABLE | libc::MAP_ANONYMOUS, 0),
        VmaSource::Anonymous | VmaSource::AioRing(_) | VmaSource::Special { .. } => {
            (flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0)
        }
    }
}

fn drop_pages(script: &mut Script<'_>, ranges: &[Range<u64>]) -> Result<(), BuildError> {
    for range in ranges {
        let arguments = [range.start, range.end - range.start, libc::MADV_DONTNEED as u64];
        script.call("drop inherited pages", libc::SYS_madvise, &arguments)?;
    }
    Ok(())
}

/// Sets what only a filled mapping can have, and closes the files.
fn finish<'a>(
    script: &mut Script<'_>,
    plan: &Assembly,
    wanted: &AddressSpaceRecord,
    numbers: impl Iterator<Item = &'a RawFd>,
) -> Result<(), BuildError> {
    for vma in plan.map.iter().map(|index| &wanted.vmas[*index]) {
        // Behind the pages: what has none when it becomes unwritable is not accounted for any longer.
        let accounted = vma.flags.contains(b"ac") && vma.prot & libc::PROT_WRITE as u32 == 0;
        if accounted || filling_protection(vma) != vma.prot {
            let arguments = [vma.start, vma.end - vma.start, u64::from(vma.prot)];
            script.call("change a protection", libc::SYS_mprotect, &arguments)?;
        }
        advise(script, vma)?;
    }
    for number in numbers {
        script.call("close", libc::SYS_close, &[*number as u64])?;
    }
    lock(script, plan, wanted)
}

fn set_layout(script: &mut Script<'_>, layout: &MmLayout, auxv: &[u8], exe: Option<RawFd>) -> Result<(), BuildError> {
    let batch = script.reserve(1, auxv.len() + 256)?;
    let vector = batch.data(auxv);
    let words = [
        layout.start_code,
        layout.end_code,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.brk,
        layout.start_stack,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
        vector,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(&(auxv.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&exe.unwrap_or(-1).to_ne_bytes());
    let place = batch.data(&bytes);
    let arguments = [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, place, MM_MAP_BYTES];
    batch.call("set the memory layout", libc::SYS_prctl, &arguments);
    Ok(())
}
