//! kcmp(2): whether two tasks share a kernel object.

use crate::Pid;
use nix::errno::Errno;
use std::cmp::Ordering;

/// What to compare, include/uapi/linux/kcmp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Resource {
    /// Open file descriptions; the two indices are descriptor numbers.
    File = 0,
    /// Address spaces.
    Memory = 1,
    /// Descriptor tables.
    Descriptors = 2,
    /// Root, working directory, umask.
    Filesystem = 3,
    /// Signal actions.
    SignalActions = 4,
    /// I/O contexts.
    Io = 5,
    /// System V semaphore undo lists.
    SemaphoreUndo = 6,
}

/// Orders two tasks' objects by an order that is stable while both live; `Equal` means the same object.
///
/// # Errors
/// EBADF, ESRCH, EPERM without ptrace access to both.
pub fn compare(resource: Resource, first: (Pid, u64), second: (Pid, u64)) -> Result<Ordering, Errno> {
    // SAFETY: all arguments are numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            first.0.raw(),
            second.0.raw(),
            resource as i32,
            first.1,
            second.1,
        )
    };
    match Errno::result(result)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        // 3: not equal, and the kernel won't say in which order (no CONFIG_CHECKPOINT_RESTORE order); keep them apart.
        _ => Ok(Ordering::Greater),
    }
}

/// Whether descriptor `number` of `task` is the file that the epoll instance `epoll` (a task and its descriptor there)
/// watches under the number `watched`; `index` counts those that it watches under the same number (KCMP_EPOLL_TFD, Linux
/// 4.13).
///
/// # Errors
/// EBADF, ENOENT where there is no such watch, ESRCH, EPERM without ptrace access to both.
pub fn is_watched(
    (task, number): (Pid, i32),
    (holder, epoll): (Pid, i32),
    (watched, index): (u32, u32),
) -> Result<bool, Errno> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // struct kcmp_epoll_slot: the epoll instance's number, the watched number, which of several.
    let slot = [epoll as u32, watched, index];
    // SAFETY: the kernel reads the twelve bytes of the slot.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            task.raw(),
            holder.raw(),
            KCMP_EPOLL_TFD,
            number as u64,
            slot.as_ptr(),
        )
    };
    Errno::result(result).map(|order| order == 0)
}
