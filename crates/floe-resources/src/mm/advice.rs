//! What is said of a range of a puppet's memory once it is mapped: NUMA policy, advice, guards, name, locks.

use super::{assemble::Assembly, build::BuildError};
use floe_image::record::{AddressSpaceRecord, VmaRecord};
use floe_sys::procfs::Status;
use floe_tracee::Script;

const PR_SET_VMA: u64 = 0x5356_4d41;
/// include/uapi/asm-generic/mman-common.h, Linux 6.13.
const MADV_GUARD_INSTALL: i32 = 102;
const ADVICE: [(&[u8; 2], i32); 7] = [
    (b"dc", libc::MADV_DONTFORK),
    (b"dd", libc::MADV_DONTDUMP),
    (b"wf", libc::MADV_WIPEONFORK),
    (b"nh", libc::MADV_NOHUGEPAGE),
    (b"mg", libc::MADV_MERGEABLE),
    (b"rr", libc::MADV_RANDOM),
    (b"sr", libc::MADV_SEQUENTIAL),
];

/// What has to be said before there are pages.
pub(super) fn place(script: &mut Script<'_>, vma: &VmaRecord) -> Result<(), BuildError> {
    // Pages are huge from the start or not at all.
    if vma.flags.contains(b"hg") {
        let arguments = [vma.start, vma.end - vma.start, libc::MADV_HUGEPAGE as u64];
        script.call("advise", libc::SYS_madvise, &arguments)?;
    }
    let Some(policy) = &vma.details.policy else {
        return Ok(());
    };
    let highest = policy.nodes.iter().max().map_or(0, |node| *node as usize);
    let mut mask = vec![0u8; (highest / 64 + 1) * 8];
    for node in &policy.nodes {
        mask[*node as usize / 8] |= 1 << (node % 8);
    }
    let batch = script.reserve(1, mask.len())?;
    let nodes = batch.data(&mask);
    // The kernel takes one bit less than it is told.
    let count = mask.len() as u64 * 8 + 1;
    let (bytes, mode) = (vma.end - vma.start, u64::from(policy.mode));
    let arguments = [vma.start, bytes, mode, nodes, count, 0];
    batch.call("set a NUMA policy", libc::SYS_mbind, &arguments);
    Ok(())
}

/// What only a filled mapping can have, but for locks.
pub(super) fn advise(script: &mut Script<'_>, vma: &VmaRecord) -> Result<(), BuildError> {
    let (start, bytes) = (vma.start, vma.end - vma.start);
    for (_, advice) in ADVICE.iter().filter(|(flag, _)| vma.flags.contains(flag)) {
        script.call("advise", libc::SYS_madvise, &[start, bytes, *advice as u64])?;
    }
    for (start, end) in &vma.details.guards {
        let arguments = [*start, end - start, MADV_GUARD_INSTALL as u64];
        script.call("guard", libc::SYS_madvise, &arguments)?;
    }
    if let Some(name) = &vma.name {
        let batch = script.reserve(1, name.len() + 1)?;
        let place = batch.data(&[name.as_slice(), &[0]].concat());
        batch.call("name", libc::SYS_prctl, &[PR_SET_VMA, 0, start, bytes, place]);
    }
    Ok(())
}

/// Locks mappings. Where a page of one can't be had (PROT_NONE, guards, behind the end of a file) the call locks it all the
/// same, and fails; so what counts is how much is locked in the end. Guards must stand before.
pub(super) fn lock(script: &mut Script<'_>, plan: &Assembly, wanted: &AddressSpaceRecord) -> Result<(), BuildError> {
    let mut bytes = 0;
    let locked = |vma: &&VmaRecord| vma.flags.contains(b"lo");
    for vma in plan.map.iter().map(|index| &wanted.vmas[*index]).filter(locked) {
        let flags = if vma.flags.contains(b"lf") {
            libc::MLOCK_ONFAULT
        } else {
            0
        };
        let arguments = [vma.start, vma.end - vma.start, flags as u64];
        script.reserve(1, 0)?.attempt("lock", libc::SYS_mlock2, &arguments);
        bytes += vma.end - vma.start;
    }
    if bytes == 0 {
        return Ok(());
    }
    script.run()?;
    let pid = script.puppet().tid();
    match Status::read(&format!("/proc/{pid}"))?.locked {
        got if got == bytes => Ok(()),
        got => Err(BuildError::Locked {
            pid,
            wanted: bytes,
            got,
        }),
    }
}
