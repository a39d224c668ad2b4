//! Making processes: fork(2) and clone3(2) with a closure for the child, and what a child does first.
//!
//! A child made while its parent has other threads may only call what is safe in a signal handler, because a lock that
//! such a thread holds is never released in the child. floe forks before it starts any thread.

use nix::{errno::Errno, unistd::Pid};
use std::{
    ffi::CString,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// `struct clone_args`, include/uapi/linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
const _: () = assert!(size_of::<CloneArguments>() == 88);

/// include/uapi/linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Exit status of a child whose closure panicked.
const PANICKED: i32 = 125;

/// Runs `life` in a child process, which ends with its result as exit status.
///
/// # Errors
/// EAGAIN, ENOMEM.
pub fn child(life: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    child_in(0, None, life)
}

/// Runs `life` in a child process that has the same descriptors: what it opens and closes is open and closed in its parent
/// too, and stays so when it ends.
///
/// # Errors
/// EAGAIN, ENOMEM.
pub fn child_with_files(life: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    child_in(libc::CLONE_FILES as u64, None, life)
}

/// Runs `life` in a child process in new namespaces (CLONE_NEW* flags), born into a cgroup of version 2 if its directory
/// is given (Linux 5.7). Moving it there later takes milliseconds: the kernel waits until all processors have taken note.
///
/// # Errors
/// EAGAIN, ENOMEM, EPERM, ENOSPC (nested too deep), EBUSY (a cgroup with controllers for its children).
pub fn child_in(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, life: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    let arguments = CloneArguments {
        flags: namespaces | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        cgroup: cgroup.map_or(0, |directory| directory.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    fork_with(arguments, life)
}

/// Runs `life` in a child process that has this PID in the caller's PID namespace (Linux 5.5).
///
/// # Errors
/// EEXIST where it is taken; EPERM without CAP_CHECKPOINT_RESTORE there; EAGAIN, ENOMEM.
pub fn child_with_pid(pid: i32, life: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    let wanted = [pid];
    let arguments = CloneArguments {
        set_tid: wanted.as_ptr() as u64,
        set_tid_size: wanted.len() as u64,
        ..CloneArguments::default()
    };
    fork_with(arguments, life)
}

fn fork_with(mut arguments: CloneArguments, life: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of everything. The structure has the stated size, and
    // what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match Errno::result(result)? {
        0 => {
            let status = catch_unwind(AssertUnwindSafe(life)).unwrap_or(PANICKED);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// A child that ends at once, with a wait status but for the mark of a core file.
///
/// # Errors
/// EINVAL for a status that no process ends with; those of [`child`].
pub fn ended(status: i32) -> Result<Pid, Errno> {
    let signal = status & 0x7f;
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    if !(0..=64).contains(&signal) || stops.contains(&signal) {
        return Err(Errno::EINVAL);
    }
    child(|| {
        if signal != 0 {
            // A failure shows in the status.
            let _ = nix::sys::prctl::set_dumpable(false);
            let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
            // SAFETY: numbers.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: numbers.
            unsafe { libc::kill(std::process::id() as i32, signal) };
        }
        status >> 8 & 0xff
    })
}

/// Has the calling process, a child of `parent`, sent a signal when that ends.
///
/// # Errors
/// ESRCH where it has ended already.
pub fn signal_at_parents_end(signal: nix::sys::signal::Signal, parent: Pid) -> Result<(), Errno> {
    signal_at_any_parents_end(signal)?;
    if nix::unistd::getppid() == parent {
        Ok(())
    } else {
        Err(Errno::ESRCH)
    }
}

/// The same for one that can't see whether its parent is there: in another PID namespace.
///
/// # Errors
/// EINVAL for no signal.
pub fn signal_at_any_parents_end(signal: nix::sys::signal::Signal) -> Result<(), Errno> {
    // SAFETY: both arguments are numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) }).map(drop)
}

/// Closes all descriptors but those in `keep`.
pub fn close_all_but(keep: &[RawFd]) {
    let mut sorted: Vec<u32> = keep.iter().map(|fd| *fd as u32).collect();
    sorted.sort_unstable();
    let mut from = 0;
    for number in sorted {
        if number > from {
            close_range(from, number - 1, 0);
        }
        from = number + 1;
    }
    close_range(from, u32::MAX, 0);
}

/// Marks all descriptors from `from` on to be closed by exec.
pub fn close_on_exec_from(from: u32) {
    close_range(from, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: u32) {
    // SAFETY: all arguments are numbers. Callers own no descriptor in the range that is used afterwards.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    debug_assert!(result == 0, "close_range fails only for bad arguments");
}

/// Makes the calling process the leader of a session of its own, ignores the signals of a terminal's end and of broken
/// pipes, and names it.
pub fn leave_session(name: &str) {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // A fresh child leads no group, so setsid can't fail.
    let _ = nix::unistd::setsid();
    for number in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGQUIT,
        Signal::SIGPIPE,
    ] {
        // SAFETY: no handler is installed, only SIG_IGN.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
    if let Ok(name) = CString::new(name) {
        // SAFETY: `name` ends with a NUL and outlives the call.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Puts all signals back to their default actions and unblocks them, as a new program expects.
pub fn default_signals() {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    for number in 1..=64 {
        // SAFETY: installs SIG_DFL; for SIGKILL, SIGSTOP and libc's own signals it fails, which is fine.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// execve(2), or with an empty path of a descriptor execveat(2); returns only if it failed.
#[must_use]
pub fn execute_descriptor(program: RawFd, arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null pointer, and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}
