//! /proc/locks, proc_locks(5), as far as it tells of leases (F_SETLEASE).

use super::{ProcError, read_text};
use std::collections::HashSet;

/// Inode numbers of files that somebody has a lease of for writing: whoever opens one waits for its end.
///
/// # Errors
/// [`ProcError`].
pub fn leased_for_writing() -> Result<HashSet<u64>, ProcError> {
    Ok(read_text("/proc/locks")?.lines().filter_map(parse).collect())
}

/// `1: LEASE  ACTIVE    WRITE 1234 fd:01:99 0 EOF`
fn parse(line: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        [_, "LEASE", _, "WRITE", _, file, ..] => file.rsplit(':').next()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn leases_for_writing_are_found() {
        assert_eq!(parse("1: LEASE  ACTIVE    WRITE 1234 fd:01:99 0 EOF"), Some(99));
        assert_eq!(parse("1: LEASE  ACTIVE    READ 1234 fd:01:99 0 EOF"), None);
        assert_eq!(parse("1: POSIX  ADVISORY  WRITE 1234 fd:01:99 0 EOF"), None);
    }
}
