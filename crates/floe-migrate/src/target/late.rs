//! Memory that comes when its tree is let run: by the connection of the migration, or where that breaks by another one, which
//! is handed on as in [`super::streams`]. The process of the first connection has the file, and lives until all is there.

use super::{
    rest::Rest,
    session::{NEVER, Session, linger},
    spool::ALIVE,
    streams::{Introduction, meet_waiting, socket_name},
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
    record::{self, Process},
    refusal::Refusal,
};
use floe_sandbox::StateDir;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often is looked whether the other side is to hear something, in milliseconds.
const GLANCE: u8 = 50;
/// Which socket another connection comes to.
const REST: &str = "rest";

/// Where other connections come to, and a file that says so to whoever serves these.
#[derive(Debug)]
pub struct Late<'a> {
    listener: UnixListener,
    key: Option<Fingerprint>,
    state_dir: &'a StateDir,
    /// Which process has the rest.
    file: PathBuf,
}

/// What ends a connection.
enum Over {
    /// Nobody reads the file any more.
    Unwanted,
    Lost(FrameError),
    /// Another one has come, as this one is broken for the source.
    Replaced(Wire),
}

impl From<FrameError> for Over {
    fn from(error: FrameError) -> Self {
        Self::Lost(error)
    }
}

impl<'a> Late<'a> {
    /// Waits for them from now on; they must show this key.
    pub fn listen(session: &Session<'a>, id: &Id, key: Option<Fingerprint>) -> Result<Self, Refusal> {
        let failed = |error: io::Error| Refusal::plain(format!("wait for later connections: {error}"));
        let listener = local_listener(&socket_name(REST, id)).map_err(failed)?;
        let state_dir = session.request.state_dir;
        let file = record::file(state_dir, id, REST);
        let own = serde_json::to_vec(&Process::own()).map_err(|error| failed(error.into()))?;
        let write = |_: &Path| File::create_new(&file)?.write_all(&own);
        record::make_in(state_dir, write).map_err(failed)?;
        Ok(Self {
            listener,
            key,
            state_dir,
            file,
        })
    }

    /// What poll(2) is to look at.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes the rest of a tree's memory until all is there, or nobody wants it any more. Nothing but that ends this: without
    /// this process the tree would be ended.
    pub fn bring(self, session: &Session<'_>, first: Option<Way>, mut rest: Rest) -> Result<(), Refusal> {
        let patience = session.request.silence;
        let mut way = first;
        loop {
            let taken = match &mut way {
                Some(way) => way.take(&mut rest, &self, patience),
                None => match self.await_another(&mut rest, patience)? {
                    Some(another) => {
                        way = Some(another);
                        continue;
                    }
                    None => return Ok(()),
                },
            };
            match taken {
                Ok(()) | Err(Over::Unwanted) => {
                    // Who hears it finds nothing left here.
                    drop(self);
                    if let Some(way) = &mut way
                        && let Err(error) = way.send(&Message::Whole)
                    {
                        tracing::debug!(%error, "the source asks again");
                    }
                    if let Some(Way::First(link)) = &mut way {
                        linger(link);
                    }
                    return Ok(());
                }
                Err(Over::Replaced(wire)) => way = Some(Way::another(wire)),
                Err(Over::Lost(error)) => {
                    tracing::info!(%error, "the connection by which memory comes is gone; another one is waited for");
                    way = None;
                }
            }
        }
    }

    /// Another connection; `None` where nobody wants one.
    fn await_another(&self, rest: &mut Rest, patience: Duration) -> Result<Option<Way>, Refusal> {
        let failed = |error: io::Error| Refusal::of(&error);
        // It may have been fetched before anything was decided.
        while !rest.is_whole() {
            let mut asked = [self.input(), rest.news()].map(|end| PollFd::new(end, PollFlags::POLLIN));
            match poll(&mut asked, GLANCE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let [comes, has_news] = asked.map(|asked| is_ready(&asked));
            if has_news && rest.wanted().map_err(failed)?.is_none() {
                return Ok(None);
            }
            if comes && let Some(wire) = self.meet(patience) {
                return Ok(Some(Way::another(wire)));
            }
        }
        Ok(None)
    }

    /// Takes a connection that waits, if it is the right one.
    pub fn meet(&self, patience: Duration) -> Option<Wire> {
        match self.meet_one(patience) {
            Ok(wire) => Some(wire),
            // Whoever it was, the right one may still come.
            Err(error) => {
                tracing::debug!(%error, "a connection brings nothing");
                None
            }
        }
    }

    fn meet_one(&self, patience: Duration) -> Result<Wire, FrameError> {
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

impl Drop for Late<'_> {
    fn drop(&mut self) {
        if let Err(error) = record::remove(self.state_dir, &self.file) {
            tracing::error!(%error, "a file stays");
        }
    }
}

/// Whether some process waits for memory of that hand-over.
fn is_waited_for(state_dir: &StateDir, id: &Id) -> Result<bool, Refusal> {
    let file = record::file(state_dir, id, REST);
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Refusal::of(&error)),
    };
    // One that is being written says nothing yet.
    let waits = serde_json::from_slice::<Process>(&text).map_or(true, |process| process.lives());
    if !waits {
        record::remove(state_dir, &file).map_err(|error| Refusal::of(&error))?;
    }
    Ok(waits)
}

fn is_ready(asked: &PollFd<'_>) -> bool {
    asked.revents().is_some_and(|events| !events.is_empty())
}

/// By which the rest comes.
pub enum Way {
    /// The connection of the migration, whose source knows what is missing.
    First(Link),
    /// Another one, with room for a piece.
    Another(Wire, Vec<u8>),
}

impl Way {
    /// That of the migration, which is not interrupted any more.
    pub fn first(mut link: Link, patience: Duration) -> Self {
        link.set_manner(patience, &NEVER);
        link.set_deadline(None);
        Self::First(link)
    }

    pub fn another(wire: Wire) -> Self {
        Self::Another(wire, vec![0; DATA])
    }

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
    fn take(&mut self, rest: &mut Rest, late: &Late<'_>, patience: Duration) -> Result<(), Over> {
        if let Self::Another(..) = self {
            let missing = rest.begin_anew();
            let count = missing.len().div_ceil(PARTS).max(1);
            for number in 0..count {
                let parts = missing.iter().skip(number * PARTS).take(PARTS).copied().collect();
                let last = number + 1 == count;
                self.send(&Message::Missing { parts, last })?;
            }
        }
        let (mut heard, mut last) = (Instant::now(), Instant::now());
        loop {
            if rest.is_whole() {
                return Ok(());
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
                    // Where it can't be written it may be another time.
                    Frame::Piece(place, got) => rest
                        .take(place.offset, self.piece(got))
                        .map_err(|error| FrameError::Io(io::Error::other(error)))?,
                    Frame::Alive => {}
                    Frame::Message(_) | Frame::Data(_) => return Err(FrameError::Kind(b'?').into()),
                }
            } else {
                let mut asked =
                    [self.input(), rest.news(), late.input()].map(|end| PollFd::new(end, PollFlags::POLLIN));
                match poll(&mut asked, GLANCE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(FrameError::Io(error.into()).into()),
                }
                if is_ready(&asked[2])
                    && let Some(wire) = late.meet(patience)
                {
                    return Err(Over::Replaced(wire));
                }
            }
            match rest.wanted().map_err(FrameError::Io)? {
                Some(parts) if parts.is_empty() => {}
                Some(parts) => self.fetch(&parts)?,
                None => return Err(Over::Unwanted),
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
    let lost = |error: FrameError| Refusal::of(&error);
    let mut near = match meet_waiting(session, &link, (&socket_name(REST, id), 0)) {
        Ok(near) => near,
        Err(refusal) => {
            let Refusal { reason, findings } = refusal.clone();
            let answer = match is_waited_for(session.request.state_dir, id) {
                Ok(false) => Message::Whole,
                Ok(true) | Err(_) => Message::Refused { reason, findings },
            };
            link.send(&answer).map_err(lost)?;
            return Err(refusal);
        }
    };
    link.send(&Message::Joined).map_err(lost)?;
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
