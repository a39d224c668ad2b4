//! Locks on files: flock(2), record locks of a process or of an open file (fcntl_locking(2)), and leases (F_SETLEASE).
//!
//! /proc/PID/fdinfo shows a lock at each descriptor whose file it is on and whose owner it has: locks of an open file at
//! all descriptors of that one, locks of a process at all of its descriptors of that inode. Each is noted once. A process
//! loses its locks on an inode with the first descriptor of it that it closes, so they are taken again when nothing is
//! closed any more, by the processes that had them: others are told who that is.

use super::{FileError, FoundFile, Holders};
use crate::{mm::Contents, refusal::Refusals};
use floe_image::record::{DescriptorTableRecord, FileLock, LockKind};
use floe_sys::Pid;
use floe_tracee::Script;
use std::{collections::BTreeMap, os::unix::fs::MetadataExt};

/// include/uapi/asm-generic/fcntl.h and linux/fcntl.h.
const F_OFD_SETLK: u64 = 37;
const F_SETLEASE: u64 = 1024;

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

/// The locks at a descriptor. A lease that somebody waits for the end of is refused, and one that nobody else may have the
/// file open for where floe has to.
pub(super) fn held(found: &FoundFile, contents: &Contents, refusals: &mut Refusals) -> Vec<Held> {
    let mut all = Vec::new();
    // The kernel shows locks of its process there too, but through it none can be taken.
    if found.is_path_only() {
        return all;
    }
    for line in &found.info.locks {
        let mut refuse = |reason: String| refusals.add(Some(&found.subject), found.title(), reason, "release it");
        match parse(line) {
            Some(Held((LockKind::Lease, true, ..), _)) if contents.keeps_open(found.identity()) => {
                refuse("a lease for writing, of a file that is mapped or deleted, can't be taken again".to_owned());
            }
            Some(lock) => all.push(lock),
            None => refuse(format!(
                "a lease that is about to end, or a lock of a kind that floe does not know, can't be carried ({line})"
            )),
        }
    }
    all
}

/// A line of /proc/PID/fdinfo, as of /proc/locks: `1: POSIX  ADVISORY  WRITE 1234 fd:01:99 0 EOF`.
fn parse(line: &str) -> Option<Held> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, mode, access, pid, _, start, end] = words[..] else {
        return None;
    };
    let kind = match (kind, mode) {
        ("FLOCK", "ADVISORY") => LockKind::Flock,
        ("POSIX", "ADVISORY") => LockKind::Process,
        ("OFDLCK", "ADVISORY") => LockKind::OpenFile,
        ("LEASE", "ACTIVE") => LockKind::Lease,
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
    /// Notes those of a descriptor: `number` in the table of a process; `file` is its number in the image.
    pub(super) fn add(
        &mut self,
        (table, pid, number): (usize, Pid, i32),
        (found, file): (&FoundFile, u32),
        held: Vec<Held>,
    ) {
        for Held(range, setter) in held {
            let (kind, write, start, length) = range;
            let (owner, fits) = match kind {
                LockKind::Process => {
                    let (device, inode) = (found.metadata.dev(), found.metadata.ino());
                    (Owner::Process(table, device, inode), may(found, write))
                }
                LockKind::Flock | LockKind::OpenFile | LockKind::Lease => (Owner::File(file), setter == pid.raw()),
            };
            let lock = FileLock {
                number,
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
pub fn take_all<'a>(
    tables: impl IntoIterator<Item = &'a DescriptorTableRecord>,
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    for table in tables.into_iter().filter(|table| !table.locks.is_empty()) {
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
        LockKind::Lease => {
            let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
            script.call(
                "take a lease again",
                libc::SYS_fcntl,
                &[number, F_SETLEASE, kind as u64],
            )?;
            // Who takes one is made the file's owner. Who really was one is set later.
            script.call(
                "reset the owner of a file",
                libc::SYS_fcntl,
                &[number, libc::F_SETOWN as u64, 0],
            )?;
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
        assert_eq!(
            read("1: LEASE  ACTIVE    READ 7 fd:01:9 0 EOF"),
            Some(((LockKind::Lease, false, 0, 0), 7))
        );
        for other in [
            "1: LEASE  BREAKING  READ 7 fd:01:9 0 EOF",
            "1: FLOCK  MANDATORY READ 7 fd:01:9 0 EOF",
            "1: POSIX  ADVISORY  WRITE 7 fd:01:9 9 3",
            "1: POSIX  ADVISORY  UNLCK 7 fd:01:9 0 EOF",
            "",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
