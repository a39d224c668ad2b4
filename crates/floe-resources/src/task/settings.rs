//! Small switches that are carried: of a thread, of a process. Each is asked for by a call in the task; a kernel or
//! processor that does not know a switch answers with an error, and then nobody can have set it.

use super::restore::{RestoreError, words_bytes};
use floe_image::record::{MemoryPolicy, ProcessRecord, ProcessSwitches, ThreadSwitches, VmaRecord};
use floe_tracee::{Batch, CallId, Script};

const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_MEMORY_MERGE: u64 = 68;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_THP_DISABLE_EXCEPT_ADVISED: i64 = 2;
const PR_MCE_KILL_SET: u64 = 1;
const PR_MCE_KILL_DEFAULT: i64 = 2;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
/// PR_SPEC_PRCTL: the thread may choose.
const PR_SPEC_PRCTL: i64 = 1;
/// PR_SPEC_ENABLE to PR_SPEC_DISABLE_NOEXEC.
const PR_SPEC_STATES: i64 = 2 | 4 | 8 | 16;
const PR_SPEC_ENABLE: i64 = 2;
const PR_SPEC_DISABLE: i64 = 4;
const SPECULATION_KINDS: u64 = 3;
/// The flush at context switches is off in a new thread, what the other kinds control is on.
const PR_SPEC_L1D_FLUSH: u64 = 2;
/// More than any kernel has, of 64 a word.
const NODE_WORDS: usize = 16;
/// MADV_MERGEABLE, as VmFlags of /proc/PID/smaps names it.
const MERGEABLE: &[u8; 2] = b"mg";
const MPOL_DEFAULT: u32 = 0;

/// Questions about a thread's switches.
#[derive(Debug)]
pub(super) struct ThreadSettings {
    tsc: (CallId, u64),
    cpuid: CallId,
    machine_check: CallId,
    speculation: Vec<CallId>,
    policy: (CallId, u64),
}

impl ThreadSettings {
    pub(super) fn ask(batch: &mut Batch) -> Self {
        let prctl = libc::SYS_prctl;
        let place = batch.room(4);
        let tsc = batch.attempt("read the TSC switch", prctl, &[libc::PR_GET_TSC as u64, place]);
        let cpuid = batch.attempt("read the CPUID switch", libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]);
        let arguments = [libc::PR_MCE_KILL_GET as u64];
        let machine_check = batch.attempt("read the machine check policy", prctl, &arguments);
        let mut speculation = Vec::new();
        for kind in 0..SPECULATION_KINDS {
            let arguments = [PR_GET_SPECULATION_CTRL, kind];
            speculation.push(batch.attempt("read speculation control", prctl, &arguments));
        }
        let nodes = batch.room(8 + 8 * NODE_WORDS);
        let arguments = [nodes, nodes + 8, 64 * NODE_WORDS as u64, 0, 0];
        let policy = batch.attempt("read the memory policy", libc::SYS_get_mempolicy, &arguments);
        Self {
            tsc: (tsc, place),
            cpuid,
            machine_check,
            speculation,
            policy: (policy, nodes),
        }
    }

    pub(super) fn answers(&self, batch: &Batch) -> ThreadSwitches {
        let (tsc, place) = self.tsc;
        let machine_check = batch.result(self.machine_check);
        let speculation = (0..SPECULATION_KINDS).zip(&self.speculation);
        ThreadSwitches {
            tsc_forbidden: batch.result(tsc) == 0 && number(batch, place, 4) != libc::PR_TSC_ENABLE as u64,
            cpuid_forbidden: batch.result(self.cpuid) == 0,
            machine_check: (0..PR_MCE_KILL_DEFAULT)
                .contains(&machine_check)
                .then_some(machine_check as u32),
            speculation: speculation
                .filter_map(|(kind, call)| Some((kind as u32, chosen(kind, batch.result(*call))?)))
                .collect(),
            memory_policy: self.memory_policy(batch),
            dispatch: None,
        }
    }

    fn memory_policy(&self, batch: &Batch) -> Option<MemoryPolicy> {
        let (call, place) = self.policy;
        let mode = number(batch, place, 4) as u32;
        if batch.result(call) < 0 || mode == MPOL_DEFAULT {
            return None;
        }
        let mut nodes: Vec<u64> = (0..NODE_WORDS as u64)
            .map(|word| number(batch, place + 8 + 8 * word, 8))
            .collect();
        while nodes.last() == Some(&0) {
            nodes.pop();
        }
        Some(MemoryPolicy { mode, nodes })
    }
}

/// The state of a kind of speculation, where the thread chose another one than a new thread has.
fn chosen(kind: u64, result: i64) -> Option<u32> {
    let usual = if kind == PR_SPEC_L1D_FLUSH {
        PR_SPEC_DISABLE
    } else {
        PR_SPEC_ENABLE
    };
    let state = result & PR_SPEC_STATES;
    (result > 0 && result & PR_SPEC_PRCTL != 0 && state != usual).then_some(state as u32)
}

fn number(batch: &Batch, place: u64, bytes: usize) -> u64 {
    let bytes = batch.bytes(place, bytes).iter().rev();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Questions about a process's switches.
#[derive(Debug)]
pub(super) struct ProcessSettings {
    deny_write_execute: CallId,
    merge_memory: CallId,
    huge_pages: CallId,
}

impl ProcessSettings {
    pub(super) fn ask(batch: &mut Batch) -> Self {
        let mut ask = |what, option| batch.attempt(what, libc::SYS_prctl, &[option]);
        Self {
            deny_write_execute: ask("read the rule on executable memory", PR_GET_MDWE),
            merge_memory: ask("read the memory merging switch", PR_GET_MEMORY_MERGE),
            huge_pages: ask("read the flags of huge pages", PR_GET_THP_DISABLE),
        }
    }

    /// All but the session's nice value, which is no question to the process.
    pub(super) fn answers(&self, batch: &Batch) -> ProcessSwitches {
        let bits = |call| batch.result(call).max(0);
        ProcessSwitches {
            deny_write_execute: bits(self.deny_write_execute) as u32,
            merge_memory: bits(self.merge_memory) != 0,
            thp_except_advised: bits(self.huge_pages) & PR_THP_DISABLE_EXCEPT_ADVISED != 0,
            autogroup_nice: None,
        }
    }
}

/// Sets a thread's switches.
///
/// # Errors
/// [`RestoreError`].
pub fn restore_thread_settings(script: &mut Script<'_>, switches: &ThreadSwitches) -> Result<(), RestoreError> {
    let batch = script.reserve(8, 1 << 10)?;
    let prctl = libc::SYS_prctl;
    if switches.tsc_forbidden {
        let arguments = [libc::PR_SET_TSC as u64, libc::PR_TSC_SIGSEGV as u64];
        batch.call("forbid the time stamp counter", prctl, &arguments);
    }
    if switches.cpuid_forbidden {
        batch.call("forbid cpuid", libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]);
    }
    if let Some(policy) = switches.machine_check {
        let arguments = [libc::PR_MCE_KILL as u64, PR_MCE_KILL_SET, u64::from(policy)];
        batch.call("set the machine check policy", prctl, &arguments);
    }
    for (kind, state) in &switches.speculation {
        let arguments = [PR_SET_SPECULATION_CTRL, u64::from(*kind), u64::from(*state)];
        batch.call("set speculation control", prctl, &arguments);
    }
    if let Some(policy) = &switches.memory_policy {
        let nodes = batch.data(&words_bytes(&policy.nodes));
        // The kernel takes one bit less than it is told of.
        let bits = 64 * policy.nodes.len() as u64 + 1;
        let arguments = if policy.nodes.is_empty() {
            [u64::from(policy.mode), 0, 0]
        } else {
            [u64::from(policy.mode), nodes, bits]
        };
        batch.call("set the memory policy", libc::SYS_set_mempolicy, &arguments);
    }
    Ok(())
}

/// Sets those switches of a process that change what can be done with its memory: when nothing more is.
///
/// # Errors
/// [`RestoreError`].
pub fn restore_process_settings(
    script: &mut Script<'_>,
    record: &ProcessRecord,
    vmas: &[VmaRecord],
) -> Result<(), RestoreError> {
    let switches = &record.switches;
    if switches.merge_memory {
        script.call("merge memory", libc::SYS_prctl, &[PR_SET_MEMORY_MERGE, 1])?;
        // It takes in all memory that there is.
        for vma in vmas.iter().filter(|vma| !vma.flags.contains(MERGEABLE)) {
            let arguments = [vma.start, vma.end - vma.start, libc::MADV_UNMERGEABLE as u64];
            let batch = script.reserve(1, 0)?;
            batch.attempt("leave memory unmerged", libc::SYS_madvise, &arguments);
        }
    }
    if switches.deny_write_execute != 0 {
        let arguments = [PR_SET_MDWE, u64::from(switches.deny_write_execute)];
        script.call("deny memory that is written and executed", libc::SYS_prctl, &arguments)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PR_SPEC_L1D_FLUSH, chosen};

    #[test]
    fn only_what_a_thread_chose_counts() {
        assert_eq!(chosen(0, 1 | 2), None);
        assert_eq!(chosen(0, 1 | 4), Some(4));
        assert_eq!(chosen(1, 1 | 8), Some(8));
        assert_eq!(chosen(1, 4), None);
        assert_eq!(chosen(0, -22), None);
        assert_eq!(chosen(0, 0), None);
        assert_eq!(chosen(PR_SPEC_L1D_FLUSH, 1 | 4), None);
        assert_eq!(chosen(PR_SPEC_L1D_FLUSH, 1 | 2), Some(2));
    }
}
