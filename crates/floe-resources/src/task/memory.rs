//! What only a process itself can say of its memory: NUMA policies of ranges, and how mappings to come are locked.

use super::{DumpError, HeldProcess};
use floe_image::record::RangePolicy;
use floe_sys::{
    Pid,
    procfs::{Mapping, Status},
};
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
    /// Asks the process what it has not answered yet; the heap's end is left to the caller.
    pub(super) fn ask(host: &CallHost<'_>, held: &HeldProcess<'_>, first: &FirstAnswers) -> Result<Self, DumpError> {
        Ok(Self {
            brk: 0,
            lock_future: lock_future(host, held, first.locked)?,
            policies: policies(host, held, &first.policies)?,
        })
    }
}

/// What is asked together with other things.
pub(super) struct FirstAnswers {
    /// Bytes that are locked, those of floe's scratch memory among them where mappings to come are.
    pub(super) locked: u64,
    /// Policies of the first mappings, without their nodes.
    pub(super) policies: Vec<FoundPolicy>,
}

/// floe's scratch memory is a mapping to come: where more is locked than the mappings known before say, it is.
fn lock_future(host: &CallHost<'_>, held: &HeldProcess<'_>, locked: u64) -> Result<u32, DumpError> {
    let known: u64 = held.mappings.iter().filter(|m| m.has(b"lo")).map(Mapping::len).sum();
    if locked <= known {
        return Ok(0);
    }
    let scratch = host.scratch().start;
    let now = Mapping::read_all(held.found.task())?;
    let mapping = now.iter().find(|m| (m.start..m.end).contains(&scratch));
    let has = |flag| mapping.is_some_and(|mapping| mapping.has(flag));
    Ok(match (has(b"lo"), has(b"lf")) {
        (false, _) => 0,
        (true, false) => MCL_FUTURE,
        (true, true) => MCL_FUTURE | MCL_ONFAULT,
    })
}

fn policies(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    first: &[FoundPolicy],
) -> Result<HashMap<u64, RangePolicy>, DumpError> {
    // Modes first: hardly any mapping has nodes to ask for.
    let rest = ask(host, held, &with_policies(held)[first.len()..], 0)?;
    let set: Vec<u64> = first
        .iter()
        .chain(&rest)
        .filter(|policy| policy.mode != 0)
        .map(|policy| policy.start)
        .collect();
    let range_policy = |found: FoundPolicy| {
        let has = |node: &u32| found.mask[*node as usize / 8] & 1 << (node % 8) != 0;
        let nodes = (0..NODES as u32).filter(has).collect();
        let mode = found.mode;
        (found.start, RangePolicy { mode, nodes })
    };
    let found = ask(host, held, &set, MASK_BYTES)?;
    Ok(found.into_iter().map(range_policy).collect())
}

/// The first bytes of all mappings that can have a policy.
pub(super) fn with_policies(held: &HeldProcess<'_>) -> Vec<u64> {
    let own = held.mappings.iter().filter(|m| !m.path.starts_with(b"[v"));
    own.map(|mapping| mapping.start).collect()
}

/// A range's policy: its mode, and as many bytes of its mask of nodes as were asked for.
pub(super) struct FoundPolicy {
    start: u64,
    mode: u32,
    mask: Vec<u8>,
}

/// Questions for the policies of memory.
pub(super) struct PolicyQuestions {
    asked: Vec<PolicyQuestion>,
    mask_bytes: usize,
}

struct PolicyQuestion {
    start: u64,
    call: CallId,
    mode: u64,
    mask: u64,
}

impl PolicyQuestions {
    /// Asks for those at the first of these addresses, as many as fit, with so many bytes of each mask.
    pub(super) fn ask(batch: &mut Batch, starts: &[u64], mask_bytes: usize) -> Self {
        let mut asked = Vec::new();
        for start in starts.iter().copied() {
            if !batch.fits(1, 32 + mask_bytes) {
                break;
            }
            let (mode, mask) = (batch.room(4), batch.room(mask_bytes));
            let (place, nodes) = if mask_bytes == 0 { (0, 0) } else { (mask, NODES + 1) };
            let arguments = [mode, place, nodes, start, MPOL_F_ADDR];
            let call = batch.attempt("read a NUMA policy", libc::SYS_get_mempolicy, &arguments);
            asked.push(PolicyQuestion {
                start,
                call,
                mode,
                mask,
            });
        }
        Self { asked, mask_bytes }
    }

    /// The answers of `task`; the usual policy where the kernel is built without NUMA.
    pub(super) fn answers(&self, batch: &Batch, task: Pid) -> Result<Vec<FoundPolicy>, DumpError> {
        let answer = |question: &PolicyQuestion| match batch.result(question.call) {
            error if error < 0 && error != -i64::from(libc::ENOSYS) => Err(DumpError::Query {
                what: "NUMA policy",
                tid: task,
                source: Errno::from_raw(-error as i32),
            }),
            _ => Ok(FoundPolicy {
                start: question.start,
                mode: u32::from_ne_bytes(batch.bytes(question.mode, 4).try_into().expect("asked for 4 bytes")),
                mask: batch.bytes(question.mask, self.mask_bytes).to_vec(),
            }),
        };
        self.asked.iter().map(answer).collect()
    }
}

/// The policies of the memory at each address, with so many bytes of their masks.
fn ask(
    host: &CallHost<'_>,
    held: &HeldProcess<'_>,
    starts: &[u64],
    mask_bytes: usize,
) -> Result<Vec<FoundPolicy>, DumpError> {
    let mut answers = Vec::with_capacity(starts.len());
    while answers.len() < starts.len() {
        let mut batch = host.batch();
        let questions = PolicyQuestions::ask(&mut batch, &starts[answers.len()..], mask_bytes);
        run(host, held, &mut batch)?;
        answers.extend(questions.answers(&batch, held.found.task())?);
    }
    Ok(answers)
}

fn run(host: &CallHost<'_>, held: &HeldProcess<'_>, batch: &mut Batch) -> Result<(), DumpError> {
    let leader = held.threads[0];
    let status = Status::read(&format!("/proc/{}/task/{}", held.found.pid, leader.tid()))?;
    Ok(host.run(leader, held.found.threads[0].own_tid(), &status, batch)?)
}
