//! The side that connects.

use super::{Address, Link, LinkError, Manner, Stream, tls, wire::Wire};
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    time::Instant,
};

/// Connects with the floe at an address.
///
/// # Errors
/// [`LinkError`].
pub fn connect(address: &Address, manner: Manner<'_>) -> Result<Link, LinkError> {
    let failed = || LinkError::carrier("connect with", address);
    match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).map_err(failed())?;
            refuse_strangers(&stream).map_err(failed())?;
            plain(stream.into(), address, manner).map_err(failed())
        }
        Address::Ssh { destination, port } => {
            let (stream, child) =
                ssh(destination, *port, manner.unattended).map_err(LinkError::carrier("start ssh for", address))?;
            let mut link = plain(stream, address, manner).map_err(failed())?;
            link.carrier = Some(child);
            Ok(link)
        }
        Address::Tcp(text) => {
            let stream = tcp(text, manner)?;
            match manner.keys {
                None => plain(stream.into(), address, manner).map_err(failed()),
                Some(keys) => {
                    let wire = wire(stream.into(), manner).map_err(failed())?;
                    // A name that is pinned means that key, wherever the network leads to.
                    let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host);
                    let demand = manner.demand.or_else(|| keys.named(host));
                    let (stream, peer) = tls::connect((keys, demand), wire, text)?;
                    let mut link = Link::new(Stream::Client(Box::new(stream)), peer.name);
                    link.key = Some(peer.fingerprint);
                    Ok(link)
                }
            }
        }
    }
}

/// A connection on which both sides must know by its deadline whom they talk to.
pub(super) fn wire(socket: OwnedFd, manner: Manner<'_>) -> io::Result<Wire> {
    let output = socket.try_clone()?;
    let mut wire = Wire::new((socket, output), manner.patience, manner.interrupted)?;
    wire.set_deadline(Instant::now().checked_add(manner.patience));
    Ok(wire)
}

/// Refuses whom another user has at the other end of a socket of this host.
pub(super) fn refuse_strangers(socket: &impl AsFd) -> io::Result<()> {
    let user = getsockopt(socket, PeerCredentials)?.uid();
    if user == 0 || user == geteuid().as_raw() {
        return Ok(());
    }
    let text = format!("user {user} is at the other end, and neither you nor root");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

fn plain(socket: OwnedFd, address: &Address, manner: Manner<'_>) -> io::Result<Link> {
    Ok(Link::new(Stream::Plain(wire(socket, manner)?), address.to_string()))
}

fn tcp(text: &str, manner: Manner<'_>) -> Result<TcpStream, LinkError> {
    let failed = || LinkError::carrier("connect with", text);
    let places: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed())?.collect();
    if manner.keys.is_none() && !places.iter().all(|place| place.ip().is_loopback()) {
        return Err(LinkError::NotLoopback(text.to_owned()));
    }
    let mut last = io::Error::other("it has no address");
    for place in places {
        match TcpStream::connect_timeout(&place, manner.patience) {
            Ok(stream) => {
                // What is small is waited for.
                stream.set_nodelay(true).map_err(failed())?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(failed()(last))
}

/// Has ssh run `floe receive --stdio` at another host.
fn ssh(destination: &str, port: Option<u16>, unattended: bool) -> io::Result<(OwnedFd, Child)> {
    let (near, far) = UnixStream::pair()?;
    let mut command = Command::new("ssh");
    if let Some(port) = port {
        command.arg("-p").arg(port.to_string());
    }
    if unattended {
        command.args(["-o", "BatchMode=yes"]);
    }
    command.args(["-T", "-e", "none", "--", destination, "floe receive --stdio"]);
    let input: OwnedFd = far.into();
    let output = input.try_clone()?;
    let child = command
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::inherit())
        .spawn()?;
    Ok((near.into(), child))
}
