//! Network devices, netdevice(7): loopback, the one that floe itself touches, and what numbers devices have.

use nix::{
    errno::Errno,
    net::if_::{if_indextoname, if_nameindex, if_nametoindex},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::os::fd::AsRawFd;

/// Raises `lo` in the network namespace of the calling thread.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN there.
pub fn raise_loopback() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid: a name of no characters and a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and `request` is one that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    Errno::result(result).map(drop)
}

/// The names of all devices of the calling thread's network namespace.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM.
pub fn device_names() -> Result<Vec<String>, Errno> {
    let devices = if_nameindex()?;
    Ok(devices
        .iter()
        .map(|device| device.name().to_string_lossy().into_owned())
        .collect())
}

/// The name of a device of the calling thread's network namespace.
#[must_use]
pub fn device_name(number: u32) -> Option<String> {
    if_indextoname(number)
        .ok()
        .map(|name| name.to_string_lossy().into_owned())
}

/// The number of a device of the calling thread's network namespace.
#[must_use]
pub fn device_number(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}
