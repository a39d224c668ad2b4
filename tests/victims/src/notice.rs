//! inotify instances.

use crate::call;
use std::{
    ffi::CString,
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::Path,
};

/// Number of the watch, mask, name.
pub type Event = (i32, u32, String);

/// A new one.
///
/// # Panics
/// Where there can be no more.
#[must_use]
pub fn instance(flags: i32) -> RawFd {
    // SAFETY: a number.
    call::checked(i64::from(unsafe { libc::inotify_init1(flags) })).expect("inotify_init1") as RawFd
}

/// Adds a watch; its number.
///
/// # Panics
/// Where it can't be added.
pub fn watch(instance: RawFd, path: &Path, mask: u32) -> i32 {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path ends with a NUL.
    let number = unsafe { libc::inotify_add_watch(instance, path.as_ptr(), mask) };
    call::checked(i64::from(number)).expect("inotify_add_watch") as i32
}

/// Removes one.
///
/// # Panics
/// Where there is none.
pub fn unwatch(instance: RawFd, watch: i32) {
    // SAFETY: numbers.
    call::checked(i64::from(unsafe { libc::inotify_rm_watch(instance, watch) })).expect("inotify_rm_watch");
}

/// What waits, of an instance that has something.
///
/// # Panics
/// Where it can't be read.
pub fn events(instance: RawFd) -> Vec<Event> {
    let bytes = call::read(instance, 1 << 16).expect("read");
    let mut all = Vec::new();
    let mut rest = &bytes[..];
    while rest.len() >= 16 {
        let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
        let (number, mask, length) = (word(0) as i32, word(4), word(12) as usize);
        let name = rest[16..16 + length]
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        all.push((number, mask, String::from_utf8_lossy(name).into_owned()));
        rest = &rest[16 + length..];
    }
    all
}
