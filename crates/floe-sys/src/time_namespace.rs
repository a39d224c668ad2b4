//! Time namespaces, time_namespaces(7): CLOCK_MONOTONIC and CLOCK_BOOTTIME with offsets of their own.
//!
//! Offsets are those to the clocks of the initial namespace, also where that is not the caller's. They can be set until
//! the first task enters.

use crate::{
    namespace::{Standing, enter_user},
    procfs::{self, ProcError},
};
use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, unshare},
    sys::{prctl::set_dumpable, stat::Mode},
    unistd::write,
};
use std::{
    fs::File,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

/// CLONE_NEWTIME of linux/sched.h.
pub const CLONE_NEWTIME: i32 = 0x80;
const SECOND: i64 = 1_000_000_000;

/// What the two clocks show, or by how much they differ, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl Clocks {
    /// What they show in the time namespace of the children of process `pid`.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn seen_by(pid: &str) -> Result<Self, ProcError> {
        let offset = offsets(pid)?;
        Ok(Self::initial()?.combine(offset, i64::saturating_add))
    }

    /// What they show in the initial time namespace.
    fn initial() -> Result<Self, ProcError> {
        let shown = Self {
            monotonic: now(libc::CLOCK_MONOTONIC),
            boottime: now(libc::CLOCK_BOOTTIME),
        };
        Ok(shown.combine(offsets("self")?, i64::saturating_sub))
    }

    /// Has them show this in the time namespace of the children of a process, by its directory in /proc; until somebody is
    /// in it.
    ///
    /// # Errors
    /// EACCES where somebody is; ERANGE, EPERM, or why the caller's own offsets can't be read.
    pub fn set(self, process: &Path) -> io::Result<()> {
        let initial = Self::initial().map_err(io::Error::other)?;
        let offsets = self.combine(initial, i64::saturating_sub);
        std::fs::write(process.join("timens_offsets"), text(offsets))
    }

    fn combine(self, other: Self, operation: fn(i64, i64) -> i64) -> Self {
        Self {
            monotonic: operation(self.monotonic, other.monotonic),
            boottime: operation(self.boottime, other.boottime),
        }
    }
}

/// Nanoseconds that a clock shows, 0 where there is no such clock.
#[must_use]
pub fn now(clock: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is room for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.saturating_mul(SECOND).saturating_add(time.tv_nsec)
}

/// Whether this kernel has time namespaces (Linux 5.6, CONFIG_TIME_NS).
#[must_use]
pub fn exist() -> bool {
    std::fs::symlink_metadata("/proc/self/ns/time").is_ok()
}

/// The offsets of the time namespace of the children of process `pid`; zeros on a kernel that has none.
fn offsets(pid: &str) -> Result<Clocks, ProcError> {
    let path = format!("/proc/{pid}/timens_offsets");
    match procfs::read_text(&path) {
        Ok(text) => parse(&text).ok_or(ProcError::Field {
            path,
            field: "monotonic or boottime",
        }),
        Err(ProcError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound && !exist() => {
            Ok(Clocks::default())
        }
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Option<Clocks> {
    let offset = |name: &str| -> Option<i64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<i64>);
        let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
    };
    Some(Clocks {
        monotonic: offset("monotonic")?,
        boottime: offset("boottime")?,
    })
}

/// Makes a time namespace in which the clocks show `clocks` now, and which is `user`'s where there is such a user namespace.
/// Processes enter it by setns(2) with [`CLONE_NEWTIME`].
///
/// # Errors
/// EPERM, ENOSPC (too many), ERANGE, EINVAL (this kernel has none), or why a file of /proc could not be read.
pub fn make(clocks: Clocks, user: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let initial = Clocks::initial().map_err(io::Error::other)?;
    let offsets = text(clocks.combine(initial, i64::saturating_sub));
    let standing = Standing::there(|| {
        // Who opened it decides, and a user namespace's root could not. It belongs to whoever the process is where that may be
        // looked into, as it may be by all who may look into the caller while it is nowhere else.
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        set_dumpable(true)?;
        let file = open(c"/proc/self/timens_offsets", flags, Mode::empty())?;
        set_dumpable(false)?;
        if let Some(user) = user {
            enter_user(user)?;
        }
        unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME))?;
        // Before it executes anything, for that may take it there.
        write(file, offsets.as_bytes()).map(drop)
    })?;
    Ok(File::open(standing.directory().join("ns/time_for_children"))?.into())
}

fn text(offsets: Clocks) -> String {
    let line = |name, offset: i64| format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND));
    line("monotonic", offsets.monotonic) + &line("boottime", offsets.boottime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_and_written() {
        let found = parse("monotonic        -100 500000000\nboottime         1000         7\n");
        let offsets = Clocks {
            monotonic: -99_500_000_000,
            boottime: 1_000_000_000_007,
        };
        assert_eq!(found, Some(offsets));
        assert_eq!(text(offsets), "monotonic -100 500000000\nboottime 1000 7\n");
        assert_eq!(parse(&text(offsets)), Some(offsets));
    }

    #[test]
    fn offsets_that_make_no_sense_are_refused() {
        for text in [
            "",
            "monotonic 1 2\n",
            "monotonic 1\nboottime 1 2\n",
            "monotonic 9223372036854775807 0\nboottime 0 0\n",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn own_clocks_are_those_of_the_kernel() {
        let before = now(libc::CLOCK_MONOTONIC);
        let seen = Clocks::seen_by("self").expect("read the offsets");
        assert!((before..=now(libc::CLOCK_MONOTONIC)).contains(&seen.monotonic));
    }
}
