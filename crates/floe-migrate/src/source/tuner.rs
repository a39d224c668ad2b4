//! How much work goes into making memory small, by what the way to the other host allows.
//!
//! What sends an image either waits for it to be written, and then less work would have it sent earlier; or it has more than
//! the way takes, and then more work costs no time and leaves less to be sent. Which of the two it is shows while an image is
//! sent. The process that writes it asks anew for each chunk.

use floe_image::{Effort, Efforts, Level};
use floe_sys::shared::SharedNumbers;
use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// From the least work to the most: those that were found to differ enough (ADR 25 has the figures).
pub const LADDER: [Effort; 5] = [
    Effort::Raw,
    Effort::Level(-16),
    Effort::Level(1),
    Effort::Exactly(1),
    Effort::Exactly(9),
];
/// What a checkpoint does. Nothing is known of the way yet; or the tree stands still for what is written here alone.
const USUAL: usize = 2;
/// Bytes that two processors make in a second, at least, by the efforts of most work: a way that takes less is worth them.
const MADE: [(u64, usize); 2] = [(16 << 20, 4), (128 << 20, 3)];
/// What shows in less time is chance.
const WINDOW: Duration = Duration::from_millis(25);
/// So many bytes go into the buffers of a connection, however slow it is.
const BUFFERED: u64 = 8 << 20;
/// Bytes that are made small in another way before it shows: what is under way is still made as before.
const CHUNK: u64 = 1 << 20;
/// After so many windows a step that was taken back is tried again, at first; at most after so many.
const HOLDS: [u32; 2] = [4, 64];

/// What a [`Tuner`] shares with the processes that write images: the step of the ladder, and behind it the bytes that were
/// made small by each.
#[derive(Debug)]
struct Dial(SharedNumbers<{ 1 + LADDER.len() }>);

impl Dial {
    fn bytes(&self) -> [u64; LADDER.len()] {
        std::array::from_fn(|step| self.0[1 + step].load(Ordering::Relaxed))
    }
}

impl Efforts for Dial {
    fn next(&self, bytes: usize) -> Effort {
        let step = (self.0[0].load(Ordering::Relaxed) as usize).min(LADDER.len() - 1);
        self.0[1 + step].fetch_add(bytes as u64, Ordering::Relaxed);
        LADDER[step]
    }
}

/// Watches how images are sent, and says how the next chunk is written.
#[derive(Debug)]
pub struct Tuner {
    /// `None` where the user has said a level.
    dial: Option<Arc<Dial>>,
    level: i32,
    step: usize,
    /// Whether the tree stands still for what is written into a file.
    is_capped: bool,
    busy: Duration,
    idle: Duration,
    sent: u64,
    /// Bytes that had been made small when the window began.
    made: u64,
    /// How many are to be made small by this step before anything is concluded.
    settled: u64,
    /// Connections that send.
    senders: u32,
    /// For each step how many windows it is not tried for, and how many that will be next time.
    holds: [(u32, u32); LADDER.len()],
}

impl Tuner {
    /// One for a migration: by a level that the user has said, or by what is seen, beginning with what is known of the way.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(level: Option<i32>, per_second: Option<u64>) -> io::Result<Self> {
        let dial = match level {
            Some(_) => None,
            None => Some(Arc::new(Dial(SharedNumbers::new()?))),
        };
        let known = MADE
            .iter()
            .find(|(made, _)| per_second.is_some_and(|most| most < *made));
        let mut tuner = Self {
            dial,
            level: level.unwrap_or_default(),
            step: known.map_or(USUAL, |(_, step)| *step),
            is_capped: false,
            busy: Duration::ZERO,
            idle: Duration::ZERO,
            sent: 0,
            made: 0,
            settled: 0,
            senders: 1,
            holds: [(0, HOLDS[0]); LADDER.len()],
        };
        tuner.turn();
        Ok(tuner)
    }

    /// Whom the process that writes an image is to ask.
    pub fn level(&self) -> Level {
        match &self.dial {
            Some(dial) => Level::Asked(Arc::clone(dial) as Arc<dyn Efforts>),
            None => Level::Fixed(self.level),
        }
    }

    /// An image is about to be written and sent over so many connections; while it `stands_still` no more work than usual
    /// goes into it.
    pub fn begin(&mut self, senders: usize, stands_still: bool) {
        self.senders = u32::try_from(senders).unwrap_or(u32::MAX).max(1);
        self.is_capped = stands_still;
        self.turn();
    }

    /// The tree runs again.
    pub fn lift(&mut self) {
        self.is_capped = false;
        self.turn();
    }

    /// One of the connections has waited for something to send, and then been busy sending so many bytes.
    pub fn note(&mut self, bytes: usize, idle: Duration, busy: Duration) {
        self.sent += bytes as u64;
        self.idle += idle;
        self.busy += busy;
        let all = self.idle + self.busy;
        let Some(dial) = self.dial.as_ref().filter(|_| all >= WINDOW * self.senders) else {
            return;
        };
        let (made, by_this) = (dial.bytes().iter().sum(), dial.bytes()[self.step]);
        let (idle, busy) = (std::mem::take(&mut self.idle), std::mem::take(&mut self.busy));
        // Whoever waits for something else than memory that is made small learns nothing by that.
        let progressed = std::mem::replace(&mut self.made, made) != made;
        if by_this < self.settled {
            return;
        }
        let (goes_up, waits) = (idle * 20 < all, idle * 4 > busy + idle);
        if goes_up {
            self.step_up();
        } else if waits && progressed {
            self.step_down();
        }
    }

    fn step_up(&mut self) {
        let Some((wait, _)) = self.holds.get_mut(self.step + 1) else {
            return;
        };
        if *wait > 0 {
            *wait -= 1;
            return;
        }
        self.step += 1;
        self.turn();
    }

    fn step_down(&mut self) {
        let is_known = self.sent > BUFFERED * u64::from(self.senders);
        if self.step == 0 || self.step <= USUAL && !is_known {
            return;
        }
        let (wait, next) = &mut self.holds[self.step];
        (*wait, *next) = (*next, (*next * 2).min(HOLDS[1]));
        self.step -= 1;
        self.turn();
    }

    fn turn(&mut self) {
        let step = if self.is_capped {
            self.step.min(USUAL)
        } else {
            self.step
        };
        let Some(dial) = &self.dial else { return };
        if dial.0[0].swap(step as u64, Ordering::Relaxed) != step as u64 {
            let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
            self.settled = dial.bytes()[self.step] + (workers + 1) * CHUNK;
        }
    }

    /// Bytes of memory by how much work went into each; none where the user has said a level.
    pub fn bytes(&self) -> Vec<(Effort, u64)> {
        let Some(dial) = &self.dial else { return Vec::new() };
        LADDER
            .into_iter()
            .zip(dial.bytes())
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFERED, Effort, Efforts, HOLDS, LADDER, Tuner, USUAL, WINDOW};
    use floe_image::Level;
    use std::{sync::Arc, time::Duration};

    struct Course {
        tuner: Tuner,
        dial: Arc<dyn Efforts>,
    }

    impl Course {
        fn new(per_second: Option<u64>) -> Self {
            let tuner = Tuner::new(None, per_second).expect("memory");
            let Level::Asked(dial) = tuner.level() else {
                panic!("nobody said a level")
            };
            Self { tuner, dial }
        }

        fn now(&self) -> Effort {
            self.dial.next(0)
        }

        /// So many windows of which each shows something.
        fn windows(&mut self, count: u32, idle_percent: u32) {
            for _ in 0..count {
                self.dial.next(1 << 30);
                let idle = WINDOW * idle_percent / 100;
                self.tuner.note(1 << 20, idle, WINDOW - idle);
            }
        }
    }

    #[test]
    fn a_slow_way_is_worth_more_work_and_a_fast_one_less() {
        let mut course = Course::new(None);
        assert_eq!(course.now(), LADDER[USUAL]);
        course.windows(8, 0);
        assert_eq!(course.now(), Effort::Exactly(9));
        course.windows(1, 50);
        assert_eq!(course.now(), Effort::Exactly(1));
        course.windows(20, 100);
        assert_eq!(course.now(), Effort::Raw);
        course.windows(2, 10);
        assert_eq!(course.now(), Effort::Raw, "neither waits for the other");
        let sum: u64 = course.tuner.bytes().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(sum, 31 << 30);
    }

    #[test]
    fn what_was_taken_back_is_tried_less_and_less_often() {
        let mut course = Course::new(None);
        course.windows(2, 0);
        for hold in [HOLDS[0], 2 * HOLDS[0], 4 * HOLDS[0]] {
            assert_eq!(course.now(), Effort::Exactly(9));
            course.windows(1, 50);
            course.windows(hold, 0);
            assert_eq!(course.now(), Effort::Exactly(1), "after {hold}");
            course.windows(1, 0);
        }
    }

    #[test]
    fn what_goes_into_buffers_tells_nothing_of_the_way() {
        let mut course = Course::new(None);
        course.windows((BUFFERED >> 20) as u32, 100);
        assert_eq!(course.now(), LADDER[USUAL]);
        course.windows(1, 100);
        assert_eq!(course.now(), LADDER[USUAL - 1]);
    }

    #[test]
    fn what_is_under_way_is_waited_for() {
        let mut course = Course::new(None);
        course.windows(1, 0);
        for _ in 0..9 {
            course.tuner.note(1 << 20, Duration::ZERO, WINDOW);
        }
        assert_eq!(course.now(), Effort::Exactly(1), "nothing was made by it yet");
        course.windows(1, 0);
        assert_eq!(course.now(), Effort::Exactly(9));
    }

    #[test]
    fn who_waits_for_something_else_changes_nothing() {
        let mut course = Course::new(None);
        course.tuner.note(64 << 20, Duration::ZERO, Duration::ZERO);
        for _ in 0..9 {
            course.tuner.note(0, WINDOW, Duration::ZERO);
        }
        assert_eq!(course.now(), LADDER[USUAL]);
    }

    #[test]
    fn no_more_work_than_usual_while_the_tree_stands_still() {
        let mut course = Course::new(Some(1 << 20));
        assert_eq!(course.now(), Effort::Exactly(9), "known to be slow");
        course.tuner.begin(1, true);
        assert_eq!(course.now(), LADDER[USUAL]);
        course.tuner.lift();
        assert_eq!(course.now(), Effort::Exactly(9));
    }

    #[test]
    fn a_level_that_was_said_stays() {
        let mut tuner = Tuner::new(Some(3), Some(1)).expect("one");
        tuner.note(1 << 30, Duration::ZERO, Duration::from_secs(60));
        assert!(matches!(tuner.level(), Level::Fixed(3)));
        assert_eq!(tuner.bytes(), []);
    }
}
