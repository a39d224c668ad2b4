//! Task state that is not carried yet: found from outside, before anything is changed.

use super::{
    dispatch,
    dump::{DumpError, HeldProcess},
    scheduling, seccomp, timers,
};
use crate::{
    ns::pids,
    refusal::Refusals,
    tree::{FoundProcess, FoundThread, FoundTree},
};
use floe_sys::{
    Pid, memory,
    procfs::{self, ProcError},
};
use floe_tracee::{TraceError, is_native};

/// Adds a finding for every piece of task state in the tree that can't be carried.
///
/// # Errors
/// [`ProcError`].
pub fn refuse_unsupported(tree: &FoundTree, refusals: &mut Refusals) -> Result<(), ProcError> {
    for process in tree.living() {
        refuse_session_outside(process, refusals);
        timers::refuse(process, tree, refusals)?;
        scheduling::refuse(process, refusals);
    }
    pids::refuse(tree, refusals)
}

fn refuse_session_outside(process: &FoundProcess, refusals: &mut Refusals) {
    if process.ns_sid == 0 || process.ns_pgid == 0 {
        refusals.add(
            Some(&process.subject()),
            "session or process group of another PID namespace",
            "its leader has no number in the tree's namespace, so it can't be made again",
            "start the tree with setsid (or floe run)",
        );
    }
}

/// Adds a finding for every task that can't even be stopped: one that somebody else traces, and one that waits for its
/// vfork child; where there is one, also what else can be found without stopping anything. Reads only, so the tasks may
/// run or be frozen.
///
/// # Errors
/// [`ProcError`].
pub fn refuse_unstoppable(tree: &FoundTree, refusals: &mut Refusals) -> Result<(), ProcError> {
    for process in tree.living() {
        for thread in &process.threads {
            unstoppable(process, thread, refusals);
        }
    }
    if !refusals.is_empty() {
        refuse_unsupported(tree, refusals)?;
    }
    Ok(())
}

fn unstoppable(process: &FoundProcess, thread: &FoundThread, refusals: &mut Refusals) {
    let (tid, tracer) = (thread.tid, thread.status.tracer);
    let subject = process.subject();
    if tracer != 0 {
        let name = procfs::read_text(&format!("/proc/{tracer}/comm")).unwrap_or_default();
        refusals.add(
            Some(&subject),
            format!("thread {tid} traced by {tracer} ({})", name.trim()),
            "a task has one tracer, and floe must be it",
            "end the tracer (strace, gdb) first",
        );
    }
    if waits_for_vfork(process.pid, thread) {
        refusals.add(
            Some(&subject),
            format!("vfork in flight in thread {tid}"),
            "a parent that waits for its vfork child can't be stopped",
            "try again when the child has executed its program",
        );
    }
}

/// Adds a finding for every thread in which floe can't run calls, and can't read the registers; true where there is one.
///
/// # Errors
/// [`TraceError`].
pub fn refuse_foreign_code(held: &HeldProcess<'_>, refusals: &mut Refusals) -> Result<bool, TraceError> {
    let mut found = false;
    for (thread, ids) in held.threads.iter().zip(&held.found.threads) {
        if !is_native(&thread.registers()?) {
            refusals.add(
                Some(&held.found.subject()),
                format!("thread {} runs 32-bit code", ids.ns_tid),
                "tasks of another architecture than floe's are not carried yet",
                "use a 64-bit build of the program",
            );
            found = true;
        }
    }
    Ok(found)
}

/// Lifts what confines the calls of a process's threads for as long as they are traced; true where that can't be done,
/// and then there is a finding, and no call can be run in it, which even trying could end.
///
/// # Errors
/// [`DumpError`].
pub fn refuse_calls_filtered(held: &HeldProcess<'_>, refusals: &mut Refusals) -> Result<bool, DumpError> {
    let filtered = !seccomp::suspend(held, refusals)?;
    let dispatched = dispatch::refuse(held, refusals)?;
    Ok(filtered || dispatched)
}

/// Whether some task waits for its vfork child, which never takes long.
#[must_use]
pub fn has_vfork_in_flight(tree: &FoundTree) -> bool {
    let mut processes = tree.living();
    processes.any(|process| {
        process
            .threads
            .iter()
            .any(|thread| waits_for_vfork(process.pid, thread))
    })
}

/// Whether a thread waits for its vfork child.
fn waits_for_vfork(pid: Pid, thread: &FoundThread) -> bool {
    thread.status.state == b'D' && is_in_vfork(pid, thread.tid)
}

/// Whether a thread that sleeps uninterruptibly does so for its vfork child. Every task that version 1 of cgroups has
/// frozen sleeps so, therefore the call's flags decide.
#[must_use]
pub fn is_in_vfork(pid: Pid, tid: Pid) -> bool {
    let directory = format!("/proc/{pid}/task/{tid}");
    // Not readable where the task runs, and then it waits for nobody.
    let text = procfs::read_text(&format!("{directory}/syscall")).unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    let number: Option<i64> = words.next().and_then(|word| word.parse().ok());
    let first = words
        .next()
        .and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let flags = match (number, first) {
        (Some(libc::SYS_vfork), _) => return true,
        (Some(libc::SYS_clone), Some(flags)) => flags,
        (Some(libc::SYS_clone3), Some(arguments)) => {
            let mut flags = [0; 8];
            // Arguments that can't be read make no child.
            if memory::read(tid, arguments, &mut flags).is_err() {
                return false;
            }
            u64::from_ne_bytes(flags)
        }
        _ => return false,
    };
    flags & libc::CLONE_VFORK as u64 != 0
}
