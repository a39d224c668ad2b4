//! Files of events: eventfd(2), signalfd(2), timerfd_create(2), inotify(7), epoll(7).

use crate::descriptor::owned;
use nix::errno::Errno;
use std::{
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// A counter; its flags are those of eventfd2(2), of which EFD_CLOEXEC is always set.
///
/// # Errors
/// Those of eventfd2(2).
pub fn eventfd(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: both arguments are numbers.
    owned(unsafe { libc::syscall(libc::SYS_eventfd2, 0, flags | libc::EFD_CLOEXEC) })
}

/// A file that the signals of `mask` (bit N-1 for signal N) are read from; SFD_CLOEXEC is always set.
///
/// # Errors
/// Those of signalfd4(2).
pub fn signalfd(mask: u64, flags: i32) -> Result<OwnedFd, Errno> {
    let flags = flags | libc::SFD_CLOEXEC;
    // SAFETY: the kernel reads the eight bytes of the mask.
    owned(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags) })
}

/// A timer of a clock (CLOCK_*); TFD_CLOEXEC is always set.
///
/// # Errors
/// Those of timerfd_create(2).
pub fn timerfd(clock: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: both arguments are numbers.
    owned(unsafe { libc::syscall(libc::SYS_timerfd_create, clock, flags | libc::TFD_CLOEXEC) })
}

/// Arms a timer: `flags` are TFD_TIMER_*, times are nanoseconds. A value of 0 disarms it, and leaves it its interval.
///
/// # Errors
/// Those of timerfd_settime(2).
pub fn set_timerfd(timer: BorrowedFd<'_>, flags: i32, value: u64, interval: u64) -> Result<(), Errno> {
    let time = |nanoseconds: u64| libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    };
    let new = libc::itimerspec {
        it_interval: time(interval),
        it_value: time(value),
    };
    // SAFETY: `new` is read; the old value is not wanted.
    let result = unsafe { libc::timerfd_settime(timer.as_raw_fd(), flags, &raw const new, std::ptr::null_mut()) };
    Errno::result(result).map(drop)
}

/// An inotify instance; IN_CLOEXEC is always set.
///
/// # Errors
/// Those of inotify_init1(2).
pub fn inotify(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: a number.
    owned(unsafe { libc::syscall(libc::SYS_inotify_init1, flags | libc::IN_CLOEXEC) })
}

/// Adds a watch of the very file that is open as `file`; the watch's number.
///
/// # Errors
/// Those of inotify_add_watch(2).
pub fn add_inotify_watch(instance: BorrowedFd<'_>, file: BorrowedFd<'_>, mask: u32) -> Result<i32, Errno> {
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    // SAFETY: the path ends with a NUL.
    Errno::result(unsafe { libc::inotify_add_watch(instance.as_raw_fd(), path.as_ptr().cast(), mask) })
}

/// Removes one.
///
/// # Errors
/// Those of inotify_rm_watch(2).
pub fn remove_inotify_watch(instance: BorrowedFd<'_>, watch: i32) -> Result<(), Errno> {
    // SAFETY: numbers.
    Errno::result(unsafe { libc::inotify_rm_watch(instance.as_raw_fd(), watch) }).map(drop)
}

/// Has the next watch that is added get `number`, where that is free (INOTIFY_IOC_SETNEXTWD, Linux 4.17 with
/// CONFIG_CHECKPOINT_RESTORE).
///
/// # Errors
/// ENOTTY where the kernel can't, EINVAL for what is no positive number.
pub fn set_next_inotify_watch(instance: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    const SET_NEXT: libc::Ioctl = nix::request_code_write!(b'I', 0, size_of::<i32>());
    // SAFETY: numbers; the argument is the number itself.
    Errno::result(unsafe { libc::ioctl(instance.as_raw_fd(), SET_NEXT, i64::from(number)) }).map(drop)
}

/// Sets how often a timer has expired since it was read last (TFD_IOC_SET_TICKS, Linux 3.17 with
/// CONFIG_CHECKPOINT_RESTORE). Not 0.
///
/// # Errors
/// ENOTTY where the kernel can't, EINVAL for 0.
pub fn set_timerfd_ticks(timer: BorrowedFd<'_>, ticks: u64) -> Result<(), Errno> {
    const SET_TICKS: libc::Ioctl = nix::request_code_write!(b'T', 0, size_of::<u64>());
    // SAFETY: the kernel reads eight bytes.
    Errno::result(unsafe { libc::ioctl(timer.as_raw_fd(), SET_TICKS, &raw const ticks) }).map(drop)
}

/// How an epoll instance asks network cards before it waits: `struct epoll_params`, linux/eventpoll.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BusyPoll {
    /// Microseconds.
    pub microseconds: u32,
    /// Packets at once.
    pub budget: u16,
    /// 1 where interrupts are put off.
    pub prefer: u8,
    padding: u8,
}
const _: () = assert!(size_of::<BusyPoll>() == 8);

impl BusyPoll {
    /// From its numbers.
    #[must_use]
    pub fn new(microseconds: u32, budget: u16, prefer: bool) -> Self {
        Self {
            microseconds,
            budget,
            prefer: prefer.into(),
            padding: 0,
        }
    }

    /// That of an instance (EPIOCGPARAMS, Linux 6.9).
    ///
    /// # Errors
    /// ENOTTY where the kernel knows none.
    pub fn of(epoll: BorrowedFd<'_>) -> Result<Self, Errno> {
        const GET: libc::Ioctl = nix::request_code_read!(0x8a, 2, size_of::<BusyPoll>());
        let mut found = Self::default();
        // SAFETY: room for the structure, whose size the number of the request holds.
        Errno::result(unsafe { libc::ioctl(epoll.as_raw_fd(), GET, &raw mut found) }).map(|_| found)
    }

    /// Sets that of an instance (EPIOCSPARAMS).
    ///
    /// # Errors
    /// ENOTTY where the kernel knows none; EPERM for many packets without CAP_NET_ADMIN.
    pub fn set(&self, epoll: BorrowedFd<'_>) -> Result<(), Errno> {
        const SET: libc::Ioctl = nix::request_code_write!(0x8a, 1, size_of::<BusyPoll>());
        // SAFETY: the structure is read, whose size the number of the request holds.
        Errno::result(unsafe { libc::ioctl(epoll.as_raw_fd(), SET, std::ptr::from_ref(self)) }).map(drop)
    }
}

/// An empty epoll instance, close-on-exec.
///
/// # Errors
/// Those of epoll_create1(2).
pub fn epoll() -> Result<OwnedFd, Errno> {
    // SAFETY: a number.
    owned(unsafe { libc::syscall(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC) })
}
