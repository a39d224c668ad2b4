//! /proc/PID/stat.

use super::{ProcError, read_at_once};
use crate::Pid;

/// The fields of /proc/PID/stat that floe reads, named as in proc(5).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "field names are those of proc(5)")]
pub struct Stat {
    pub comm: Vec<u8>,
    pub state: u8,
    pub ppid: i32,
    pub pgrp: i32,
    pub session: i32,
    pub tty_nr: i32,
    pub tpgid: i32,
    pub flags: u64,
    pub nice: i64,
    pub num_threads: i64,
    pub starttime: u64,
    pub rss: u64,
    pub startcode: u64,
    pub endcode: u64,
    pub startstack: u64,
    pub exit_signal: i32,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub exit_code: i32,
    /// The processor that it last ran on.
    pub processor: u32,
}

impl Stat {
    /// Reads a process's, or with `/proc/PID/task/TID` as `directory` a thread's.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read(directory: &str) -> Result<Self, ProcError> {
        let path = format!("{directory}/stat");
        Self::parse(&read_at_once(&path)?).map_err(|field| ProcError::Field { path, field })
    }

    /// Reads a process's.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn of(pid: Pid) -> Result<Self, ProcError> {
        Self::read(&format!("/proc/{pid}"))
    }

    /// Parses the one line; the error is the name of the bad field.
    ///
    /// # Errors
    /// The name of the field that is missing or malformed.
    pub fn parse(line: &[u8]) -> Result<Self, &'static str> {
        let open = line.iter().position(|b| *b == b'(').ok_or("comm")?;
        let close = line.iter().rposition(|b| *b == b')').ok_or("comm")?;
        let rest = std::str::from_utf8(line.get(close + 1..).ok_or("state")?).map_err(|_| "state")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first word behind the name is field 3.
        let word = |number: usize, name: &'static str| fields.get(number - 3).copied().ok_or(name);
        let signed = |number, name| word(number, name)?.parse::<i32>().map_err(|_| name);
        let unsigned = |number, name| word(number, name)?.parse::<u64>().map_err(|_| name);
        Ok(Self {
            comm: line.get(open + 1..close).ok_or("comm")?.to_vec(),
            state: *word(3, "state")?.as_bytes().first().ok_or("state")?,
            ppid: signed(4, "ppid")?,
            pgrp: signed(5, "pgrp")?,
            session: signed(6, "session")?,
            tty_nr: signed(7, "tty_nr")?,
            tpgid: signed(8, "tpgid")?,
            flags: unsigned(9, "flags")?,
            nice: i64::from(signed(19, "nice")?),
            num_threads: i64::from(signed(20, "num_threads")?),
            starttime: unsigned(22, "starttime")?,
            rss: unsigned(24, "rss")?,
            startcode: unsigned(26, "startcode")?,
            endcode: unsigned(27, "endcode")?,
            startstack: unsigned(28, "startstack")?,
            exit_signal: signed(38, "exit_signal")?,
            start_data: unsigned(45, "start_data")?,
            end_data: unsigned(46, "end_data")?,
            start_brk: unsigned(47, "start_brk")?,
            arg_start: unsigned(48, "arg_start")?,
            arg_end: unsigned(49, "arg_end")?,
            env_start: unsigned(50, "env_start")?,
            env_end: unsigned(51, "env_end")?,
            exit_code: signed(52, "exit_code")?,
            processor: unsigned(39, "processor")? as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn reads_a_name_with_brackets_and_spaces() {
        let line = b"42 (a (b) c) S 1 42 41 34816 42 4194304 1 2 3 4 5 6 7 8 20 0 3 0 99 1000 10 18446744073709551615 \
            4096 8192 140000 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 16384 20480 24576 30000 30010 30020 30030 9\n";
        let stat = Stat::parse(line).expect("a good line");
        assert_eq!(stat.comm, b"a (b) c");
        assert_eq!((stat.state, stat.ppid, stat.session, stat.tpgid), (b'S', 1, 41, 42));
        assert_eq!(stat.rss, 10);
        assert_eq!(
            (stat.startstack, stat.exit_signal, stat.start_brk, stat.exit_code),
            (140_000, 17, 24576, 9)
        );
    }

    #[test]
    fn names_the_missing_field() {
        assert_eq!(Stat::parse(b"42 (x) S 1 2"), Err("session"));
        assert_eq!(Stat::parse(b""), Err("comm"));
    }
}
