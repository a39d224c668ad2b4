//! Processes and threads.

use super::{NsPid, PidsOfChildren, PosixTimerRecord, ProcessSwitches, SeccompRecord, TaskNamespaces, ThreadSwitches};
use serde::{Deserialize, Serialize};

/// A directory that a process is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct DirectoryRecord {
    /// Path inside the sandbox (also of one that was deleted); of a zombie's empty.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Number of the mount namespace that its path counts from.
    pub mount_namespace: u32,
    /// Id of a [`GhostRecord`](super::GhostRecord) where it was deleted.
    pub ghost: Option<u32>,
}

/// A process: what all its threads share but memory and descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Thread group id.
    pub pid: NsPid,
    /// Parent; 0 where the parent is outside the tree.
    pub ppid: NsPid,
    /// Process group; never 0, which would be one of another namespace.
    pub pgid: NsPid,
    /// Session; as for the group.
    pub sid: NsPid,
    /// Its PID namespace: the number of a [`PidNamespaceRecord`](super::PidNamespaceRecord), 0 for the tree's own.
    pub pid_namespace: u32,
    /// The one that its children are born into; of a zombie its own.
    pub pids_of_children: PidsOfChildren,
    /// Number of the mount namespace that it is in.
    pub mount_namespace: u32,
    /// The number of the time namespace that its children are born into.
    pub time_of_children: u32,
    /// Running, stopped or waiting to be reaped.
    pub state: ProcessState,
    /// Threads, the leader first; for a zombie the leader alone. Of one that has ended name and credentials only.
    pub threads: Vec<ThreadRecord>,
    /// Actions of signals 1 to 64.
    pub actions: Vec<SignalAction>,
    /// Process-wide pending signals, each the 128 bytes of a `siginfo_t`, oldest first.
    pub pending: Vec<Vec<u8>>,
    /// The 16 resource limits in the order of their numbers.
    pub limits: Vec<ResourceLimit>,
    /// File mode creation mask.
    pub umask: u32,
    /// Working directory.
    pub cwd: DirectoryRecord,
    /// Root directory.
    pub root: DirectoryRecord,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub timers: [IntervalTimer; 3],
    /// personality(2).
    pub personality: u32,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// PR_GET_THP_DISABLE.
    pub thp_disable: bool,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// The signal its parent gets when it ends.
    pub exit_signal: i32,
    /// Controlling terminal of a session leader; of session 1 the root has it where the tree had no PID 1.
    pub terminal: Option<TerminalLink>,
    /// Whether it has none where its session has one.
    pub no_terminal: bool,
    /// MEMBARRIER_CMD_GET_REGISTRATIONS: the registering commands of membarrier(2) that were issued, ored.
    pub membarrier: u32,
    /// What it shares with its parent: CLONE_VM, CLONE_FS, CLONE_FILES and CLONE_SIGHAND, ored. A process that shares
    /// memory or descriptors has no address space or descriptor table of its own in the image.
    pub shared: u32,
    /// Wait status of the first thread where it has ended and others live; of that thread the image then holds only name
    /// and credentials.
    pub leader_ended: Option<i32>,
    /// POSIX timers, in the order of their ids.
    pub posix_timers: Vec<PosixTimerRecord>,
    /// Switches.
    pub switches: ProcessSwitches,
}

impl ProcessRecord {
    /// What one of its threads is called in its own PID namespace; one that it has not, what it is called in the tree's.
    #[must_use]
    pub fn own_tid(&self, thread: NsPid) -> i32 {
        let found = self.threads.iter().find(|known| known.tid == thread);
        found.and_then(|known| known.inner.last()).map_or(thread.0, |own| own.0)
    }
}

/// What a process was doing as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// Running or sleeping.
    Alive,
    /// Stopped by job control.
    Stopped {
        /// The stop signal.
        signal: i32,
        /// Whether its parent has already waited for the stop.
        reported: bool,
    },
    /// Ended, not yet reaped.
    Zombie {
        /// Wait status as wait4(2) gives it.
        status: i32,
    },
}

/// A controlling terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalLink {
    /// Which: the number of a terminal of the tree's own, `None` for the sandbox's.
    pub pair: Option<u32>,
    /// Foreground process group.
    pub foreground: NsPid,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThreadRecord {
    /// Thread id.
    pub tid: NsPid,
    /// Its ids in the PID namespaces below the tree's, outermost first, its own last.
    pub inner: Vec<NsPid>,
    /// The namespaces that it is in.
    pub namespaces: TaskNamespaces,
    /// Name, at most 15 bytes.
    #[serde(with = "serde_bytes")]
    pub comm: Vec<u8>,
    /// Processor state.
    pub registers: Registers,
    /// Blocked signals, bit N-1 for signal N.
    pub signal_mask: u64,
    /// sigaltstack(2).
    pub alternate_stack: AlternateStack,
    /// Thread-directed pending signals, each the 128 bytes of a `siginfo_t`, oldest first.
    pub pending: Vec<Vec<u8>>,
    /// set_robust_list(2).
    pub robust_list: RobustList,
    /// rseq(2), where registered.
    pub rseq: Option<RseqRegistration>,
    /// set_tid_address(2).
    pub tid_address: u64,
    /// User, groups, capabilities.
    pub credentials: Credentials,
    /// Scheduling policy and its companions.
    pub scheduling: Scheduling,
    /// PR_GET_PDEATHSIG.
    pub parent_death_signal: i32,
    /// Nanoseconds of timer slack.
    pub timer_slack: u64,
    /// Nanoseconds that the thread has slept in the call that its registers tell (-516), as far as that is known.
    pub slept: u64,
    /// How its system calls are confined.
    pub seccomp: SeccompRecord,
    /// Switches.
    pub switches: ThreadSwitches,
}

/// Processor state of a thread. Calls that floe interrupted are already set to be issued again, but for those of which
/// the kernel knew what was left (-516, ERESTART_RESTARTBLOCK).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Registers {
    /// NT_PRSTATUS: `struct user_regs_struct` as the kernel gives it.
    #[serde(with = "serde_bytes")]
    pub general: Vec<u8>,
    /// NT_X86_XSTATE: the XSAVE area as the kernel gives it, without the zeros at its end.
    #[serde(with = "serde_bytes")]
    pub extended: Vec<u8>,
}

/// A signal action as rt_sigaction(2) gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// Handler's address, SIG_DFL (0) or SIG_IGN (1).
    pub handler: u64,
    /// SA_* flags.
    pub flags: u64,
    /// Restorer's address.
    pub restorer: u64,
    /// Signals blocked in the handler.
    pub mask: u64,
}

/// An alternate signal stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AlternateStack {
    /// Lowest address.
    pub base: u64,
    /// SS_* flags.
    pub flags: i32,
    /// Bytes.
    pub size: u64,
}

/// A robust futex list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RobustList {
    /// Address of the head; 0 for none.
    pub head: u64,
    /// Bytes of the head.
    pub size: u64,
}

/// An rseq registration (PTRACE_GET_RSEQ_CONFIGURATION).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RseqRegistration {
    /// Address of the area.
    pub address: u64,
    /// Bytes of the area.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
}

/// Who a thread is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, filesystem user.
    pub uids: [u32; 4],
    /// Real, effective, saved, filesystem group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable capabilities.
    pub inheritable: u64,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Effective capabilities.
    pub effective: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient set.
    pub ambient: u64,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// How a thread is scheduled: sched_getattr(2), sched_getaffinity(2), ioprio_get(2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scheduling {
    /// SCHED_* policy.
    pub policy: u32,
    /// SCHED_FLAG_* flags.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Runtime, deadline, period in nanoseconds (SCHED_DEADLINE); of other policies the first is the slice that the thread
    /// asked for, or 0.
    pub deadline: [u64; 3],
    /// Processors it may run on; empty where that is all of the host's.
    pub affinity: Vec<u32>,
    /// I/O priority.
    pub io_priority: u32,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// Soft limit, u64::MAX for unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// An interval timer, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// Reload value.
    pub interval: u64,
    /// Time left; 0 for disarmed.
    pub value: u64,
}
