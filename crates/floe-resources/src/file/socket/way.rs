//! Where a packet is sent so that this host takes it, whomever it says that it is for, and it does not leave it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

pub(super) fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// How this host takes what says that it is for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It alone has that.
    Own,
    /// By loopback, as a member of the group.
    Group,
    /// By loopback, to all.
    All,
    /// It does not have that. Loopback takes it.
    Foreign,
}

impl Way {
    pub(super) fn to(to: IpAddr) -> Self {
        match to {
            _ if to.is_multicast() => return Self::Group,
            IpAddr::V4(Ipv4Addr::BROADCAST) => return Self::All,
            _ => {}
        }
        match UdpSocket::bind((to, 0)).map(|socket| socket.connect((to, 9))) {
            Ok(Ok(())) if binds_to_own(to) => Self::Own,
            // It wants SO_BROADCAST.
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Self::All,
            _ => Self::Foreign,
        }
    }

    /// The address to which it is sent.
    pub(super) fn by(self, to: IpAddr) -> IpAddr {
        match (self, to) {
            (Self::Own, _) | (Self::Group, IpAddr::V4(_)) => to,
            (Self::All, IpAddr::V4(_)) => Ipv4Addr::BROADCAST.into(),
            // Loopback has no route to groups of IPv6.
            _ => loopback(to),
        }
    }
}

/// Whether what sockets can bind to are addresses of this host: what is sent to others would leave it.
fn binds_to_own(like: IpAddr) -> bool {
    let version = if like.is_ipv4() { "ipv4" } else { "ipv6" };
    let setting = std::fs::read_to_string(format!("/proc/sys/net/{version}/ip_nonlocal_bind"));
    setting.is_ok_and(|setting| setting.trim() == "0")
}
