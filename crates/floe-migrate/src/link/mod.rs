//! A connection between two floes: what carries it, who the other side is, and the frames on it.

pub mod address;
mod connect;
pub mod frame;
mod listen;
mod local;
pub mod message;
mod tls;
pub(crate) mod wire;

pub use address::Address;
pub use connect::connect;
pub use listen::{Incoming, Listener, stdio};
pub(crate) use local::{local_connect, local_listener, local_stream};

use crate::keys::Fingerprint;
use frame::{Frame, FrameError, Place};
use message::Message;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    process::Child,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};
use wire::Wire;

/// How a connection is made and kept.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    /// Keys; `None`: without encryption, on loopback addresses alone.
    pub keys: Option<&'a crate::keys::Keys>,
    /// How long the other side may be silent.
    pub patience: Duration,
    /// Told to stop.
    pub interrupted: &'static AtomicBool,
    /// The one key that the other side may have; `None`: any that is pinned.
    pub demand: Option<Fingerprint>,
    /// Whether nobody is there to be asked for a password.
    pub unattended: bool,
}

/// A connection that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The carrier.
    #[error("{action} {object}")]
    Carrier {
        /// What was attempted.
        action: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Without encryption, to another host.
    #[error(
        "{0} is no loopback address: --insecure serves only those; other hosts are reached with keys (floe keys) or by ssh://"
    )]
    NotLoopback(String),
    /// Nobody is known.
    #[error("no key of another host is pinned, so that nobody can be talked to (floe keys --help)")]
    NoPeers,
    /// One that was there before is not let in any more.
    #[error("the key that {0} had is not pinned any more")]
    Unpinned(String),
    /// TLS.
    #[error("agree on keys with {peer}")]
    Tls {
        /// With whom.
        peer: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Keys.
    #[error(transparent)]
    Keys(#[from] crate::keys::KeysError),
}

impl LinkError {
    fn carrier(action: &'static str, object: &(impl ToString + ?Sized)) -> impl FnOnce(io::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Carrier { action, object, source }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    /// Until it is dropped.
    stream: Option<Stream>,
    /// Who is there, for people.
    peer: String,
    /// Its key.
    key: Option<Fingerprint>,
    buffer: Vec<u8>,
    /// The program that carries it.
    carrier: Option<Child>,
    /// More connections with the same floe, over which images go.
    streams: Vec<Self>,
}

#[derive(Debug)]
enum Stream {
    Plain(Wire),
    Client(Box<StreamOwned<ClientConnection, Wire>>),
    Server(Box<StreamOwned<ServerConnection, Wire>>),
}

impl Link {
    fn new(stream: Stream, peer: String) -> Self {
        let buffer = vec![0; frame::DATA];
        Self {
            stream: Some(stream),
            peer,
            key: None,
            buffer,
            carrier: None,
            streams: Vec::new(),
        }
    }

    /// Lets go of it in a child process, which has it by its birth alone.
    pub(crate) fn disinherit(&mut self) {
        self.stream = None;
        std::mem::forget(self.carrier.take());
        self.streams.iter_mut().for_each(Self::disinherit);
    }

    /// More connections with the same floe, over which images go. What is set or told here holds for those as well.
    pub(crate) fn streams(&mut self) -> &mut Vec<Self> {
        &mut self.streams
    }

    /// Who is there, for people.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The key that it has shown.
    pub(crate) fn key(&self) -> Option<Fingerprint> {
        self.key
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("it is there until the link is dropped")
    }

    fn wire(&self) -> &Wire {
        match self.stream.as_ref().expect("it is there until the link is dropped") {
            Stream::Plain(wire) => wire,
            Stream::Client(stream) => &stream.sock,
            Stream::Server(stream) => &stream.sock,
        }
    }

    /// How long the other side may be silent.
    pub(crate) fn patience(&self) -> Duration {
        self.wire().patience()
    }

    /// Lets the other side be silent for so long from now on, and be told to stop by another flag.
    pub(crate) fn set_manner(&mut self, patience: Duration, interrupted: &'static AtomicBool) {
        self.wire_mut().set_manner(patience, interrupted);
    }

    /// Has all that waits for the other side fail from then on.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.wire_mut().set_deadline(deadline);
        self.streams.iter_mut().for_each(|stream| stream.set_deadline(deadline));
    }

    /// Whether floe was told to stop.
    pub(crate) fn is_told_to_stop(&self) -> bool {
        self.wire().is_told_to_stop()
    }

    /// Whether that is past.
    pub(crate) fn is_late(&self) -> bool {
        self.wire().is_late()
    }

    fn wire_mut(&mut self) -> &mut Wire {
        match self.stream() {
            Stream::Plain(wire) => wire,
            Stream::Client(stream) => &mut stream.sock,
            Stream::Server(stream) => &mut stream.sock,
        }
    }

    /// What poll(2) is to look at for input, where none [`waits`](Self::waits) already.
    pub(crate) fn input(&self) -> BorrowedFd<'_> {
        self.wire().input()
    }

    /// Whether a frame waits, or the end of the connection.
    pub(crate) fn waits(&mut self) -> io::Result<bool> {
        let unpacked = match self.stream() {
            Stream::Plain(_) => 0,
            Stream::Client(stream) => unpacked(stream.conn.process_new_packets())?,
            Stream::Server(stream) => unpacked(stream.conn.process_new_packets())?,
        };
        if unpacked > 0 {
            return Ok(true);
        }
        match poll(&mut [PollFd::new(self.input().as_fd(), PollFlags::POLLIN)], 0_u8) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn send(&mut self, message: &Message) -> Result<(), FrameError> {
        frame::send(self.stream(), message)
    }

    pub(crate) fn send_data(&mut self, piece: &[u8]) -> Result<(), FrameError> {
        frame::send_data(self.stream(), piece)
    }

    pub(crate) fn send_piece(&mut self, place: Place, piece: &[u8]) -> Result<(), FrameError> {
        frame::send_piece(self.stream(), place, piece)
    }

    pub(crate) fn send_alive(&mut self) -> Result<(), FrameError> {
        for stream in &mut self.streams {
            stream.send_alive()?;
        }
        frame::send_alive(self.stream())
    }

    /// Receives a frame; data stands in [`Self::data`] then.
    pub(crate) fn receive_any(&mut self) -> Result<Frame<Message>, FrameError> {
        self.wire_mut().await_frame(true);
        let stream = self.stream.as_mut().expect("it is there until the link is dropped");
        let result = frame::receive(stream, &mut self.buffer);
        self.wire_mut().await_frame(false);
        result
    }

    pub(crate) fn data(&self, bytes: usize) -> &[u8] {
        &self.buffer[..bytes]
    }

    /// Receives a message, past signs of life.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn receive(&mut self) -> Result<Message, FrameError> {
        loop {
            match self.receive_any()? {
                Frame::Message(message) => return Ok(message),
                Frame::Alive => {}
                Frame::Data(_) | Frame::Piece(..) => return Err(FrameError::Kind(b'd')),
            }
        }
    }
}

fn unpacked(state: Result<rustls::IoState, rustls::Error>) -> io::Result<usize> {
    state
        .map(|state| state.plaintext_bytes_to_read())
        .map_err(io::Error::other)
}

/// How long a program that carried a connection may take to notice its end.
const CARRIER: Duration = Duration::from_secs(2);

impl Drop for Link {
    fn drop(&mut self) {
        self.stream = None;
        let Some(carrier) = &mut self.carrier else { return };
        let begin = Instant::now();
        while matches!(carrier.try_wait(), Ok(None)) {
            if begin.elapsed() > CARRIER
                && let Err(error) = carrier.kill()
            {
                tracing::debug!(%error, "the carrier of a connection stays");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.read(buffer),
            Self::Client(stream) => stream.read(buffer),
            Self::Server(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write(bytes),
            Self::Client(stream) => stream.write(bytes),
            Self::Server(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(wire) => wire.flush(),
            Self::Client(stream) => stream.flush(),
            Self::Server(stream) => stream.flush(),
        }
    }
}
