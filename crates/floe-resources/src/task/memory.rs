//! What only a process itself can say of its memory: NUMA policies of ranges, and how mappings to come are locked.

use super::{DumpError, HeldProcess};
use floe_image::record::RangePolicy;
use floe_sys::procfs::{Mapping, Status};
use floe_tracee::{Batch, CallHost, CallId};
use nix::errno::Errno;
use std::collections::HashMap;

/// include/uapi/linux/mempolicy.h.
const MPOL_F_ADDR: u64 = 2;
/// Nodes of a mask: more than any kernel is built for.
const NODES: u64 = 1024;
const MASK_BYTES: usize = NODES as usize / 8;
/// include/uapi/asm-generic/mman.h.
const MCL_FUTURE: u32 = 2;
const MCL_ONFAULT: u32 = 4;

/// The answers.
#[derive(Debug, Default)]
pub struct MemoryAnswers {
    /// Where the heap ends, brk(0).
    pub brk: u64,
    /// MCL_FUTURE and MCL_ONFAULT, as far as mappings to come go.
    pub lock_future: u32,
    /// Policies that mbind(2) set, by the first byte of their mapping.
    pub policies: HashMap<u64, RangePolicy>,
}

impl MemoryAnswers {
    /// Asks the process; the heap's end is left to the caller.
    pub(super) fn ask(host: &CallHost<'_>, held: &HeldProcess<'_>) -> Result<Self, DumpError> {
        Ok(Self {
            brk: 0,
            lock_future: lock_future(host, held)?,
            policies: policies(host, held)?,
        })
    }
}

/// floe's scratch memory is a mapping to come: where more is locked than the mappings known before say, it is.
fn lock_future(host: &CallHost<'_>, held: &HeldProcess<'_>) -> Result<u32, DumpError> {
    let pid = held.found.task();
    let known: u64 = held.mappings.iter().filter(|m| m.has(b"lo")).map(Mapping::len).sum();
    if Status::read(&format!("/proc/{pid}"))?.locked <= known {
        return Ok(0);
    }
    let scratch = host.scratch().start;
    let now = Mapping::read_all(pid)?;
    let mapping = now.iter().find(|m| (m.start..m.end).contains(&scratch));
    let has = |flag| mapping.is_some_and(|mapping| mapping.has(flag));
    Ok(match (has(b"lo"), has(b"lf")) {
        (false, _) => 0,
        (true, false) => MCL_FUTURE,
        (true, true) => MCL_FUTURE | MCL_ONFAULT,
    })
}

fn policies(host: &CallHost<'_>, held: &HeldProcess<'_>) -> Result<HashMap<u64, RangePolicy>, DumpError> {
    let own = held.mappings.iter().filter(|m| !m.path.starts_with(b"[v"));
    let starts: Vec<u64> = own.map(|mapping| mapping.start).collect();
    let mut found = HashMap::new();
    // Modes first: hardly any mapping has nodes to ask for.
    let modes = ask(host, held, &starts, 0)?;
    let set: Vec<u64> = modes
        .iter()
        .filter(|(_, mode, _)| *mode != 0)
        .map(|(start, ..)| *start)
        .collect();
    for (start, mode, mask) in ask(host, held, &set, MASK_BYTES)? {
        let nodes = (0..NODES as u32).filter(|node| mask[*node as usize / 8] & 1 << (node % 8) != 0);
        let nodes = nodes.collect();
        found.insert(start, RangePolicy { mode, nodes });
    }
    Ok(found)
}

/// The policy's mode, and so many bytes of its mask of nodes, of the memory at each address. None where the kernel is
/// built without NUMA.
fn ask(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    starts: &[u64],
    mask_bytes: usize,
) -> Result<Vec<(u64, u32, Vec<u8>)>, DumpError> {
    let mut answers = Vec::with_capacity(starts.len());
    let mut at = 0;
    while at < starts.len() {
        let mut batch = host.batch();
        let mut asked: Vec<(u64, CallId, u64, u64)> = Vec::new();
        while at < starts.len() && batch.fits(1, 32 + mask_bytes) {
            let (mode, mask) = (batch.room(4), batch.room(mask_bytes));
            let (mask, nodes) = if mask_bytes == 0 { (0, 0) } else { (mask, NODES + 1) };
            let arguments = [mode, mask, nodes, starts[at], MPOL_F_ADDR];
            let call = batch.attempt("read a NUMA policy", libc::SYS_get_mempolicy, &arguments);
            asked.push((starts[at], call, mode, mask));
            at += 1;
        }
        run(host, held, &mut batch)?;
        for (start, call, mode, mask) in asked {
            match batch.result(call) {
                0 => {}
                error if error == -i64::from(libc::ENOSYS) => continue,
                error => {
                    return Err(DumpError::Query {
                        what: "NUMA policy",
                        tid: held.found.task(),
                        source: Errno::from_raw(-error as i32),
                    });
                }
            }
            let mode = u32::from_ne_bytes(batch.bytes(mode, 4).try_into().expect("asked for 4 bytes"));
            let mask = if mask_bytes == 0 {
                Vec::new()
            } else {
                batch.bytes(mask, mask_bytes).to_vec()
            };
            answers.push((start, mode, mask));
        }
    }
    Ok(answers)
}

fn run(host: &CallHost<'_>, held: &HeldProcess<'_>, batch: &mut Batch) -> Result<(), DumpError> {
    let leader = held.threads[0];
    let status = Status::read(&format!("/proc/{}/task/{}", held.found.pid, leader.tid()))?;
    Ok(host.run(leader, held.found.threads[0].own_tid(), &status, batch)?)
}
