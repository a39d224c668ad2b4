//! Connections of the tree's that wait to be accepted at a socket of the tree's. They are made again when all others are:
//! the client connects, and sends once more what it had sent.

use super::{Ends, Stream, TcpMode, canonical, make, sent::Sent};
use crate::{
    file::{
        FileError, FoundFile, Holders,
        memory::Memory,
        socket::{address::Address, inet, number_option, supply::new_alone, system, tcp_state::TcpState},
    },
    ns::NetworkSpace,
    refusal::{Passing, Refusals, Subject},
};
use floe_sys::{descriptor::pidfd_getfd, kernel::WaitingConnection, socket::is_somebodys};
use nix::{
    errno::Errno,
    sys::socket::{Shutdown, SockaddrStorage, connect, shutdown},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

/// A connection that nobody has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::file::socket) struct Waiting {
    /// Where it was connected to.
    local: SocketAddr,
    /// Who connected.
    remote: SocketAddr,
    /// The open file that is the other end; `None` where that is closed.
    client: Option<u32>,
    /// What the client shut down: 1 for reading, 2 for writing.
    shut: u8,
    /// What came from there, and what is on its way.
    queue: Stream,
}

impl Waiting {
    pub(in crate::file::socket) fn is_possible(&self) -> bool {
        self.queue.is_possible() && self.queue.has_all()
    }
}

/// A socket that listens.
pub(in crate::file::socket) struct FoundListener {
    network: NetworkSpace,
    pidfd: Rc<OwnedFd>,
    number: i32,
    subject: Subject,
    title: String,
    /// Where it listens.
    place: Option<SocketAddr>,
    /// Connections that wait, as listed.
    seen: Vec<WaitingConnection>,
}

/// What is known of the ends that are carried, by the network namespace in which they wait to be accepted and their addresses:
/// file, what was shut down, what is on its way.
pub(super) type Clients<'a> = HashMap<(u32, Ends), (u32, u8, &'a Option<Sent>)>;

impl FoundListener {
    /// With all connections that wait there; `None` where they can't be told, which is refused.
    pub(in crate::file::socket) fn read(
        file: &FoundFile,
        memory: &Memory,
        refusals: &mut Refusals,
    ) -> Result<Option<Self>, FileError> {
        let state = TcpState::read(file.as_fd()).map_err(FileError::system("read the state of", file.title()))?;
        let seen = if state.waits() {
            memory.waiting_connections(file.as_fd())
        } else {
            Ok(Vec::new())
        };
        let place = Address::local(file.as_fd());
        let place = place.map_err(FileError::system("read the address of", file.title()))?;
        match seen {
            Ok(seen) => Ok(Some(Self {
                network: file.network.clone(),
                pidfd: Rc::clone(&file.pidfd),
                number: file.number,
                subject: file.subject.clone(),
                title: file.title(),
                place,
                seen,
            })),
            Err(error) => {
                let reason =
                    format!("connections wait to be accepted, which only the kernel's memory tells of: {error}");
                refusals.add(Some(&file.subject), file.title(), reason, "try again");
                refusals.last_passes(passing(&file.network, place));
                Ok(None)
            }
        }
    }

    /// The number of its network namespace.
    pub(super) fn network(&self) -> u32 {
        self.network.number
    }

    /// The ends of the clients.
    pub(super) fn clients(&self) -> impl Iterator<Item = Ends> {
        self.seen
            .iter()
            .map(|one| (canonical(one.remote), canonical(one.local)))
    }

    /// What becomes of them. What the clients have sent has been looked at already.
    pub(super) fn resolve(
        &self,
        (memory, mode): (&Memory, TcpMode),
        clients: &Clients<'_>,
        refusals: &mut Refusals,
    ) -> Result<Vec<Waiting>, FileError> {
        if self.seen.is_empty() {
            return Ok(Vec::new());
        }
        let socket =
            pidfd_getfd(self.pidfd.as_fd(), self.number).map_err(FileError::system("fetch", self.title.clone()))?;
        let failed = |source| FileError::System {
            action: "read what waits at",
            object: self.title.clone(),
            source,
        };
        let mut resolved = Vec::new();
        for one in memory.waiting_connections(socket.as_fd()).map_err(failed)? {
            let (local, remote) = (one.local, one.remote);
            if one.filtered {
                let reason =
                    format!("a filter of the connection from {remote}, which waits to be accepted, can't be set");
                refusals.add(Some(&self.subject), self.title.clone(), reason, "try again");
                refusals.last_passes(passing(&self.network, self.place));
                continue;
            }
            let mut waiting = Waiting {
                local,
                remote,
                client: None,
                shut: 0,
                queue: Stream::default(),
            };
            match clients.get(&(self.network.number, (canonical(remote), canonical(local)))) {
                Some((file, shut, sent)) => {
                    (waiting.client, waiting.shut) = (Some(*file), *shut);
                    waiting.queue = whole(one, *shut & 2 != 0, sent.as_ref())
                        .ok_or_else(|| failed(io::Error::other("what is on its way there does not fit")))?;
                }
                None if one.got_end
                    && remote.ip().to_canonical().is_loopback()
                    && !self.is_others(remote, local)? =>
                {
                    waiting.queue = come(one);
                    // Nobody sends it any more.
                    waiting.queue.forget_missing();
                }
                None if mode == TcpMode::Close => continue,
                None => {
                    refusals.add(
                        Some(&self.subject),
                        self.title.clone(),
                        format!("a connection from {remote}, outside of the tree, waits to be accepted"),
                        "try again, or give it up by --tcp close",
                    );
                    refusals.last_passes(passing(&self.network, self.place));
                    continue;
                }
            }
            if !waiting.queue.has_all() {
                let reason = "an urgent byte that was told of and not sent yet can't be carried";
                refusals.add(Some(&self.subject), self.title.clone(), reason, "try again");
                refusals.last_passes(passing(&self.network, self.place));
            }
            resolved.push(waiting);
        }
        Ok(resolved)
    }

    /// Whether some process has the client's end.
    fn is_others(&self, client: SocketAddr, server: SocketAddr) -> Result<bool, FileError> {
        let look = || Ok(is_somebodys(client, server)?);
        self.network.run(look).map_err(|error| FileError::System {
            action: "look for clients of",
            object: self.title.clone(),
            source: io::Error::other(error),
        })
    }
}

/// How connections that wait at an address pass. New ones can be held back in the network namespace of the tree's root.
fn passing(network: &NetworkSpace, place: Option<SocketAddr>) -> Passing {
    let place = place.filter(|_| network.number == 0);
    place.map_or(Passing::OfItself, Passing::Accepted)
}

/// What came.
fn come(one: WaitingConnection) -> Stream {
    Stream {
        bytes: one.queue,
        marks: one.mark.into_iter().map(Into::into).collect(),
    }
}

/// What came, and behind it what is on its way.
fn whole(one: WaitingConnection, has_shut: bool, sent: Option<&Sent>) -> Option<Stream> {
    // The end counts as one.
    let end = u32::from(has_shut && !one.got_end);
    let (next, mut queue) = (one.next, come(one));
    if let Some(sent) = sent {
        sent.append_behind(next.wrapping_add(end), &mut queue)?;
    }
    Some(queue)
}

/// How long a connection within the host may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has all connections wait again at a socket that listens, the file `id`.
pub(in crate::file::socket) fn connect_all(
    (id, network): (u32, u32),
    all: &[Waiting],
    holders: &Holders<'_>,
) -> Result<(), FileError> {
    if all.is_empty() {
        return Ok(());
    }
    let place_of = |file: u32| {
        let lacking = || FileError::Unknown {
            id,
            what: format!("open file {file}, an end of a connection that waits there, is nobody's"),
        };
        holders.first(file).ok_or_else(lacking)
    };
    let place = place_of(id)?;
    let listening = holders.fetch(place)?;
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let defer = inet::without_deferring(listening.as_fd()).map_err(wrap("prepare"))?;
    for (number, waiting) in all.iter().enumerate() {
        let client = match waiting.client {
            Some(file) => holders.fetch(place_of(file)?)?,
            None => {
                let family = if waiting.remote.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                };
                let kind = (family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
                let socket = new_alone(id, (network, kind), holders.makers())?;
                make::bind_sharing(socket.as_fd(), waiting.remote).map_err(wrap("bind a client of"))?;
                socket
            }
        };
        connect_one(client.as_fd(), waiting).map_err(wrap("connect with"))?;
        await_connection(listening.as_fd(), number + 1).map_err(wrap("wait for a connection with"))?;
    }
    defer
        .put_back(listening.as_fd())
        .map_err(wrap("put back the options of"))
}

fn connect_one(client: BorrowedFd<'_>, waiting: &Waiting) -> Result<(), Errno> {
    let family = number_option(client, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let to = SockaddrStorage::from(make::in_family(waiting.local, family));
    match connect(client.as_raw_fd(), &to) {
        // It does not wait; the other end is on this host.
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    make::await_connected(client, PATIENCE)?;
    waiting.queue.send(waiting.queue.all(), client, None)?;
    let how = match waiting.shut {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    shutdown(client.as_raw_fd(), how)
}

/// The kernel takes note of the client's last word by itself.
fn await_connection(listening: BorrowedFd<'_>, count: usize) -> Result<(), Errno> {
    let end = Instant::now() + PATIENCE;
    while TcpState::read(listening)?.count() < count {
        if Instant::now() > end {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::yield_now();
    }
    Ok(())
}
