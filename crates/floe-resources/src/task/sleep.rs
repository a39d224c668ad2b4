//! How long threads have slept, and sleeps that go on where they were.
//!
//! Where a call with a relative time is stopped, the kernel remembers when it ends (-516) in the thread, where nobody can
//! read it. So each thread's last run is noted before the tree is stopped. In the new thread the call is issued for what
//! is left and interrupted at once; then the kernel remembers it there, and the registers can be those of the image.
//!
//! What a sleep that is stopped for a second time had slept before the first stop is known only where its caller gave
//! room for the remainder (nanosleep's second argument); else that part is slept again. No sleep ends early.

use super::restore::RestoreError;
use floe_image::record::ThreadRecord;
use floe_sys::{
    Pid, memory, parallel,
    procfs::{self, PosixTimer, Runs, Stat},
    sched,
};
use floe_tracee::{Puppet, Registers, RestartCode, Stopped, TraceError, restart_code};
use std::{cell::OnceCell, collections::HashMap, time::Instant};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
/// ERESTARTSYS to ERESTART_RESTARTBLOCK: results that no program may see.
const RESTARTED: std::ops::RangeInclusive<i64> = -516..=-512;

/// When threads last ran before they were stopped, and when timers were to expire.
#[derive(Debug, Default)]
pub struct Sleepers {
    /// As [`procfs::armed_on_realtime`] tells, where a process has a timer that could be one of them. Many will have fired
    /// when the tree is looked at, and then nothing tells them from others.
    pub(super) armed: Vec<u64>,
    /// And on which processor.
    before: HashMap<Pid, (Runs, u32)>,
    /// How often stopping makes a sleeping thread give its processor up.
    stops: u64,
    /// Those that were stopped in their sleep, and of which it is not reckoned yet how long they had slept.
    asleep: Vec<Pid>,
    /// Of each processor.
    clocks: OnceCell<HashMap<u32, u64>>,
    slept: HashMap<Pid, Slept>,
    /// The same of an earlier look, behind which the tree ran on.
    earlier: HashMap<Pid, Slept>,
}

/// How long a thread had slept when it was stopped.
#[derive(Debug, Clone, Copy)]
struct Slept {
    nanoseconds: u64,
    at: Instant,
    /// How often it had given up its processor when it was let go.
    voluntary: u64,
}

impl Sleepers {
    /// For a tree that is stopped, perhaps once more after it was looked at and ran on, so that sleeps which were stopped
    /// then went on. `stops` is how often each thread gives its processor up by that.
    #[must_use]
    pub fn again(self, stops: u64) -> Self {
        let mut earlier = self.earlier;
        earlier.extend(self.slept);
        Self {
            stops,
            earlier,
            ..Self::default()
        }
    }

    /// Notes that the threads, which stand still, are about to be let go.
    pub fn ran_on(&mut self) {
        self.slept
            .retain(|tid, slept| match Runs::read(&format!("/proc/{tid}")) {
                Some(now) => {
                    slept.voluntary = now.voluntary;
                    true
                }
                None => false,
            });
    }

    /// Notes when each of these threads last ran that sleep.
    pub fn look(&mut self, tids: &[Pid]) {
        let found = parallel::map(tids, parallel::FEW_FILES, |tid| Some((*tid, last_run(*tid)?)));
        for (tid, last) in found.into_iter().flatten() {
            self.before.entry(tid).or_insert(last);
        }
    }

    /// Notes the timers of a tree that runs.
    pub fn look_at_timers(&mut self, processes: &[Pid]) {
        // Those that can't be read are gone.
        let mut timers = processes.iter().filter_map(|pid| PosixTimer::all(*pid).ok()).flatten();
        if timers.any(|timer| timer.clock == libc::CLOCK_REALTIME) {
            self.armed = procfs::armed_on_realtime();
        }
    }

    /// Notes whether a thread that was just stopped slept in its call.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn stopped(&mut self, thread: &Stopped) -> Result<(), TraceError> {
        // Asking for its registers also makes sure that it is off its processor.
        let sleeps = restart_code(&thread.registers()?) == Some(RestartCode::Block);
        if sleeps && self.before.contains_key(&thread.tid()) {
            self.asleep.push(thread.tid());
        }
        Ok(())
    }

    /// Reckons how long those had slept that were [stopped](Self::stopped), none of which has been let run since.
    pub fn reckon(&mut self) {
        let asleep = std::mem::take(&mut self.asleep);
        let runs = parallel::map(&asleep, parallel::FEW_FILES, |tid| Runs::read(&format!("/proc/{tid}")));
        for (tid, now) in asleep.iter().zip(runs) {
            if let Some(slept) = now.and_then(|now| self.slept_till(*tid, now)) {
                self.slept.insert(*tid, slept);
            }
        }
    }

    /// How long one had, by what is told of its runs now.
    fn slept_till(&self, tid: Pid, now: Runs) -> Option<Slept> {
        // With another number of stops it ran of its own between, and what was noted is an earlier sleep.
        let is_it = |(before, _): &&(Runs, u32)| now.voluntary == before.voluntary + self.stops;
        let (before, processor) = self.before.get(&tid).filter(is_it)?;
        let clocks = self.clocks.get_or_init(clocks);
        // That which is furthest behind, where that of its processor can't be read.
        let clock = clocks.get(processor).or_else(|| clocks.values().min());
        let slept = clock.map_or(0, |clock| clock.saturating_sub(before.last));
        // It went to sleep once since then: in the call that was stopped, which ends when it would have ended.
        let is_the_same = |then: &&Slept| before.voluntary == then.voluntary + 1;
        let earlier = self.earlier.get(&tid).filter(is_the_same);
        Some(Slept {
            nanoseconds: earlier.map_or(slept, |then| then.nanoseconds + then.at.elapsed().as_nanos() as u64),
            at: Instant::now(),
            voluntary: now.voluntary,
        })
    }

    /// Nanoseconds that a stopped thread had slept; too few rather than too many, and 0 where that is not known.
    #[must_use]
    pub fn slept(&self, tid: Pid) -> u64 {
        self.slept.get(&tid).map_or(0, |slept| slept.nanoseconds)
    }
}

/// When a thread that sleeps last ran, and on which processor.
fn last_run(tid: Pid) -> Option<(Runs, u32)> {
    let runs = Runs::read(&format!("/proc/{tid}"));
    // In this order: where it fell asleep only after the first look, the count of its sleeps will tell.
    // As of a thread: of a process all threads would be added up.
    let stat = Stat::read(&format!("/proc/{tid}/task/{tid}"));
    let sleeps = stat.ok().filter(|stat| matches!(stat.state, b'S' | b'D'));
    // While it is moved to another processor there is no time; then it is about to run.
    let (runs, stat) = runs.filter(|runs| runs.last > 0).zip(sleeps)?;
    Some((runs, stat.processor))
}

/// Processors' clocks differ by the time that was stolen from each, which may be seconds. Those that can be read.
fn clocks() -> HashMap<u32, u64> {
    let own = Pid::new(0);
    let Ok(allowed) = sched::affinity(own) else {
        return HashMap::new();
    };
    let read = |cpu: &u32| {
        sched::set_affinity(own, &[*cpu]).ok()?;
        Some((*cpu, Runs::read("/proc/thread-self")?.last))
    };
    let clocks = allowed.iter().filter_map(read).collect();
    if let Err(error) = sched::set_affinity(own, &allowed) {
        tracing::debug!(%error, "floe stays on one processor");
    }
    clocks
}

/// Lets the new thread remember the sleep that its registers in the image tell of, and returns the registers it is to go
/// on with: those of the image, or with the call's result where it has come to its end.
///
/// # Errors
/// [`RestoreError`].
pub fn continue_sleep(puppet: &Puppet, record: &ThreadRecord) -> Result<Registers, RestoreError> {
    let mut registers =
        Registers::from_bytes(&record.registers.general).ok_or(RestoreError::Registers(record.tid.0))?;
    let (Some(RestartCode::Block), Some(call)) = (restart_code(&registers), registers.call()) else {
        return Ok(registers);
    };
    let result = sleep_on(puppet, call as i64, registers.arguments(), record.slept)?;
    match result {
        Some(result) if result == registers.result() => {}
        Some(result) if !RESTARTED.contains(&result) => {
            registers.set_result(result);
            registers.leave_call();
        }
        _ => registers.reissue(call),
    }
    Ok(registers)
}

/// Issues the call for what is left of its time; `None` for a call that has no such time.
fn sleep_on(puppet: &Puppet, call: i64, arguments: [u64; 6], slept: u64) -> Result<Option<i64>, RestoreError> {
    let [a, b, c, d, e, f] = arguments;
    let time = |asked: u64, left: u64| {
        // The kernel has written what was left, where the caller wanted to know.
        match (left != 0).then(|| read_time(puppet, left)).flatten() {
            Some(left) => Some(left),
            None => Some(rest(read_time(puppet, asked)?, slept)),
        }
    };
    let with_time = |time: Option<u64>, arguments: &dyn Fn(u64) -> [u64; 6]| -> Result<Option<i64>, RestoreError> {
        let Some(time) = time else { return Ok(None) };
        let words = [time / SECOND, time % SECOND];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Some(puppet.begin_call(call, &bytes, arguments)?))
    };
    match call {
        libc::SYS_nanosleep => with_time(time(a, b), &|place| [place, b, 0, 0, 0, 0]),
        // A clock that counts time on processors did not go on while the thread slept in real time.
        libc::SYS_clock_nanosleep if !is_of_the_wall(a as i32) => {
            with_time(read_time(puppet, c), &|place| [a, b, place, d, 0, 0])
        }
        libc::SYS_clock_nanosleep => with_time(time(c, d), &|place| [a, b, place, d, 0, 0]),
        libc::SYS_poll if (c as i32) < 0 => Ok(Some(puppet.begin_call(call, &[], &|_| arguments)?)),
        libc::SYS_poll => {
            let left = rest(u64::from(c as u32), slept / MILLISECOND);
            Ok(Some(puppet.begin_call(call, &[], &|_| [a, b, left, 0, 0, 0])?))
        }
        libc::SYS_futex if b as i32 & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT => {
            with_time(time(d, 0), &|place| [a, b, c, place, e, f])
        }
        libc::SYS_futex => Ok(Some(puppet.begin_call(call, &[], &|_| arguments)?)),
        _ => Ok(None),
    }
}

/// What is left of a sleep. One that should be over has only begun: the one that was looked at had ended, and the thread
/// began another before it was stopped.
fn rest(asked: u64, slept: u64) -> u64 {
    if slept < asked { asked - slept } else { asked }
}

/// Whether a clock goes on while a thread sleeps: not those of processors, among them all that are made for a task.
fn is_of_the_wall(clock: i32) -> bool {
    clock >= 0 && ![libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID].contains(&clock)
}

/// Nanoseconds of a `struct timespec` in the thread's memory.
fn read_time(puppet: &Puppet, address: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    memory::read(puppet.tid(), address, &mut bytes).ok()?;
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 of 16 bytes"));
    word(0).checked_mul(SECOND)?.checked_add(word(8))
}
