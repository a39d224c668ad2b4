//! How a thread is scheduled: sched(7), sched_setattr(2), ioprio_set(2). All of it is read and set from outside.

use crate::{refusal::Refusals, tree::FoundProcess};
use floe_image::record::Scheduling;
use floe_sys::{
    Pid,
    sched::{self, Attributes, Usual},
};
use nix::errno::Errno;

const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
/// SCHED_FLAG_RECLAIM, SCHED_FLAG_DL_OVERRUN.
const DEADLINE_FLAGS: u64 = 2 | 4;
/// What the kernel takes for the whole utilisation.
const WHOLE: u32 = 1024;
/// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, include/linux/sched.h: only PR_SET_IO_FLUSHER gives a program both.
const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// What failed, and why.
type Failure = (&'static str, Errno);

/// Reads a thread's scheduling. A slice that it did not ask for is told as 0.
pub(super) fn dump(tid: Pid, usual: &Usual) -> Result<Scheduling, Failure> {
    let failed = |what| move |source| (what, source);
    let attributes = sched::attributes(tid).map_err(failed("scheduling policy"))?;
    let allowed = sched::affinity(tid).map_err(failed("CPU affinity"))?;
    let is_usual = attributes.runtime == usual.slice && !sched::is_deadline(attributes.policy);
    let runtime = if is_usual { 0 } else { attributes.runtime };
    Ok(Scheduling {
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        deadline: [runtime, attributes.deadline, attributes.period],
        affinity: if usual.is_everywhere(&allowed) {
            Vec::new()
        } else {
            allowed
        },
        io_priority: sched::io_priority(tid).map_err(failed("I/O priority"))?,
    })
}

/// Sets a thread's scheduling but its processors; `usual` is the slice of one that asks for none.
pub(super) fn restore(tid: Pid, wanted: &Scheduling, usual: u64) -> Result<(), Failure> {
    let failed = |what| move |source| (what, source);
    let now = sched::attributes(tid).map_err(failed("scheduling policy"))?;
    let relevant = |flags: u64| flags & (SCHED_FLAG_RESET_ON_FORK | DEADLINE_FLAGS);
    let [runtime, deadline, period] = wanted.deadline;
    // Policies without a slice tell 0, as the wish for none is told.
    let slice = if runtime == 0 { usual } else { runtime };
    let same = (now.policy, now.nice, now.priority) == (wanted.policy, wanted.nice, wanted.priority)
        && relevant(now.flags) == relevant(wanted.flags)
        && (now.runtime == 0 || now.runtime == slice);
    if !same {
        let attributes = Attributes {
            policy: wanted.policy,
            flags: relevant(wanted.flags),
            nice: wanted.nice,
            priority: wanted.priority,
            runtime,
            deadline,
            period,
            ..Attributes::default()
        };
        sched::set_attributes(tid, &attributes).map_err(failed("scheduling policy"))?;
    }
    if sched::io_priority(tid).map_err(failed("I/O priority"))? != wanted.io_priority {
        sched::set_io_priority(tid, wanted.io_priority).map_err(failed("I/O priority"))?;
    }
    Ok(())
}

/// Adds a finding for what of a process's scheduling can't be carried.
pub(super) fn refuse(process: &FoundProcess, refusals: &mut Refusals) {
    for thread in &process.threads {
        if flushes(thread.stat.flags) {
            refusals.add(
                Some(&process.subject()),
                format!("thread {} that flushes I/O (PR_SET_IO_FLUSHER)", thread.ns_tid),
                "who serves a disk can't be stopped and moved like others",
                "end it, or switch it off",
            );
        }
        // A thread that has ended since needs no clamp.
        if let Ok(attributes) = sched::attributes(thread.tid)
            && is_clamped(&attributes)
        {
            refusals.add(
                Some(&process.subject()),
                format!("utilisation clamps of thread {} (sched_setattr)", thread.ns_tid),
                "they are not carried yet",
                "reset them to 0 and 1024",
            );
        }
    }
}

fn flushes(flags: u64) -> bool {
    flags & IO_FLUSHER == IO_FLUSHER
}

fn is_clamped(attributes: &Attributes) -> bool {
    let realtime = [libc::SCHED_FIFO as u32, libc::SCHED_RR as u32].contains(&attributes.policy);
    match (attributes.utilisation_min, attributes.utilisation_max) {
        // Of a kernel without clamps, and the usual ones; real-time threads count as busy.
        (0, 0 | WHOLE) => false,
        (WHOLE, WHOLE) => !realtime,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::{flushes, is_clamped};
    use floe_sys::sched::Attributes;

    #[test]
    fn clamps_that_somebody_set_are_told_from_the_usual() {
        let clamped = |policy: i32, utilisation_min, utilisation_max| {
            is_clamped(&Attributes {
                policy: policy as u32,
                utilisation_min,
                utilisation_max,
                ..Attributes::default()
            })
        };
        assert!(!clamped(libc::SCHED_OTHER, 0, 0));
        assert!(!clamped(libc::SCHED_OTHER, 0, 1024));
        assert!(!clamped(libc::SCHED_FIFO, 1024, 1024));
        assert!(clamped(libc::SCHED_OTHER, 1024, 1024));
        assert!(clamped(libc::SCHED_OTHER, 0, 512));
        assert!(clamped(libc::SCHED_BATCH, 100, 1024));
    }

    #[test]
    fn only_both_bits_make_a_flusher() {
        assert!(!flushes(0x0040_0000));
        assert!(!flushes(0x0048_0000));
        assert!(flushes(0x0058_0040));
    }
}
