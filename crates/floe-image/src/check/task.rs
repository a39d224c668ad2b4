//! What a thread or process has switched: filters and lists no longer than a kernel takes them.

use super::ensure;
use crate::record::{ProcessRecord, SeccompRecord, ThreadRecord, ThreadSwitches};

/// `struct sock_filter`.
const INSTRUCTION_BYTES: usize = 8;
/// BPF_MAXINSNS, include/uapi/linux/bpf_common.h.
const FILTER_INSTRUCTIONS: usize = 4096;
/// MAX_INSNS_PER_PATH and what each filter counts besides its instructions, kernel/seccomp.c.
const CHAIN_INSTRUCTIONS: usize = 32768;
const FILTER_OVERHEAD: usize = 4;
/// Kinds of speculation, include/uapi/linux/prctl.h.
const SPECULATION_KINDS: usize = 3;
/// 1024 nodes, the most that any kernel knows.
const NODE_WORDS: usize = 16;
/// PR_MDWE_REFUSE_EXEC_GAIN, PR_MDWE_NO_INHERIT.
const MDWE_BITS: u32 = 3;

/// Switches that no task can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskFault {
    /// Strict mode knows no filters.
    #[error("task {0} has seccomp filters in strict mode")]
    Strict(i32),
    /// A filter that is none.
    #[error("a seccomp filter of task {tid} has {bytes} bytes, not 1 to {FILTER_INSTRUCTIONS} instructions of 8")]
    Filter {
        /// Whose.
        tid: i32,
        /// Its bytes.
        bytes: usize,
    },
    /// More than a kernel keeps.
    #[error("the seccomp filters of task {0} are longer than a kernel takes together")]
    Chain(i32),
    /// A switch with a value that it can't have.
    #[error("{what} of task {tid} can't be what it is")]
    Switch {
        /// Whose.
        tid: i32,
        /// Which.
        what: &'static str,
    },
}

pub(super) fn process(record: &ProcessRecord) -> Result<(), TaskFault> {
    let tid = record.pid.0;
    let switch = |what, holds| ensure(holds, || TaskFault::Switch { tid, what });
    let switches = &record.switches;
    switch(
        "the rule on executable memory",
        switches.deny_write_execute & !MDWE_BITS == 0,
    )?;
    let nice = switches.autogroup_nice.unwrap_or(0);
    switch("the nice value of the session", (-20..20).contains(&nice))?;
    record.threads.iter().try_for_each(thread)
}

fn thread(record: &ThreadRecord) -> Result<(), TaskFault> {
    seccomp(record.tid.0, &record.seccomp)?;
    switches(record.tid.0, &record.switches)
}

fn seccomp(tid: i32, record: &SeccompRecord) -> Result<(), TaskFault> {
    ensure(!record.strict || record.filters.is_empty(), || TaskFault::Strict(tid))?;
    let mut total = 0;
    for filter in &record.filters {
        let bytes = filter.program.len();
        let instructions = bytes / INSTRUCTION_BYTES;
        let whole = bytes.is_multiple_of(INSTRUCTION_BYTES) && (1..=FILTER_INSTRUCTIONS).contains(&instructions);
        ensure(whole, || TaskFault::Filter { tid, bytes })?;
        total += instructions + FILTER_OVERHEAD;
    }
    ensure(total <= CHAIN_INSTRUCTIONS, || TaskFault::Chain(tid))
}

fn switches(tid: i32, record: &ThreadSwitches) -> Result<(), TaskFault> {
    let switch = |what, holds| ensure(holds, || TaskFault::Switch { tid, what });
    switch(
        "the machine check policy",
        record.machine_check.is_none_or(|policy| policy <= 1),
    )?;
    switch("the speculation control", record.speculation.len() <= SPECULATION_KINDS)?;
    let nodes = record.memory_policy.as_ref().map_or(0, |policy| policy.nodes.len());
    switch("the memory policy", nodes <= NODE_WORDS)
}
