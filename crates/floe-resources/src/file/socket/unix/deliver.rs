//! What waited in sockets and can be sent only when all files are open: messages with descriptors, and datagrams that came
//! from anybody. Then datagram sockets are connected with whom they send to, who would else take no others' messages.

use super::{
    Body,
    elsewhere::Place,
    make::{only, read, socket_in},
    name,
};
use crate::file::{
    FileError, Holders,
    socket::{Maker, fetch, options, queue, system},
};
use floe_image::record::OpenFileRecord;
use nix::{
    errno::Errno,
    sys::socket::{UnixAddr, connect},
};
use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// Sockets of the image, and the numbers of their files.
type Records = HashMap<u32, (u32, Body)>;

/// What is needed to send it.
#[derive(Default)]
pub struct Unsent {
    /// Other ends of sockets in which descriptors waited, by the numbers of their files.
    pub(super) senders: HashMap<u32, OwnedFd>,
    /// Where sockets are that can't be reached by their names, or must be by floe.
    pub(super) places: HashMap<u32, Place>,
    /// Names of the image's sockets.
    names: HashMap<u32, Vec<u8>>,
}

/// Sends all that waited and could be sent only now.
///
/// # Errors
/// [`FileError`].
pub fn deliver(unsent: &mut Unsent, files: &[OpenFileRecord], holders: &Holders<'_>) -> Result<(), FileError> {
    let records = read(files)?;
    let named = records
        .iter()
        .filter_map(|(socket, (_, body))| Some((*socket, body.name.as_ref()?.bytes.clone())));
    unsent.names = named.collect();
    for (id, body) in records.values().filter(|(_, body)| !body.queue.is_empty()) {
        if body.takes_letters() {
            letters((*id, body), unsent, &records, holders)?;
        } else if let Some(other) = unsent.senders.remove(id) {
            let wrap = |source: Errno| system("put back what waited in", *id, source.into());
            let _room = room_for(other.as_fd(), &body.queue).map_err(wrap)?;
            for message in &body.queue {
                send((*id, other.as_fd()), None, (body, message), holders)?;
            }
        }
    }
    Ok(())
}

/// Room for all of a queue in what a socket sends.
pub(super) fn room_for<'a>(socket: BorrowedFd<'a>, queue: &[queue::Message]) -> Result<options::Room<'a>, Errno> {
    // Each piece takes a buffer of its own, so there must be more room than there are bytes.
    options::Room::make(
        socket,
        options::Buffer::Send,
        4 * queue::bytes(queue) + queue.len() * 1024,
    )
}

pub(super) fn send(
    (id, socket): (u32, BorrowedFd<'_>),
    to: Option<&UnixAddr>,
    (body, message): (&Body, &queue::Message),
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    let mut files = Vec::with_capacity(message.files.len());
    for file in &message.files {
        let lacking = || FileError::Unknown {
            id,
            what: format!("open file {file}, which waits in it, is not there"),
        };
        files.push(holders.fetch(holders.first(*file).ok_or_else(lacking)?)?);
    }
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let outside = |pid: i32| holders.puppets.get(&pid).map_or(0, |puppet| puppet.tid().raw());
    queue::send((socket, to), message, &files, (body.is_stream(), &outside))
        .map_err(|source| system("put back what waited in", id, source.into()))
}

/// Sends to a name, each from the socket that it came from, or one of the same name.
fn letters(
    (id, body): (u32, &Body),
    unsent: &Unsent,
    records: &Records,
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let to = match (unsent.places.get(&body.socket), &body.name) {
        (Some(place), _) => UnixAddr::new(&place.path()),
        (None, Some(name)) if !name::is_path(&name.bytes) => UnixAddr::new_abstract(&name.bytes[1..]),
        (None, _) => Err(Errno::EDESTADDRREQ),
    };
    let to = to.map_err(wrap("find the name of"))?;
    for message in &body.queue {
        let (sender, _place) = sender((id, body.network, &message.from), records, holders)?;
        let _room = room_for(sender.as_fd(), &body.queue).map_err(wrap("make room to send to"))?;
        send((id, sender.as_fd()), Some(&to), (body, message), holders)?;
    }
    Ok(())
}

/// A datagram socket with a name, or with none.
fn sender(
    (id, network, name): (u32, u32, &[u8]),
    records: &Records,
    holders: &Holders<'_>,
) -> Result<(OwnedFd, Option<Place>), FileError> {
    let has_it = |body: &Body| body.is_of_letters() && body.has_name(name, network);
    let living = records.values().find(|(_, body)| has_it(body));
    if let Some(place) = living.and_then(|(id, _)| holders.first(*id)) {
        return Ok((holders.fetch(place)?, None));
    }
    named((id, network), name, holders)
}

/// Has a datagram socket send to another one's name from now on.
pub(super) fn send_to(
    id: u32,
    (other, name): (u32, &[u8]),
    holders: &Holders<'_>,
    unsent: &Unsent,
) -> Result<(), FileError> {
    let Some((pid, number)) = holders.first(id) else {
        return Ok(());
    };
    // Else a forged image would have it connect with whatever of the host's is there.
    if unsent.names.get(&other).is_none_or(|own| own != name) {
        return Err(FileError::Unknown {
            id,
            what: format!("the image has no socket {}, to which it sends", name::shown(name)),
        });
    }
    if let Some(place) = unsent.places.get(&other) {
        let wrap = |source: Errno| system("connect", id, source.into());
        let to = UnixAddr::new(&place.path()).map_err(wrap)?;
        return connect(holders.fetch((pid, number))?.as_raw_fd(), &to).map_err(wrap);
    }
    if name::is_path(name) {
        return Err(FileError::Unknown {
            id,
            what: format!(
                "socket {} of the image, to which it sends, is not bound",
                name::shown(name)
            ),
        });
    }
    let puppet = holders.puppet(pid)?;
    let mut batch = puppet.batch();
    let bytes = name::address(name);
    let place = batch.data(&bytes);
    let arguments = [number as u64, place, bytes.len() as u64];
    batch.call("connect a datagram socket", libc::SYS_connect, &arguments);
    Ok(puppet.run(&mut batch)?)
}

/// Has a datagram socket be one that sent to a socket of this name, which is closed.
pub(super) fn send_to_nobody((id, network): (u32, u32), name: &[u8], holders: &Holders<'_>) -> Result<(), FileError> {
    let Some(place) = holders.first(id) else {
        return Ok(());
    };
    let (nobody, there) = named((id, network), name, holders)?;
    let to = match &there {
        Some(there) => UnixAddr::new(&there.path()),
        None => UnixAddr::new_abstract(name.strip_prefix(&[0]).unwrap_or_default()),
    };
    let wrap = |source: Errno| system("connect", id, source.into());
    let socket = holders.fetch(place)?;
    connect(socket.as_raw_fd(), &to.map_err(wrap)?).map_err(wrap)?;
    drop(nobody);
    Ok(())
}

/// A datagram socket that has a name for a moment.
fn named((id, network): (u32, u32), name: &[u8], holders: &Holders<'_>) -> Result<(OwnedFd, Option<Place>), FileError> {
    let puppet = Maker::of(0).among(id, holders.puppets)?;
    let number = socket_in(id, puppet, (network, libc::SOCK_DGRAM), holders.makers())?;
    let made = only(id, fetch(id, puppet, &[number])?)?;
    if name.is_empty() {
        return Ok((made, None));
    }
    let place = name::bind_for_a_moment(made.as_fd(), name)
        .map_err(|source| system("give a name to a socket for", id, source.into()))?;
    Ok((made, place))
}
