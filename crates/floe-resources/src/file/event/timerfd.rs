//! Timers that are read from (timerfd_create(2)). A timer of the wall clock that was set to a time of day goes off at that
//! time; all others have left what they had left.

use super::{Lines, is_anonymous};
use crate::file::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, set_status};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::event;
use serde::{Deserialize, Serialize};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{SystemTime, UNIX_EPOCH},
};

const SECOND: u64 = 1_000_000_000;
const CLOCKS: [(i32, &str); 5] = [
    (libc::CLOCK_REALTIME, "CLOCK_REALTIME"),
    (libc::CLOCK_MONOTONIC, "CLOCK_MONOTONIC"),
    (libc::CLOCK_BOOTTIME, "CLOCK_BOOTTIME"),
    (libc::CLOCK_REALTIME_ALARM, "CLOCK_REALTIME_ALARM"),
    (libc::CLOCK_BOOTTIME_ALARM, "CLOCK_BOOTTIME_ALARM"),
];
/// Of timerfd_settime(2): the time is one of the clock; a jump of the clock ends the wait.
const ABSOLUTE: i32 = libc::TFD_TIMER_ABSTIME;
const CANCEL_ON_SET: i32 = libc::TFD_TIMER_CANCEL_ON_SET;

/// The kind.
pub struct TimerFd;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// CLOCK_*.
    clock: i32,
    /// TFD_TIMER_* it was set with.
    flags: i32,
    /// How often it has expired since it was read.
    ticks: u64,
    /// Nanoseconds until it expires, or since 1970 where it was set to a time of day; 0 where it is not armed.
    value: u64,
    /// Nanoseconds from one expiry to the next.
    interval: u64,
}

impl Body {
    fn is_of_day(&self) -> bool {
        let wall = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM].contains(&self.clock);
        wall && self.flags & ABSOLUTE != 0
    }

    /// What the kernel takes no other values than.
    fn is_possible(&self) -> bool {
        let known = CLOCKS.iter().any(|(clock, _)| *clock == self.clock);
        known && self.flags & !(ABSOLUTE | CANCEL_ON_SET) == 0
    }
}

impl FileKind for TimerFd {
    fn name(&self) -> &'static str {
        "timerfd"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_anonymous(file, "timerfd")
    }

    fn dump(&self, file: &FoundFile, _context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let lines = Lines::read(file)?;
        let time = |key: &'static str| {
            let pair = lines.all(key).next().and_then(|value| {
                let (seconds, rest) = value.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
                let nanoseconds: u64 = rest.trim().parse().ok()?;
                seconds
                    .trim()
                    .parse::<u64>()
                    .ok()?
                    .checked_mul(SECOND)?
                    .checked_add(nanoseconds)
            });
            pair.ok_or_else(|| lines.malformed(key))
        };
        let mut body = Body {
            clock: lines.number("clockid", 10)? as i32,
            flags: lines.number("settime flags", 8)? as i32,
            ticks: lines.number("ticks", 10)?,
            value: time("it_value")?,
            interval: time("it_interval")?,
        };
        if body.value > 0 && body.is_of_day() {
            body.value = body.value.saturating_add(now());
        }
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, _context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let wrap = |action| FileError::system(action, format!("open file {}", record.id));
        if !body.is_possible() {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("there is no timer of clock {} with flags {:#x}", body.clock, body.flags),
            });
        }
        let timer = event::timerfd(body.clock, 0).map_err(wrap("make a timer as"))?;
        let flags = if body.is_of_day() { body.flags } else { 0 };
        let value = match body.value {
            // One that has expired goes on when it is read; one that begins with its interval is as good.
            0 if body.ticks > 0 && body.interval > 0 && body.is_of_day() => now().saturating_add(body.interval),
            0 if body.ticks > 0 => body.interval,
            value => value,
        };
        // Also one that is not armed can have an interval, and wait for a jump of the clock.
        if value > 0 || body.interval > 0 || flags != 0 {
            event::set_timerfd(timer.as_fd(), flags, value, body.interval).map_err(wrap("arm the timer of"))?;
        }
        if body.ticks > 0 {
            event::set_timerfd_ticks(timer.as_fd(), body.ticks).map_err(wrap("set the expiries of"))?;
        }
        set_status(timer.as_fd(), record)?;
        Ok(timer)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let name = CLOCKS.iter().find(|(clock, _)| *clock == body.clock);
        let armed = if body.value > 0 { "armed" } else { "not armed" };
        Ok(format!(
            "of {}, {armed}",
            name.map_or("an unknown clock", |(_, name)| name)
        ))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        Ok((!body.is_possible()).then(|| format!("there is no timer of clock {}", body.clock)))
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}
