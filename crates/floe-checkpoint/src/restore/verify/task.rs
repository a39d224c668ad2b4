//! What a thread has of its own, and what all threads of a process share but memory and descriptors.

use super::{Differences, Ids, Levels, Process, Thread};
use floe_image::record::{PosixTimerRecord, ProcessRecord, ThreadRecord};
use floe_sys::{
    Pid,
    procfs::{self, PosixTimer, ProcError, Status},
    sched,
};

/// One line of status that is a number: its name, what it says, what it should say.
type Line = (
    &'static str,
    fn(&Status) -> u64,
    fn(&ProcessRecord, &ThreadRecord) -> u64,
);

const LINES: [Line; 10] = [
    ("blocked signals", |is| is.blocked, |_, thread| thread.signal_mask),
    (
        "ignored signals",
        |is| is.ignored,
        |process, _| acted_on(process, |handler| handler == 1),
    ),
    (
        "caught signals",
        |is| is.caught,
        |process, _| acted_on(process, |handler| handler > 1),
    ),
    (
        "inheritable capabilities",
        |is| is.capabilities[0],
        |_, thread| thread.credentials.inheritable,
    ),
    (
        "permitted capabilities",
        |is| is.capabilities[1],
        |_, thread| thread.credentials.permitted,
    ),
    (
        "effective capabilities",
        |is| is.capabilities[2],
        |_, thread| thread.credentials.effective,
    ),
    (
        "bounding capabilities",
        |is| is.capabilities[3],
        |_, thread| thread.credentials.bounding,
    ),
    (
        "ambient capabilities",
        |is| is.capabilities[4],
        |_, thread| thread.credentials.ambient,
    ),
    (
        "no_new_privs",
        |is| is.no_new_privs.into(),
        |_, thread| thread.credentials.no_new_privs.into(),
    ),
    ("umask", |is| is.umask.into(), |process, _| process.umask.into()),
];

/// A number each of whose bits means something.
#[derive(PartialEq)]
struct Set(u64);

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Signals whose action's handler is of a kind.
fn acted_on(process: &ProcessRecord, of_kind: fn(u64) -> bool) -> u64 {
    let signals = (0..).zip(&process.actions);
    let set = signals.filter(|(_, action)| of_kind(action.handler));
    set.fold(0, |set, (bit, _)| set | 1 << bit)
}

/// Compares a thread.
pub fn thread(
    (process, index): (&ProcessRecord, usize),
    tid: Pid,
    levels: Levels,
    differences: &mut Differences,
) -> Result<(), ProcError> {
    let record = &process.threads[index];
    if index == 0 && process.leader_ended.is_some() {
        // It ends as soon as it may.
        return Ok(());
    }
    let status = Status::read(&format!("/proc/{tid}"))?;
    let whose = || Thread(record.tid);
    for (what, is, should) in LINES {
        differences.note(whose(), what, &Set(is(&status)), &Set(should(process, record)));
    }
    let credentials = &record.credentials;
    let wanted = std::iter::once(&record.tid).chain(&record.inner).map(|id| id.0);
    let is = levels.inside(&status.ns_pid).to_vec();
    differences.note(whose(), "TID", &Ids(is), &Ids(wanted.collect()));
    differences.note(whose(), "users", &status.uids, &credentials.uids);
    differences.note(whose(), "groups", &status.gids, &credentials.gids);
    differences.note(whose(), "supplementary groups", &status.groups, &credentials.groups);
    // Others may have come: timers run already.
    let lost = signals(&record.pending) & !status.pending;
    differences.note(whose(), "pending signals lost", &lost, &0);
    let lost = signals(&process.pending) & !status.shared_pending;
    differences.note(whose(), "pending signals of the process lost", &lost, &0);
    differences.note(whose(), "name", &status.name.as_str(), &name_of(&record.comm).trim());
    differences.note(whose(), "seccomp mode", &status.seccomp, &seccomp_mode(record));
    if let Some(filters) = status.seccomp_filters {
        let wanted = record.seccomp.filters.len() as u32;
        differences.note(whose(), "number of seccomp filters", &filters, &wanted);
    }
    scheduling(record, tid, differences);
    Ok(())
}

fn seccomp_mode(record: &ThreadRecord) -> u32 {
    match (record.seccomp.strict, record.seccomp.filters.is_empty()) {
        (true, _) => 1,
        (false, true) => 0,
        (false, false) => 2,
    }
}

/// As status shows it.
fn name_of(comm: &[u8]) -> String {
    let mut text = String::new();
    for byte in String::from_utf8_lossy(comm).chars() {
        match byte {
            '\n' => text.push_str("\\n"),
            '\\' => text.push_str("\\\\"),
            other => text.push(other),
        }
    }
    text
}

/// The numbers of queued signals, as a set.
fn signals(infos: &[Vec<u8>]) -> u64 {
    let number = |info: &Vec<u8>| Some(i32::from_ne_bytes(info.get(..4)?.try_into().ok()?));
    let numbers = infos
        .iter()
        .filter_map(number)
        .filter(|signal| (1..=64).contains(signal));
    numbers.fold(0, |set, signal| set | 1 << (signal - 1))
}

fn scheduling(record: &ThreadRecord, tid: Pid, differences: &mut Differences) {
    let wanted = &record.scheduling;
    let whose = || Thread(record.tid);
    match sched::attributes(tid) {
        Ok(is) => {
            let (is, should) = (
                (is.policy, is.nice, is.priority),
                (wanted.policy, wanted.nice, wanted.priority),
            );
            differences.note(whose(), "policy, nice value and priority", &is, &should);
        }
        Err(error) => differences.add(format!("{:?}: scheduling policy: {error}", whose())),
    }
    differences.note(
        whose(),
        "I/O priority",
        &sched::io_priority(tid),
        &Ok(wanted.io_priority),
    );
    let list = (record.robust_list.head, record.robust_list.size);
    if list.0 != 0 {
        differences.note(whose(), "robust futex list", &sched::robust_list(tid), &Ok(list));
    }
    if !wanted.affinity.is_empty() {
        // This host may have fewer.
        let other = sched::affinity(tid).map(|cpus| cpus.into_iter().find(|cpu| !wanted.affinity.contains(cpu)));
        differences.note(whose(), "processor it should not run on", &other, &Ok(None));
    }
}

/// A file of a process that holds one number: its name, the base of its digits, what it should say.
type Number = (&'static str, u32, fn(&ProcessRecord) -> i64);

const NUMBERS: [Number; 3] = [
    ("oom_score_adj", 10, |process| process.oom_score_adj.into()),
    ("coredump_filter", 16, |process| process.coredump_filter.into()),
    ("personality", 16, |process| process.personality.into()),
];

/// Compares a process.
pub fn process(record: &ProcessRecord, host: Pid, differences: &mut Differences) -> Result<(), ProcError> {
    let whose = || Process(record.pid);
    let threads = procfs::threads(host)?.len();
    differences.note(whose(), "number of threads", &threads, &record.threads.len());
    for (file, base, should) in NUMBERS {
        let text = procfs::read_text(&format!("/proc/{host}/{file}"))?;
        let is = i64::from_str_radix(text.trim(), base).ok();
        differences.note(whose(), file, &is, &Some(should(record)));
    }
    let limits = procfs::limits(&format!("/proc/{host}"))?;
    for (name, (is, limit)) in procfs::LIMITS.iter().zip(limits.iter().zip(&record.limits)) {
        differences.note(whose(), name, is, &(limit.soft, limit.hard));
    }
    if !record.posix_timers.is_empty() {
        let wanted: Vec<Timer> = (record.posix_timers.iter())
            .map(|timer| wanted_timer(record, timer))
            .collect();
        differences.note(whose(), "POSIX timers", &timers(host)?, &wanted);
    }
    Ok(())
}

/// Id, clock, way of telling, signal, value; and the thread that is told, where it is one alone.
type Timer = (i32, i32, i32, i32, u64, i32);

fn timers(host: Pid) -> Result<Vec<Timer>, ProcError> {
    let look = |timer: PosixTimer| {
        let target = if timer.notify & libc::SIGEV_THREAD_ID == 0 {
            0
        } else {
            let status = Status::read(&format!("/proc/{host}/task/{}", timer.target))?;
            status.ns_pid.last().copied().unwrap_or(0)
        };
        Ok((timer.id, timer.clock, timer.notify, timer.signal, timer.value, target))
    };
    PosixTimer::all(host)?.into_iter().map(look).collect()
}

fn wanted_timer(process: &ProcessRecord, timer: &PosixTimerRecord) -> Timer {
    let PosixTimerRecord {
        id,
        clock,
        notify,
        signal,
        value,
        target,
        ..
    } = *timer;
    (id, clock, notify, signal, value, process.own_tid(target))
}
