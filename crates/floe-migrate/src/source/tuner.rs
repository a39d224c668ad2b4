//! How much work goes into making memory small, by what the way to the other host allows.
//!
//! An image is over when the slower of two is done: making it, and sending what was made. How long each takes for a byte of memory
//! is known for what is done now, from the process that writes and from those that send; for what might be done it is
//! estimated from that. What takes the least time is done, and of what takes hardly more the one that leaves least to be sent.

use floe_image::{Effort, Efforts, Level};
use floe_sys::shared::SharedNumbers;
use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// From the least work to the most: those that were found to differ enough; with the bytes of memory per second and processor, and what
/// is left of one, on average (ADR 25 has the figures).
const LADDER: [(Effort, f64, f64); STEPS] = [
    (Effort::Raw, 4e9, 1.0),
    (Effort::Level(-16), 690e6, 0.58),
    (Effort::Level(1), 500e6, 0.30),
    (Effort::Exactly(1), 370e6, 0.25),
    (Effort::Exactly(9), 43e6, 0.23),
];
const STEPS: usize = 5;
/// What a checkpoint does. Nothing is known yet; or the tree stands still for what is written here alone.
const USUAL: usize = 2;
/// Hardly more time.
const HARDLY: f64 = 1.1;
/// What shows in less time is chance.
const WINDOW: Duration = Duration::from_millis(25);
/// So many bytes go into the buffers of a connection, however slow it is.
const BUFFERED: u64 = 8 << 20;
/// Of so much memory it shows what an effort makes of it.
const ENOUGH: u64 = 2 << 20;
/// For so many windows what was seen of another effort counts.
const REMEMBERED: u32 = 80;

/// What a [`Tuner`] shares with the processes that write images: the step of the ladder, and for each what was made by it.
#[derive(Debug)]
struct Dial(SharedNumbers);

/// Bytes of memory, what is left of them, and the nanoseconds that this took.
type Made = [u64; 3];

impl Dial {
    fn made(&self, step: usize) -> Made {
        std::array::from_fn(|which| self.0[1 + 3 * step + which].load(Ordering::Relaxed))
    }
}

impl Efforts for Dial {
    fn next(&self, _: usize) -> Effort {
        LADDER[(self.0[0].load(Ordering::Relaxed) as usize).min(STEPS - 1)].0
    }

    fn packed(&self, effort: Effort, [bytes, stored]: [usize; 2], took: Duration) {
        let Some(step) = LADDER.iter().position(|(known, ..)| *known == effort) else {
            return;
        };
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        for (which, more) in [bytes as u64, stored as u64, nanoseconds].into_iter().enumerate() {
            self.0[1 + 3 * step + which].fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What an effort makes of memory.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Bytes of memory in a second, by all processors.
    speed: f64,
    /// Bytes that are left of one.
    left: f64,
    /// Windows ago.
    age: u32,
}

/// Watches how images are made and sent, and says how the next chunk is made.
#[derive(Debug)]
pub struct Tuner {
    /// `None` where the user has said a level.
    dial: Option<Arc<Dial>>,
    level: i32,
    step: usize,
    /// Whether the tree stands still for what is written into a file.
    is_capped: bool,
    processors: f64,
    /// Bytes per second that the way takes, where that is known.
    way: Option<f64>,
    seen: [Option<Seen>; STEPS],
    /// What of each had been made when it was looked at last.
    before: [Made; STEPS],
    /// Connections that send.
    senders: u32,
    sent: u64,
    bytes: u64,
    busy: Duration,
    waited: Duration,
}

impl Tuner {
    /// One for a migration: by a level that the user has said, or by what is seen, beginning with what is known of the way.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(level: Option<i32>, per_second: Option<u64>) -> io::Result<Self> {
        let dial = match level {
            Some(_) => None,
            None => Some(Arc::new(Dial(SharedNumbers::new(1 + 3 * STEPS)?))),
        };
        let mut tuner = Self {
            dial,
            level: level.unwrap_or_default(),
            step: USUAL,
            is_capped: false,
            processors: std::thread::available_parallelism().map_or(1, usize::from).min(8) as f64,
            way: per_second.map(|bytes| bytes as f64),
            seen: [None; STEPS],
            before: [[0; 3]; STEPS],
            senders: 1,
            sent: 0,
            bytes: 0,
            busy: Duration::ZERO,
            waited: Duration::ZERO,
        };
        tuner.choose();
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
    pub fn note(&mut self, bytes: usize, waited: Duration, busy: Duration) {
        self.bytes += bytes as u64;
        self.sent += bytes as u64;
        self.waited += waited;
        self.busy += busy;
        if self.dial.is_none() || self.busy + self.waited < WINDOW * self.senders {
            return;
        }
        let (bytes, busy) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.busy));
        self.waited = Duration::ZERO;
        if self.sent > BUFFERED * u64::from(self.senders) && !busy.is_zero() {
            let now = bytes as f64 * f64::from(self.senders) / busy.as_secs_f64();
            // One window is no more than half the truth.
            self.way = Some(self.way.map_or(now, |before| (before + now) / 2.0));
        }
        self.look();
        self.choose();
    }

    /// Looks at what was made since.
    fn look(&mut self) {
        let Some(dial) = &self.dial else { return };
        for (step, (seen, before)) in self.seen.iter_mut().zip(&mut self.before).enumerate() {
            let made = dial.made(step);
            let [bytes, stored, nanoseconds] = std::array::from_fn(|which| made[which] - before[which]);
            if bytes >= ENOUGH {
                *before = made;
                *seen = Some(Seen {
                    speed: bytes as f64 * self.processors * 1e9 / nanoseconds.max(1) as f64,
                    left: stored as f64 / bytes as f64,
                    age: 0,
                });
            } else {
                *seen = seen.map(|seen| Seen {
                    age: seen.age + 1,
                    ..seen
                });
                *seen = seen.filter(|seen| seen.age < REMEMBERED || step == self.step);
            }
        }
    }

    /// What a step would make of memory: as was seen, or by what was seen of the one that was seen last.
    fn estimate(&self, step: usize) -> Seen {
        if let Some(seen) = self.seen[step] {
            return seen;
        }
        let (_, speed, left) = LADDER[step];
        let known = self
            .seen
            .iter()
            .enumerate()
            .filter_map(|(other, seen)| Some((other, (*seen)?)));
        match known.min_by_key(|(other, seen)| (seen.age, other.abs_diff(step))) {
            Some((other, seen)) => Seen {
                speed: seen.speed * speed / LADDER[other].1,
                left: (seen.left * left / LADDER[other].2).min(1.0),
                age: 0,
            },
            None => Seen {
                speed: speed * self.processors,
                left,
                age: 0,
            },
        }
    }

    /// Chooses what takes the least time, where it is known what the way takes.
    fn choose(&mut self) {
        if let Some(way) = self.way {
            let times: [f64; STEPS] = std::array::from_fn(|step| {
                let made = self.estimate(step);
                f64::max(1.0 / made.speed, made.left / way.max(1.0))
            });
            let least = times.into_iter().fold(f64::INFINITY, f64::min);
            self.step = times.iter().rposition(|time| *time <= least * HARDLY).unwrap_or(USUAL);
        }
        tracing::trace!(step = self.step, way = self.way, seen = ?self.seen, "how much memory is compressed");
        self.turn();
    }

    fn turn(&mut self) {
        let step = if self.is_capped {
            self.step.min(USUAL)
        } else {
            self.step
        };
        if let Some(dial) = &self.dial {
            dial.0[0].store(step as u64, Ordering::Relaxed);
        }
    }

    /// Bytes of memory by how much work went into each; none where the user has said a level.
    pub fn bytes(&self) -> Vec<(Effort, u64)> {
        let Some(dial) = &self.dial else { return Vec::new() };
        let all = (0..STEPS).map(|step| (LADDER[step].0, dial.made(step)[0]));
        all.filter(|(_, bytes)| *bytes > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFERED, ENOUGH, Effort, Efforts, LADDER, STEPS, Tuner, USUAL, WINDOW};
    use floe_image::Level;
    use std::{sync::Arc, time::Duration};

    /// Memory that shrinks as it does on average, on one processor.
    struct Course {
        tuner: Tuner,
        dial: Arc<dyn Efforts>,
    }

    impl Course {
        fn new(per_second: Option<u64>) -> Self {
            let mut tuner = Tuner::new(None, per_second).expect("memory");
            tuner.processors = 1.0;
            let Level::Asked(dial) = tuner.level() else {
                panic!("nobody said a level")
            };
            Self { tuner, dial }
        }

        fn now(&self) -> Effort {
            self.dial.next(0)
        }

        /// So many windows, over a way that takes so many bytes in a second, of memory that is made at such a part of the usual speed.
        fn windows(&mut self, count: usize, way: f64, speed: f64) {
            for _ in 0..count {
                let effort = self.now();
                let (_, usual, left) = LADDER[LADDER.iter().position(|(known, ..)| *known == effort).expect("a step")];
                let bytes = ENOUGH as usize;
                let stored = bytes as f64 * left;
                let took = Duration::from_secs_f64(bytes as f64 / usual / speed);
                self.dial.packed(effort, [bytes, stored as usize], took);
                let sent = way * WINDOW.as_secs_f64();
                self.tuner.note(sent as usize, Duration::ZERO, WINDOW);
            }
        }
    }

    #[test]
    fn each_way_is_worth_its_own_effort() {
        for (way, expected) in [
            (4e9, Effort::Raw),
            (600e6, Effort::Level(-16)),
            (250e6, Effort::Level(1)),
            (60e6, Effort::Exactly(1)),
            (9e6, Effort::Exactly(9)),
        ] {
            let mut course = Course::new(None);
            course.windows(60, way, 1.0);
            assert_eq!(course.now(), expected, "{way}");
            // It changes.
            course.windows(40, 4e9, 1.0);
            assert_eq!(course.now(), Effort::Raw, "from {way}");
            course.windows(40, 9e6, 1.0);
            assert_eq!(course.now(), Effort::Exactly(9), "from {way}");
        }
    }

    #[test]
    fn slow_processors_are_worth_less_effort() {
        let mut course = Course::new(Some(9_000_000));
        course.windows(40, 9e6, 1.0);
        assert_eq!(course.now(), Effort::Exactly(9));
        course.windows(40, 9e6, 0.5);
        assert_eq!(course.now(), Effort::Exactly(1));
        // What is known of an effort that was too much counts for a while, and not forever.
        course.windows(200, 9e6, 1.0);
        assert_eq!(course.now(), Effort::Exactly(9));
    }

    #[test]
    fn what_goes_into_buffers_tells_nothing_of_the_way() {
        let mut course = Course::new(None);
        let bytes = (BUFFERED / 4) as usize;
        for _ in 0..4 {
            course.tuner.note(bytes, Duration::ZERO, WINDOW);
            assert_eq!(course.now(), LADDER[USUAL].0);
        }
        course.tuner.note(bytes, Duration::ZERO, WINDOW / 100);
        course.tuner.note(0, WINDOW, Duration::ZERO);
        assert_eq!(course.now(), Effort::Raw);
    }

    #[test]
    fn no_more_work_than_usual_while_the_tree_stands_still() {
        let mut course = Course::new(Some(1 << 20));
        assert_eq!(course.now(), Effort::Exactly(9), "known to be slow");
        course.tuner.begin(1, true);
        assert_eq!(course.now(), LADDER[USUAL].0);
        course.tuner.lift();
        assert_eq!(course.now(), Effort::Exactly(9));
    }

    #[test]
    fn what_was_made_is_told() {
        let mut course = Course::new(Some(1 << 20));
        course.windows(3, 1e6, 1.0);
        assert_eq!(course.tuner.bytes(), [(Effort::Exactly(9), 3 * ENOUGH)]);
        assert_eq!(LADDER.len(), STEPS);
    }

    #[test]
    fn a_level_that_was_said_stays() {
        let mut tuner = Tuner::new(Some(3), Some(1)).expect("one");
        tuner.note(1 << 30, Duration::ZERO, Duration::from_secs(60));
        assert!(matches!(tuner.level(), Level::Fixed(3)));
        assert_eq!(tuner.bytes(), []);
    }
}
