//! /proc/PID/status.

use super::{ProcError, read_at_once};

/// The lines of /proc/PID/status that floe reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Name, with newlines and backslashes escaped.
    pub name: String,
    /// State, as a letter: proc_pid_stat(5).
    pub state: u8,
    /// Umask.
    pub umask: u32,
    /// Tgid, in the reader's namespace.
    pub tgid: i32,
    /// Pid of the tracer, 0 for none.
    pub tracer: i32,
    /// Real, effective, saved, filesystem user.
    pub uids: [u32; 4],
    /// Real, effective, saved, filesystem group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The thread's id in each PID namespace, outermost (the reader's) first.
    pub ns_pid: Vec<i32>,
    /// Its process's likewise.
    pub ns_tgid: Vec<i32>,
    /// Process group ids likewise.
    pub ns_pgid: Vec<i32>,
    /// Session ids likewise.
    pub ns_sid: Vec<i32>,
    /// Pending for the thread.
    pub pending: u64,
    /// Pending for the process.
    pub shared_pending: u64,
    /// Blocked.
    pub blocked: u64,
    /// Ignored.
    pub ignored: u64,
    /// With a handler.
    pub caught: u64,
    /// Capability sets: inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    /// No new privileges.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// How many seccomp filters it has (Linux 5.9).
    pub seccomp_filters: Option<u32>,
    /// Bytes of locked mappings.
    pub locked: u64,
    /// Bytes of pages that are no file's, swapped ones too (RssAnon, VmSwap).
    pub anonymous: u64,
    /// NUMA nodes whose memory it may use, lowest first.
    pub memory_nodes: Vec<u32>,
}

impl Status {
    /// Reads `directory`/status, where `directory` is `/proc/PID` or `/proc/PID/task/TID`.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read(directory: &str) -> Result<Self, ProcError> {
        let path = format!("{directory}/status");
        let text = read_at_once(&path)?;
        Self::parse(&String::from_utf8_lossy(&text)).map_err(|field| ProcError::Field { path, field })
    }

    /// Parses the text; lines that are absent (a zombie's, another kernel's) keep zeros.
    ///
    /// # Errors
    /// The name of a malformed line.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut status = Self::default();
        for line in text.lines() {
            if let Some((key, value)) = line.split_once(':') {
                status.line(key, value.trim())?;
            }
        }
        Ok(status)
    }

    fn line(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "Name" => value.clone_into(&mut self.name),
            "State" => self.state = *value.as_bytes().first().ok_or("State")?,
            "Umask" => self.umask = u32::from_str_radix(value, 8).map_err(|_| "Umask")?,
            "Tgid" => self.tgid = value.parse().map_err(|_| "Tgid")?,
            "TracerPid" => self.tracer = value.parse().map_err(|_| "TracerPid")?,
            "Uid" => self.uids = four(value).ok_or("Uid")?,
            "Gid" => self.gids = four(value).ok_or("Gid")?,
            "Groups" => self.groups = numbers(value).ok_or("Groups")?,
            "NSpid" => self.ns_pid = numbers(value).ok_or("NSpid")?,
            "NStgid" => self.ns_tgid = numbers(value).ok_or("NStgid")?,
            "NSpgid" => self.ns_pgid = numbers(value).ok_or("NSpgid")?,
            "NSsid" => self.ns_sid = numbers(value).ok_or("NSsid")?,
            "SigPnd" => self.pending = set(value).ok_or("SigPnd")?,
            "ShdPnd" => self.shared_pending = set(value).ok_or("ShdPnd")?,
            "SigBlk" => self.blocked = set(value).ok_or("SigBlk")?,
            "SigIgn" => self.ignored = set(value).ok_or("SigIgn")?,
            "SigCgt" => self.caught = set(value).ok_or("SigCgt")?,
            "CapInh" => self.capabilities[0] = set(value).ok_or("CapInh")?,
            "CapPrm" => self.capabilities[1] = set(value).ok_or("CapPrm")?,
            "CapEff" => self.capabilities[2] = set(value).ok_or("CapEff")?,
            "CapBnd" => self.capabilities[3] = set(value).ok_or("CapBnd")?,
            "CapAmb" => self.capabilities[4] = set(value).ok_or("CapAmb")?,
            "NoNewPrivs" => self.no_new_privs = value == "1",
            "Mems_allowed_list" => self.memory_nodes = ranges(value).ok_or("Mems_allowed_list")?,
            "VmLck" => self.locked = kibibytes(value).ok_or("VmLck")?,
            "RssAnon" => self.anonymous += kibibytes(value).ok_or("RssAnon")?,
            "VmSwap" => self.anonymous += kibibytes(value).ok_or("VmSwap")?,
            "Seccomp" => self.seccomp = value.parse().map_err(|_| "Seccomp")?,
            "Seccomp_filters" => self.seccomp_filters = Some(value.parse().map_err(|_| "Seccomp_filters")?),
            _ => {}
        }
        Ok(())
    }
}

fn set(value: &str) -> Option<u64> {
    u64::from_str_radix(value, 16).ok()
}

/// A list as `0-3,5`.
fn ranges(value: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in value.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(all)
}

fn kibibytes(value: &str) -> Option<u64> {
    let count: u64 = value.strip_suffix(" kB")?.trim_start().parse().ok()?;
    count.checked_mul(1024)
}

fn numbers<T: std::str::FromStr>(value: &str) -> Option<Vec<T>> {
    value.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

fn four(value: &str) -> Option<[u32; 4]> {
    numbers(value)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn reads_the_lines_that_matter() {
        let text = "Name:\tbash\nState:\tD (disk sleep)\nUmask:\t0022\nTgid:\t42\nTracerPid:\t0\nUid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\n\
            Groups:\t4 24 \nNSpid:\t42\t7\t1\nSigPnd:\t0000000000000001\nSigCgt:\t0000000180000002\n\
            CapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nVmLck:\t      12 kB\n\
            Mems_allowed_list:\t0-2,5\n";
        let status = Status::parse(text).expect("good text");
        assert_eq!(
            (status.umask, status.uids, status.gids),
            (0o22, [0, 1, 2, 3], [4, 5, 6, 7])
        );
        assert_eq!(status.memory_nodes, [0, 1, 2, 5]);
        assert_eq!((status.groups, status.ns_pid), (vec![4, 24], vec![42, 7, 1]));
        assert_eq!((status.state, status.pending, status.caught), (b'D', 1, 0x1_8000_0002));
        assert_eq!(
            (
                status.capabilities[3],
                status.no_new_privs,
                status.seccomp,
                status.locked
            ),
            (0x1ff_ffff_ffff, true, 2, 12_288)
        );
    }

    #[test]
    fn names_a_malformed_line() {
        assert_eq!(Status::parse("Uid:\t0\t1\n"), Err("Uid"));
    }
}
