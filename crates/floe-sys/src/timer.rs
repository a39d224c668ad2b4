//! Whether POSIX timers can be made here, timer_create(2), and how finely the kernel keeps a processor's time.

use nix::{errno::Errno, sys::time::TimeValLike, time::ClockId};

/// Makes a timer of a clock, and deletes it.
///
/// # Errors
/// EINVAL (no such clock), EOPNOTSUPP (nothing on this host wakes it up), EPERM, EAGAIN.
pub fn try_clock(clock: i32) -> Result<(), Errno> {
    let mut id = 0_i32;
    let event = std::ptr::null::<libc::sigevent>();
    // SAFETY: no event, and `id` is room for the kernel's id, an int.
    Errno::result(unsafe { libc::syscall(libc::SYS_timer_create, clock, event, &raw mut id) })?;
    // SAFETY: takes the number of the timer that was made.
    Errno::result(unsafe { libc::syscall(libc::SYS_timer_delete, id) }).map(drop)
}

/// A tick of this kernel in microseconds, 1,000,000 / CONFIG_HZ: the resolution of its coarse clocks, clock_getres(2).
///
/// # Errors
/// EPERM where the call is forbidden (seccomp).
pub fn tick() -> Result<u64, Errno> {
    let tick = ClockId::CLOCK_MONOTONIC_COARSE.res()?;
    Ok(tick.num_microseconds() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_tried() {
        assert_eq!(try_clock(libc::CLOCK_BOOTTIME), Ok(()));
        assert_eq!(try_clock(1000), Err(Errno::EINVAL));
    }

    #[test]
    fn a_tick_is_of_milliseconds() {
        // CONFIG_HZ is 100 to 1000.
        assert!((1_000..=10_000).contains(&tick().expect("a tick")));
    }
}
