//! Sends no more bytes in a second than are allowed.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

/// How much may be sent at once, as time: floe looks so often whether it was told to stop.
const BURST: Duration = Duration::from_millis(50);

/// A pace that is kept.
#[derive(Debug)]
pub struct Pace {
    per_second: Option<NonZeroU64>,
    /// When the next byte may be sent.
    next: Instant,
}

impl Pace {
    /// So many bytes per second, or as many as go.
    pub fn new(per_second: Option<NonZeroU64>) -> Self {
        Self {
            per_second,
            next: Instant::now(),
        }
    }

    /// How many bytes are to be sent at once, of `most`.
    pub fn piece(&self, most: usize) -> usize {
        let Some(per_second) = self.per_second else { return most };
        let burst = per_second.get() as u128 * BURST.as_millis() / 1000;
        usize::try_from(burst).map_or(most, |burst| burst.clamp(1, most))
    }

    /// Takes a place for so many bytes; how long they have to wait for it.
    pub fn place(&mut self, bytes: usize) -> Duration {
        let Some(per_second) = self.per_second else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        // What was not sent before is not made up for.
        self.next = self.next.max(now.checked_sub(BURST).unwrap_or(now));
        let wait = self.next.saturating_duration_since(now);
        self.next += Duration::from_secs_f64(bytes as f64 / per_second.get() as f64);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use std::{
        num::NonZeroU64,
        time::{Duration, Instant},
    };

    #[test]
    fn no_more_is_sent_than_is_allowed() {
        let mut pace = Pace::new(NonZeroU64::new(1_000_000));
        assert_eq!(pace.piece(1 << 18), 50_000);
        let begin = Instant::now();
        (0..10).for_each(|_| std::thread::sleep(pace.place(50_000)));
        // The last of ten pieces waits for the nine before it, less what may be sent at once.
        assert!(begin.elapsed() >= Duration::from_millis(400), "{:?}", begin.elapsed());
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let mut pace = Pace::new(None);
        assert_eq!(pace.piece(1 << 18), 1 << 18);
        assert_eq!(pace.place(usize::MAX), Duration::ZERO);
    }

    #[test]
    fn the_slowest_pace_sends_something() {
        assert_eq!(Pace::new(NonZeroU64::new(1)).piece(1 << 18), 1);
        assert_eq!(Pace::new(NonZeroU64::new(u64::MAX)).piece(1 << 18), 1 << 18);
    }
}
