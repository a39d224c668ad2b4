//! Confinement of system calls, seccomp(2): strict mode and chains of filters, which each thread has of its own.
//!
//! While floe traces a thread its confinement is suspended ([`Stopped::suspend_seccomp`]), so it stands in no call's way.
//! Should floe die meanwhile, it is in force again at once: see docs/adr/0010.

use super::{
    dump::HeldProcess,
    restore::{RestoreError, words_bytes},
};
use crate::{refusal::Refusals, tree::FoundProcess};
use floe_image::record::{ProcessRecord, SeccompFilter, SeccompRecord};
use floe_sys::procfs::Status;
use floe_tracee::{PuppetError, Script, Stopped, TraceError};
use nix::errno::Errno;

const STRICT: u32 = 1;
const FILTER: u32 = 2;
const SECCOMP_SET_MODE_STRICT: u64 = 0;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_LOG: u64 = 1 << 1;
/// What it leaves alone is carried by itself, as a switch.
const SECCOMP_FILTER_FLAG_SPEC_ALLOW: u64 = 1 << 2;
const INSTRUCTION_BYTES: usize = 8;

/// Lifts the confinement of all threads of a process for as long as they are traced. False where floe may not, and then
/// there is a finding, and no call can be run in them.
pub(super) fn suspend(held: &HeldProcess<'_>, refusals: &mut Refusals) -> Result<bool, TraceError> {
    let mut lifted = true;
    for (thread, ids) in held.threads.iter().zip(&held.found.threads) {
        if ids.status.seccomp == 0 {
            continue;
        }
        match thread.suspend_seccomp() {
            Ok(()) => {}
            Err(TraceError::Request {
                source: Errno::EPERM | Errno::EACCES | Errno::EINVAL,
                ..
            }) => {
                lifted = false;
                refusals.add(
                    Some(&held.found.subject()),
                    format!("seccomp mode {} of thread {}", ids.status.seccomp, ids.ns_tid),
                    "only root, itself without filters, may read and suspend it",
                    "run floe as root, outside of containers with filters",
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lifted)
}

/// Reads a thread's confinement.
pub(super) fn dump(
    (thread, ns_tid, status): (&Stopped, i32, &Status),
    found: &FoundProcess,
    refusals: &mut Refusals,
) -> Result<SeccompRecord, TraceError> {
    let mut record = SeccompRecord {
        strict: status.seccomp == STRICT,
        filters: Vec::new(),
    };
    if status.seccomp != FILTER {
        return Ok(record);
    }
    for (program, flags) in thread.seccomp_filters()? {
        if may_ask_supervisor(&program) {
            refusals.add(
                Some(&found.subject()),
                format!("seccomp filter of thread {ns_tid} that asks a supervisor (SECCOMP_RET_USER_NOTIF)"),
                "the descriptor by which a supervisor answers can't be made again",
                "run it without a supervisor",
            );
        }
        record.filters.push(SeccompFilter {
            log: flags & SECCOMP_FILTER_FLAG_LOG != 0,
            program,
        });
    }
    Ok(record)
}

/// Whether a filter can answer SECCOMP_RET_USER_NOTIF; one that computes its answer may.
fn may_ask_supervisor(program: &[u8]) -> bool {
    const CLASS: u16 = 0x07;
    const RET: u16 = 0x06;
    const SOURCE: u16 = 0x18;
    const ACCUMULATOR: u16 = 0x10;
    const ACTION: u32 = 0xffff_0000;
    const USER_NOTIF: u32 = 0x7fc0_0000;
    program.chunks_exact(INSTRUCTION_BYTES).any(|instruction| {
        let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let k = u32::from_ne_bytes(instruction[4..].try_into().expect("4 of 8 bytes"));
        code & CLASS == RET && (code & SOURCE == ACCUMULATOR || k & ACTION == USER_NOTIF)
    })
}

/// How many of their first filters all threads of a process have in common. They are installed before the other threads
/// are made, which inherit them: only threads with the very same filters can be given a further one together
/// (SECCOMP_FILTER_FLAG_TSYNC).
fn common_filters(process: &ProcessRecord) -> usize {
    let Some((leader, others)) = process.threads.split_first() else {
        return 0;
    };
    let filters = &leader.seccomp.filters;
    let same = |other: &Vec<SeccompFilter>| filters.iter().zip(other).take_while(|(a, b)| a == b).count();
    let common = others.iter().map(|thread| same(&thread.seccomp.filters));
    common.min().unwrap_or(0)
}

/// Installs the filters that all threads of a process have in common, in its first thread while it is the only one;
/// returns how many.
///
/// # Errors
/// [`RestoreError`].
pub fn share_filters(script: &mut Script<'_>, process: &ProcessRecord) -> Result<usize, RestoreError> {
    let common = common_filters(process);
    if let Some(leader) = process.threads.first() {
        install(script, &leader.seccomp.filters[..common])?;
    }
    Ok(common)
}

/// Confines a thread as the image says, but for its first filters, which it `has` already. It takes effect when the
/// thread is no longer traced. The thread needs CAP_SYS_ADMIN for this.
///
/// # Errors
/// [`RestoreError`].
pub fn confine(script: &mut Script<'_>, record: &SeccompRecord, has: usize) -> Result<(), RestoreError> {
    install(script, &record.filters[has..])?;
    if record.strict {
        script.puppet().task().suspend_seccomp().map_err(PuppetError::from)?;
        let arguments = [SECCOMP_SET_MODE_STRICT, 0, 0];
        script.call("enter seccomp's strict mode", libc::SYS_seccomp, &arguments)?;
    }
    Ok(())
}

fn install(script: &mut Script<'_>, filters: &[SeccompFilter]) -> Result<(), RestoreError> {
    if !filters.is_empty() {
        script.puppet().task().suspend_seccomp().map_err(PuppetError::from)?;
    }
    for filter in filters {
        let batch = script.reserve(1, filter.program.len() + 64)?;
        let program = batch.data(&filter.program);
        // `struct sock_fprog`: a count of 16 bits, padding, a pointer.
        let words = [(filter.program.len() / INSTRUCTION_BYTES) as u64, program];
        let place = batch.data(&words_bytes(&words));
        let log = if filter.log { SECCOMP_FILTER_FLAG_LOG } else { 0 };
        let flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW | log;
        let arguments = [SECCOMP_SET_MODE_FILTER, flags, place];
        batch.call("install a seccomp filter", libc::SYS_seccomp, &arguments);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::may_ask_supervisor;

    fn program(instructions: &[(u16, u32)]) -> Vec<u8> {
        let bytes = |(code, k): &(u16, u32)| [&code.to_ne_bytes()[..], &[0, 0], &k.to_ne_bytes()].concat();
        instructions.iter().flat_map(bytes).collect()
    }

    #[test]
    fn filters_that_ask_a_supervisor_are_known() {
        let (load, ret, ret_a) = (0x20, 0x06, 0x16);
        assert!(!may_ask_supervisor(&program(&[(load, 0), (ret, 0x7fff_0000)])));
        assert!(may_ask_supervisor(&program(&[(load, 0x7fc0_0000), (ret, 0x7fc0_0001)])));
        assert!(may_ask_supervisor(&program(&[(load, 0), (ret_a, 0)])));
        assert!(!may_ask_supervisor(&program(&[
            (load, 0x7fc0_0000),
            (ret, 0x0005_0001)
        ])));
    }
}
