//! Small switches of threads and processes: prctl(2), arch_prctl(2), set_mempolicy(2), /proc.

use serde::{Deserialize, Serialize};

/// What a thread has switched for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSwitches {
    /// PR_SET_TSC: reading the time stamp counter is a SIGSEGV.
    pub tsc_forbidden: bool,
    /// ARCH_SET_CPUID: the cpuid instruction is a SIGSEGV.
    pub cpuid_forbidden: bool,
    /// PR_MCE_KILL_GET: 0 late, 1 early; `None` as the host has it.
    pub machine_check: Option<u32>,
    /// What of PR_SET_SPECULATION_CTRL differs from a new thread's: kind and state, PR_SPEC_*.
    pub speculation: Vec<(u32, u32)>,
    /// set_mempolicy(2); `None` for the default.
    pub memory_policy: Option<MemoryPolicy>,
    /// Syscall user dispatch, where it is on.
    pub dispatch: Option<CallDispatch>,
}

/// Where a thread's new pages come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_* flags.
    pub mode: u32,
    /// Its nodes: 64 a word, the lowest first.
    pub nodes: Vec<u64>,
}

/// System calls that are turned into SIGSYS: prctl(PR_SET_SYSCALL_USER_DISPATCH).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallDispatch {
    /// Address of the byte that says whether; 0 for always.
    pub selector: u64,
    /// Start of the code whose calls are let through in any case.
    pub start: u64,
    /// Bytes of it.
    pub length: u64,
}

/// What a process has switched for all its threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSwitches {
    /// PR_GET_MDWE: PR_MDWE_* bits.
    pub deny_write_execute: u32,
    /// PR_GET_MEMORY_MERGE.
    pub merge_memory: bool,
    /// PR_THP_DISABLE_EXCEPT_ADVISED, where huge pages are disabled.
    pub thp_except_advised: bool,
    /// Nice value of its session's autogroup; `None` where it has none.
    pub autogroup_nice: Option<i32>,
}
