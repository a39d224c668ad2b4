//! Puts a task's own state back in a puppet that already has its PID, memory and descriptors.
//!
//! Order matters and the caller keeps it: [`restore_process`] and [`restore_thread`] with all privileges, then
//! [`restore_credentials`](super::restore_credentials), which also sets what a change of credentials would reset; when the script with these has run,
//! [`apply_outside`] and [`queue_signals`], then [`finish_thread`].

use super::{
    dispatch, scheduling,
    timers::{Firing, TreeTimes},
};
use floe_image::record::{Credentials, ProcessRecord, ThreadRecord};
use floe_sys::{
    Pid,
    processor::{self, Component},
    procfs::{self, ProcError, Status},
    sched::{self, Usual},
    timer,
};
use floe_tracee::{Puppet, PuppetError, Registers, Script, moved_components};
use std::io;

const PR_SET_THP_DISABLE: u64 = 41;
const PR_THP_DISABLE_EXCEPT_ADVISED: u64 = 2;
const SS_ONSTACK: i32 = 1;
const ROOM_FOR_SIGNALS: u64 = 1 << 16;

/// Task state that could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// In the task itself.
    #[error(transparent)]
    Puppet(#[from] PuppetError),
    /// From outside.
    #[error("set the {what} of task {tid}")]
    Outside {
        /// What.
        what: &'static str,
        /// Whose.
        tid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The image's registers are not this architecture's.
    #[error("the image holds no register block of this machine for task {0}")]
    Registers(i32),
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Somebody whom a user namespace does not know.
    #[error("its user namespace does not know its users or groups, and they are not those that it has by birth")]
    Unknown,
    /// A thread that a timer needs.
    #[error("timer {0} needs thread {1}, which is not there")]
    Maker(i32, i32),
    /// An id that this kernel can't be asked for.
    #[error(
        "make a timer with the id {0}: before Linux 6.15 ids can only be counted up to, and this one is too far away"
    )]
    TimerId(i32),
}

/// What the seed brought with it, so that only differences are set.
#[derive(Debug, Clone)]
pub struct SeedState {
    pub(super) status: Status,
    processors: Vec<u32>,
    /// The slice of threads that ask for none.
    slice: u64,
    /// A tick of this kernel in microseconds.
    pub(super) tick: u64,
    /// Bytes of a task's extended registers.
    extended: usize,
    /// Where their components stand in the image, and here.
    components: [Vec<Component>; 2],
}

impl SeedState {
    /// Reads the seed's. The image's tasks have their extended registers' components where these are.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn read(puppet: &Puppet, components: Vec<Component>) -> Result<Self, RestoreError> {
        let seed = puppet.tid();
        let status = Status::read(&format!("/proc/{seed}"))?;
        let processors = sched::affinity(seed).map_err(|source| RestoreError::Outside {
            what: "CPU affinity",
            tid: seed,
            source: source.into(),
        })?;
        let usual = Usual::find().map_err(|source| RestoreError::Outside {
            what: "slice",
            tid: seed,
            source: source.into(),
        })?;
        let tick = timer::tick().map_err(|source| RestoreError::Outside {
            what: "interval timers",
            tid: seed,
            source: source.into(),
        })?;
        let processors = if usual.is_everywhere(&processors) {
            sched::everywhere()
        } else {
            processors
        };
        Ok(Self {
            status,
            processors,
            slice: usual.slice,
            tick,
            components: [components, processor::components()],
            extended: puppet.task().extended().map_err(PuppetError::from)?.len(),
        })
    }

    /// Lets a task run where the image says, or else where the seed might before all were kept on one processor.
    ///
    /// # Errors
    /// [`RestoreError::Outside`].
    pub fn spread(&self, tid: Pid, wanted: &[u32]) -> Result<(), RestoreError> {
        let processors = if wanted.is_empty() { &self.processors } else { wanted };
        sched::set_affinity(tid, processors).map_err(|source| RestoreError::Outside {
            what: "CPU affinity",
            tid,
            source: source.into(),
        })
    }

    /// Users and groups of the seed, which all tasks have until they are somebody.
    #[must_use]
    pub fn users(&self) -> Credentials {
        Credentials {
            uids: self.status.uids,
            gids: self.status.gids,
            groups: self.status.groups.clone(),
            ..Credentials::default()
        }
    }

    pub(super) fn same(&self, wanted: &Credentials) -> bool {
        let [inheritable, permitted, effective, bounding, ambient] = self.status.capabilities;
        (self.status.uids, self.status.gids, &self.status.groups) == (wanted.uids, wanted.gids, &wanted.groups)
            && (inheritable, permitted, effective, bounding, ambient)
                == (
                    wanted.inheritable,
                    wanted.permitted,
                    wanted.effective,
                    wanted.bounding,
                    wanted.ambient,
                )
            && wanted.securebits == 0
    }
}

/// Sets what all threads of a process share but memory, descriptors, credentials and timers.
///
/// # Errors
/// [`RestoreError`].
pub fn restore_process(script: &mut Script<'_>, record: &ProcessRecord) -> Result<(), RestoreError> {
    let batch = script.reserve(100, 8 << 10)?;
    let fixed = [libc::SIGKILL as u64, libc::SIGSTOP as u64];
    for (signal, action) in (1u64..).zip(&record.actions) {
        let words = [action.handler, action.flags, action.restorer, action.mask];
        if words != [0; 4] && !fixed.contains(&signal) {
            let place = batch.data(&words_bytes(&words));
            batch.call("set a signal action", libc::SYS_rt_sigaction, &[signal, place, 0, 8]);
        }
    }
    batch.call("set the umask", libc::SYS_umask, &[u64::from(record.umask)]);
    // Puppets have them disabled.
    let disabled = u64::from(record.thp_disable);
    let flags = if record.thp_disable && record.switches.thp_except_advised {
        PR_THP_DISABLE_EXCEPT_ADVISED
    } else {
        0
    };
    batch.call(
        "enable huge pages",
        libc::SYS_prctl,
        &[PR_SET_THP_DISABLE, disabled, flags],
    );
    for bit in (0..32).filter(|bit| record.membarrier & (1 << bit) != 0) {
        batch.call("register for membarrier", libc::SYS_membarrier, &[1 << bit, 0, 0]);
    }
    for (resource, limit) in (0u64..).zip(&record.limits) {
        if resource == u64::from(libc::RLIMIT_SIGPENDING) && counts_signals(record) {
            // It may have been lowered since they came, so it is set when they are there again. Each timer has one.
            let room = limit.hard.max(ROOM_FOR_SIGNALS);
            let place = batch.data(&words_bytes(&[room, room]));
            batch.attempt("leave room for signals", libc::SYS_prlimit64, &[0, resource, place, 0]);
            continue;
        }
        let place = batch.data(&words_bytes(&[limit.soft, limit.hard]));
        batch.call("set a resource limit", libc::SYS_prlimit64, &[0, resource, place, 0]);
    }
    Ok(())
}

/// All pending signals of a process and its threads.
pub(super) fn pending(process: &ProcessRecord) -> impl Iterator<Item = &Vec<u8>> {
    let of_threads = process.threads.iter().flat_map(|thread| &thread.pending);
    process.pending.iter().chain(of_threads)
}

/// Whether the limit on pending signals matters.
fn counts_signals(record: &ProcessRecord) -> bool {
    pending(record).next().is_some() || !record.posix_timers.is_empty()
}

/// The signals that are pending in a process or come from its timers.
pub(super) fn signals_of(process: &ProcessRecord) -> Vec<i32> {
    let timers = process.posix_timers.iter().map(|timer| timer.signal);
    pending(process).map(|info| number(info)).chain(timers).collect()
}

fn number(info: &[u8]) -> i32 {
    let bytes = info.get(..4);
    bytes.map_or(0, |bytes| i32::from_ne_bytes(bytes.try_into().expect("4 bytes")))
}

/// A signal to end batches with: not one of job control, which would take others out of the queue; nor one that counts
/// against the limit.
pub(super) fn quiet_signal(taken: &[i32]) -> i32 {
    let job_control = libc::SIGCONT..=libc::SIGTTOU;
    let is_quiet = |signal: &i32| {
        !taken.contains(signal) && !job_control.contains(signal) && ![libc::SIGKILL, libc::SIGSTOP].contains(signal)
    };
    (1..32).rev().find(is_quiet).unwrap_or(libc::SIGURG)
}

pub(super) fn words_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Sets what a thread has of its own but credentials and registers.
///
/// # Errors
/// [`RestoreError`].
pub fn restore_thread(script: &mut Script<'_>, record: &ThreadRecord) -> Result<(), RestoreError> {
    let batch = script.reserve(10, 1 << 10)?;
    let stack = record.alternate_stack;
    let flags = (stack.flags & !SS_ONSTACK) as u32;
    let place = batch.data(&words_bytes(&[stack.base, u64::from(flags), stack.size]));
    batch.call("set the alternate stack", libc::SYS_sigaltstack, &[place, 0]);
    if record.robust_list.head != 0 {
        let arguments = [record.robust_list.head, record.robust_list.size];
        batch.call("set the robust futex list", libc::SYS_set_robust_list, &arguments);
    }
    batch.call("set the tid address", libc::SYS_set_tid_address, &[record.tid_address]);
    if let Some(rseq) = record.rseq {
        let arguments = [rseq.address, u64::from(rseq.size), 0, u64::from(rseq.signature)];
        batch.call("register the rseq area", libc::SYS_rseq, &arguments);
    }
    let mut name = record.comm.clone();
    name.push(0);
    let place = batch.data(&name);
    batch.call("set the name", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, place]);
    batch.call(
        "set the timer slack",
        libc::SYS_prctl,
        &[libc::PR_SET_TIMERSLACK as u64, record.timer_slack],
    );
    Ok(())
}

/// Makes the image's pending signals pending: a thread's own, and by the leader, which comes last, those of the process
/// and the limit on all of them. Timers, which are made and not armed, bring their own. A batch ends with a signal of
/// its own, which must not be one of those.
///
/// # Errors
/// [`RestoreError`].
pub fn queue_signals(puppet: &Puppet, process: &ProcessRecord, record: &ThreadRecord) -> Result<(), RestoreError> {
    let is_leader = record.tid == process.pid;
    let shared: &[Vec<u8>] = if is_leader { &process.pending } else { &[] };
    if !counts_signals(process) || (!is_leader && record.pending.is_empty()) {
        return Ok(());
    }
    // Those of all threads and the shared ones count for every thread, whoever was first; those of timers may come.
    let quiet = quiet_signal(&signals_of(process));
    let times = TreeTimes::read(puppet.tid())?;
    let own = puppet.ids();
    let (pid, tid) = (own.own_process as u64, own.own_thread as u64);
    for (infos, is_shared) in [(shared, true), (&record.pending[..], false)] {
        for chunk in infos.chunks(512) {
            let mut batch = puppet.batch();
            for info in chunk {
                if let Some(firing) = Firing::of(info, process, times) {
                    firing.setting.call(&mut batch);
                    continue;
                }
                let place = batch.data(info);
                let signal = number(info) as u64;
                if is_shared {
                    batch.call("queue a signal", libc::SYS_rt_sigqueueinfo, &[pid, signal, place]);
                } else {
                    batch.call(
                        "queue a signal",
                        libc::SYS_rt_tgsigqueueinfo,
                        &[pid, tid, signal, place],
                    );
                }
            }
            puppet.run_ending_with(&mut batch, quiet)?;
        }
    }
    if let (true, Some(limit)) = (is_leader, process.limits.get(libc::RLIMIT_SIGPENDING as usize)) {
        let mut batch = puppet.batch();
        let place = batch.data(&words_bytes(&[limit.soft, limit.hard]));
        let arguments = [0, libc::RLIMIT_SIGPENDING.into(), place, 0];
        batch.call("set the limit on pending signals", libc::SYS_prlimit64, &arguments);
        puppet.run_ending_with(&mut batch, quiet)?;
    }
    Ok(())
}

/// Sets what the controller can set from outside.
///
/// # Errors
/// [`RestoreError::Outside`].
pub fn apply_outside(
    puppet: &Puppet,
    process: &ProcessRecord,
    record: &ThreadRecord,
    base: &SeedState,
) -> Result<(), RestoreError> {
    let tid = puppet.tid();
    if record.scheduling.policy == libc::SCHED_DEADLINE as u32 {
        // The kernel admits only tasks that may run anywhere.
        base.spread(tid, &record.scheduling.affinity)?;
    }
    scheduling::restore(tid, &record.scheduling, base.slice).map_err(|(what, source)| RestoreError::Outside {
        what,
        tid,
        source: source.into(),
    })?;
    if record.tid == process.pid {
        write_if_other(
            tid,
            "OOM score adjustment",
            "oom_score_adj",
            &process.oom_score_adj.to_string(),
        )?;
        let filter = format!("{:08x}", process.coredump_filter);
        write_if_other(tid, "core dump filter", "coredump_filter", &filter)?;
        restore_autogroup(tid, process.switches.autogroup_nice)?;
    }
    Ok(())
}

/// The nice value of the session's autogroup; the first of its processes sets it, and for the others it is there.
fn restore_autogroup(tid: Pid, wanted: Option<i32>) -> Result<(), RestoreError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let directory = format!("/proc/{tid}");
    // Without autogroups every session weighs the same, unless it was to weigh otherwise.
    if procfs::autogroup_nice(&directory)?.unwrap_or(0) != wanted {
        std::fs::write(format!("{directory}/autogroup"), wanted.to_string()).map_err(|source| {
            RestoreError::Outside {
                what: "nice value of the session",
                tid,
                source,
            }
        })?;
    }
    Ok(())
}

fn write_if_other(tid: Pid, what: &'static str, file: &str, value: &str) -> Result<(), RestoreError> {
    let path = format!("/proc/{tid}/{file}");
    let outside = |source| RestoreError::Outside { what, tid, source };
    let now = std::fs::read_to_string(&path).map_err(outside)?;
    if now.trim() != value {
        let text = if file == "coredump_filter" {
            format!("0x{value}")
        } else {
            value.to_owned()
        };
        std::fs::write(&path, text).map_err(outside)?;
    }
    Ok(())
}

/// Gives the thread its registers and signal mask, and lets it run where it may; from then on it is no puppet any more.
///
/// # Errors
/// [`RestoreError`].
pub fn finish_thread(
    puppet: &Puppet,
    record: &ThreadRecord,
    general: &Registers,
    base: &SeedState,
) -> Result<(), RestoreError> {
    base.spread(puppet.tid(), &record.scheduling.affinity)?;
    // One that ends at once has no registers in the image; no signal must come before.
    let mask = if record.registers.general.is_empty() {
        u64::MAX
    } else {
        record.signal_mask
    };
    if let Some(dispatch) = &record.switches.dispatch {
        dispatch::restore(puppet, dispatch)?;
    }
    let mut extended = record.registers.extended.clone();
    if !extended.is_empty() {
        let [before, here] = &base.components;
        extended = moved_components(&extended, before, here, base.extended);
    }
    Ok(puppet.become_somebody(general, &extended, mask)?)
}
