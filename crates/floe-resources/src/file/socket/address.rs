//! Addresses of sockets of the internet's.

use nix::{
    errno::Errno,
    sys::socket::{SockaddrLike, SockaddrStorage, getpeername, getsockname},
};
use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
};

/// Addresses of sockets.
pub(super) struct Address;

impl Address {
    /// Its own; `None` where it has neither an address nor a port.
    pub(super) fn local(socket: BorrowedFd<'_>) -> Result<Option<SocketAddr>, Errno> {
        address(getsockname(socket.as_raw_fd())?)
    }

    /// That of the other end.
    pub(super) fn remote(socket: BorrowedFd<'_>) -> Result<Option<SocketAddr>, Errno> {
        match getpeername(socket.as_raw_fd()) {
            Err(Errno::ENOTCONN) => Ok(None),
            found => address(found?),
        }
    }
}

fn address(found: SockaddrStorage) -> Result<Option<SocketAddr>, Errno> {
    let address = match (found.as_sockaddr_in(), found.as_sockaddr_in6()) {
        (Some(four), _) => SocketAddr::V4(SocketAddrV4::from(*four)),
        (_, Some(six)) => SocketAddr::V6(SocketAddrV6::from(*six)),
        _ if found.len() <= 2 => return Ok(None),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    Ok(Some(address).filter(|address| address.port() != 0 || !address.ip().is_unspecified()))
}

/// Whether an address means something only together with a network device: RFC 4291.
pub(super) fn is_of_a_link(ip: IpAddr) -> bool {
    let IpAddr::V6(six) = ip else { return false };
    // Groups of an interface and of a link.
    let scope = six.octets()[1] & 15;
    six.is_unicast_link_local() || six.is_multicast() && [1, 2].contains(&scope)
}
