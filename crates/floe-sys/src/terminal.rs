//! Terminal ioctls that take a pointer to bytes: ioctl_tty(2).

use nix::errno::Errno;
use std::os::fd::RawFd;

/// Bytes of the largest structure that the terminal requests used here take (`struct termios2`).
pub const LARGEST: usize = 44;

/// Runs the request `request` on `terminal` with a copy of `bytes`, which then holds what the kernel left there.
///
/// The copy is large enough for every request of ioctl_tty(2), so a request with a larger structure than `bytes` writes
/// to nothing that isn't floe's.
///
/// # Errors
/// ENOTTY, EINVAL, EIO; EINVAL where `bytes` is longer than [`LARGEST`].
pub fn control(terminal: RawFd, request: libc::c_ulong, bytes: &mut [u8]) -> Result<i32, Errno> {
    let mut room = [0u8; 256];
    if bytes.len() > LARGEST {
        return Err(Errno::EINVAL);
    }
    room[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: requests of ioctl_tty(2) read and write at most LARGEST bytes at the pointer, and `room` has more.
    let result = unsafe { libc::ioctl(terminal, request, room.as_mut_ptr()) };
    let result = Errno::result(result)?;
    bytes.copy_from_slice(&room[..bytes.len()]);
    Ok(result)
}
