//! Locks on files: flock(2), and record locks of a process or of an open file (fcntl_locking(2)).
//!
//! /proc/PID/fdinfo shows a lock at each descriptor whose file it is on and whose owner it has: locks of an open file at
//! all descriptors of that one, locks of a process at all of its descriptors of that inode. Each is noted once. A process
//! loses its locks on an inode with the first descriptor of it that it closes, so they are taken again when nothing is
//! closed any more, by the processes that had them: others are told who that is.

use super::{FileError, FoundFile, Holders};
use crate::refusal::Refusals;
use floe_image::record::{DescriptorTableRecord, FileLock, LockKind};
use floe_sys::Pid;
use floe_tracee::Script;
use std::{collections::BTreeMap, os::unix::fs::MetadataExt};

/// include/uapi/asm-generic/fcntl.h.
const F_OFD_SETLK: u64 = 37;

/// Whose a lock is: of the open file with this number in the image, or of the process with this table, on an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    File(u32),
    Process(usize, u64, u64),
}

/// Where a lock is taken again: a table, and how well the descriptor there fits.
#[derive(Debug, Clone, Copy)]
struct Place {
    table: usize,
    fits: bool,
}

/// Locks found so far.
#[derive(Debug, Default)]
pub(super) struct FoundLocks(BTreeMap<(Owner, Range), (Place, FileLock)>);

/// Kind, whether for writing, first byte, and how many.
type Range = (LockKind, bool, u64, u64);

/// A lock of a descriptor, and who set it.
pub(super) struct Held(Range, i32);

/// The locks at a descriptor. Leases are refused.
pub(super) fn held(found: &FoundFile, refusals: &mut Refusals) -> Vec<Held> {
    let mut all = Vec::new();
    for line in &found.info.locks {
        match parse(line) {
            Some(lock) => all.push(lock),
            None => refusals.add(
                Some(&found.subject),
                found.title(),
                format!("a lease, or a lock of a kind that floe does not know, can't be carried yet ({line})"),
                "release it",
            ),
        }
    }
    all
}

/// A line of /proc/PID/fdinfo, as of /proc/locks: `1: POSIX  ADVISORY  WRITE 1234 fd:01:99 0 EOF`.
fn parse(line: &str) -> Option<Held> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, "ADVISORY", access, pid, _, start, end] = words[..] else {
        return None;
    };
    let kind = match kind {
        "FLOCK" => LockKind::Flock,
        "POSIX" => LockKind::Process,
        "OFDLCK" => LockKind::OpenFile,
        _ => return None,
    };
    let write = match access {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    let start: u64 = start.parse().ok()?;
    let length = match end {
        "EOF" => 0,
        end => end.parse::<u64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    Some(Held((kind, write, start, length), pid.parse().ok()?))
}

impl FoundLocks {
    /// Notes those of a descriptor of a table's process; `file` is its number in the image.
    pub(super) fn add(&mut self, (table, pid): (usize, Pid), found: &FoundFile, file: u32, held: Vec<Held>) {
        for Held(range, setter) in held {
            let (kind, write, start, length) = range;
            let (owner, fits) = match kind {
                LockKind::Process => {
                    let (device, inode) = (found.metadata.dev(), found.metadata.ino());
                    (Owner::Process(table, device, inode), may(found, write))
                }
                LockKind::Flock | LockKind::OpenFile => (Owner::File(file), setter == pid.raw()),
            };
            let lock = FileLock {
                number: found.number,
                kind,
                write,
                start,
                length,
            };
            let place = Place { table, fits };
            let known = self.0.entry((owner, range)).or_insert((place, lock));
            if fits && !known.0.fits {
                *known = (place, lock);
            }
        }
    }

    /// Puts them into the tables' records.
    pub(super) fn put_into(self, tables: &mut [DescriptorTableRecord]) {
        for (place, lock) in self.0.into_values() {
            tables[place.table].locks.push(lock);
        }
    }
}

/// Whether a record lock can be set through a descriptor.
fn may(found: &FoundFile, write: bool) -> bool {
    match found.flags() as i32 & libc::O_ACCMODE {
        libc::O_RDWR => true,
        libc::O_WRONLY => write,
        _ => !write,
    }
}

/// Takes all locks again.
///
/// # Errors
/// [`FileError`], also where another process has one now.
pub fn take_all(tables: &[DescriptorTableRecord], holders: &Holders<'_>) -> Result<(), FileError> {
    for table in tables.iter().filter(|table| !table.locks.is_empty()) {
        let mut script = Script::new(holders.puppet(table.pid.0)?);
        for lock in &table.locks {
            take(&mut script, lock)?;
        }
        script.run()?;
    }
    Ok(())
}

fn take(script: &mut Script<'_>, lock: &FileLock) -> Result<(), FileError> {
    const WHAT: &str = "take a file lock, which another process may have now,";
    let number = lock.number as u64;
    let command = match lock.kind {
        LockKind::Flock => {
            let how = if lock.write { libc::LOCK_EX } else { libc::LOCK_SH };
            script.call(WHAT, libc::SYS_flock, &[number, (how | libc::LOCK_NB) as u64])?;
            return Ok(());
        }
        LockKind::Process => libc::F_SETLK as u64,
        LockKind::OpenFile => F_OFD_SETLK,
    };
    let batch = script.reserve(1, 64)?;
    let place = batch.data(&request(lock));
    batch.call(WHAT, libc::SYS_fcntl, &[number, command, place]);
    Ok(())
}

/// struct flock.
fn request(lock: &FileLock) -> [u8; 32] {
    let mut bytes = [0; 32];
    let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
    bytes[..2].copy_from_slice(&(kind as i16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&(libc::SEEK_SET as i16).to_ne_bytes());
    bytes[8..16].copy_from_slice(&lock.start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&lock.length.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Held, parse};
    use floe_image::record::LockKind;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let read = |line| parse(line).map(|Held(range, pid)| (range, pid));
        assert_eq!(
            read("1: FLOCK  ADVISORY  WRITE 7 fd:01:9 0 EOF"),
            Some(((LockKind::Flock, true, 0, 0), 7))
        );
        assert_eq!(
            read("3: POSIX  ADVISORY  READ 12 00:2a:77 10 19"),
            Some(((LockKind::Process, false, 10, 10), 12))
        );
        assert_eq!(
            read("1: OFDLCK ADVISORY  READ -1 fd:01:9 5 EOF"),
            Some(((LockKind::OpenFile, false, 5, 0), -1))
        );
        for other in [
            "1: LEASE  ACTIVE    READ 7 fd:01:9 0 EOF",
            "1: POSIX  ADVISORY  WRITE 7 fd:01:9 9 3",
            "1: POSIX  ADVISORY  UNLCK 7 fd:01:9 0 EOF",
            "",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
