//! Ports of the host that are a sandbox's.

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::ReuseAddr},
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a port is not for everybody.
pub(crate) const PRIVILEGED: &str =
    "ordinary users may not have the host's ports below net.ipv4.ip_unprivileged_port_start";

/// A port of the host that is one of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Whether it is one of UDP, not of TCP.
    pub udp: bool,
    /// The host's port.
    pub host: u16,
    /// The sandbox's.
    pub inside: u16,
}

impl Published {
    /// Takes the host's port, that no other sandbox and no program has it as long as the socket is there. No packet comes to
    /// the socket: rules lead all elsewhere; or the carrier (pasta, slirp4netns), which takes it then. Connections that have ended are not in its way.
    ///
    /// # Errors
    /// EADDRINUSE where somebody has it; EACCES where it is not for everybody.
    pub(crate) fn take(self, for_carrier: bool) -> Result<OwnedFd, Errno> {
        let kind = if self.udp { SockType::Datagram } else { SockType::Stream };
        let taken = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        if for_carrier && !self.udp {
            setsockopt(&taken, ReuseAddr, &true)?;
        }
        bind(taken.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, self.host))?;
        Ok(taken)
    }

    /// What was attempted where taking it failed.
    pub(crate) fn why_not(self, error: Errno) -> String {
        match error {
            Errno::EACCES => format!("publish port {self} ({PRIVILEGED})"),
            _ => format!("publish port {self} (does another sandbox or program have the host's?)"),
        }
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}{}", self.host, self.inside, if self.udp { "/udp" } else { "" })
    }
}
