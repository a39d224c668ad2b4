//! `/proc/PID/timers`: the POSIX timers of a process, and what `/proc/timer_list` tells of one kind of them.

use super::{ProcError, read_text};
use crate::Pid;

/// A POSIX timer as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// The signal.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD, with SIGEV_THREAD_ID set where one thread alone gets the signal.
    pub notify: i32,
    /// The process or thread that gets it, as the /proc that was read numbers it.
    pub target: Pid,
    /// CLOCK_*, or below 0 a clock of a task's processor time.
    pub clock: i32,
}

impl PosixTimer {
    /// Those of a process, in the order of their ids.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn all(pid: Pid) -> Result<Vec<Self>, ProcError> {
        let path = format!("/proc/{pid}/timers");
        let text = read_text(&path)?;
        parse(&text).ok_or(ProcError::Field {
            path,
            field: "of a timer",
        })
    }
}

/// Blocks of four lines, each `ID:`, `signal: NUMBER/HEX`, `notify: KIND/pid.NUMBER` or `KIND/tid.NUMBER`, `ClockID:`.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut timers = lines.chunks(4).map(timer).collect::<Option<Vec<_>>>()?;
    timers.sort_unstable_by_key(|timer| timer.id);
    Some(timers)
}

fn timer(lines: &[&str]) -> Option<PosixTimer> {
    let &[id, signal, notify, clock] = lines else {
        return None;
    };
    let (signal, value) = signal.strip_prefix("signal: ")?.split_once('/')?;
    let (kind, target) = notify.strip_prefix("notify: ")?.split_once('/')?;
    let (whom, target) = target.split_once('.')?;
    let kind = match kind {
        "signal" => libc::SIGEV_SIGNAL,
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => return None,
    };
    let thread = match whom {
        "tid" => libc::SIGEV_THREAD_ID,
        "pid" => 0,
        _ => return None,
    };
    Some(PosixTimer {
        id: id.strip_prefix("ID: ")?.parse().ok()?,
        signal: signal.parse().ok()?,
        value: u64::from_str_radix(value, 16).ok()?,
        notify: kind | thread,
        target: Pid::new(target.parse().ok()?),
        clock: clock.strip_prefix("ClockID: ")?.parse().ok()?,
    })
}

/// When, in nanoseconds of CLOCK_REALTIME, the armed POSIX timers of this machine expire that follow that clock when it is
/// set: those that were set to a time, not for one. Empty where `/proc/timer_list` can't be read.
#[must_use]
pub fn armed_on_realtime() -> Vec<u64> {
    read_text("/proc/timer_list").map_or_else(|_| Vec::new(), |text| on_realtime(&text))
}

/// Of each processor ` clock N:`, where 1 is CLOCK_REALTIME, and its timers, two lines each.
fn on_realtime(text: &str) -> Vec<u64> {
    let mut found = Vec::new();
    let (mut is_realtime, mut is_posix) = (false, false);
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(number) = line.strip_prefix("clock ") {
            is_realtime = number == "1:";
        } else if let Some(times) = line.strip_prefix("# expires at ") {
            let hard: Option<u64> = times.split(['-', ' ']).nth(1).and_then(|number| number.parse().ok());
            found.extend(hard.filter(|_| is_realtime && is_posix));
        } else {
            is_posix = line.starts_with('#') && line.contains(" posix_timer_fn,");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18.
    const TIMERS: &str = "ID: 1000\nsignal: 14/00000000000003e8\nnotify: signal/pid.20428\nClockID: 1\n\
        ID: 10\nsignal: 40/ffffdead00000005\nnotify: thread/pid.20428\nClockID: 0\n\
        ID: 9\nsignal: 40/0000000000000005\nnotify: signal/tid.20430\nClockID: -2\n\
        ID: 0\nsignal: 0/0000000000000005\nnotify: none/pid.20428\nClockID: 7\n";

    const TIMER_LIST: &str = "Timer List Version: v0.9\nHRTIMER_MAX_CLOCK_BASES: 8\nnow at 13984228218218 nsecs\n\ncpu: 0\n \
        clock 0:\n  .base:       0000000038a33c85\n  .index:      0\n  .resolution: 1 nsecs\n  .get_time:   ktime_get\n  \
        .offset:     0 nsecs\nactive timers:\n \
        #0: <00000000dadc8dd7>, posix_timer_fn, S:01\n \
        # expires at 13182775526356-13182775526356 nsecs [in 99997462948 to 99997462948 nsecs]\n \
        clock 1:\n  .base:       0000000038a33c85\n  .index:      1\n  .offset:     1795566786188587059 nsecs\n\
        active timers:\n \
        #0: <000000008e762e84>, posix_timer_fn, S:01\n \
        # expires at 1795579968964111748-1795579968964111748 nsecs [in 99997461281 to 99997461281 nsecs]\n \
        #1: <000000008e762e85>, hrtimer_wakeup, S:01\n \
        # expires at 1795579968964111700-1795579968964161700 nsecs [in 99997461281 to 99997461281 nsecs]\n";

    #[test]
    fn timers_are_read_in_the_order_of_their_ids() {
        let timers = parse(TIMERS).expect("four timers");
        assert_eq!(
            timers.iter().map(|timer| timer.id).collect::<Vec<_>>(),
            [0, 9, 10, 1000]
        );
        assert_eq!(
            timers[1],
            PosixTimer {
                id: 9,
                signal: 40,
                value: 5,
                notify: libc::SIGEV_THREAD_ID,
                target: Pid::new(20430),
                clock: -2,
            }
        );
        assert_eq!(
            (timers[0].notify, timers[2].notify),
            (libc::SIGEV_NONE, libc::SIGEV_THREAD)
        );
        assert_eq!(timers[2].value, 0xffff_dead_0000_0005);
        assert_eq!(parse(""), Some(Vec::new()));
    }

    #[test]
    fn what_does_not_look_like_timers_is_no_list_of_them() {
        for text in [
            "ID: 1\n",
            "ID: 1\nsignal: 14\nnotify: signal/pid.1\nClockID: 1\n",
            &TIMERS.replace("tid", "uid"),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_posix_timers_of_the_realtime_clock_count() {
        assert_eq!(on_realtime(TIMER_LIST), [1_795_579_968_964_111_748]);
    }
}
