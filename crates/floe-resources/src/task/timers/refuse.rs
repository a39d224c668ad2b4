//! Timers that can't be made again: told from what the kernel lists, from outside.

use super::clock::{BOOTTIME_ALARM, Clock, REALTIME_ALARM};
use crate::{
    refusal::Refusals,
    tree::{FoundProcess, FoundTree},
};
use floe_sys::procfs::{PosixTimer, ProcError};

const CAP_WAKE_ALARM: u32 = 35;

/// Adds a finding for each such timer of a process.
pub(in crate::task) fn refuse(
    process: &FoundProcess,
    tree: &FoundTree,
    refusals: &mut Refusals,
) -> Result<(), ProcError> {
    for timer in PosixTimer::all(process.pid)? {
        if let Some((reason, advice)) = obstacle(&timer, process, tree) {
            let object = format!("POSIX timer {} (timer_create)", timer.id);
            refusals.add(Some(&process.subject()), object, reason, advice);
        }
    }
    Ok(())
}

fn obstacle(timer: &PosixTimer, process: &FoundProcess, tree: &FoundTree) -> Option<(&'static str, &'static str)> {
    const DELETE: &str = "delete it";
    let is_alone = timer.notify & libc::SIGEV_THREAD_ID != 0;
    if is_alone && !process.threads.iter().any(|thread| thread.tid == timer.target) {
        return Some(("the thread that it signals has ended", DELETE));
    }
    let known = match Clock::of(timer.clock) {
        None => return Some(("floe does not know its clock", DELETE)),
        Some(Clock::OfThread(tid)) => process.threads.iter().any(|thread| thread.own_tid() == tid),
        Some(Clock::OfOther(pid)) => tree
            .living()
            .any(|other| tree.seen_from(process.pid_namespace, other) == Some(pid)),
        Some(Clock::World(_) | Clock::OfMaker | Clock::OfProcess) => true,
    };
    if !known {
        return Some((
            "the task whose processor time it measures has ended or is outside of the tree",
            DELETE,
        ));
    }
    let [_, _, effective, ..] = process.threads[0].status.capabilities;
    if [REALTIME_ALARM, BOOTTIME_ALARM].contains(&timer.clock) && effective & (1 << CAP_WAKE_ALARM) == 0 {
        return Some((
            "it wakes the host, which its process may no longer ask for (CAP_WAKE_ALARM)",
            "keep the capability",
        ));
    }
    None
}
