//! What a task can see of itself.

use std::fs;

/// The value of a line of the calling thread's status file.
#[must_use]
pub fn status(key: &str) -> String {
    status_of("thread-self", key)
}

/// The value of a line of the status file of `/proc/WHO`.
#[must_use]
pub fn status_of(who: &str, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{who}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value
        .unwrap_or("none")
        .split_ascii_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// The state letter of `/proc/WHO`.
#[must_use]
pub fn state_of(who: &str) -> char {
    let text = fs::read_to_string(format!("/proc/{who}/stat")).unwrap_or_default();
    let after = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after.chars().next().unwrap_or('?')
}

/// Process id, parent, group, session.
#[must_use]
pub fn family() -> [i32; 4] {
    // SAFETY: plain numbers.
    unsafe { [libc::getpid(), libc::getppid(), libc::getpgid(0), libc::getsid(0)] }
}

/// Lines of `/proc/self/maps` as (start, end, rest).
#[must_use]
pub fn maps() -> Vec<(usize, usize, String)> {
    let text = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let parse = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |digits| usize::from_str_radix(digits, 16).ok();
        Some((number(start)?, number(end)?, rest.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}
