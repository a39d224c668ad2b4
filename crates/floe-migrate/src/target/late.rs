//! Memory that comes when its tree is let run: by the connection of the migration, or where that breaks by another one, which
//! is handed on as in [`super::streams`]. The process of the first connection has the file, and lives until all is there.

use super::{
    rest::{Rest, RestError},
    session::{NEVER, Session, linger},
    spool::ALIVE,
    streams::{Introduction, introduce, socket_name},
};
use crate::{
    keys::Fingerprint,
    link::{
        Link,
        frame::{self, DATA, Frame, FrameError},
        local_listener, local_stream,
        message::{Id, Message, PARTS, Part},
        wire::Wire,
    },
    refusal::Refusal,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    time::{Duration, Instant},
};

/// How often is looked whether the other side is to hear something, in milliseconds.
const GLANCE: u8 = 50;
/// Which socket another connection comes to.
const REST: &str = "rest";

/// Where other connections come to.
#[derive(Debug)]
pub struct Late {
    listener: UnixListener,
    key: Option<Fingerprint>,
}

/// What ends a connection.
enum Over {
    /// All is there, or nobody reads the file any more.
    Whole,
    Lost(FrameError),
    Failed(RestError),
}

impl From<FrameError> for Over {
    fn from(error: FrameError) -> Self {
        Self::Lost(error)
    }
}

impl Late {
    /// Waits for them from now on; they must show this key.
    pub fn listen(id: &Id, key: Option<Fingerprint>) -> Result<Self, Refusal> {
        let listener = local_listener(&socket_name(REST, id));
        let listener =
            listener.map_err(|error| Refusal::plain(format!("make a socket for later connections: {error}")))?;
        Ok(Self { listener, key })
    }

    /// Takes the rest of a tree's memory until all is there, or nobody wants it any more. Nothing but that ends this: without
    /// this process the tree would be ended.
    pub fn bring(self, session: &Session<'_>, first: Option<Link>, mut rest: Rest) -> Result<(), Refusal> {
        let patience = session.request.silence;
        let mut way = first.map(|mut link| {
            link.set_manner(patience, &NEVER);
            link.set_deadline(None);
            Way::First(link)
        });
        loop {
            let taken = match &mut way {
                Some(way) => way.take(&mut rest, patience),
                None => match self.await_another(&mut rest, patience)? {
                    Some(wire) => {
                        way = Some(Way::Another(wire, vec![0; DATA]));
                        continue;
                    }
                    None => return Ok(()),
                },
            };
            match taken {
                Ok(()) | Err(Over::Whole) => {
                    if let Some(Way::First(link)) = &mut way {
                        linger(link);
                    }
                    return Ok(());
                }
                Err(Over::Lost(error)) => {
                    tracing::info!(%error, "the connection by which memory comes is gone; another one is waited for");
                    way = None;
                }
                Err(Over::Failed(error)) => {
                    let Refusal { reason, findings } = Refusal::of(&error);
                    if let Some(way) = &mut way
                        && let Err(error) = way.send(&Message::Refused {
                            reason: reason.clone(),
                            findings,
                        })
                    {
                        tracing::debug!(%error, "the source is gone");
                    }
                    return Err(Refusal::plain(reason));
                }
            }
        }
    }

    /// Another connection; `None` where nobody wants one.
    fn await_another(&self, rest: &mut Rest, patience: Duration) -> Result<Option<Wire>, Refusal> {
        let failed = |error: io::Error| Refusal::of(&error);
        loop {
            let mut asked = [self.listener.as_fd(), rest.news()].map(|end| PollFd::new(end, PollFlags::POLLIN));
            match poll(&mut asked, GLANCE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let [comes, has_news] = asked.map(|asked| asked.revents().is_some_and(|events| !events.is_empty()));
            if has_news && rest.wanted().map_err(failed)?.is_none() {
                return Ok(None);
            }
            if comes {
                match self.meet(patience) {
                    Ok(wire) => return Ok(wire.into()),
                    // Whoever it was, the right one may still come.
                    Err(error) => tracing::debug!(%error, "a connection brings nothing"),
                }
            }
        }
    }

    fn meet(&self, patience: Duration) -> Result<Wire, FrameError> {
        let (stream, _) = self.listener.accept()?;
        let mut wire = local_stream(stream, patience, &NEVER)?;
        wire.await_frame(true);
        let Frame::Message(Introduction { key, .. }) = frame::receive(&mut wire, &mut [])? else {
            return Err(FrameError::Kind(b'?'));
        };
        wire.await_frame(false);
        if key == self.key {
            frame::send(&mut wire, &Message::Joined)?;
            return Ok(wire);
        }
        let reason = "that migration has another key".to_owned();
        let findings = Vec::new();
        frame::send(&mut wire, &Message::Refused { reason, findings })?;
        Err(FrameError::Kind(b'?'))
    }
}

/// By which the rest comes.
enum Way {
    /// The connection of the migration, whose source knows what is missing.
    First(Link),
    /// Another one, with room for a piece.
    Another(Wire, Vec<u8>),
}

impl Way {
    fn input(&self) -> BorrowedFd<'_> {
        match self {
            Self::First(link) => link.input(),
            Self::Another(wire, _) => wire.input(),
        }
    }

    fn waits(&mut self) -> io::Result<bool> {
        match self {
            Self::First(link) => link.waits(),
            Self::Another(wire, _) => {
                let mut asked = [PollFd::new(wire.input(), PollFlags::POLLIN)];
                Ok(poll(&mut asked, 0_u8).is_ok_and(|count| count > 0))
            }
        }
    }

    fn receive(&mut self) -> Result<Frame<Message>, FrameError> {
        match self {
            Self::First(link) => link.receive_any(),
            Self::Another(wire, buffer) => {
                wire.await_frame(true);
                let frame = frame::receive(wire, buffer);
                wire.await_frame(false);
                frame
            }
        }
    }

    fn piece(&self, bytes: usize) -> &[u8] {
        match self {
            Self::First(link) => link.data(bytes),
            Self::Another(_, buffer) => &buffer[..bytes],
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), FrameError> {
        match self {
            Self::First(link) => link.send(message),
            Self::Another(wire, _) => frame::send(wire, message),
        }
    }

    fn send_alive(&mut self) -> Result<(), FrameError> {
        match self {
            Self::First(link) => link.send_alive(),
            Self::Another(wire, _) => frame::send_alive(wire),
        }
    }

    /// Takes what comes until all is there.
    fn take(&mut self, rest: &mut Rest, patience: Duration) -> Result<(), Over> {
        if let Self::Another(..) = self {
            let missing = rest.begin_anew();
            let messages = missing.chunks(PARTS).enumerate();
            for (number, parts) in messages {
                let (parts, last) = (parts.to_vec(), (number + 1) * PARTS >= missing.len());
                self.send(&Message::Missing { parts, last })?;
            }
        }
        let (mut heard, mut last) = (Instant::now(), Instant::now());
        loop {
            if rest.is_whole() {
                return Ok(self.send(&Message::Whole)?);
            }
            if heard.elapsed() > patience {
                return Err(FrameError::Io(io::ErrorKind::TimedOut.into()).into());
            }
            if last.elapsed() > ALIVE {
                self.send_alive()?;
                last = Instant::now();
            }
            if self.waits().map_err(FrameError::Io)? {
                heard = Instant::now();
                match self.receive()? {
                    Frame::Piece(place, got) => rest.take(place.offset, self.piece(got)).map_err(Over::Failed)?,
                    Frame::Alive => {}
                    Frame::Message(_) | Frame::Data(_) => return Err(FrameError::Kind(b'?').into()),
                }
            } else {
                let mut asked = [self.input(), rest.news()].map(|end| PollFd::new(end, PollFlags::POLLIN));
                match poll(&mut asked, GLANCE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(FrameError::Io(error.into()).into()),
                }
            }
            match rest.wanted().map_err(FrameError::Io)? {
                Some(parts) if parts.is_empty() => {}
                Some(parts) => self.fetch(&parts)?,
                None => {
                    self.send(&Message::Whole)?;
                    return Err(Over::Whole);
                }
            }
        }
    }

    fn fetch(&mut self, parts: &[Part]) -> Result<(), FrameError> {
        let mut messages = parts.chunks(PARTS);
        messages.try_for_each(|parts| self.send(&Message::Fetch { parts: parts.to_vec() }))
    }
}

/// Hands a connection on to the process of the first one, in both directions, until either ends.
pub fn relay(session: &Session<'_>, mut link: Link, id: &Id) -> Result<(), Refusal> {
    let mut near = introduce(session, &mut link, (&socket_name(REST, id), 0))?;
    // What has begun is not interrupted: the tree waits for it.
    link.set_manner(session.request.silence, &NEVER);
    near.set_manner(session.request.silence, &NEVER);
    match carry(&mut link, &mut near) {
        Ok(()) => Ok(()),
        Err(error) => Err(Refusal::of(&error)),
    }
}

fn carry(link: &mut Link, near: &mut Wire) -> Result<(), FrameError> {
    loop {
        if link.waits()? {
            match link.receive_any() {
                Ok(Frame::Piece(place, got)) => frame::send_piece(near, place, link.data(got))?,
                Ok(Frame::Message(message)) => frame::send(near, &message)?,
                Ok(Frame::Alive) => frame::send_alive(near)?,
                Ok(Frame::Data(_)) => return Err(FrameError::Kind(b'd')),
                Err(FrameError::End) => return Ok(()),
                Err(error) => return Err(error),
            }
            // The other direction gets its turn.
        } else {
            let mut asked = [link.input(), near.input()].map(|end| PollFd::new(end, PollFlags::POLLIN));
            match poll(&mut asked, GLANCE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(FrameError::Io(error.into())),
            }
        }
        let mut asked = [PollFd::new(near.input(), PollFlags::POLLIN)];
        if poll(&mut asked, 0_u8).is_ok_and(|count| count > 0) {
            near.await_frame(true);
            let frame = frame::receive::<Message>(near, &mut []);
            near.await_frame(false);
            match frame {
                Ok(Frame::Message(message)) => link.send(&message)?,
                Ok(Frame::Alive) => link.send_alive()?,
                Ok(Frame::Piece(..) | Frame::Data(_)) => return Err(FrameError::Kind(b'p')),
                Err(FrameError::End) => {
                    linger(link);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
