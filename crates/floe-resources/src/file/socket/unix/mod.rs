//! Unix sockets.

mod connection;
mod deliver;
mod dump;
mod elsewhere;
mod leftover;
mod listed;
mod make;
mod name;
mod peer;
mod resolve;
mod settle;
mod unaccepted;

pub use deliver::{Unsent, deliver};
pub(in crate::file) use dump::FoundUnix;
pub(in crate::file) use make::MadeUnix;
pub use make::check;
pub use name::BoundNames;
pub(in crate::file) use name::shown;
pub(in crate::file) use peer::outside_peer;
pub(in crate::file) use resolve::{Known, resolve};

use super::{
    Maker, family,
    options::{self, OptionError, SocketOption},
    queue::{self, Message},
    system,
};
use crate::file::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, decode, set_status,
};
use floe_image::record::{NsPid, OpenFileRecord};
use name::{Name, SocketFile};
use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use unaccepted::Unaccepted;

/// The kind.
pub struct Unix;

const NAME: &str = "unix-socket";
/// NGROUPS_MAX.
const MOST_GROUPS: usize = 65_536;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    /// Its inode number when it was saved: by it sockets refer to each other.
    socket: u32,
    /// The number of its network namespace, which its record tells.
    #[serde(skip)]
    network: u32,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    kind: i32,
    name: Option<Name>,
    /// Of its own inode.
    own: SocketFile,
    state: State,
    /// Supplementary groups of the maker (SO_PEERGROUPS).
    groups: Vec<u32>,
    /// What was shut down: 1 for reading, 2 for writing.
    shutdown: u8,
    /// What waits to be read.
    queue: Vec<Message>,
    options: Vec<SocketOption>,
}

/// Whom SO_PEERCRED names is called the maker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// Not connected.
    Single,
    /// With so many connections that may wait, and those that do, the one that is accepted first at first.
    Listening {
        most: u32,
        maker: Maker,
        waiting: Vec<Unaccepted>,
    },
    /// One of two that are connected with each other.
    Pair { other: u32, maker: Maker },
    /// One whose other end is closed.
    Widowed { maker: Maker },
    /// A datagram socket that sends to another one by its name.
    Sending { other: u32, to: Vec<u8> },
    /// A datagram socket that sent to one of this name, which is closed.
    Abandoned { to: Vec<u8> },
    /// One whose connection waits to be accepted.
    Waiting { maker: Maker },
    /// One that connects anew with somebody outside of the tree, at this name.
    Outside { to: Vec<u8> },
}

impl Body {
    /// The name that it is bound to itself: an end that was accepted has that of the one that listens.
    fn own_name(&self) -> Option<&Name> {
        match self.state {
            State::Single
            | State::Listening { .. }
            | State::Sending { .. }
            | State::Abandoned { .. }
            | State::Waiting { .. }
            | State::Outside { .. } => self.name.as_ref(),
            _ => None,
        }
    }

    fn is_possible(&self) -> bool {
        let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET];
        let with_queue = self.queue.is_empty() || self.is_end() || self.takes_letters();
        let to = match &self.state {
            State::Sending { to, .. } | State::Abandoned { to } => self.is_of_letters() && name::is_possible(to),
            State::Outside { to } => name::is_possible(to) && peer::is_lasting(to),
            _ => true,
        };
        let own = self.name.as_ref().is_none_or(|own| name::is_possible(&own.bytes));
        let listens = match &self.state {
            State::Listening { waiting, .. } => {
                self.name.is_some() && waiting.iter().all(|one| one.is_possible(self.is_stream()))
            }
            State::Waiting { .. } => !self.is_of_letters(),
            _ => true,
        };
        let known = kinds.contains(&self.kind) && self.shutdown <= 3 && self.groups.len() <= MOST_GROUPS;
        let messages = self.queue.iter().all(|message| {
            let from = message.from.is_empty() || name::is_possible(&message.from);
            from && message.is_possible(self.is_stream())
        });
        known && with_queue && to && own && listens && messages && options::are_possible(&self.options)
    }

    /// Whether it is one end of a connection, also where the other is closed.
    fn is_end(&self) -> bool {
        matches!(self.state, State::Pair { .. } | State::Widowed { .. })
    }

    fn is_of_letters(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }

    /// Whether any socket may send to it, by its name.
    fn takes_letters(&self) -> bool {
        self.is_of_letters() && !self.is_end() && self.name.is_some()
    }

    /// Whether others reach it: by what was bound here, never by a name that leads to something else elsewhere.
    fn is_reached(&self) -> bool {
        self.takes_letters() || matches!(self.state, State::Listening { .. })
    }

    /// Whether it has a name, as those see it that are of a network namespace: each has abstract names of its own.
    fn has_name(&self, name: &[u8], network: u32) -> bool {
        let own = self.name.as_ref().is_some_and(|own| own.bytes == name);
        own && (name::is_path(name) || self.network == network)
    }

    fn is_stream(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }

    /// Those that are set when all has been sent to it, and the others.
    fn options(&self) -> (Vec<SocketOption>, Vec<SocketOption>) {
        /// SO_PASSRIGHTS, asm-generic/socket.h (Linux 6.16).
        const LATE: (i32, i32) = (libc::SOL_SOCKET, 83);
        let is_late = |option: &SocketOption| option.which() == LATE || option.is_of_filter();
        self.options.iter().cloned().partition(is_late)
    }

    /// Who made it, where that is told.
    fn maker(&self) -> Option<Maker> {
        match &self.state {
            State::Listening { maker, .. }
            | State::Pair { maker, .. }
            | State::Widowed { maker }
            | State::Waiting { maker } => Some(*maker),
            State::Single | State::Sending { .. } | State::Abandoned { .. } | State::Outside { .. } => None,
        }
    }

    /// Whether it accepted a connection whose server's end has this name, and whose client tells of this maker.
    fn accepted(&self, name: &[u8], (network, kind): (u32, i32), maker: Option<Maker>) -> bool {
        matches!(self.state, State::Listening { .. })
            && self.kind == kind
            && self.has_name(name, network)
            && maker.is_none_or(|maker| Some(maker) == self.maker())
    }
}

/// Who looks up the path by which an image has a socket, or has it connect anew: its root directory may be another one than
/// others'. `None` where there is none to be looked up.
///
/// # Errors
/// [`FileError`].
pub fn looked_up_by(record: &OpenFileRecord) -> Result<Option<NsPid>, FileError> {
    if record.kind != NAME {
        return Ok(None);
    }
    let name = possible(record)?.name.filter(|name| name::is_path(&name.bytes));
    Ok(name.map(|name| name.holder))
}

impl FileKind for Unix {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        family(file) == Some(libc::AF_UNIX)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        dump::dump(file, context)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body = possible(record)?;
        let socket = make::make(record.id, &body, context)?;
        let wrap = |source| system("set the options of", record.id, source);
        let usual = context.usual.of((libc::AF_UNIX, body.kind, 0), &[libc::SOL_SOCKET]);
        let usual = usual.map_err(|error| wrap(error.into()))?;
        let (_, early) = body.options();
        options::set_all(socket.as_fd(), &usual, &early, &options::Suspects::All).map_err(wrap)?;
        body.own.set(socket.as_fd()).map_err(|error| wrap(error.into()))?;
        set_status(socket.as_fd(), record)?;
        Ok(socket)
    }

    /// Connects it with whom it sends to, and shuts down what was shut down, when both ends have what waits for them.
    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>, unsent: &Unsent) -> Result<(), FileError> {
        let body = possible(record)?;
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        match &body.state {
            State::Sending { other, to } => deliver::send_to(record.id, (*other, to), holders, unsent)?,
            State::Abandoned { to } => deliver::send_to_nobody((record.id, record.network), to, holders)?,
            State::Listening { .. } => unaccepted::connect_all((record.id, &body), holders, unsent)?,
            State::Outside { to } => peer::connect_anew((record.id, &body), to, holders)?,
            _ => {}
        }
        let (late, _) = body.options();
        if !late.is_empty() {
            let wrap = |source: OptionError| system("set the options of", record.id, source.into());
            options::set(holders.fetch(place)?.as_fd(), &late).map_err(wrap)?;
        }
        match body.state {
            // The kernel does so where the other end is closed.
            State::Widowed { .. } if !body.is_of_letters() => Ok(()),
            // It may not be connected yet.
            State::Waiting { .. } => Ok(()),
            _ => shut_down((record.id, &body), holders.fetch(place)?.as_fd()),
        }
    }

    fn complete(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body = possible(record)?;
        match (&body.state, holders.first(record.id)) {
            (State::Waiting { .. }, Some(place)) => shut_down((record.id, &body), holders.fetch(place)?.as_fd()),
            _ => Ok(()),
        }
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let name = body.name.as_ref().map(Name::shown);
        let state = match &body.state {
            State::Single => "not connected".to_owned(),
            State::Listening { waiting, .. } if waiting.is_empty() => "listens".to_owned(),
            State::Listening { waiting, .. } => format!("listens, {} connections wait", waiting.len()),
            State::Waiting { .. } => "waits to be accepted".to_owned(),
            State::Outside { to } => format!("connects anew with {}, outside of the tree", name::shown(to)),
            State::Pair { other, .. } => format!("connected with {other}"),
            State::Widowed { .. } => "other end closed".to_owned(),
            State::Sending { to, .. } => format!("sends to {}", name::shown(to)),
            State::Abandoned { to } => format!("sent to {}, which is closed", name::shown(to)),
        };
        let waiting = match queue::bytes(&body.queue) {
            0 => String::new(),
            bytes => format!(", {bytes} bytes wait"),
        };
        let name = name.map(|name| format!(" {name}")).unwrap_or_default();
        Ok(format!("{}{name}, {state}{waiting}", body.socket))
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body = possible(record)?;
        if let State::Outside { to } = &body.state
            && let Some(found) = peer::obstacle(to, body.kind, root)?
        {
            return Ok(Some(found));
        }
        let waiting = match &body.state {
            State::Listening { waiting, .. } => &waiting[..],
            _ => &[],
        };
        for queue in waiting.iter().map(|one| &one.queue).chain([&body.queue]) {
            let found = queue::nameless(queue).map_err(|source| system("name senders to", record.id, source.into()))?;
            if let Some(found) = found {
                return Ok(Some(found.to_owned()));
            }
        }
        body.own_name().map_or(Ok(None), |name| name.obstacle(root))
    }
}

/// What is in the way of a name that is no path, in floe's own network namespace, if a file is of this kind and has one.
pub(super) fn taken_name(record: &OpenFileRecord) -> Result<Option<String>, FileError> {
    if record.kind != NAME {
        return Ok(None);
    }
    let body = possible(record)?;
    body.own_name().map_or(Ok(None), |name| name.taken(body.kind))
}

fn shut_down((id, body): (u32, &Body), socket: BorrowedFd<'_>) -> Result<(), FileError> {
    let how = match body.shutdown {
        0 => return Ok(()),
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        _ => Shutdown::Both,
    };
    shutdown(socket.as_raw_fd(), how).map_err(|source| system("shut down", id, source.into()))
}

fn read(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    Ok(Body {
        network: record.network,
        ..body
    })
}

fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body = read(record)?;
    if body.is_possible() {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no such unix socket".to_owned(),
        })
    }
}
