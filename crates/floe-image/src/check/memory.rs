//! Address spaces: mappings in order, aligned, inside of user space, and what they map exists.

use super::{ADDRESS_LIMIT, PAGE, ensure, is_path};
use crate::{
    Image,
    record::{AddressSpaceRecord, AioRing, GhostKind, VmaRecord, VmaSource},
};
use std::collections::HashSet;

/// PROT_READ, PROT_WRITE and PROT_EXEC.
const PROT_BITS: u32 = 7;
/// ANON_VMA_NAME_MAX_LEN of linux/prctl's implementation, without the NUL.
const VMA_NAME_BYTES: usize = 79;
/// MCL_FUTURE and MCL_ONFAULT.
const LOCK_BITS: u32 = 6;
/// More than the kernel keeps of any auxiliary vector.
const AUXV_BYTES: usize = 1024;

/// Memory that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryFault {
    /// No such process, or a second address space.
    #[error("an address space belongs to {0}, which is no living process or has one already")]
    Owner(i32),
    /// Without memory.
    #[error("living process {0} has no address space")]
    NoSpace(i32),
    /// Nothing to execute.
    #[error("the executable of process {pid} is mapped file {file}, which is missing")]
    Executable {
        /// Whose.
        pid: i32,
        /// Its number.
        file: u32,
    },
    /// Too long or cut in two.
    #[error("the auxiliary vector of process {pid} has {got} bytes")]
    AuxiliaryVector {
        /// Whose.
        pid: i32,
        /// Its bytes.
        got: usize,
    },
    /// Huge pages of no size, or not a whole number of them.
    #[error("{what} {id} can't be of huge pages")]
    HugePage {
        /// The kind.
        what: &'static str,
        /// Its number.
        id: u32,
    },
    /// Flags that mlockall(2) does not know.
    #[error("process {0} locks mappings to come in an unknown way")]
    Lock(i32),
    /// A mapping.
    #[error("mapping {start:x}-{end:x} of process {pid} {fault}")]
    Mapping {
        /// Whose.
        pid: i32,
        /// First byte.
        start: u64,
        /// First byte behind it.
        end: u64,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A file that was deleted.
    #[error("mapped file {file} is deleted file {ghost}, which is missing")]
    Ghost {
        /// Its number.
        file: u32,
        /// The other number.
        ghost: u32,
    },
    /// A path that is none.
    #[error("the name of {what} {id} is not a path")]
    Path {
        /// The kind.
        what: &'static str,
        /// Its number.
        id: u32,
    },
    /// More bytes than the kernel lets it have.
    #[error("{what} {id} can't have {size} bytes")]
    Size {
        /// The kind.
        what: &'static str,
        /// Its number.
        id: u32,
        /// Its bytes.
        size: u64,
    },
}

pub(super) fn check(image: &Image, owners: &HashSet<i32>) -> Result<(), MemoryFault> {
    objects(image)?;
    let mut seen = HashSet::new();
    for space in image.address_spaces() {
        let pid = space.pid.0;
        ensure(owners.contains(&pid) && seen.insert(pid), || MemoryFault::Owner(pid))?;
        let file = space.exe;
        ensure((file as usize) < image.mapped_files().len(), || {
            MemoryFault::Executable { pid, file }
        })?;
        let got = space.auxv.len();
        ensure(got <= AUXV_BYTES && got.is_multiple_of(16), || {
            MemoryFault::AuxiliaryVector { pid, got }
        })?;
        ensure(space.lock_future & !LOCK_BITS == 0, || MemoryFault::Lock(pid))?;
        mappings(image, space)?;
    }
    match owners.iter().find(|pid| !seen.contains(pid)) {
        Some(pid) => Err(MemoryFault::NoSpace(*pid)),
        None => Ok(()),
    }
}

fn objects(image: &Image) -> Result<(), MemoryFault> {
    for record in image.mapped_files() {
        let file = record.id;
        if let Some(ghost) = record.ghost {
            ensure((ghost as usize) < image.ghosts().len(), || MemoryFault::Ghost {
                file,
                ghost,
            })?;
        }
        path("mapped file", file, &record.path)?;
    }
    for record in image.ghosts() {
        path("deleted file", record.id, &record.path)?;
        size("deleted file", record.id, record.size, i64::MAX as u64)?;
        let huge = match &record.kind {
            GhostKind::Memfd(memfd) => memfd.huge_page,
            GhostKind::File | GhostKind::Directory | GhostKind::Linked { .. } => 0,
        };
        huge_page("deleted file", record.id, huge, record.size)?;
    }
    if let Some(log) = image.sandbox().log {
        size("log", 0, log, i64::MAX as u64)?;
    }
    for record in image.shmems() {
        size("shared memory object", record.id, record.size, ADDRESS_LIMIT)?;
        huge_page("shared memory object", record.id, record.huge_page, record.size)?;
    }
    Ok(())
}

fn path(what: &'static str, id: u32, path: &[u8]) -> Result<(), MemoryFault> {
    ensure(is_path(path), || MemoryFault::Path { what, id })
}

/// A size must leave room for rounding it up to pages.
fn size(what: &'static str, id: u32, size: u64, limit: u64) -> Result<(), MemoryFault> {
    ensure(size <= limit - PAGE, || MemoryFault::Size { what, id, size })
}

fn mappings(image: &Image, space: &AddressSpaceRecord) -> Result<(), MemoryFault> {
    let mut last = 0;
    for vma in &space.vmas {
        mapping(image, vma, last).map_err(|fault| MemoryFault::Mapping {
            pid: space.pid.0,
            start: vma.start,
            end: vma.end,
            fault,
        })?;
        last = vma.end;
    }
    Ok(())
}

fn mapping(image: &Image, vma: &VmaRecord, last: u64) -> Result<(), &'static str> {
    let aligned = vma.start.is_multiple_of(PAGE) && vma.end.is_multiple_of(PAGE);
    ensure(aligned, || "does not begin and end with a page")?;
    ensure(vma.start < vma.end, || "is empty")?;
    ensure(vma.end <= ADDRESS_LIMIT, || "reaches beyond user space")?;
    ensure(vma.start >= last, || "is out of order or overlaps another")?;
    ensure(vma.prot & !PROT_BITS == 0, || "has an unknown protection")?;
    let named = |name: &Vec<u8>| name.len() <= VMA_NAME_BYTES && !name.contains(&0);
    ensure(vma.name.as_ref().is_none_or(named), || "has an impossible name")?;
    details(vma)?;
    let (count, id, offset) = match &vma.source {
        VmaSource::File { file, offset, .. } => (image.mapped_files().len(), *file, *offset),
        VmaSource::Shmem { object, offset } => (image.shmems().len(), *object, *offset),
        VmaSource::Anonymous | VmaSource::Special { .. } => return Ok(()),
        VmaSource::AioRing(ring) => return aio_ring(ring, vma.end - vma.start),
        VmaSource::Segment {
            namespace, id, offset, ..
        } => {
            let segment = image
                .sandbox()
                .ipc_namespace(*namespace)
                .and_then(|record| record.segment(*id))
                .ok_or("maps something that is missing")?;
            let behind = offset.checked_add(vma.end - vma.start);
            let inside = behind.is_some_and(|behind| behind <= segment.whole());
            return ensure(inside && offset.is_multiple_of(PAGE), || "has an impossible offset");
        }
    };
    ensure((id as usize) < count, || "maps something that is missing")?;
    let behind = offset.checked_add(vma.end - vma.start);
    let fits = offset.is_multiple_of(PAGE) && behind.is_some_and(|behind| behind <= i64::MAX as u64);
    ensure(fits, || "has an impossible offset")
}

fn aio_ring(ring: &AioRing, bytes: u64) -> Result<(), &'static str> {
    /// Of the header, and of each event.
    const BYTES: u64 = 32;
    let fits = (u64::from(ring.events) + 1) * BYTES <= bytes;
    let known = ring.head < ring.events && (ring.waiting.len() as u64) < u64::from(ring.events);
    ensure(fits && known && ring.most > 0, || "is no ring of asynchronous I/O")
}

/// More nodes than any kernel is built for (MAX_NUMNODES).
const NODES: u32 = 1024;
/// MPOL_* of linux/mempolicy.h: the modes, and the flags that may stand beside them.
const POLICY_BITS: u32 = 0xe007;

/// No processor has pages of more bytes; each size is a power of two.
const HUGEST_PAGE: u64 = 1 << 34;

pub(super) fn is_page_size(bytes: u64) -> bool {
    bytes.is_power_of_two() && bytes > PAGE && bytes <= HUGEST_PAGE
}

fn huge_page(what: &'static str, id: u32, bytes: u64, size: u64) -> Result<(), MemoryFault> {
    let fits = bytes == 0 || is_page_size(bytes) && size.is_multiple_of(bytes);
    ensure(fits, || MemoryFault::HugePage { what, id })
}

fn details(vma: &VmaRecord) -> Result<(), &'static str> {
    let huge = vma.details.huge_page;
    let aligned = || vma.start.is_multiple_of(huge) && vma.end.is_multiple_of(huge);
    let private = matches!(vma.source, VmaSource::Anonymous | VmaSource::File { shared: false, .. });
    let fits = huge == 0 || is_page_size(huge) && aligned() && private;
    ensure(fits, || "can't be of huge pages")?;
    let mut last = vma.start;
    for (start, end) in &vma.details.guards {
        let aligned = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
        let inside = last <= *start && start < end && *end <= vma.end;
        ensure(aligned && inside, || "has an impossible guard region")?;
        last = *end;
    }
    let Some(policy) = &vma.details.policy else {
        return Ok(());
    };
    let known = policy.mode & !POLICY_BITS == 0 && policy.nodes.iter().all(|node| *node < NODES);
    ensure(known, || "has an impossible NUMA policy")
}
