//! Syscall user dispatch: system calls that are turned into SIGSYS, as Documentation/admin-guide/syscall-user-dispatch.rst
//! describes it. Read and set by ptrace; each thread has its own.

use super::{dump::HeldProcess, restore::RestoreError};
use crate::refusal::Refusals;
use floe_image::record::CallDispatch;
use floe_sys::ptrace::DispatchConfiguration;
use floe_tracee::{Puppet, PuppetError, Stopped, TraceError};

const PR_SYS_DISPATCH_EXCLUSIVE_ON: u64 = 1;
/// Linux 6.17.
const PR_SYS_DISPATCH_INCLUSIVE_ON: u64 = 2;

/// Reads a thread's.
pub(super) fn dump(thread: &Stopped) -> Result<Option<CallDispatch>, TraceError> {
    let record = |found: DispatchConfiguration| CallDispatch {
        selector: found.selector,
        start: found.offset,
        length: found.length,
    };
    Ok(thread.dispatch()?.map(record))
}

/// Adds a finding for every thread in which no call can be run, since it has all of them turned into signals but for those
/// of one place; true where there is one.
pub(super) fn refuse(held: &HeldProcess<'_>, refusals: &mut Refusals) -> Result<bool, TraceError> {
    let mut found = false;
    for (thread, ids) in held.threads.iter().zip(&held.found.threads) {
        let always = |dispatch: &CallDispatch| dispatch.selector == 0 && !is_inclusive(dispatch);
        if dump(thread)?.as_ref().is_some_and(always) {
            found = true;
            refusals.add(
                Some(&held.found.subject()),
                format!("syscall user dispatch without a selector in thread {}", ids.ns_tid),
                "nothing lets floe's own calls through, and should it end meanwhile, nothing would switch it on again",
                "give it a selector",
            );
        }
    }
    Ok(found)
}

/// Whether a thread has the calls of one place turned into signals; the kernel keeps that as the rule that lets through
/// all the rest, which lies around the end of the address space.
fn is_inclusive(record: &CallDispatch) -> bool {
    record.start != 0 && record.start.wrapping_add(record.length) <= record.start
}

/// Has a thread's calls turned into signals: when no more are run in it.
pub(super) fn restore(puppet: &Puppet, record: &CallDispatch) -> Result<(), RestoreError> {
    let configuration = if is_inclusive(record) {
        DispatchConfiguration {
            mode: PR_SYS_DISPATCH_INCLUSIVE_ON,
            selector: record.selector,
            offset: record.start.wrapping_add(record.length),
            length: record.length.wrapping_neg(),
        }
    } else {
        DispatchConfiguration {
            mode: PR_SYS_DISPATCH_EXCLUSIVE_ON,
            selector: record.selector,
            offset: record.start,
            length: record.length,
        }
    };
    puppet.task().set_dispatch(&configuration).map_err(PuppetError::from)?;
    Ok(())
}
