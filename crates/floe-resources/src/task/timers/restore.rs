//! Makes timers again: [`make_timers`] while nothing is pending, [`arm_timers`] when all else of the process is done.
//!
//! A timer whose signal is pending is not armed but let fire ([`Firing`]), so that what is pending is its own: until that
//! is taken, further expirations count as overruns and bring no second signal.

use super::{
    super::restore::{RestoreError, pending, quiet_signal, signals_of},
    clock::Clock,
};
use floe_image::record::{NsPid, PosixTimerRecord, ProcessRecord, TimerExpiry};
use floe_sys::{
    Pid,
    procfs::ProcError,
    time_namespace::{Clocks, now},
};
use floe_tracee::{Batch, Puppet, PuppetError, Script};

const SECOND: u64 = 1_000_000_000;
const TIMER_ABSTIME: u64 = 1;
const SI_TIMER: i32 = -2;
/// Linux 6.15: timer_create(2) takes the id that it is asked for.
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const OFF: u64 = 0;
const ON: u64 = 1;
const GET: u64 = 2;
/// The kernel counts ids up. So many are counted through; beyond that one is asked for, where the kernel can be.
const NEAR: i32 = 16;
/// And up to this one where it can't.
const FAR: i32 = 100_000;
/// How long a timer may take to fire whose time has come.
const PATIENCE: [u64; 2] = [10, 0];

/// Makes the timers of a process, not armed yet, each by the thread that has to. `puppets` are its threads, in the order
/// of the record.
///
/// # Errors
/// [`RestoreError`].
pub fn make_timers(puppets: &[&Puppet], process: &ProcessRecord) -> Result<(), RestoreError> {
    let mut next = 0;
    let mut timers = process.posix_timers.as_slice();
    while let Some(first) = timers.first() {
        // Ids are given in the order of making, whoever makes them.
        let same = timers.iter().take_while(|timer| timer.maker == first.maker).count();
        let (own, rest) = timers.split_at(same);
        let Some(puppet) = puppets.iter().find(|puppet| puppet.thread() == first.maker.0) else {
            return Err(RestoreError::Maker(first.id, first.maker.0));
        };
        let is_asked = own.iter().any(|timer| timer.id - next > NEAR) && takes_ids(puppet)?;
        let mut script = Script::new(puppet);
        for timer in own {
            make(&mut script, (process, timer), next, is_asked)?;
            next = timer.id.saturating_add(1);
        }
        script.run()?;
        timers = rest;
    }
    Ok(())
}

/// Whether timer_create(2) can be asked for an id.
fn takes_ids(puppet: &Puppet) -> Result<bool, PuppetError> {
    let mut batch = puppet.batch();
    let call = batch.attempt(
        "ask whether timers can be given ids",
        libc::SYS_prctl,
        &[PR_TIMER_CREATE_RESTORE_IDS, GET],
    );
    puppet.run(&mut batch)?;
    Ok(batch.result(call) >= 0)
}

fn make(
    script: &mut Script<'_>,
    (process, timer): (&ProcessRecord, &PosixTimerRecord),
    next: i32,
    is_asked: bool,
) -> Result<(), RestoreError> {
    let gap = timer.id - next;
    if is_asked && gap > NEAR {
        script.call(
            "ask for ids of timers",
            libc::SYS_prctl,
            &[PR_TIMER_CREATE_RESTORE_IDS, ON],
        )?;
        create(script, (process, timer), timer.id)?;
        script.call("ask for no ids", libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, OFF])?;
        return Ok(());
    }
    if gap > NEAR && timer.id > FAR {
        return Err(RestoreError::TimerId(timer.id));
    }
    for id in next..timer.id {
        create(script, (process, timer), id)?;
        script.call("delete a timer", libc::SYS_timer_delete, &[id as u64])?;
    }
    create(script, (process, timer), timer.id)
}

fn create(
    script: &mut Script<'_>,
    (process, timer): (&ProcessRecord, &PosixTimerRecord),
    id: i32,
) -> Result<(), RestoreError> {
    let batch = script.reserve(1, 96)?;
    // struct sigevent: value, signal, notify, thread; 64 bytes.
    let mut event = timer.value.to_ne_bytes().to_vec();
    for number in [timer.signal, timer.notify, process.own_tid(timer.target)] {
        event.extend(number.to_ne_bytes());
    }
    event.resize(64, 0);
    let event = batch.data(&event);
    let id = batch.data(&id.to_ne_bytes());
    let arguments = [timer.clock as u64, event, id];
    batch.call("make a timer", libc::SYS_timer_create, &arguments);
    Ok(())
}

/// What the clocks that timers go by show the tree.
#[derive(Debug, Clone, Copy)]
pub(in crate::task) struct TreeTimes(Clocks);

impl TreeTimes {
    /// Reads them for the time namespace that a task is in.
    pub(in crate::task) fn read(task: Pid) -> Result<Self, ProcError> {
        Ok(Self(Clocks::seen_by(&task.to_string())?))
    }

    /// What a clock shows; `None` for processor time.
    fn of(self, clock: i32) -> Option<u64> {
        let Some(Clock::World(clock)) = Clock::of(clock) else {
            return None;
        };
        let time = match clock {
            libc::CLOCK_MONOTONIC => self.0.monotonic,
            libc::CLOCK_BOOTTIME => self.0.boottime,
            clock => now(clock),
        };
        Some(time.max(0) as u64)
    }
}

/// How a timer is to be set: timer_settime(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) struct Setting {
    id: i32,
    flags: u64,
    interval: u64,
    value: u64,
}

impl Setting {
    fn at(timer: &PosixTimerRecord, time: u64) -> Self {
        Self {
            id: timer.id,
            flags: TIMER_ABSTIME,
            interval: timer.interval,
            // None at all would disarm it.
            value: time.max(1),
        }
    }

    fn after(timer: &PosixTimerRecord, time: u64) -> Self {
        Self {
            flags: 0,
            ..Self::at(timer, time)
        }
    }

    /// Adds the call to a batch.
    pub(in crate::task) fn call(self, batch: &mut Batch) {
        let words = [self.interval, self.value].map(|time| [time / SECOND, time % SECOND]);
        let place = batch.data(
            &words
                .concat()
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect::<Vec<u8>>(),
        );
        let arguments = [self.id as u64, self.flags, place, 0];
        batch.call("set a timer", libc::SYS_timer_settime, &arguments);
    }
}

/// The timer that a pending signal came from: si_tid of a `siginfo_t` whose si_code is SI_TIMER.
pub(super) fn timer_of(info: &[u8]) -> Option<i32> {
    let number = |at: usize| Some(i32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    (number(8)? == SI_TIMER).then(|| number(16)).flatten()
}

/// A timer whose signal is pending, and that can be made to fire again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) struct Firing {
    /// Makes it fire at once.
    pub(in crate::task) setting: Setting,
    /// Whether it goes on from there as it did, or was set anew behind the signal.
    goes_on: bool,
}

impl Firing {
    /// Of the timer that a pending signal came from, if its own signal can be had again: not where there is a next
    /// expiration that the kernel can't be told so that it is the next after one that is past.
    pub(in crate::task) fn of(info: &[u8], process: &ProcessRecord, times: TreeTimes) -> Option<Self> {
        let id = timer_of(info)?;
        Self::of_timer(process.posix_timers.iter().find(|timer| timer.id == id)?, times)
    }

    fn of_timer(timer: &PosixTimerRecord, times: TreeTimes) -> Option<Self> {
        let long_ago = Self {
            setting: Setting::at(timer, 1),
            goes_on: timer.expiry == TimerExpiry::Never,
        };
        let time = match timer.expiry {
            TimerExpiry::Never => return Some(long_ago),
            TimerExpiry::At(time) => time,
            TimerExpiry::Unset(_) | TimerExpiry::After(_) => return None,
        };
        let last = time.saturating_sub(timer.interval);
        if timer.interval == 0 || last > times.of(timer.clock)? {
            return Some(long_ago);
        }
        Some(Self {
            setting: Setting::at(timer, last),
            goes_on: true,
        })
    }
}

/// Arms the timers that go on; those that were let fire go on by themselves.
///
/// # Errors
/// [`RestoreError`].
pub fn arm_timers(puppets: &[&Puppet], process: &ProcessRecord) -> Result<(), RestoreError> {
    let Some(leader) = puppets.first().filter(|_| !process.posix_timers.is_empty()) else {
        return Ok(());
    };
    let times = TreeTimes::read(leader.tid())?;
    let quiet = quiet_signal(&signals_of(process));
    let pending: Vec<&Vec<u8>> = pending(process).collect();
    let fired = |timer: &PosixTimerRecord| {
        let own = pending.iter().any(|info| timer_of(info) == Some(timer.id));
        own && Firing::of_timer(timer, times).is_some_and(|firing| firing.goes_on)
    };
    for timers in process.posix_timers.chunks(512) {
        let mut batch = leader.batch();
        for timer in timers.iter().filter(|timer| !fired(timer)) {
            let is_pending = pending.iter().any(|info| info.starts_with(&timer.signal.to_ne_bytes()));
            match overrun(timer, times).filter(|_| !is_pending) {
                Some(setting) => run_over(puppets, process, timer, setting, quiet)?,
                None => arm(&mut batch, process, timer, times),
            }
        }
        leader.run_ending_with(&mut batch, quiet)?;
    }
    Ok(())
}

/// Adds what arms a timer to a batch.
fn arm(batch: &mut Batch, process: &ProcessRecord, timer: &PosixTimerRecord, times: TreeTimes) {
    match timer.expiry {
        TimerExpiry::Never => {}
        TimerExpiry::At(time) => Setting::at(timer, time).call(batch),
        TimerExpiry::After(rest) => Setting::after(timer, rest).call(batch),
        TimerExpiry::Unset(time) => {
            let now = times.0.monotonic.max(0) as u64;
            let (missed, rest) = missed(time, timer.interval, now);
            Setting::after(timer, rest).call(batch);
            if let (Some(overrun), true) = (missed.checked_sub(1), timer.notify != libc::SIGEV_NONE) {
                tell(batch, process, timer, overrun);
            }
        }
    }
}

/// How often a timer that goes on for ever has expired since `time`, and what is left then. One that expires once has not:
/// it can be let do so.
fn missed(time: u64, interval: u64, now: u64) -> (u64, u64) {
    match now.checked_sub(time) {
        Some(past) if interval != 0 => (past / interval + 1, interval - past % interval),
        _ => (0, time.saturating_sub(now)),
    }
}

/// Adds the signal of expirations that were missed. The kernel would bring it only together with other times to come.
fn tell(batch: &mut Batch, process: &ProcessRecord, timer: &PosixTimerRecord, overrun: u64) {
    // siginfo_t: signal, errno, code, padding, timer, overruns, value.
    let overrun = i32::try_from(overrun).unwrap_or(i32::MAX);
    let numbers = [timer.signal, 0, SI_TIMER, 0, timer.id, overrun];
    let mut info: Vec<u8> = numbers.into_iter().flat_map(i32::to_ne_bytes).collect();
    info.extend(timer.value.to_ne_bytes());
    info.resize(128, 0);
    let place = batch.data(&info);
    let (pid, signal) = (process.own_tid(process.pid) as u64, timer.signal as u64);
    match timer.target {
        NsPid(0) => batch.call(
            "queue a timer's signal",
            libc::SYS_rt_sigqueueinfo,
            &[pid, signal, place],
        ),
        target => {
            let arguments = [pid, process.own_tid(target) as u64, signal, place];
            batch.call("queue a timer's signal", libc::SYS_rt_tgsigqueueinfo, &arguments)
        }
    };
}

/// How to set a timer so that its signal, if it is taken now, tells of as many overruns as the last one did; `None` where
/// it told of none, or that can't be made.
fn overrun(timer: &PosixTimerRecord, times: TreeTimes) -> Option<Setting> {
    let TimerExpiry::At(time) = timer.expiry else {
        return None;
    };
    if timer.overrun == 0 || timer.interval == 0 || timer.notify == libc::SIGEV_NONE {
        return None;
    }
    let now = times.of(timer.clock)?;
    let last = time.saturating_sub(timer.interval);
    let first = time.checked_sub(timer.interval.checked_mul(u64::from(timer.overrun) + 1)?)?;
    (first > 0 && last <= now && now < time).then(|| Setting::at(timer, first))
}

/// Lets a timer fire and takes its signal, as the program did when it learned of the overruns.
fn run_over(
    puppets: &[&Puppet],
    process: &ProcessRecord,
    timer: &PosixTimerRecord,
    setting: Setting,
    quiet: i32,
) -> Result<(), RestoreError> {
    let target = if timer.target == NsPid(0) {
        process.pid
    } else {
        timer.target
    };
    let Some(puppet) = puppets.iter().find(|puppet| puppet.thread() == target.0) else {
        return Err(RestoreError::Maker(timer.id, target.0));
    };
    let mut batch = puppet.batch();
    setting.call(&mut batch);
    let set = batch.data(&(1u64 << (timer.signal - 1)).to_ne_bytes());
    let patience = batch.data(&PATIENCE.map(u64::to_ne_bytes).concat());
    let arguments = [set, 0, patience, 8];
    batch.call("take a timer's signal", libc::SYS_rt_sigtimedwait, &arguments);
    Ok(puppet.run_ending_with(&mut batch, quiet)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: TreeTimes = TreeTimes(Clocks {
        monotonic: 1000,
        boottime: 2000,
    });

    fn timer(interval: u64, expiry: TimerExpiry) -> PosixTimerRecord {
        PosixTimerRecord {
            id: 3,
            clock: libc::CLOCK_MONOTONIC,
            maker: NsPid(1),
            notify: libc::SIGEV_SIGNAL,
            target: NsPid(0),
            signal: 34,
            value: 0,
            interval,
            expiry,
            overrun: 4,
        }
    }

    #[test]
    fn a_timer_fires_again_so_that_its_next_expiration_stays() {
        let at = |interval, time| {
            Firing::of_timer(&timer(interval, TimerExpiry::At(time)), TIMES).map(|f| (f.setting.value, f.goes_on))
        };
        assert_eq!(at(100, 1050), Some((950, true)));
        // It was set anew: no expiration of it has been yet.
        assert_eq!(at(100, 1200), Some((1, false)));
        assert_eq!(at(0, 1050), Some((1, false)));
        let of = |expiry| Firing::of_timer(&timer(100, expiry), TIMES);
        assert_eq!(of(TimerExpiry::Never).map(|f| f.goes_on), Some(true));
        assert_eq!((of(TimerExpiry::Unset(1050)), of(TimerExpiry::After(50))), (None, None));
    }

    #[test]
    fn overruns_are_those_since_an_expiration_that_is_past() {
        let first =
            |interval, time| overrun(&timer(interval, TimerExpiry::At(time)), TIMES).map(|setting| setting.value);
        assert_eq!(first(100, 1050), Some(550));
        assert_eq!(first(100, 990), None);
        assert_eq!(first(100, 1200), None);
        assert_eq!(first(300, 1050), None);
        assert_eq!(first(u64::MAX, 1050), None);
    }

    #[test]
    fn a_timer_that_was_missed_keeps_its_moments() {
        assert_eq!(missed(1050, 100, 1000), (0, 50));
        assert_eq!(missed(1000, 100, 1000), (1, 100));
        assert_eq!(missed(930, 100, 1000), (1, 30));
        assert_eq!(missed(690, 100, 1000), (4, 90));
        assert_eq!(missed(690, 0, 1000), (0, 0));
    }

    #[test]
    fn signals_of_timers_name_them() {
        let mut info = [0; 128];
        info[8..12].copy_from_slice(&SI_TIMER.to_ne_bytes());
        info[16] = 7;
        assert_eq!(timer_of(&info), Some(7));
        info[8] = 0;
        assert_eq!(timer_of(&info), None);
        assert_eq!(timer_of(&[]), None);
    }
}
