//! A network of a test's own.

use nix::sched::{CloneFlags, unshare};

/// Moves the calling thread into a new network namespace with loopback only: what it starts from now on is in there, and
/// no port of it is anybody else's.
///
/// # Panics
/// Without the right to do so.
pub fn enter_own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: an all-zero ifreq is valid: a name of no characters and a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and `request` is one that outlives the call.
    let raised = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request) };
    // SAFETY: the socket is this function's own.
    unsafe { libc::close(socket) };
    assert_eq!(raised, 0, "loopback does not come up");
}
