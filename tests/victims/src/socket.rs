//! Sockets of any family, and what they receive with all that comes beside it.

use crate::call::checked;
use std::{
    io,
    mem::offset_of,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The sender's address, as recvmsg(2) gives it.
    pub from: Vec<u8>,
    /// What came beside: level, kind, bytes.
    pub control: Vec<(i32, i32, Vec<u8>)>,
    /// MSG_* that tell of it.
    pub flags: i32,
}

impl Received {
    /// What came beside, of a level and kind.
    #[must_use]
    pub fn beside(&self, level: i32, kind: i32) -> Option<&[u8]> {
        let mut found = self.control.iter().filter(|(at, of, _)| (*at, *of) == (level, kind));
        found.next().map(|(.., bytes)| &bytes[..])
    }
}

/// A socket.
///
/// # Errors
/// errno.
pub fn try_new(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let made = checked(i64::from(unsafe { libc::socket(family, kind, protocol) }))?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// The same.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn new(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    try_new(family, kind, protocol).unwrap_or_else(|error| panic!("socket {family} {kind} {protocol}: {error}"))
}

/// An option's bytes.
///
/// # Errors
/// errno.
pub fn get(socket: RawFd, level: i32, name: i32, most: usize) -> io::Result<Vec<u8>> {
    let (mut value, mut length) = (vec![0_u8; most], most as libc::socklen_t);
    // SAFETY: room for `most` bytes.
    let result = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    checked(result.into())?;
    value.truncate(length as usize);
    Ok(value)
}

/// Sets an option.
///
/// # Errors
/// errno.
pub fn try_set(socket: RawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are there.
    let result = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    checked(result.into()).map(drop)
}

/// Sets an option to a number.
///
/// # Panics
/// Where that fails.
pub fn set(socket: RawFd, level: i32, name: i32, value: i32) {
    try_set(socket, level, name, &value.to_ne_bytes())
        .unwrap_or_else(|error| panic!("setsockopt {level}/{name}: {error}"));
}

/// The bytes of an address as calls take them.
#[must_use]
pub fn address(of: SocketAddr) -> Vec<u8> {
    let family = if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = (family as u16).to_ne_bytes().to_vec();
    bytes.extend(of.port().to_be_bytes());
    match of {
        SocketAddr::V4(four) => {
            bytes.extend(four.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(six) => {
            bytes.extend([0; 4]);
            bytes.extend(six.ip().octets());
            bytes.extend(six.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// Binds to an address that has these bytes.
///
/// # Errors
/// errno.
pub fn bind(socket: RawFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are there.
    let result = unsafe { libc::bind(socket, address.as_ptr().cast(), address.len() as libc::socklen_t) };
    checked(result.into()).map(drop)
}

/// Connects to an address that has these bytes.
///
/// # Errors
/// errno.
pub fn connect(socket: RawFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are there.
    let result = unsafe { libc::connect(socket, address.as_ptr().cast(), address.len() as libc::socklen_t) };
    checked(result.into()).map(drop)
}

/// A socket's own address.
///
/// # Errors
/// errno.
pub fn name(socket: RawFd) -> io::Result<Vec<u8>> {
    let (mut place, mut length) = (vec![0_u8; 128], 128);
    // SAFETY: room for 128 bytes.
    let result = unsafe { libc::getsockname(socket, place.as_mut_ptr().cast(), &raw mut length) };
    checked(result.into())?;
    place.truncate(length as usize);
    Ok(place)
}

/// Sends to an address, or to the other end where that is empty.
///
/// # Errors
/// errno.
pub fn send(socket: RawFd, bytes: &[u8], to: &[u8]) -> io::Result<()> {
    let place = if to.is_empty() {
        std::ptr::null()
    } else {
        to.as_ptr().cast()
    };
    let (length, flags) = (to.len() as libc::socklen_t, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // SAFETY: bytes and address are there.
    let result = unsafe { libc::sendto(socket, bytes.as_ptr().cast(), bytes.len(), flags, place, length) };
    checked(result as i64).map(drop)
}

/// The same with what comes beside it: level, kind, bytes. `flags` are MSG_*.
///
/// # Errors
/// errno.
pub fn send_beside(
    socket: RawFd,
    bytes: &[u8],
    to: &[u8],
    beside: &[(i32, i32, Vec<u8>)],
    flags: i32,
) -> io::Result<()> {
    let mut control: Vec<u64> = Vec::new();
    for (level, kind, value) in beside {
        // struct cmsghdr.
        let mut one = (size_of::<libc::cmsghdr>() + value.len()).to_ne_bytes().to_vec();
        one.extend([level.to_ne_bytes(), kind.to_ne_bytes()].concat());
        one.extend(value);
        one.resize(one.len().next_multiple_of(8), 0);
        let words = one.chunks_exact(8).map(|word| word.try_into().expect("eight bytes"));
        control.extend(words.map(u64::from_ne_bytes));
    }
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a struct of numbers and pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_namelen = to.len() as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = 8 * control.len();
    // SAFETY: the header names places of the stated sizes, which are read.
    let sent = unsafe {
        libc::sendmsg(
            socket,
            &raw const header,
            flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    checked(sent as i64).map(drop)
}

/// Receives what is there; `None` where nothing is. `flags` are MSG_*.
///
/// # Errors
/// errno.
pub fn receive(socket: &impl AsRawFd, flags: i32) -> io::Result<Option<Received>> {
    const MOST: usize = 70_000;
    let (mut bytes, mut from, mut control) = (vec![0_u8; MOST], vec![0_u8; 128], vec![0_u64; 512]);
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: MOST,
    };
    // SAFETY: a struct of numbers and pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = from.as_mut_ptr().cast();
    header.msg_namelen = from.len() as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = 8 * control.len();
    // SAFETY: the header names places of the stated sizes.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags | libc::MSG_DONTWAIT) };
    match checked(got as i64) {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(None),
        got => bytes.truncate(got? as usize),
    }
    from.truncate(header.msg_namelen as usize);
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(Some(Received {
        bytes,
        from,
        control: parts(&control[..header.msg_controllen]),
        flags: header.msg_flags,
    }))
}

/// Takes struct cmsghdr apart.
fn parts(mut control: &[u8]) -> Vec<(i32, i32, Vec<u8>)> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let number = |control: &[u8], at: usize| i32::from_ne_bytes(control[at..at + 4].try_into().expect("four bytes"));
    let mut found = Vec::new();
    while control.len() >= HEADER {
        let length = number(control, 0) as usize;
        let level = number(control, offset_of!(libc::cmsghdr, cmsg_level));
        let kind = number(control, offset_of!(libc::cmsghdr, cmsg_type));
        found.push((level, kind, control[HEADER..length].to_vec()));
        control = control.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    found
}

/// Brings `lo` of the calling thread's network namespace up.
///
/// # Panics
/// Where that is not allowed.
pub fn raise_loopback() {
    // SAFETY: plain numbers.
    let socket = checked(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) }.into()).expect("a socket");
    // SAFETY: zeros are a request for a device without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the request is one, and outlives the call.
    let result = unsafe { libc::ioctl(socket as i32, libc::SIOCSIFFLAGS, &raw mut request) };
    checked(result.into()).expect("lo up");
    crate::call::close(socket as i32);
}
