//! More connections of a migration. The receiver gives each connection a process of its own; that of one which has
//! joined reads its frames and hands them on, over a socket of this host, to that of the first connection, which alone looks at
//! them.
//!
//! ```text
//! source ─── first connection ────► session ◄──────────────┐ unix socket, its name made of the migration's id
//!        ─── join, pieces, end ───► process that relays ───┘
//! ```

use super::session::{Ended, Session};
use crate::{
    hex,
    keys::Fingerprint,
    link::{
        Link,
        frame::{self, DATA, Frame, FrameError, Place},
        local_listener, local_stream,
        message::{Id, Message, STREAMS},
        wire::Wire,
    },
    refusal::Refusal,
};
use aws_lc_rs::digest;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::atomic::Ordering,
    time::Instant,
};

/// How often is looked whether floe was told to stop, in milliseconds.
const GLANCE: u8 = 50;

/// What a process that relays says first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    pub stream: u16,
    /// The key that the source has shown there.
    pub key: Option<Fingerprint>,
}

/// Name of a socket at which a migration's other connections are awaited, in the abstract namespace: nothing of it stays
/// whoever is killed. It does not tell the id to whoever lists sockets.
pub fn socket_name(what: &str, id: &Id) -> String {
    let digest = digest::digest(&digest::SHA256, id.as_str().as_bytes());
    format!("floe-{what}-{}", hex(&digest.as_ref()[..16]))
}

/// Those that carry images.
const STREAM: &str = "streams";

/// The connections that have joined, as the process of the first one has them; none where there are no more than that.
#[derive(Debug, Default)]
pub struct Streams {
    all: Vec<Wire>,
    image: u32,
}

/// Where connections are awaited.
#[derive(Debug)]
pub struct Awaited {
    listener: UnixListener,
    count: u16,
}

impl Awaited {
    /// Waits for so many from now on.
    pub fn listen(id: &Id, count: u16) -> Result<Option<Self>, Refusal> {
        match count {
            0 => return Ok(None),
            1..=STREAMS => {}
            _ => {
                return Err(Refusal::plain(format!(
                    "it takes {STREAMS} connections at most for a migration"
                )));
            }
        }
        let listener = local_listener(&socket_name(STREAM, id))
            .map_err(|error| Refusal::plain(format!("make a socket for the other connections: {error}")))?;
        Ok(Some(Self { listener, count }))
    }

    /// Takes them, until all are there.
    pub fn take(self, session: &Session<'_>, link: &mut Link) -> Result<Streams, Ended> {
        let refused = |error: io::Error| Ended::Refused(Refusal::of(&error));
        let deadline = Instant::now() + link.patience();
        let mut all: Vec<Option<Wire>> = (0..self.count).map(|_| None).collect();
        while all.iter().any(Option::is_none) {
            if session.interrupted.load(Ordering::Relaxed) {
                return Err(Ended::Refused(Refusal::plain("interrupted")));
            }
            if Instant::now() >= deadline {
                return Err(Ended::Refused(Refusal::plain(
                    "not all connections of the migration came",
                )));
            }
            if link.waits().map_err(FrameError::Io)? {
                match link.receive_any()? {
                    Frame::Alive => {}
                    _ => return Err(super::session::out_of_turn()),
                }
            }
            let mut asked = [
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(link.input(), PollFlags::POLLIN),
            ];
            match poll(&mut asked, GLANCE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(refused(error.into())),
            }
            if asked[0].revents().is_none_or(|events| events.is_empty()) {
                continue;
            }
            let (stream, _) = self.listener.accept().map_err(refused)?;
            match meet(session, (stream, link), &mut all) {
                Ok(()) => {}
                // Whoever it was, the right ones may still come.
                Err(error) => tracing::debug!(%error, "a connection did not join"),
            }
        }
        let all = all.into_iter().flatten().collect();
        Ok(Streams { all, image: 0 })
    }
}

/// Takes one in, where it belongs here.
fn meet(
    session: &Session<'_>,
    (stream, link): (UnixStream, &Link),
    all: &mut [Option<Wire>],
) -> Result<(), FrameError> {
    let mut wire = local_stream(stream, link.patience(), session.interrupted)?;
    wire.await_frame(true);
    let Frame::Message(Introduction { stream, key }) = frame::receive(&mut wire, &mut [])? else {
        return Err(FrameError::Kind(b'?'));
    };
    wire.await_frame(false);
    let place = all
        .get_mut(usize::from(stream))
        .filter(|place| place.is_none() && key == link.key());
    match place {
        Some(place) => {
            frame::send(&mut wire, &Message::Joined)?;
            *place = Some(wire);
            Ok(())
        }
        None => {
            let reason = "it has all connections of that migration, or this one has another key".to_owned();
            let findings = Vec::new();
            frame::send(&mut wire, &Message::Refused { reason, findings })
        }
    }
}

impl Streams {
    /// How many.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The number of the image that comes by them.
    pub fn image(&self) -> u32 {
        self.image
    }

    /// That has come.
    pub fn next_image(&mut self) {
        self.image = self.image.wrapping_add(1);
    }

    pub fn input(&self, number: usize) -> BorrowedFd<'_> {
        self.all[number].input()
    }

    pub fn wire(&mut self, number: usize) -> &mut Wire {
        &mut self.all[number]
    }

    /// Whether something waits in one of them.
    pub fn has_more(&self, number: usize) -> bool {
        let mut asked = [PollFd::new(self.input(number), PollFlags::POLLIN)];
        poll(&mut asked, 0_u8).is_ok_and(|count| count > 0)
    }
}

/// Hands what comes by a connection on to the process of the first one, until either ends.
pub fn relay(session: &Session<'_>, mut link: Link, (id, stream): (&Id, u16)) -> Result<(), Refusal> {
    let lost = |error: &FrameError| Refusal::of(error);
    let mut near = introduce(session, &mut link, (&socket_name(STREAM, id), stream))?;
    match carry(&mut link, &mut near) {
        // It is the first connection's to say what came of it.
        Ok(()) | Err(FrameError::End) => {}
        Err(error) => {
            let (reason, findings) = (lost(&error).reason, Vec::new());
            if let Err(error) = frame::send(&mut near, &Message::Refused { reason, findings }) {
                tracing::debug!(%error, "the first connection has ended");
            }
        }
    }
    Ok(())
}

/// Meets the process that waits at a socket, and tells the source whether it may send by this connection.
fn introduce(session: &Session<'_>, link: &mut Link, (name, stream): (&str, u16)) -> Result<Wire, Refusal> {
    let lost = |error: FrameError| Refusal::of(&error);
    match meet_waiting(session, link, (name, stream)) {
        Ok(near) => {
            link.send(&Message::Joined).map_err(lost)?;
            Ok(near)
        }
        Err(refusal) => {
            let Refusal { reason, findings } = refusal.clone();
            link.send(&Message::Refused { reason, findings }).map_err(lost)?;
            Err(refusal)
        }
    }
}

pub fn meet_waiting(session: &Session<'_>, link: &Link, (name, stream): (&str, u16)) -> Result<Wire, Refusal> {
    let unknown = || Refusal::plain("no migration waits for such a connection");
    let socket = crate::link::local_connect(name).map_err(|error| {
        tracing::debug!(%error, "nobody waits for a connection");
        unknown()
    })?;
    let near = local_stream(socket, session.request.silence, session.interrupted);
    let mut near = near.map_err(|error| Refusal::of(&error))?;
    let key = link.key();
    let answer = frame::send(&mut near, &Introduction { stream, key })
        .and_then(|()| frame::receive::<Message>(&mut near, &mut []));
    match answer {
        Ok(Frame::Message(Message::Joined)) => Ok(near),
        Ok(Frame::Message(Message::Refused { reason, .. })) => Err(Refusal::plain(reason)),
        Ok(_) | Err(_) => Err(unknown()),
    }
}

fn carry(link: &mut Link, near: &mut Wire) -> Result<(), FrameError> {
    let mut heard = Instant::now();
    loop {
        if link.is_told_to_stop() {
            return Ok(());
        }
        if link.waits()? {
            heard = Instant::now();
            match link.receive_any()? {
                Frame::Piece(place, got) if got <= DATA => hand_on(link, near, (place, got))?,
                Frame::Message(message @ Message::End { .. }) => frame::send(near, &message)?,
                Frame::Alive => {}
                Frame::Piece(..) | Frame::Data(_) | Frame::Message(_) => {
                    return Err(FrameError::Io(io::Error::other(
                        "something came that has no place there",
                    )));
                }
            }
            continue;
        }
        if heard.elapsed() > link.patience() {
            return Err(FrameError::Io(io::ErrorKind::TimedOut.into()));
        }
        let mut asked = [link.input(), near.input()].map(|end| PollFd::new(end, PollFlags::POLLIN));
        match poll(&mut asked, GLANCE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(FrameError::Io(error.into())),
        }
        // The process of the first connection says nothing more: it has ended, or has all that it wants.
        if asked[1].revents().is_some_and(|events| !events.is_empty()) {
            return Ok(());
        }
    }
}

fn hand_on(link: &Link, near: &mut Wire, (place, got): (Place, usize)) -> Result<(), FrameError> {
    frame::send_piece(near, place, link.data(got))
}
