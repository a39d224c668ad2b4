//! Whether POSIX timers can be made here, timer_create(2).

use nix::errno::Errno;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_tried() {
        assert_eq!(try_clock(libc::CLOCK_BOOTTIME), Ok(()));
        assert_eq!(try_clock(1000), Err(Errno::EINVAL));
    }
}
