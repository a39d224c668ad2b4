//! The side that is connected with.

use super::{
    Address, Link, LinkError, Manner, Stream,
    connect::{refuse_strangers, wire},
    tls,
    wire::Wire,
};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::stat::{Mode, umask},
};
use std::{
    fs, io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileTypeExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    time::Instant,
};

/// A place where connections come in.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: String,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// What came in, before anything was said.
#[derive(Debug)]
pub struct Incoming {
    socket: OwnedFd,
    from: String,
    encrypted: bool,
}

impl Listener {
    /// Listens at an address: with TLS where there are keys, or at one of this host's own loopback addresses without.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn bind(address: &Address, insecure: bool) -> Result<Self, LinkError> {
        let failed = || LinkError::carrier("listen at", address);
        let (socket, address) = match address {
            Address::Unix(path) => (
                Socket::Unix(bind_unix(path).map_err(failed())?, path.clone()),
                address.to_string(),
            ),
            Address::Tcp(text) => {
                let places: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed())?.collect();
                if insecure && !places.iter().all(|place| place.ip().is_loopback()) {
                    return Err(LinkError::NotLoopback(text.clone()));
                }
                let socket = TcpListener::bind(places.as_slice()).map_err(failed())?;
                let own = socket.local_addr().map_err(failed())?;
                (Socket::Tcp(socket), own.to_string())
            }
            Address::Ssh { .. } => {
                return Err(failed()(io::Error::other(
                    "sshd listens there; it starts floe receive --stdio",
                )));
            }
        };
        Ok(Self { socket, address })
    }

    /// Where, with the port that the kernel chose where it was to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    fn end(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket, _) => socket.as_fd(),
        }
    }

    /// The next one that comes; `None` where none came for a moment.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn next(&self) -> io::Result<Option<Incoming>> {
        const MOMENT: u8 = 50;
        match poll(&mut [PollFd::new(self.end(), PollFlags::POLLIN)], MOMENT) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let (socket, from, encrypted) = match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, from) = socket.accept()?;
                stream.set_nodelay(true)?;
                (stream.into(), from.to_string(), true)
            }
            Socket::Unix(socket, path) => (socket.accept()?.0.into(), format!("unix:{}", path.display()), false),
        };
        Ok(Some(Incoming {
            socket,
            from,
            encrypted,
        }))
    }
}

impl Listener {
    /// Lets go of it in a child process, which has it by its birth alone.
    pub(crate) fn disinherit(mut self) {
        if let Socket::Unix(_, path) = &mut self.socket {
            *path = PathBuf::new();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket
            && !path.as_os_str().is_empty()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!(%error, "the socket stays");
        }
    }
}

impl Incoming {
    /// Who connected, as the network tells.
    #[must_use]
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Agrees on keys, where they are wanted. That, and what is done with the link until its deadline is set anew, must be
    /// done by then.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn take(self, manner: Manner<'_>, deadline: Instant) -> Result<Link, LinkError> {
        if !self.encrypted {
            refuse_strangers(&self.socket).map_err(LinkError::carrier("take the connection of", &self.from))?;
        }
        let mut wire = wire(self.socket, manner).map_err(LinkError::carrier("take the connection of", &self.from))?;
        wire.set_deadline(Some(deadline));
        match manner.keys {
            Some(keys) if self.encrypted => {
                let (stream, peer) = tls::accept(keys, wire, &self.from)?;
                let mut link = Link::new(Stream::Server(Box::new(stream)), peer.name);
                link.key = Some(peer.fingerprint);
                Ok(link)
            }
            _ => Ok(Link::new(Stream::Plain(wire), self.from)),
        }
    }
}

/// The connection on this process's own standard streams, which who has started it (sshd) has made safe.
///
/// # Errors
/// [`LinkError`].
pub fn stdio(manner: Manner<'_>) -> Result<Link, LinkError> {
    let failed = || LinkError::carrier("take", "standard input and output");
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(failed())?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed())?;
    let wire = Wire::new((input, output), manner.patience, manner.interrupted).map_err(failed())?;
    Ok(Link::new(Stream::Plain(wire), "standard input".to_owned()))
}

/// A socket that only its user, and root, can connect with. What an ended floe has left there goes.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let before = umask(Mode::from_bits_retain(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}
