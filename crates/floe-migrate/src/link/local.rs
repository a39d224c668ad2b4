//! Between processes of one receiver: sockets of the abstract namespace (unix(7)), at which its own user and root are let in
//! alone.

use super::{connect::refuse_strangers, wire::Wire};
use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::AtomicBool,
    time::Duration,
};

/// Waits at a name, which goes with the last process that has this.
pub fn local_listener(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Connects with who waits there.
pub fn local_connect(name: &str) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)
}

/// One that is connected, with whom it may be.
pub fn local_stream(socket: UnixStream, patience: Duration, interrupted: &'static AtomicBool) -> io::Result<Wire> {
    refuse_strangers(&socket)?;
    let output = socket.try_clone()?;
    Wire::new((socket.into(), output.into()), patience, interrupted)
}
