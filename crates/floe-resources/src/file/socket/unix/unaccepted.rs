//! Connections of the tree's that wait to be accepted at a unix socket of the tree's. They are made again when all others
//! are: the client connects, and what it had sent is sent once more.

use super::{
    Body, State,
    connection::{To, connect_as},
    deliver::{Unsent, room_for, send},
    elsewhere::Place,
    make::{listen, only, socket_in},
    name,
};
use crate::file::{
    FileError, Holders, own_groups,
    socket::{Maker, fetch, queue::Message, system},
};
use floe_sys::socket::unix_sockets;
use floe_tracee::{Puppet, Script};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::fstat,
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connection that nobody has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unaccepted {
    /// The file that is the client's end; `None` where that is closed.
    pub client: Option<u32>,
    /// The client's name where it is closed and had one.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Who connected.
    pub maker: Maker,
    /// The supplementary groups of that one.
    pub groups: Vec<u32>,
    /// What was sent.
    pub queue: Vec<Message>,
}

impl Unaccepted {
    pub(super) fn is_possible(&self, is_stream: bool) -> bool {
        let name = self.name.is_empty() || self.client.is_none() && name::is_possible(&self.name);
        let queue = self.queue.iter().all(|message| message.is_possible(is_stream));
        name && queue && self.groups.len() <= super::MOST_GROUPS
    }
}

/// Has all connections wait again at a socket that listens, the file `id`.
pub(super) fn connect_all((id, body): (u32, &Body), holders: &Holders<'_>, unsent: &Unsent) -> Result<(), FileError> {
    let State::Listening { most, maker, waiting } = &body.state else {
        return Ok(());
    };
    if waiting.is_empty() {
        return Ok(());
    }
    let own = own_groups()?;
    let count = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
    // It was told to take fewer when these were there.
    let is_more = count > *most;
    let by = (*maker, &body.groups[..]);
    if is_more {
        listen_again(id, count, by, (holders, &own))?;
    }
    let to = To::reach((id, body), unsent.places.get(&body.socket))?;
    let clients = waiting.iter().map(|one| connect((id, body), one, to, (holders, &own)));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    see_waiting((id, body), &clients, holders)?;
    for (one, (client, _place)) in waiting.iter().zip(&clients) {
        fill((id, body), one, client.as_fd(), holders)?;
    }
    if is_more {
        listen_again(id, *most, by, (holders, &own))?;
    }
    Ok(())
}

fn listen_again(
    id: u32,
    most: u32,
    (maker, groups): (Maker, &[u32]),
    (holders, own): (&Holders<'_>, &[u32]),
) -> Result<(), FileError> {
    let puppet = maker.among(id, holders.puppets)?;
    let listening = holders.fetch(place_of(id, id, holders)?)?;
    let number = give(listening.as_fd(), puppet, holders)?;
    listen((puppet, number), most, (maker, groups), own)?;
    take_back(puppet, number)
}

/// A client's end, and where it has its name while it is needed.
type Client = (OwnedFd, Option<Place>);

fn connect(
    (id, body): (u32, &Body),
    one: &Unaccepted,
    to: To<'_>,
    (holders, own): (&Holders<'_>, &[u32]),
) -> Result<Client, FileError> {
    let puppet = one.maker.among(id, holders.puppets)?;
    let (client, place) = match one.client {
        Some(file) => (holders.fetch(place_of(id, file, holders)?)?, None),
        None => {
            let client = socket_in(id, puppet, (body.network, body.kind), holders.makers())?;
            let client = only(id, fetch(id, puppet, &[client])?)?;
            let place = match &one.name[..] {
                [] => None,
                name => name::bind_for_a_moment(client.as_fd(), name)
                    .map_err(|source| system("give its name to a client of", id, source.into()))?,
            };
            (client, place)
        }
    };
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let number = give(client.as_fd(), puppet, holders)?;
    let patient = without_waiting(client.as_fd()).map_err(wrap("prepare a client of"))?;
    connect_as((puppet, number), (one.maker, &one.groups), to, (holders.channel, own))?;
    set_flags(client.as_fd(), patient).map_err(wrap("set the flags of a client of"))?;
    take_back(puppet, number)?;
    Ok((client, place))
}

/// Sees that the connections of these clients wait at the socket that listens, before anything is sent to whom they are
/// connected with.
fn see_waiting((id, body): (u32, &Body), clients: &[Client], holders: &Holders<'_>) -> Result<(), FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let number = |socket: BorrowedFd<'_>| fstat(socket).map(|found| found.st_ino as u32);
    let listening = holders.fetch(place_of(id, id, holders)?)?;
    let own = number(listening.as_fd()).map_err(wrap("stat"))?;
    let listed = holders.inside(body.network, || Ok(unix_sockets()?));
    let listed = listed.map_err(|error| system("list the sockets like", id, error))?;
    let waiting = listed.get(&own).map_or(&[][..], |socket| &socket.waiting);
    for (client, _) in clients {
        if !waiting.contains(&number(client.as_fd()).map_err(wrap("stat a client of"))?) {
            return Err(FileError::Unknown {
                id,
                what: "a connection that should wait there waits somewhere else".to_owned(),
            });
        }
    }
    Ok(())
}

fn fill(
    (id, body): (u32, &Body),
    one: &Unaccepted,
    client: BorrowedFd<'_>,
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    let wrap = |source: Errno| system("make room to send to", id, source.into());
    let _room = room_for(client, &one.queue).map_err(wrap)?;
    let mut messages = one.queue.iter();
    messages.try_for_each(|message| send((id, client), None, (body, message), holders))
}

fn place_of(id: u32, file: u32, holders: &Holders<'_>) -> Result<(i32, i32), FileError> {
    holders.first(file).ok_or_else(|| FileError::Unknown {
        id,
        what: format!("open file {file}, an end of a connection that waits there, is nobody's"),
    })
}

fn give(file: BorrowedFd<'_>, puppet: &Puppet, holders: &Holders<'_>) -> Result<i32, FileError> {
    Ok(holders.channel.give(&mut Script::new(puppet), &[file])?[0])
}

fn take_back(puppet: &Puppet, number: i32) -> Result<(), FileError> {
    let mut batch = puppet.batch();
    batch.call("close a socket", libc::SYS_close, &[number as u64]);
    Ok(puppet.run(&mut batch)?)
}

/// Where others have filled the queue, a connection fails, and no task waits for room. The flags that it had.
pub(super) fn without_waiting(client: BorrowedFd<'_>) -> Result<OFlag, Errno> {
    let flags = OFlag::from_bits_retain(fcntl(client, FcntlArg::F_GETFL)?);
    fcntl(client, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(flags)
}

pub(super) fn set_flags(client: BorrowedFd<'_>, flags: OFlag) -> Result<(), Errno> {
    fcntl(client, FcntlArg::F_SETFL(flags)).map(drop)
}
