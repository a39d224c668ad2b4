//! /proc/PID/sched: when a task last ran. Kernels built without it tell nothing.

use super::read_at_once;

/// The lines of /proc/PID/sched that floe reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    /// When it last ran, nanoseconds of its processor's clock (`se.exec_start`); for a sleeping task when it fell asleep.
    pub last: u64,
    /// How often it gave the processor up by itself (`nr_voluntary_switches`).
    pub voluntary: u64,
}

impl Runs {
    /// Reads `directory`/sched, where `directory` is `/proc/PID` or `/proc/PID/task/TID`.
    #[must_use]
    pub fn read(directory: &str) -> Option<Self> {
        let text = read_at_once(&format!("{directory}/sched")).ok()?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// Parses the text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.rsplit_once(':')?.1.trim())
        };
        let (millis, rest) = value("se.exec_start")?.split_once('.')?;
        let millis: u64 = millis.parse().ok()?;
        let rest: u64 = rest.parse().ok()?;
        Some(Self {
            last: millis * 1_000_000 + rest,
            voluntary: value("nr_voluntary_switches")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Runs;

    #[test]
    fn reads_the_lines_that_matter() {
        let text = "sleep (42, #threads: 1)\n-----\nse.exec_start                                :       3592566.022902\n\
            nr_switches                                  :                    3\n\
            nr_voluntary_switches                        :                    2\n";
        let runs = Runs::parse(text).expect("good text");
        assert_eq!((runs.last, runs.voluntary), (3_592_566_022_902, 2));
        assert_eq!(Runs::parse("se.exec_start : 1\n"), None);
    }
}
