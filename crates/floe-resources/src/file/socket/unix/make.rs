//! How unix sockets are made again: by the tasks that made them, since others are told who that was. Two that are
//! connected are made as a pair, or where one has the name of a socket that listens, by connecting with that.

use super::{
    Body, NAME, State,
    name::{self, BoundNames},
};
use crate::file::{
    FileError, OpenContext, decode,
    socket::{Maker, ROOT, credentials, duplicate, fetch, has_events, options, queue, system},
};
use floe_sys::descriptor::adopt;
use floe_tracee::Puppet;
use nix::{
    errno::Errno,
    sys::socket::{SockFlag, accept4},
};
use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
};

type Records = Rc<HashMap<u32, (u32, Body)>>;

/// Unix sockets made again so far.
#[derive(Default)]
pub(in crate::file) struct MadeUnix {
    /// The records of all of the image, by socket, and the numbers of their files.
    records: Option<Records>,
    /// Those that listen, until all connections are made.
    listening: HashMap<u32, OwnedFd>,
    /// Other ends of those that were asked for.
    others: HashMap<u32, OwnedFd>,
    pub(super) bound: BoundNames,
}

impl MadeUnix {
    /// The names that were given, which go again when this is dropped.
    pub(in crate::file) fn into_bound(self) -> BoundNames {
        self.bound
    }
}

fn records(context: &mut OpenContext<'_>) -> Result<Records, FileError> {
    if let Some(records) = &context.unix.records {
        return Ok(Rc::clone(records));
    }
    let mut found = HashMap::new();
    for record in context.files.iter().filter(|record| record.kind == NAME) {
        let body: Body = decode(record)?;
        found.insert(body.socket, (record.id, body));
    }
    let records = Rc::new(found);
    context.unix.records = Some(Rc::clone(&records));
    Ok(records)
}

/// A socket as `body` tells, but for its options.
pub(super) fn make(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
    match &body.state {
        State::Single | State::Sending { .. } => single(id, body, context),
        State::Listening { .. } => {
            listening(id, body, context)?;
            duplicate(id, &context.unix.listening[&body.socket])
        }
        State::Pair { other, .. } => {
            if let Some(made) = context.unix.others.remove(&body.socket) {
                return Ok(made);
            }
            let records = records(context)?;
            let lacking = || FileError::Unknown {
                id,
                what: format!("the image lacks socket {other}, with which it is connected"),
            };
            let (_, other_body) = records.get(other).ok_or_else(lacking)?;
            let [one, two] = connected(id, body, Some(other_body), context)?;
            context.unix.others.insert(*other, two);
            Ok(one)
        }
        State::Widowed { .. } => connected(id, body, None, context).map(|[one, _closed]| one),
    }
}

fn maker_of(body: &Body) -> Option<Maker> {
    match &body.state {
        State::Listening { maker, .. } | State::Pair { maker, .. } | State::Widowed { maker } => Some(*maker),
        State::Single | State::Sending { .. } => None,
    }
}

/// A new socket in a task; its number there.
fn socket_in(puppet: &Puppet, kind: i32) -> Result<i32, FileError> {
    let mut batch = puppet.batch();
    let kind = (kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    let made = batch.call("make a socket", libc::SYS_socket, &[libc::AF_UNIX as u64, kind, 0]);
    puppet.run(&mut batch)?;
    Ok(batch.result(made) as i32)
}

fn single(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let nobody = Maker::of(body.name.as_ref().map_or(0, |name| name.holder.0));
    let puppet = nobody.puppet(id, context)?;
    let number = socket_in(puppet, body.kind)?;
    if let Some(name) = &body.name {
        name::bind(id, (puppet, number), name, context)?;
    }
    only(id, fetch(id, puppet, &[number])?)
}

fn only(id: u32, fetched: Vec<OwnedFd>) -> Result<OwnedFd, FileError> {
    let none = || system("fetch", id, Errno::EBADF.into());
    fetched.into_iter().next().ok_or_else(none)
}

fn listening(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<(), FileError> {
    let State::Listening { most, maker } = body.state else {
        return Ok(());
    };
    if context.unix.listening.contains_key(&body.socket) {
        return Ok(());
    }
    let binder = match &body.name {
        Some(name) if name::is_relative(&name.bytes) => Maker::of(name.holder.0),
        _ => maker,
    };
    let puppet = binder.puppet(id, context)?;
    let number = socket_in(puppet, body.kind)?;
    if let Some(name) = &body.name {
        name::bind(id, (puppet, number), name, context)?;
    }
    let mut batch = puppet.batch();
    maker.become_in(&mut batch);
    batch.call("listen", libc::SYS_listen, &[number as u64, u64::from(most)]);
    ROOT.become_in(&mut batch);
    puppet.run(&mut batch)?;
    let socket = only(id, fetch(id, puppet, &[number])?)?;
    context.unix.listening.insert(body.socket, socket);
    Ok(())
}

/// Two ends, the first for `one`, with what waits in each.
fn connected(
    id: u32,
    one: &Body,
    two: Option<&Body>,
    context: &mut OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    let records = records(context)?;
    let accepted_by = |body: Option<&Body>| {
        let name = &body?.name.as_ref()?.bytes;
        records.values().find(|(_, listening)| listening.listens_at(name))
    };
    let ends = if let Some((number, listening)) = accepted_by(Some(one)) {
        let [client, server] = through((*number, listening), (one, two), context)?;
        [server, client]
    } else if let Some((number, listening)) = accepted_by(two) {
        through((*number, listening), (two.unwrap_or(one), Some(one)), context)?
    } else {
        pair(id, one, context)?
    };
    let wrap = |source: Errno| system("put back what waited in", id, source.into());
    fill(&ends[1], one, context).map_err(wrap)?;
    if let Some(two) = two {
        fill(&ends[0], two, context).map_err(wrap)?;
    }
    Ok(ends)
}

fn pair(id: u32, body: &Body, context: &OpenContext<'_>) -> Result<[OwnedFd; 2], FileError> {
    let maker = maker_of(body).unwrap_or(ROOT);
    let puppet = maker.puppet(id, context)?;
    let mut batch = puppet.batch();
    let place = batch.room(8);
    maker.become_in(&mut batch);
    let kind = (body.kind | libc::SOCK_CLOEXEC) as u64;
    let arguments = [libc::AF_UNIX as u64, kind, 0, place];
    batch.call("make a pair of sockets", libc::SYS_socketpair, &arguments);
    ROOT.become_in(&mut batch);
    puppet.run(&mut batch)?;
    let bytes = batch.bytes(place, 8);
    let number = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 of 8 bytes"));
    both(id, fetch(id, puppet, &[number(0), number(4)])?)
}

fn both(id: u32, ends: Vec<OwnedFd>) -> Result<[OwnedFd; 2], FileError> {
    ends.try_into().map_err(|_| system("fetch", id, Errno::EBADF.into()))
}

/// A connection through the socket that listens: the client's end, and the one that was accepted.
fn through(
    (id, listener): (u32, &Body),
    (server, client): (&Body, Option<&Body>),
    context: &mut OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    listening(id, listener, context)?;
    // What the server's end tells of is who connected.
    let maker = maker_of(server).unwrap_or(ROOT);
    let puppet = maker.puppet(id, context)?;
    let number = socket_in(puppet, listener.kind)?;
    if let Some(name) = client.and_then(|client| client.name.as_ref()) {
        name::bind(id, (puppet, number), name, context)?;
    }
    let mut batch = puppet.batch();
    let name = listener.name.as_ref();
    let bytes = name.map_or_else(|| name::address(&[]), |name| name::address_for(maker.pid, name));
    let place = batch.data(&bytes);
    maker.become_in(&mut batch);
    let arguments = [number as u64, place, bytes.len() as u64];
    batch.call("connect", libc::SYS_connect, &arguments);
    ROOT.become_in(&mut batch);
    puppet.run(&mut batch)?;
    let client = only(id, fetch(id, puppet, &[number])?)?;
    let server = accept_from(&context.unix.listening[&listener.socket], puppet)
        .map_err(|source| system("accept a connection at", id, source.into()))?;
    Ok([client, server])
}

/// The connection that the task made. Others may come meanwhile to a name that all can see; they find it closed.
fn accept_from(listening: &OwnedFd, puppet: &Puppet) -> Result<OwnedFd, Errno> {
    while has_events(listening.as_fd(), libc::POLLIN)? {
        let accepted = adopt(accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?);
        if credentials(accepted.as_fd())?[0] == puppet.tid().raw() as u32 {
            return Ok(accepted);
        }
    }
    Err(Errno::ECONNABORTED)
}

/// Sends from the `other` end what is to wait in the one that `body` tells of.
fn fill(other: &OwnedFd, body: &Body, context: &OpenContext<'_>) -> Result<(), Errno> {
    if body.queue.is_empty() {
        return Ok(());
    }
    // Each piece takes a buffer of its own, so there must be more room than there are bytes.
    let before = options::room(other.as_fd())?;
    let wanted = 4 * queue::bytes(&body.queue) + body.queue.len() * 1024;
    options::set_room(other.as_fd(), (before / 2).max(wanted))?;
    let outside = |pid: i32| context.puppets.get(&pid).map_or(0, |puppet| puppet.tid().raw());
    queue::send_all(other.as_fd(), &body.queue, body.is_stream(), outside)?;
    options::set_room(other.as_fd(), before / 2)
}

/// Has a datagram socket of a task send to a name from now on.
pub(super) fn send_to(puppet: &Puppet, number: i32, name: &[u8]) -> Result<(), FileError> {
    let mut batch = puppet.batch();
    let bytes = name::address(name);
    let place = batch.data(&bytes);
    let arguments = [number as u64, place, bytes.len() as u64];
    batch.call("connect a datagram socket", libc::SYS_connect, &arguments);
    Ok(puppet.run(&mut batch)?)
}
