//! Who a task is: users, groups, capabilities, and its user namespace: credentials(7), capabilities(7).

use super::{
    restore::{RestoreError, SeedState, words_bytes},
    user::{Standpoint, UserEntry},
};
use floe_image::record::{Credentials, IntervalTimer, ProcessRecord, ThreadRecord};
use floe_tracee::{Batch, Script};
use std::os::fd::RawFd;

const PR_SET_SECUREBITS: u64 = 28;
const PR_SET_NO_NEW_PRIVS: u64 = 38;
const PR_CAPBSET_DROP: u64 = 24;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;

/// Sets a thread's credentials and personality; then what a change of them resets; then timers of the process where the
/// thread is the leader.
///
/// # Errors
/// [`RestoreError`].
pub fn restore_credentials(
    script: &mut Script<'_>,
    process: &ProcessRecord,
    record: &ThreadRecord,
    (base, entry): (&SeedState, &UserEntry<'_>),
) -> Result<(), RestoreError> {
    let wanted = &record.credentials;
    let batch = script.reserve(150, (4 << 10) + wanted.groups.len() * 4)?;
    match entry {
        UserEntry::None if base.same(wanted) => {}
        UserEntry::None => {
            let from = Standpoint {
                now: base.users(),
                seen: None,
            };
            change_ids_from(batch, wanted, &from)?;
            change_capabilities(batch, wanted);
        }
        UserEntry::By {
            number,
            from,
            leaves_pids,
        } => {
            change_ids_from(batch, wanted, from)?;
            enter_user(batch, *number);
            if *leaves_pids {
                let arguments = [libc::CLONE_NEWPID as u64];
                batch.call(
                    "have children be born into a new PID namespace",
                    libc::SYS_unshare,
                    &arguments,
                );
            }
            change_capabilities(batch, wanted);
        }
        UserEntry::Inside(from) => {
            change_ids_from(batch, wanted, from)?;
            change_capabilities(batch, wanted);
        }
    }
    if wanted.no_new_privs {
        batch.call("set no_new_privs", libc::SYS_prctl, &[PR_SET_NO_NEW_PRIVS, 1]);
    }
    let prctl = libc::SYS_prctl;
    if record.parent_death_signal != 0 {
        let arguments = [libc::PR_SET_PDEATHSIG as u64, record.parent_death_signal as u64];
        batch.call("set the parent death signal", prctl, &arguments);
    }
    batch.call(
        "set the personality",
        libc::SYS_personality,
        &[u64::from(process.personality)],
    );
    // It belongs to the process, but a change of any thread's credentials takes it away.
    batch.call(
        "set the dumpable flag",
        prctl,
        &[libc::PR_SET_DUMPABLE as u64, u64::from(process.dumpable)],
    );
    if record.tid == process.pid {
        set_timers(batch, process, base.tick);
    }
    Ok(())
}

fn set_timers(batch: &mut Batch, process: &ProcessRecord, tick: u64) {
    for (which, timer) in (0u64..).zip(&process.timers) {
        let left = left_to_set(which, timer, tick);
        if left != 0 {
            let micros = |value: u64| [value / 1_000_000, value % 1_000_000];
            let words = [micros(timer.interval), micros(left)].concat();
            let place = batch.data(&words_bytes(&words));
            batch.call("set an interval timer", libc::SYS_setitimer, &[which, place, 0]);
        }
    }
}

/// What a timer is set to so that it has left what it had, in microseconds; 0 for one that was not armed.
fn left_to_set(which: u64, timer: &IntervalTimer, tick: u64) -> u64 {
    if which == libc::ITIMER_REAL as u64 {
        // It has nothing left where its signal is pending; taking that would start it again.
        return if timer.value == 0 { timer.interval } else { timer.value };
    }
    match timer.value {
        0 => timer.interval,
        // The kernel adds a tick to what such a timer is set to (set_cpu_itimer, kernel/time/itimer.c), at each restore
        // anew.
        value => value.saturating_sub(tick).max(1),
    }
}

/// Has a task become who it was and enter a user namespace, by its descriptor `number` of that. It has all capabilities
/// there.
///
/// # Errors
/// [`RestoreError`].
pub fn become_and_enter(
    script: &mut Script<'_>,
    (wanted, from): (&Credentials, &Standpoint<'_>),
    number: RawFd,
) -> Result<(), RestoreError> {
    let batch = script.reserve(10, (1 << 10) + wanted.groups.len() * 4)?;
    change_ids_from(batch, wanted, from)?;
    enter_user(batch, number);
    Ok(())
}

fn enter_user(batch: &mut Batch, number: RawFd) {
    let arguments = [number as u64, libc::CLONE_NEWUSER as u64];
    batch.call("enter a user namespace", libc::SYS_setns, &arguments);
    batch.call("close it", libc::SYS_close, &[number as u64]);
}

/// Users and groups; the capabilities stay. What it is already it need not become, and maybe could not.
fn change_ids_from(batch: &mut Batch, wanted: &Credentials, from: &Standpoint<'_>) -> Result<(), RestoreError> {
    let now = &from.now;
    let changes = [
        now.uids != wanted.uids,
        now.gids != wanted.gids,
        now.groups != wanted.groups,
    ];
    if changes == [false; 3] {
        return Ok(());
    }
    let there = match from.seen {
        None => wanted.clone(),
        Some(seen) => seen.credentials(wanted, changes).ok_or(RestoreError::Unknown)?,
    };
    let [users, groups, others] = changes;
    keep_capabilities(batch);
    if others {
        let place = batch.data(
            &there
                .groups
                .iter()
                .flat_map(|group| group.to_ne_bytes())
                .collect::<Vec<u8>>(),
        );
        let arguments = [there.groups.len() as u64, place];
        batch.call("set the supplementary groups", libc::SYS_setgroups, &arguments);
    }
    if groups {
        let [real, effective, saved, filesystem] = there.gids.map(u64::from);
        batch.call("set the groups", libc::SYS_setresgid, &[real, effective, saved]);
        batch.attempt("set the filesystem group", libc::SYS_setfsgid, &[filesystem]);
    }
    if users {
        let [real, effective, saved, filesystem] = there.uids.map(u64::from);
        batch.call("set the users", libc::SYS_setresuid, &[real, effective, saved]);
        batch.attempt("set the filesystem user", libc::SYS_setfsuid, &[filesystem]);
    }
    Ok(())
}

fn keep_capabilities(batch: &mut Batch) {
    batch.call(
        "keep capabilities over setuid",
        libc::SYS_prctl,
        &[PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP],
    );
}

fn change_capabilities(batch: &mut Batch, wanted: &Credentials) {
    let prctl = libc::SYS_prctl;
    let header = batch.data(&[CAPABILITY_VERSION_3.to_ne_bytes(), 0u32.to_ne_bytes()].concat());
    batch.call(
        "clear the ambient set",
        prctl,
        &[PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL],
    );
    let data = |effective: u64, permitted: u64, inheritable: u64| -> Vec<u8> {
        [0, 32]
            .into_iter()
            .flat_map(|shift| [effective, permitted, inheritable].map(|set| (set >> shift) as u32))
            .flat_map(u32::to_ne_bytes)
            .collect()
    };
    let setpcap = 1 << 8;
    let permitted = wanted.permitted | setpcap;
    let place = batch.data(&data(wanted.effective | setpcap, permitted, wanted.inheritable));
    // The inheritable set first: it may hold what the bounding set no longer has.
    batch.call("set the inheritable capabilities", libc::SYS_capset, &[header, place]);
    for capability in (0..41).filter(|bit| wanted.bounding & (1 << bit) == 0) {
        batch.call(
            "drop a capability from the bounding set",
            prctl,
            &[PR_CAPBSET_DROP, capability],
        );
    }
    for capability in (0..41).filter(|bit| wanted.ambient & (1 << bit) != 0) {
        batch.call(
            "raise an ambient capability",
            prctl,
            &[PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability],
        );
    }
    batch.call(
        "set the securebits",
        prctl,
        &[PR_SET_SECUREBITS, u64::from(wanted.securebits)],
    );
    let place = batch.data(&data(wanted.effective, wanted.permitted, wanted.inheritable));
    batch.call("set the capabilities", libc::SYS_capset, &[header, place]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_of_the_processors_time_gains_nothing() {
        let timer = |value| IntervalTimer { value, interval: 5_000 };
        let virtual_one = libc::ITIMER_VIRTUAL as u64;
        assert_eq!(left_to_set(virtual_one, &timer(9_000), 4_000), 5_000);
        assert_eq!(
            left_to_set(virtual_one, &timer(3_000), 4_000),
            1,
            "none is disarmed by it"
        );
        assert_eq!(left_to_set(libc::ITIMER_REAL as u64, &timer(9_000), 4_000), 9_000);
    }

    #[test]
    fn a_real_timer_that_has_fired_goes_on_with_its_interval() {
        let fired = IntervalTimer {
            value: 0,
            interval: 5_000,
        };
        assert_eq!(left_to_set(libc::ITIMER_REAL as u64, &fired, 4_000), 5_000);
    }
}
