//! Network devices behind files of /dev/net/tun, in a network namespace that is the victim's own.

use crate::{call, descriptor::open};
use std::{
    net::UdpSocket,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

/// linux/if_tun.h.
pub const TUN: u16 = 1;
/// Frames, not packets.
pub const TAP: u16 = 2;
/// Nothing in front of a packet.
pub const NO_INFORMATION: u16 = 0x1000;
/// A header of virtio's.
pub const HEADER: u16 = 0x4000;
/// Several files.
pub const SEVERAL: u16 = 0x100;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// A file and the name of its device.
#[derive(Debug)]
pub struct Tun {
    /// The file.
    pub file: RawFd,
    /// The name.
    pub name: String,
}

/// `struct ifreq`, of which the end begins with `word`.
fn request(name: &str, word: u64) -> [u64; 5] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let [low, high] = [&bytes[..8], &bytes[8..]].map(|half| u64::from_ne_bytes(half.try_into().expect("8 bytes")));
    [low, high, word, 0, 0]
}

impl Tun {
    /// Makes a device, or has another file of it.
    ///
    /// # Panics
    /// Where that fails.
    #[must_use]
    pub fn new(flags: i32, name: &str, kind: u16) -> Self {
        let file = open(Path::new("/dev/net/tun"), libc::O_RDWR | flags);
        let mut request = request(name, kind.into());
        // SAFETY: struct ifreq is read and written.
        let made = unsafe { libc::ioctl(file, TUNSETIFF, request.as_mut_ptr()) };
        call::checked(made.into()).unwrap_or_else(|error| panic!("make {name}: {error}"));
        Self {
            file,
            name: name.to_owned(),
        }
    }

    /// A call of netdevice(7): what follows the name.
    ///
    /// # Panics
    /// Where it fails.
    pub fn device(&self, command: libc::c_ulong, words: [u64; 3]) -> [u64; 3] {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut request = request(&self.name, 0);
        request[2..].copy_from_slice(&words);
        // SAFETY: struct ifreq is read and written.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), command, request.as_mut_ptr()) };
        call::checked(done.into()).unwrap_or_else(|error| panic!("{command:#x} of {}: {error}", self.name));
        [request[2], request[3], request[4]]
    }

    /// Sets the size of packets. Below 1280 bytes there is no IPv6, which sends some by itself.
    pub fn set_size(&self, bytes: u64) {
        self.device(libc::SIOCSIFMTU, [bytes, 0, 0]);
    }

    /// Gives it an IPv4 address.
    pub fn set_address(&self, address: [u8; 4], mask: [u8; 4]) {
        for (command, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
            let [a, b, c, d] = address;
            // struct sockaddr_in: family, port, address.
            let word = u64::from_ne_bytes([libc::AF_INET as u8, 0, 0, 0, a, b, c, d]);
            self.device(command, [word, 0, 0]);
        }
    }

    /// Switches it on.
    pub fn raise(&self) {
        let [flags, ..] = self.device(libc::SIOCGIFFLAGS, [0; 3]);
        self.device(libc::SIOCSIFFLAGS, [flags & 0xffff | libc::IFF_UP as u64, 0, 0]);
    }
}
