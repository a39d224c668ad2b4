//! The clocks that timers are made for.

/// CLOCK_* of linux/time.h.
pub(super) const REALTIME: i32 = libc::CLOCK_REALTIME;
pub(super) const REALTIME_ALARM: i32 = libc::CLOCK_REALTIME_ALARM;
pub(super) const BOOTTIME_ALARM: i32 = libc::CLOCK_BOOTTIME_ALARM;

/// What a timer's clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// Time of the world, also while nobody runs; read by clock_gettime(2) of this clock.
    World(i32),
    /// Processor time of the thread that made the timer.
    OfMaker,
    /// Processor time of the process.
    OfProcess,
    /// Processor time of a certain thread of the process.
    OfThread(i32),
    /// Processor time of a certain process.
    OfOther(i32),
}

impl Clock {
    /// `number` as the kernel names it (linux/posix-timers_types.h): below 0 for processor time, with the complement of a
    /// PID above three bits, of which the highest is set for a thread, and the others tell what is counted. `None` for one
    /// that timers can't be made for.
    pub(super) fn of(number: i32) -> Option<Self> {
        const PER_THREAD: i32 = 4;
        const FIRST_INVALID: i32 = 3;
        match number {
            libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_TAI => {
                Some(Self::World(number))
            }
            REALTIME_ALARM => Some(Self::World(libc::CLOCK_REALTIME)),
            BOOTTIME_ALARM => Some(Self::World(libc::CLOCK_BOOTTIME)),
            0.. => None,
            _ if number & 3 == FIRST_INVALID => None,
            _ => Some(match (number & PER_THREAD != 0, !(number >> 3)) {
                (true, 0) => Self::OfMaker,
                (false, 0) => Self::OfProcess,
                (true, tid) => Self::OfThread(tid),
                (false, pid) => Self::OfOther(pid),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_told_apart() {
        let clocks = [
            (0, Some(Clock::World(0))),
            (1, Some(Clock::World(1))),
            (8, Some(Clock::World(0))),
            (9, Some(Clock::World(7))),
            (11, Some(Clock::World(11))),
            (4, None),
            (-2, Some(Clock::OfMaker)),
            (-6, Some(Clock::OfProcess)),
            ((!1234 << 3) | 6, Some(Clock::OfThread(1234))),
            ((!1234 << 3) | 2, Some(Clock::OfOther(1234))),
            ((!5 << 3) | 3, None),
        ];
        for (number, clock) in clocks {
            assert_eq!(Clock::of(number), clock, "{number}");
        }
    }
}
