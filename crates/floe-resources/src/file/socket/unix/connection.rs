//! How two ends are connected again: as a pair, or where one has the name of a socket that accepted it, by connecting with
//! that. Where that is closed, one of the same name takes its place for the moment.

use super::{
    Body,
    elsewhere::Place,
    make::{as_maker, listen, listening, only, records, socket_in},
    name,
};
use crate::{
    channel::Channel,
    file::{
        FileError, OpenContext,
        socket::{Maker, ROOT, credentials, fetch, has_events, system},
    },
};
use floe_sys::descriptor::adopt;
use floe_tracee::{Puppet, Script};
use nix::{
    errno::Errno,
    sys::socket::{SockFlag, accept4},
};
use std::os::{
    fd::{AsFd, AsRawFd, OwnedFd},
    unix::ffi::OsStrExt,
};

/// Two ends, the first for `one`; or only that one, whose other end is closed.
pub(super) fn connected(
    id: u32,
    one: &Body,
    two: Option<&Body>,
    context: &mut OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    if one.is_of_letters() {
        return pair(id, (one, two), context);
    }
    let records = records(context)?;
    // A client is told who listens.
    let accepted_by = |server: Option<&Body>, client: Option<&Body>| {
        let name = &server?.name.as_ref()?.bytes;
        let accepted = |maker| {
            let mut all = records.values();
            all.find(|(_, listening)| listening.accepted(name, (one.network, one.kind), maker))
        };
        let maker = client.and_then(Body::maker);
        // Two sockets can't have one abstract name.
        accepted(maker).or_else(|| accepted(None).filter(|_| !name::is_path(name)))
    };
    if let Some((number, listener)) = accepted_by(Some(one), two) {
        let [client, server] = through((*number, listener), (one, two), context)?;
        Ok([server, client])
    } else if let Some((number, listener)) = accepted_by(two, Some(one)) {
        through((*number, listener), (two.unwrap_or(one), Some(one)), context)
    } else if one.name.is_some() {
        let [client, server] = through_another(id, (one, two), context)?;
        Ok([server, client])
    } else if let Some(server) = two.filter(|two| two.name.is_some()) {
        through_another(id, (server, Some(one)), context)
    } else {
        pair(id, (one, two), context)
    }
}

fn pair(id: u32, (one, two): (&Body, Option<&Body>), context: &mut OpenContext<'_>) -> Result<[OwnedFd; 2], FileError> {
    let maker = one.maker().unwrap_or(ROOT);
    let puppet = maker.puppet(id, context)?;
    let visit = context.makers().visit(id, puppet, one.network)?;
    let mut batch = puppet.batch();
    let place = batch.room(8);
    let kind = (one.kind | libc::SOCK_CLOEXEC) as u64;
    let arguments = [libc::AF_UNIX as u64, kind, 0, place];
    visit.during(&mut batch, |batch| {
        as_maker(batch, (maker, &one.groups), &context.groups, |batch| {
            batch.call("make a pair of sockets", libc::SYS_socketpair, &arguments);
        });
    });
    puppet.run(&mut batch)?;
    let bytes = batch.bytes(place, 8);
    let number = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 of 8 bytes"));
    let numbers = [number(0), number(4)];
    for (body, number) in [Some(one), two].into_iter().zip(numbers) {
        if let Some((body, name)) = body.and_then(|body| Some((body, body.name.as_ref()?))) {
            name::bind((id, body), (puppet, number), name, context)?;
        }
    }
    let ends = fetch(id, puppet, &numbers)?;
    ends.try_into().map_err(|_| system("fetch", id, Errno::EBADF.into()))
}

/// A connection through the socket that listens: the client's end, and the one that was accepted.
fn through(
    (id, listener): (u32, &Body),
    (server, client): (&Body, Option<&Body>),
    context: &mut OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    listening(id, listener, context)?;
    let place = context.unix.unsent.places.remove(&listener.socket);
    let client = To::reach((id, listener), place.as_ref()).and_then(|to| connect(id, to, (server, client), context));
    if let Some(place) = place {
        context.unix.unsent.places.insert(listener.socket, place);
    }
    accept(id, &context.unix.listening[&listener.socket], client?)
}

/// The same through one that is closed in the tree.
fn through_another(
    id: u32,
    (server, client): (&Body, Option<&Body>),
    context: &mut OpenContext<'_>,
) -> Result<[OwnedFd; 2], FileError> {
    let maker = client.and_then(Body::maker).unwrap_or(ROOT);
    let puppet = maker.puppet(id, context)?;
    let number = socket_in(id, puppet, (server.network, server.kind), context.makers())?;
    let listening = only(id, fetch(id, puppet, &[number])?)?;
    let name = server.name.as_ref().map_or(&[][..], |name| &name.bytes);
    let place = name::bind_for_a_moment(listening.as_fd(), name)
        .map_err(|source| system("give its name to one that accepts", id, source.into()))?;
    let groups = client.map_or(&[][..], |client| &client.groups);
    let numbers = context.channel.give(&mut Script::new(puppet), &[listening.as_fd()])?;
    listen((puppet, numbers[0]), 1, (maker, groups), &context.groups)?;
    drop(fetch(id, puppet, &numbers)?);
    let to = place.as_ref().map_or(To::Name(name), To::Place);
    let client = connect(id, to, (server, client), context)?;
    accept(id, &listening, client)
}

/// How a socket that listens is reached.
#[derive(Clone, Copy)]
pub(super) enum To<'a> {
    /// By a name: an abstract one, or one of the host's that the user permits.
    Name(&'a [u8]),
    Place(&'a Place),
}

impl<'a> To<'a> {
    /// How one of the image's is reached, that has its `place` if its name is a path. A path alone can mean another socket
    /// to who connects.
    pub(super) fn reach((id, body): (u32, &'a Body), place: Option<&'a Place>) -> Result<Self, FileError> {
        let name = body.name.as_ref().map_or(&[][..], |name| &name.bytes);
        match place {
            Some(place) => Ok(Self::Place(place)),
            None if !name.is_empty() && !name::is_path(name) => Ok(Self::Name(name)),
            None => Err(FileError::Unknown {
                id,
                what: format!(
                    "it is not bound to {}, so nothing can connect with it",
                    name::shown(name)
                ),
            }),
        }
    }
}

/// The client's end, and the task that connected.
fn connect<'a>(
    id: u32,
    to: To<'_>,
    (server, client): (&Body, Option<&Body>),
    context: &mut OpenContext<'a>,
) -> Result<(OwnedFd, &'a Puppet), FileError> {
    // What the server's end tells of is who connected.
    let maker = server.maker().unwrap_or(ROOT);
    let puppet = maker.puppet(id, context)?;
    let number = socket_in(id, puppet, (server.network, server.kind), context.makers())?;
    if let Some((client, name)) = client.and_then(|client| Some((client, client.name.as_ref()?))) {
        name::bind((id, client), (puppet, number), name, context)?;
    }
    let who = (maker, &server.groups[..]);
    connect_as((puppet, number), who, to, (context.channel, &context.groups))?;
    Ok((only(id, fetch(id, puppet, &[number])?)?, puppet))
}

/// Connects a socket of a task as the maker with these groups; floe's channel, and the groups that the task has.
pub(super) fn connect_as(
    (puppet, number): (&Puppet, i32),
    (maker, groups): (Maker, &[u32]),
    to: To<'_>,
    (channel, own): (&Channel, &[u32]),
) -> Result<(), FileError> {
    let folder = match to {
        To::Place(place) => Some(channel.give(&mut Script::new(puppet), &[place.folder.as_fd()])?[0]),
        To::Name(_) => None,
    };
    let mut batch = puppet.batch();
    let before = folder.map(|folder| {
        let here = batch.data(b".\0");
        let arguments = [libc::AT_FDCWD as u64, here, (libc::O_PATH | libc::O_CLOEXEC) as u64];
        let before = batch.call("note the working directory", libc::SYS_openat, &arguments);
        batch.call("enter the directory of a socket", libc::SYS_fchdir, &[folder as u64]);
        before
    });
    let bytes = match to {
        To::Place(place) => name::address(place.name.as_bytes()),
        To::Name(name) => name::address(name),
    };
    let place = batch.data(&bytes);
    let arguments = [number as u64, place, bytes.len() as u64];
    as_maker(&mut batch, (maker, groups), own, |batch| {
        batch.call("connect", libc::SYS_connect, &arguments);
    });
    puppet.run(&mut batch)?;
    if let (Some(folder), Some(before)) = (folder, before) {
        let before = batch.result(before) as u64;
        let mut batch = puppet.batch();
        batch.call("go back to the working directory", libc::SYS_fchdir, &[before]);
        for number in [before, folder as u64] {
            batch.call("close a directory", libc::SYS_close, &[number]);
        }
        puppet.run(&mut batch)?;
    }
    Ok(())
}

/// The two ends, when the connection was accepted that a task made.
fn accept(id: u32, listening: &OwnedFd, (client, puppet): (OwnedFd, &Puppet)) -> Result<[OwnedFd; 2], FileError> {
    let wrap = |source: Errno| system("accept a connection at", id, source.into());
    Ok([client, accept_from(listening, puppet).map_err(wrap)?])
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
