//! How unix sockets are made again: by the tasks that made them, since others are told who that was.

use super::{
    Body, NAME, State, connection,
    deliver::{Unsent, room_for},
    name::{self, BoundNames},
};
use crate::file::{
    FileError, OpenContext,
    socket::{Maker, ROOT, duplicate, fetch, queue, supply::new_alone, system, visit::Makers},
};
use floe_image::record::OpenFileRecord;
use floe_tracee::{Batch, Puppet, Script};
use nix::errno::Errno;
use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

pub(super) type Records = Rc<HashMap<u32, (u32, Body)>>;

/// Unix sockets made again so far.
#[derive(Default)]
pub(in crate::file) struct MadeUnix {
    /// The records of all of the image, by socket, and the numbers of their files.
    records: Option<Records>,
    /// Those that listen, until all connections are made.
    pub(super) listening: HashMap<u32, OwnedFd>,
    /// Other ends of those that were asked for.
    others: HashMap<u32, OwnedFd>,
    pub(in crate::file) unsent: Unsent,
    /// The names that were given, which go again when this is dropped.
    pub(in crate::file) bound: BoundNames,
}

pub(super) fn records(context: &mut OpenContext<'_>) -> Result<Records, FileError> {
    if let Some(records) = &context.unix.records {
        return Ok(Rc::clone(records));
    }
    let records = Rc::new(read(context.files)?);
    context.unix.records = Some(Rc::clone(&records));
    Ok(records)
}

/// Whether an image tells of each unix socket once: it is by this that they refer to each other.
///
/// # Errors
/// [`FileError::Unknown`] where it does not.
pub fn check(files: &[OpenFileRecord]) -> Result<(), FileError> {
    read(files).map(drop)
}

/// The records of unix sockets, by socket, and the numbers of their files.
pub(super) fn read(files: &[OpenFileRecord]) -> Result<HashMap<u32, (u32, Body)>, FileError> {
    let mut found = HashMap::new();
    for record in files.iter().filter(|record| record.kind == NAME) {
        let body = super::read(record)?;
        let socket = body.socket;
        if let Some((other, _)) = found.insert(socket, (record.id, body)) {
            return Err(FileError::Unknown {
                id: record.id,
                what: format!("it is unix socket {socket}, as open file {other} is already"),
            });
        }
    }
    Ok(found)
}

/// A socket as `body` tells, but for its options.
pub(super) fn make(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
    match &body.state {
        State::Single
        | State::Sending { .. }
        | State::Abandoned { .. }
        | State::Waiting { .. }
        | State::Outside { .. } => single(id, body, context),
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
            let (other_id, other_body) = records.get(other).ok_or_else(lacking)?;
            let [one, two] = connection::connected(id, body, Some(other_body), context)?;
            fill((id, body), &two, context)?;
            fill((*other_id, other_body), &one, context)?;
            context.unix.others.insert(*other, two);
            Ok(one)
        }
        State::Widowed { .. } => {
            let [one, closed] = connection::connected(id, body, None, context)?;
            fill((id, body), &closed, context)?;
            Ok(one)
        }
    }
}

/// A new socket of a network namespace in a task, which need not be there; its number in the task.
pub(super) fn socket_in(
    id: u32,
    puppet: &Puppet,
    (network, kind): (u32, i32),
    makers: Makers<'_>,
) -> Result<i32, FileError> {
    let kind = kind | libc::SOCK_NONBLOCK;
    if !makers.is_in(id, puppet, network)? {
        let made = new_alone(id, (network, (libc::AF_UNIX, kind, 0)), makers)?;
        return Ok(makers.channel.give(&mut Script::new(puppet), &[made.as_fd()])?[0]);
    }
    let mut batch = puppet.batch();
    let kind = (kind | libc::SOCK_CLOEXEC) as u64;
    let made = batch.call("make a socket", libc::SYS_socket, &[libc::AF_UNIX as u64, kind, 0]);
    puppet.run(&mut batch)?;
    Ok(batch.result(made) as i32)
}

fn single(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
    let nobody = Maker::of(body.name.as_ref().map_or(0, |name| name.holder.0));
    let puppet = nobody.puppet(id, context)?;
    let number = socket_in(id, puppet, (body.network, body.kind), context.makers())?;
    if let Some(name) = &body.name {
        name::bind((id, body), (puppet, number), name, context)?;
    }
    only(id, fetch(id, puppet, &[number])?)
}

pub(super) fn only(id: u32, fetched: Vec<OwnedFd>) -> Result<OwnedFd, FileError> {
    let none = || system("fetch", id, Errno::EBADF.into());
    fetched.into_iter().next().ok_or_else(none)
}

/// Makes a socket that listens, where it is not made yet.
pub(super) fn listening(id: u32, body: &Body, context: &mut OpenContext<'_>) -> Result<(), FileError> {
    let State::Listening { most, maker, .. } = body.state else {
        return Ok(());
    };
    if context.unix.listening.contains_key(&body.socket) {
        return Ok(());
    }
    let puppet = maker.puppet(id, context)?;
    let number = socket_in(id, puppet, (body.network, body.kind), context.makers())?;
    if let Some(name) = &body.name {
        name::bind((id, body), (puppet, number), name, context)?;
    }
    listen((puppet, number), most, (maker, &body.groups), &context.groups)?;
    let socket = only(id, fetch(id, puppet, &[number])?)?;
    context.unix.listening.insert(body.socket, socket);
    Ok(())
}

/// Has a socket of a task listen, as the maker, whom others are told of.
pub(super) fn listen(
    (puppet, number): (&Puppet, i32),
    most: u32,
    (maker, groups): (Maker, &[u32]),
    own: &[u32],
) -> Result<(), FileError> {
    let mut batch = puppet.batch();
    as_maker(&mut batch, (maker, groups), own, |batch| {
        batch.call("listen", libc::SYS_listen, &[number as u64, u64::from(most)]);
    });
    Ok(puppet.run(&mut batch)?)
}

/// Adds calls that are done as the maker with these supplementary groups, which the kernel notes; the task's `own` groups
/// are put back.
pub(super) fn as_maker<T>(
    batch: &mut Batch,
    (maker, groups): (Maker, &[u32]),
    own: &[u32],
    calls: impl FnOnce(&mut Batch) -> T,
) -> T {
    let set = |batch: &mut Batch, groups: &[u32]| {
        let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let place = batch.data(&bytes);
        let arguments = [groups.len() as u64, place];
        batch.call("take the maker's groups", libc::SYS_setgroups, &arguments);
    };
    let others = groups != own;
    if others {
        set(batch, groups);
    }
    maker.become_in(batch);
    let done = calls(batch);
    ROOT.become_in(batch);
    if others {
        set(batch, own);
    }
    done
}

/// Sends from the `other` end what is to wait in the one that `body` tells of, or keeps that for when files can come with
/// it.
fn fill((id, body): (u32, &Body), other: &OwnedFd, context: &mut OpenContext<'_>) -> Result<(), FileError> {
    let wrap = |source: Errno| system("put back what waited in", id, source.into());
    if body.queue.is_empty() {
        return Ok(());
    }
    if body.queue.iter().any(|message| !message.files.is_empty()) {
        context.unix.unsent.senders.insert(id, duplicate(id, other)?);
        return Ok(());
    }
    let _room = room_for(other.as_fd(), &body.queue).map_err(wrap)?;
    let outside = |pid: i32| context.puppets.get(&pid).map_or(0, |puppet| puppet.tid().raw());
    for message in &body.queue {
        let how = (body.is_stream(), &outside as &dyn Fn(i32) -> i32);
        queue::send((other.as_fd(), None), message, &[], how).map_err(wrap)?;
    }
    Ok(())
}
