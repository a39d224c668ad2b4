//! TCP connections. Where both ends are in the tree, or one is and the other, on this host, is closed, they are made again
//! by connecting: nothing but the two ends themselves can tell that sequence numbers are others. Where the other end is
//! outside, it must not notice anything: packets are held back ([`hold`]) and the end is put together in repair mode
//! ([`outside`]).

mod dump;
mod hold;
mod make;
mod nobody;
mod outside;
mod partners;
mod port;
mod repair;
mod sent;
mod stream;
mod waiting;

pub(in crate::file) use dump::{FoundConnections, resolve};
pub(in crate::file) use make::MadeConnections;
pub(super) use make::{bind_sharing, prepare};
pub(super) use nobody::{ended, refused, reset_with};
pub(super) use stream::{Stream, untold};
pub(super) use waiting::{FoundListener, Waiting, connect_all};

pub(in crate::file) use hold::MadeOutside;
pub(crate) use hold::is_lasting_hold;

pub use hold::{Ending, Held, Newcomers, OutsideEnds};

use super::{
    Keeper,
    address::Address,
    duplicate, family, inet, number_option,
    options::{self, SocketOption, Suspects},
    system,
    tcp_state::TcpState,
};
use crate::file::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, Unsent, decode, memory::Memory,
    set_status,
};
use floe_image::record::OpenFileRecord;
use nix::{
    errno::Errno,
    sys::socket::{Shutdown, shutdown},
};
use outside::Outside;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// The kind.
pub struct TcpConnection;

const NAME: &str = "tcp-connection";

/// The levels of its options.
const OPTIONS: [i32; 4] = inet::levels(libc::IPPROTO_TCP);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    /// AF_INET or AF_INET6.
    family: i32,
    local: SocketAddr,
    remote: SocketAddr,
    /// Who has the other end.
    other: OtherEnd,
    /// Whether it will send no more.
    shut_write: bool,
    /// Whether it wants to read no more, though the other end might send.
    shut_read: bool,
    /// What waits to be read, with what is on its way here.
    queue: Stream,
    /// How many of these bytes are on their way.
    coming: u32,
    /// Whether this end knows that the other sends no more.
    got_end: bool,
    options: Vec<SocketOption>,
}

/// Who has the other end of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum OtherEnd {
    /// A process of the tree: the open file of this number, which may be of another network namespace.
    Tree(u32),
    /// Nobody, and it is closed.
    Closed,
    /// Somebody outside.
    Outside(Box<Outside>),
    /// Somebody outside, and the connection is given up: this end finds it reset.
    GivenUp,
    /// Nobody yet: it waits to be accepted by the tree.
    Unaccepted,
}

/// What becomes of TCP connections whose other ends are outside of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpMode {
    /// They stand in the way.
    #[default]
    Refuse,
    /// They go on.
    Established,
    /// They are given up: the tree's ends find them reset.
    Close,
}

/// How connections are looked at.
type Look<'a> = (&'a Keeper, &'a Memory);

/// The two addresses of an end, its own first, in the form in which both ends agree (an IPv4 address may be mapped).
type Ends = (SocketAddr, SocketAddr);

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Body {
    fn ends(&self) -> Ends {
        (canonical(self.local), canonical(self.remote))
    }

    /// What was shut down.
    fn shut(&self) -> Option<Shutdown> {
        match (self.shut_read, self.shut_write) {
            (false, false) => None,
            (true, false) => Some(Shutdown::Read),
            (false, true) => Some(Shutdown::Write),
            (true, true) => Some(Shutdown::Both),
        }
    }

    /// How many bytes have come.
    fn come(&self) -> usize {
        self.queue.bytes.len() - self.coming as usize
    }

    /// Whether something looks at what comes.
    fn is_filtered(&self) -> bool {
        self.options.iter().any(SocketOption::is_of_filter)
    }

    fn is_possible(&self) -> bool {
        [libc::AF_INET, libc::AF_INET6].contains(&self.family)
            && self.local.is_ipv6() == (self.family == libc::AF_INET6)
            && self.remote.is_ipv6() == self.local.is_ipv6()
            && self.queue.is_possible()
            && self.coming as usize <= self.queue.bytes.len()
            && match &self.other {
                OtherEnd::Outside(outside) => self.queue.marks.len() < 2 && outside.is_possible(),
                _ => self.queue.has_all(),
            }
            && options::are_possible(&self.options)
    }
}

/// Whether a file is a TCP socket that has, or is about to have, a connection.
pub(super) fn is_connection(file: &FoundFile) -> bool {
    if !matches!(family(file), Some(libc::AF_INET | libc::AF_INET6)) {
        return false;
    }
    let is_tcp = number_option(file.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP);
    is_tcp && TcpState::read(file.as_fd()).is_ok_and(|tcp| tcp.is_connection())
}

impl FileKind for TcpConnection {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        is_connection(file)
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        dump::dump(file, context)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        prepare(context)?;
        let body = possible(record)?;
        let (mut suspects, mut sender) = (Suspects::All, None);
        let mut options = body.options.clone();
        let socket = match &body.other {
            OtherEnd::Outside(outside) if context.outside.tcp == TcpMode::Established => {
                let socket = outside::make(record.id, (&body, outside), context)?;
                let kept = duplicate(record.id, &socket)?;
                context.repaired.push((record.id, kept));
                if body.got_end {
                    // The end comes once more, when packets pass again.
                    options = options::without_filter(&options);
                }
                socket
            }
            OtherEnd::Outside(_) | OtherEnd::GivenUp => nobody::reset(record.id, &body, context)?,
            OtherEnd::Tree(_) | OtherEnd::Closed => {
                let made = make::make(record.id, &body, context)?;
                (suspects, sender) = (made.suspects, made.sender);
                made.socket
            }
            OtherEnd::Unaccepted => {
                let socket = make::unconnected(record.id, &body, context)?;
                set_status(socket.as_fd(), record)?;
                return Ok(socket);
            }
        };
        let wrap = |source| system("set the options of", record.id, source);
        let kind = (body.family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let usual = context.usual.of(kind, &OPTIONS).map_err(|error| wrap(error.into()))?;
        options::set_all(socket.as_fd(), &usual, &options, &suspects).map_err(wrap)?;
        if let Some(sender) = sender {
            // A filter may hold it back for ever.
            let reader = (!body.is_filtered()).then_some(socket.as_fd());
            let sent = body
                .queue
                .send(body.come()..body.queue.bytes.len(), sender.as_fd(), reader);
            sent.map_err(|source| system("send again to", record.id, source.into()))?;
        }
        set_status(socket.as_fd(), record)?;
        Ok(socket)
    }

    /// Shuts down what was shut down, when both ends have sent what was on its way.
    fn connect(&self, record: &OpenFileRecord, holders: &Holders<'_>, _unsent: &Unsent) -> Result<(), FileError> {
        let body = possible(record)?;
        let (OtherEnd::Tree(_) | OtherEnd::Closed, Some(how)) = (&body.other, body.shut()) else {
            return Ok(());
        };
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        let socket = holders.fetch(place)?;
        match shutdown(socket.as_raw_fd(), how) {
            // Both ends have said their last by now.
            Err(Errno::ENOTCONN) => Ok(()),
            result => result.map_err(|source| system("shut down", record.id, source.into())),
        }
    }

    /// One that waits to be accepted is connected by now.
    fn complete(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body = possible(record)?;
        let (OtherEnd::Unaccepted, Some(place)) = (&body.other, holders.first(record.id)) else {
            return Ok(());
        };
        options::set_late(holders.fetch(place)?.as_fd(), &body.options)
            .map_err(|error| system("set the options of", record.id, error.into()))
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let other = match body.other {
            OtherEnd::Tree(_) => "",
            OtherEnd::Closed => ", closed there",
            OtherEnd::Outside(_) => ", outside of the tree",
            OtherEnd::GivenUp => ", given up",
            OtherEnd::Unaccepted => ", not accepted yet",
        };
        let waiting = body.queue.bytes.len();
        Ok(format!(
            "{} to {}{other}, {waiting} bytes wait",
            body.local, body.remote
        ))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        possible(record).map(|_| None)
    }
}

/// Names of the network devices that a file needs, where it is of this kind.
pub(super) fn devices_in(record: &OpenFileRecord) -> Result<BTreeSet<String>, FileError> {
    if record.kind != NAME {
        return Ok(BTreeSet::new());
    }
    let body = possible(record)?;
    Ok(options::bound_device(&body.options).into_iter().collect())
}

fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    if body.is_possible() {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no such TCP connection".to_owned(),
        })
    }
}

/// Both addresses of a socket.
fn addresses(socket: BorrowedFd<'_>) -> Result<Option<(SocketAddr, SocketAddr)>, Errno> {
    Ok(Address::local(socket)?.zip(Address::remote(socket)?))
}
