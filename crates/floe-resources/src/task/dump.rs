//! Reads a stopped process's own state: from outside what can be read from outside, the rest from the answers of
//! [`Interview`].

use super::{
    dispatch,
    ends::Ends,
    landlock::{DecoyError, Decoys},
    memory::MemoryAnswers,
    questions::{Answered, Interview, ProcessAnswers},
    scheduling, seccomp,
    signals::{SignalError, name_restarted_call, portable},
    sleep::Sleepers,
    timers,
};
use crate::{refusal::Refusals, tree::FoundProcess};
use floe_image::record::{
    Credentials, DirectoryRecord, IntervalTimer, NsPid, PidsOfChildren, ProcessRecord, ProcessState, ProcessSwitches,
    Registers, ResourceLimit, RobustList, RseqRegistration, SeccompRecord, TaskNamespaces, ThreadRecord,
    ThreadSwitches,
};
use floe_sys::{
    Pid,
    procfs::{self, Mapping, ProcError, Status},
    ptrace::Queue,
    sched::{self, Usual},
};
use floe_tracee::{CallHost, HostError, Stopped, TraceError};
use nix::errno::Errno;

/// A process whose state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// /proc.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Ptrace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Remote calls.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A system call about the thread.
    #[error("read the {what} of task {tid}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// Of whom.
        tid: Pid,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Looking for Landlock domains.
    #[error("look for Landlock domains")]
    Decoy(#[from] DecoyError),
    /// Interrupted calls.
    #[error(transparent)]
    Signal(#[from] SignalError),
}

/// A process all of whose living threads floe holds stopped, in the order of [`FoundProcess::threads`].
#[derive(Debug)]
pub struct HeldProcess<'a> {
    /// What was found.
    pub found: &'a FoundProcess,
    /// Its threads, the leader first if it lives.
    pub threads: Vec<&'a Stopped>,
    /// Its mappings.
    pub mappings: &'a [Mapping],
    /// When its threads fell asleep.
    pub sleepers: &'a Sleepers,
}

/// Record of a process that has ended and waits to be reaped.
///
/// # Errors
/// [`DumpError`].
pub fn dump_zombie(found: &FoundProcess, ends: &Ends, refusals: &mut Refusals) -> Result<ProcessRecord, DumpError> {
    let wait_status = ends.of(found);
    if wait_status & 0x80 != 0 {
        refusals.add(
            Some(&found.subject()),
            "zombie that dumped core",
            "the core flag of its wait status can't be made again",
            "let its parent reap it first",
        );
    }
    // The kernel keeps all signals but this from a PID 1 that floe would have end so.
    let is_first = !found.inner.is_empty() && found.own_pid() == 1;
    if is_first && ![0, libc::SIGKILL].contains(&libc::WTERMSIG(wait_status)) {
        refusals.add(
            Some(&found.subject()),
            "PID 1 of a PID namespace that was ended by a signal other than SIGKILL",
            "floe can't have one end so again",
            "let its parent reap it",
        );
    }
    Ok(ProcessRecord {
        state: ProcessState::Zombie { status: wait_status },
        threads: vec![ended_leader(found)?],
        ..empty_process(found)
    })
}

/// What is left of the first thread of a process when it has ended.
fn ended_leader(found: &FoundProcess) -> Result<ThreadRecord, DumpError> {
    let status = Status::read(&format!("/proc/{}", found.pid))?;
    Ok(ThreadRecord {
        tid: NsPid(found.ns_pid),
        inner: ids(&found.inner),
        comm: found.stat.comm.clone(),
        credentials: credentials(&status, 0),
        ..ThreadRecord::default()
    })
}

fn ids(inner: &[i32]) -> Vec<NsPid> {
    inner.iter().copied().map(NsPid).collect()
}

fn empty_process(found: &FoundProcess) -> ProcessRecord {
    ProcessRecord {
        pid: NsPid(found.ns_pid),
        ppid: NsPid(found.ns_ppid),
        pgid: NsPid(found.ns_pgid),
        sid: NsPid(found.ns_sid),
        pid_namespace: found.pid_namespace as u32,
        pids_of_children: PidsOfChildren::Known(found.pid_namespace as u32),
        mount_namespace: 0,
        time_of_children: 0,
        state: ProcessState::Alive,
        threads: Vec::new(),
        actions: Vec::new(),
        pending: Vec::new(),
        limits: Vec::new(),
        umask: 0,
        cwd: DirectoryRecord::default(),
        root: DirectoryRecord::default(),
        timers: [IntervalTimer::default(); 3],
        personality: 0,
        dumpable: 0,
        subreaper: false,
        thp_disable: false,
        oom_score_adj: 0,
        coredump_filter: 0,
        exit_signal: found.stat.exit_signal,
        terminal: None,
        no_terminal: false,
        membarrier: 0,
        shared: 0,
        leader_ended: found.leader_ended,
        posix_timers: Vec::new(),
        switches: ProcessSwitches::default(),
    }
}

/// What files of /proc tell of a living process that nothing else does.
#[derive(Debug)]
pub struct ProcFiles {
    autogroup_nice: Option<i32>,
    limits: Vec<ResourceLimit>,
    personality: u32,
    oom_score_adj: i32,
    coredump_filter: u32,
}

impl ProcFiles {
    /// Reads them; several threads may, of one process each.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read(found: &FoundProcess) -> Result<Self, ProcError> {
        let directory = format!("/proc/{}", found.task());
        let limits = procfs::limits(&directory)?.into_iter();
        Ok(Self {
            autogroup_nice: procfs::autogroup_nice(&directory)?,
            limits: limits.map(|(soft, hard)| ResourceLimit { soft, hard }).collect(),
            personality: number(&format!("{directory}/personality"), 16)? as u32,
            oom_score_adj: number(&format!("{directory}/oom_score_adj"), 10)? as i32,
            coredump_filter: number(&format!("{directory}/coredump_filter"), 16)? as u32,
        })
    }
}

/// Reads a living process; also returns what it alone can say of its memory. Working directory, root and terminal are
/// left to the caller, who knows paths.
///
/// # Errors
/// [`DumpError`].
pub fn dump_process(
    held: &HeldProcess<'_>,
    files: ProcFiles,
    decoys: &mut Decoys,
    usual: &Usual,
    refusals: &mut Refusals,
) -> Result<(ProcessRecord, MemoryAnswers), DumpError> {
    let found = held.found;
    let leader = held.threads[0];
    for thread in &held.threads {
        name_restarted_call(thread)?;
    }
    let host = CallHost::new(leader, found.own_pid(), held.mappings)?;
    let pending = leader.pending(Queue::Process)?;
    let mut record = empty_process(found);
    if found.leader_ended.is_some() {
        record.threads.push(ended_leader(found)?);
    }
    let second = if held.threads.len() > 1 { host.second()? } else { None };
    let (mut of_process, mut umask) = (None, None);
    let mut interview = Interview::new(&host, second.as_ref(), held);
    while let Some(mut answered) = interview.next(decoys, refusals)? {
        of_process = of_process.or(answered.process.take());
        umask.get_or_insert(answered.status.umask);
        let seccomp = seccomp::dump(
            (answered.thread, answered.ids.ns_tid, &answered.status),
            found,
            refusals,
        )?;
        record.threads.push(dump_thread(held, answered, (seccomp, usual))?);
    }
    drop(interview);
    if let Some(second) = second {
        second.remove()?;
    }
    let (answers, first) = of_process.expect("the first thread is asked about the process");
    let mut memory = MemoryAnswers::ask(&host, held, &first)?;
    let (timers, now_pending) = timers::dump(&host, held, refusals)?;
    host.remove()?;
    (record.posix_timers, record.pending) = (timers, now_pending.process);
    let ended = usize::from(found.leader_ended.is_some());
    for (thread, pending) in record.threads.iter_mut().skip(ended).zip(now_pending.threads) {
        thread.pending = pending;
    }
    memory.brk = answers.brk;
    record.umask = umask.unwrap_or_default();
    fill_process(&mut record, files, answers);
    if is_pending(libc::SIGALRM, &record.pending) && !is_pending(libc::SIGALRM, &pending) {
        // The timer fired when it had been read already.
        record.timers[libc::ITIMER_REAL as usize].value = 0;
    }
    record.state = process_state(found, leader);
    Ok((record, memory))
}

fn is_pending<T: AsRef<[u8]>>(signal: i32, queue: &[T]) -> bool {
    queue
        .iter()
        .any(|info| info.as_ref().starts_with(&signal.to_ne_bytes()))
}

fn process_state(found: &FoundProcess, leader: &Stopped) -> ProcessState {
    match leader.stop_signal() {
        0 => ProcessState::Alive,
        // While the stop waits to be reported, /proc/PID/stat shows its signal as the exit code.
        signal => ProcessState::Stopped {
            signal,
            reported: found.stat.exit_code == 0,
        },
    }
}

fn fill_process(record: &mut ProcessRecord, files: ProcFiles, answers: ProcessAnswers) {
    record.actions = answers.actions;
    record.timers = answers.timers;
    record.dumpable = answers.dumpable;
    record.subreaper = answers.subreaper;
    record.thp_disable = answers.thp_disable;
    record.membarrier = answers.membarrier;
    record.switches = answers.settings;
    record.switches.autogroup_nice = files.autogroup_nice;
    record.limits = files.limits;
    record.personality = files.personality;
    record.oom_score_adj = files.oom_score_adj;
    record.coredump_filter = files.coredump_filter;
}

fn number(path: &str, radix: u32) -> Result<i64, ProcError> {
    let text = procfs::read_text(path)?;
    i64::from_str_radix(text.trim(), radix).map_err(|_| ProcError::Field {
        path: path.to_owned(),
        field: "the number",
    })
}

fn credentials(status: &Status, securebits: u32) -> Credentials {
    let [inheritable, permitted, effective, bounding, ambient] = status.capabilities;
    Credentials {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        inheritable,
        permitted,
        effective,
        bounding,
        ambient,
        securebits,
        no_new_privs: status.no_new_privs,
    }
}

fn dump_thread(
    held: &HeldProcess<'_>,
    answered: Answered<'_>,
    (seccomp, usual): (SeccompRecord, &Usual),
) -> Result<ThreadRecord, DumpError> {
    let Answered {
        thread,
        ids,
        status,
        answers,
        ..
    } = answered;
    let tid = thread.tid();
    let query = |what| move |source| DumpError::Query { what, tid, source };
    let registers = thread.registers()?;
    let registers = portable(thread, &status, registers)?;
    let (head, size) = sched::robust_list(tid).map_err(query("robust futex list"))?;
    let scheduling = scheduling::dump(tid, usual).map_err(|(what, source)| DumpError::Query { what, tid, source })?;
    Ok(ThreadRecord {
        tid: NsPid(ids.ns_tid),
        inner: self::ids(&ids.inner),
        namespaces: TaskNamespaces::default(),
        comm: ids.stat.comm.clone(),
        registers: Registers {
            general: registers.to_bytes(),
            extended: without_last_zeros(&thread.extended()?).to_vec(),
        },
        signal_mask: thread.signal_mask()?,
        alternate_stack: answers.alternate_stack,
        pending: Vec::new(),
        robust_list: RobustList { head, size },
        rseq: thread.rseq()?.map(|r| RseqRegistration {
            address: r.address,
            size: r.size,
            signature: r.signature,
        }),
        tid_address: answers.tid_address,
        credentials: credentials(&status, answers.securebits),
        scheduling,
        parent_death_signal: answers.parent_death_signal,
        timer_slack: answers.timer_slack,
        slept: held.sleepers.slept(tid),
        seccomp,
        switches: ThreadSwitches {
            dispatch: dispatch::dump(thread)?,
            ..answers.settings
        },
    })
}

/// Registers at their initial values are zeros, and in a thread that sleeps most are.
fn without_last_zeros(bytes: &[u8]) -> &[u8] {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..used]
}
