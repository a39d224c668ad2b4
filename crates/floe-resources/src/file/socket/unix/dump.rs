//! How unix sockets are found, and with whom they are connected.

use super::{
    Body, State,
    name::{self, Name},
};
use crate::{
    file::{
        DumpContext, FileError, FoundFile,
        socket::{Maker, ROOT, has_error, options, peer, queue, refuse},
    },
    ns,
    refusal::{Refusals, Subject},
};
use floe_image::{codec, record::NsPid};
use floe_sys::{
    Pid,
    socket::{UnixSocket, unix_sockets},
};
use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt::SockType as OfKind},
};
use std::{
    collections::{HashMap, HashSet},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

/// include/net/sock.h.
const RCV_SHUTDOWN: u8 = 1;

/// Unix sockets found so far.
#[derive(Default)]
pub(in crate::file) struct FoundUnix {
    /// All of the tree's network namespace; asked for once.
    listed: Option<Listed>,
    seen: HashMap<u32, Seen>,
}

struct Listed {
    sockets: HashMap<u32, UnixSocket>,
    /// Those whose connections nobody has accepted yet.
    waiting: HashSet<u32>,
}

/// One that is saved.
struct Seen {
    subject: Subject,
    title: String,
    name: Option<Vec<u8>>,
    listens: bool,
    /// Whether it is one end of a connection, also where the other is closed.
    is_end: bool,
    peer: Option<u32>,
}

impl FoundUnix {
    fn listed(&mut self, file: &FoundFile) -> Result<&Listed, FileError> {
        if self.listed.is_none() {
            let listed = ns::inside::run(file.holder, CloneFlags::CLONE_NEWNET, || Ok(unix_sockets()?));
            let sockets = listed.map_err(|error| FileError::System {
                action: "list the sockets like",
                object: file.title(),
                source: std::io::Error::other(error),
            })?;
            let waiting = sockets.values().flat_map(|socket| &socket.waiting).copied().collect();
            self.listed = Some(Listed { sockets, waiting });
        }
        Ok(self.listed.as_ref().expect("just listed"))
    }

    /// Refuses ends whose other end no task of the tree has, and those that were accepted by a socket that none has.
    pub(in crate::file) fn refuse_incomplete(&self, refusals: &mut Refusals) {
        let listening = self.seen.values().filter(|seen| seen.listens);
        let names: HashSet<&Vec<u8>> = listening.filter_map(|seen| seen.name.as_ref()).collect();
        let listens_at = |name: &Option<Vec<u8>>| name.as_ref().is_some_and(|name| names.contains(name));
        for seen in self.seen.values() {
            let mut refuse = |reason, advice| refusals.add(Some(&seen.subject), seen.title.clone(), reason, advice);
            let other = seen.peer.map(|peer| self.seen.get(&peer));
            if let Some(None) = other {
                refuse(
                    "the other end of this socket is outside of the tree, or on its way through a socket",
                    "end the process that holds it, or close it",
                );
            } else if seen.is_end && seen.name.is_some() {
                let other = other.flatten().map_or(&None, |other| &other.name);
                if !listens_at(&seen.name) && !listens_at(other) {
                    refuse(
                        "the socket that accepted this connection is closed, and its name can't be given again",
                        "keep it open, or close the connection",
                    );
                }
            }
        }
    }
}

pub(super) fn dump(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let inode = file.metadata.ino() as u32;
    let wrap = |action| FileError::system(action, file.title());
    let listed = context.unix.listed(file)?;
    let Some(unix) = listed.sockets.get(&inode).cloned() else {
        return refuse(
            file,
            context,
            "a unix socket of another network namespace can't be carried yet",
        );
    };
    if listed.waiting.contains(&inode) {
        return refuse(
            file,
            context,
            "a connection that is not accepted yet can't be carried yet",
        );
    }
    let other = unix.peer.and_then(|peer| listed.sockets.get(&peer)).cloned();
    if has_error(file.as_fd()).map_err(wrap("poll"))? {
        return refuse(
            file,
            context,
            "a socket with an error that nobody has read can't be carried yet",
        );
    }
    let maker = peer(file.as_fd(), context).map_err(wrap("read the maker of"))?;
    let state = match state(inode, &unix, other.as_ref(), maker) {
        Ok(state) => state,
        Err(reason) => return refuse(file, context, reason),
    };
    if let (State::Sending { to }, Some(place)) = (&state, other.as_ref().and_then(|other| other.file))
        && name::file_of(file.holder, to, place)?.is_none()
    {
        return refuse(
            file,
            context,
            "the name to which this socket sends was removed, or means another file to the task that has it",
        );
    }
    let is_end = matches!(state, State::Pair { .. } | State::Widowed { .. });
    context.unix.seen.insert(
        inode,
        Seen {
            subject: file.subject.clone(),
            title: file.title(),
            name: unix.name.clone(),
            listens: unix.listens,
            is_end,
            peer: unix.peer,
        },
    );
    let name = match unix.name {
        Some(bytes) => {
            let found = match unix.file {
                Some(identity) => name::file_of(file.holder, &bytes, identity)?,
                None => None,
            };
            if unix.file.is_some() && found.is_none() && !is_end {
                return refuse(
                    file,
                    context,
                    "the name of this socket was removed, or stands for another file now",
                );
            }
            let holder = NsPid(context.processes.get(&file.holder).copied().unwrap_or(0));
            Some(Name {
                bytes,
                holder,
                file: found,
            })
        }
        None => None,
    };
    let queue = if unix.listens {
        Vec::new()
    } else {
        let inside = |pid| context.processes.get(&Pid::new(pid)).copied().unwrap_or(0);
        let ends = unix.kind == libc::SOCK_SEQPACKET && unix.shutdown & RCV_SHUTDOWN != 0;
        let how = (unix.kind == libc::SOCK_STREAM, ends);
        let waiting = queue::waiting((file.as_fd(), &context.keeper), how, inside);
        match waiting.map_err(wrap("look at what waits in"))? {
            Ok(queue) => queue,
            Err(reason) => return refuse(file, context, reason),
        }
    };
    if !queue.is_empty() && !is_end {
        return refuse(
            file,
            context,
            "messages that wait in a socket with a name can't be carried yet",
        );
    }
    let fresh = fresh(file).map_err(wrap("make a socket like"))?;
    let differing = options::differing(file.as_fd(), fresh.as_fd(), &[libc::SOL_SOCKET]);
    let (options, others) = differing.map_err(wrap("read the options of"))?;
    if !others.is_empty() {
        return refuse(file, context, &options::refusal(&others));
    }
    let body = Body {
        socket: inode,
        kind: unix.kind,
        name,
        state,
        shutdown: unix.shutdown,
        queue,
        options,
    };
    Ok(Some(codec::encode(&body)?))
}

fn state(
    inode: u32,
    unix: &UnixSocket,
    other: Option<&UnixSocket>,
    maker: Option<Maker>,
) -> Result<State, &'static str> {
    let by = maker.unwrap_or(ROOT);
    if unix.listens {
        let (waiting, most) = unix.queues;
        return if waiting > 0 {
            Err("connections that wait to be accepted can't be carried yet")
        } else {
            Ok(State::Listening { most, maker: by })
        };
    }
    let Some(peer) = unix.peer else {
        // One that was never connected tells of no maker.
        return Ok(maker.map_or(State::Single, |maker| State::Widowed { maker }));
    };
    let other_name = other.and_then(|other| other.name.clone());
    let are_mutual = other.is_some_and(|other| other.peer == Some(inode));
    match (unix.kind, other_name) {
        (libc::SOCK_DGRAM, Some(to)) => Ok(State::Sending { to }),
        (libc::SOCK_DGRAM, None) if !are_mutual || unix.name.is_some() => {
            Err("a socket that sends to one without a name can't be carried yet")
        }
        _ => Ok(State::Pair { other: peer, maker: by }),
    }
}

fn fresh(like: &FoundFile) -> Result<OwnedFd, Errno> {
    let kind: SockType = getsockopt(like, OfKind)?;
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)
}
