//! Ports for floe's own ends, which the kernel chooses: never one that a socket of the image has, which may take it only
//! later, and not while floe's end has it or waits there to be forgotten (TIME_WAIT).

use super::{NAME, possible};
use crate::file::{FileError, OpenContext, socket::inet};
use std::{cell::OnceCell, collections::HashSet};

/// Ports of the image's sockets, whatever their family and address are.
#[derive(Debug, Default)]
pub(in crate::file::socket) struct WantedPorts(OnceCell<HashSet<u16>>);

impl WantedPorts {
    /// Has `make` take a port that the kernel chooses, until it is one that nobody wants. What has another one is kept so long,
    /// so that it is not chosen again.
    ///
    /// # Errors
    /// [`FileError`].
    pub(super) fn apart<T>(
        context: &OpenContext<'_>,
        make: impl FnMut() -> Result<(T, u16), FileError>,
    ) -> Result<T, FileError> {
        apart(Self::of(context)?, make)
    }

    fn of<'c>(context: &'c OpenContext<'_>) -> Result<&'c HashSet<u16>, FileError> {
        let wanted = &context.connections.wanted.0;
        if wanted.get().is_none() {
            let mut found = HashSet::new();
            for record in context.files {
                found.extend(inet::port_in(record)?);
                if record.kind == NAME {
                    let (local, remote) = possible(record)?.ends();
                    found.extend([local.port(), remote.port()]);
                }
            }
            return Ok(wanted.get_or_init(|| found));
        }
        Ok(wanted.get().expect("just looked"))
    }
}

fn apart<T, E>(wanted: &HashSet<u16>, mut make: impl FnMut() -> Result<(T, u16), E>) -> Result<T, E> {
    let mut aside = Vec::new();
    loop {
        let (made, port) = make()?;
        if !wanted.contains(&port) {
            return Ok(made);
        }
        aside.push(made);
    }
}

#[cfg(test)]
mod tests {
    use super::apart;
    use nix::sched::{CloneFlags, unshare};
    use std::{
        io,
        net::{Ipv4Addr, TcpListener},
    };

    /// In a network of its own, in which the kernel has eight ports to choose from.
    #[test]
    fn the_only_port_that_nobody_wants_is_found() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "50000 50007").expect("a range of ports");
        let bound = || -> io::Result<_> {
            let socket = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let port = socket.local_addr()?.port();
            Ok((socket, port))
        };
        for free in 50000..50008 {
            let wanted = (50000..50008).filter(|port| *port != free).collect();
            let socket = apart(&wanted, bound).expect("a port");
            assert_eq!(socket.local_addr().expect("an address").port(), free);
        }
        let all = (50000..50008).collect();
        let error = apart(&all, bound).expect_err("all are wanted");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
