//! Threads that wait in a system call.

use crate::{call, wait_until};
use std::{sync::mpsc, thread::JoinHandle};

/// Whether the thread of any process with this id waits in one of these calls.
#[must_use]
pub fn waits_in(tid: i32, calls: &[i64]) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let number = text.split(' ').next().and_then(|word| word.parse().ok());
    number.is_some_and(|number| calls.contains(&number))
}

/// Starts a thread, and returns when it waits in one of these calls: what a thread is like while it starts is nobody's to
/// compare.
///
/// # Panics
/// Where it does not come to wait.
pub fn spawn_into(calls: &[i64], work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let (tell, hear) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        tell.send(call::gettid()).expect("its starter waits");
        work();
    });
    let tid = hear.recv().expect("an id");
    assert!(
        wait_until(|| waits_in(tid, calls)),
        "the thread does not wait in any of {calls:?}"
    );
    thread
}
