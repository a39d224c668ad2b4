//! Sockets of the internet families that have no connection: TCP ones that listen, UDP ones, and new ones.

use super::{
    Maker, family, fetch, has_error, has_events,
    options::{self, SocketOption},
    refuse, system,
};
use crate::file::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, set_status};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::socket::option;
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{SockaddrLike, SockaddrStorage, bind, connect, getpeername, getsockname},
};
use serde::{Deserialize, Serialize};
use std::{
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// The kind.
pub struct Inet;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// AF_INET or AF_INET6.
    family: i32,
    /// SOCK_STREAM or SOCK_DGRAM.
    kind: i32,
    /// IPPROTO_TCP, IPPROTO_UDP or IPPROTO_UDPLITE.
    protocol: i32,
    /// Its own address, where it is bound.
    local: Option<SocketAddr>,
    /// That of a UDP socket's other end.
    remote: Option<SocketAddr>,
    /// How many connections may wait, where it listens.
    listens: Option<u32>,
    options: Vec<SocketOption>,
}

impl Body {
    fn is_possible(&self) -> bool {
        let is_tcp = (self.kind, self.protocol) == (libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let is_udp =
            self.kind == libc::SOCK_DGRAM && [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&self.protocol);
        [libc::AF_INET, libc::AF_INET6].contains(&self.family)
            && (is_tcp && self.remote.is_none() || is_udp && self.listens.is_none())
            && options::are_possible(&self.options)
    }
}

/// What TCP_INFO tells of a connection's state, include/net/tcp_states.h, and of one that listens: how many connections
/// wait, and how many may.
struct TcpState {
    state: u8,
    waiting: u32,
    most: u32,
}

const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

impl TcpState {
    fn read(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let info = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let word = |at: usize| {
            let four = info.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
        };
        Ok(Self {
            state: *info.first().ok_or(Errno::EPROTO)?,
            waiting: word(24)?,
            most: word(28)?,
        })
    }
}

impl FileKind for Inet {
    fn name(&self) -> &'static str {
        "inet-socket"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        matches!(family(file), Some(libc::AF_INET | libc::AF_INET6))
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let wrap = |action| FileError::system(action, file.title());
        let socket = file.duplicate()?;
        let number = |name| super::number_option(socket.as_fd(), libc::SOL_SOCKET, name);
        let read = wrap("read the kind of");
        let (family, kind, protocol) = (|| {
            Ok((
                number(libc::SO_DOMAIN)?,
                number(libc::SO_TYPE)?,
                number(libc::SO_PROTOCOL)?,
            ))
        })()
        .map_err(read)?;
        let mut body = Body {
            family,
            kind,
            protocol,
            local: address(getsockname(socket.as_raw_fd())).map_err(wrap("read the address of"))?,
            remote: None,
            listens: None,
            options: Vec::new(),
        };
        if !body.is_possible() {
            let reason = format!("a socket of protocol {protocol} can't be carried yet");
            return refuse(file, context, &reason);
        }
        if kind == libc::SOCK_STREAM {
            let tcp = TcpState::read(socket.as_fd()).map_err(wrap("read the state of"))?;
            match tcp.state {
                TCP_CLOSE => {}
                TCP_LISTEN if tcp.waiting == 0 => body.listens = Some(tcp.most),
                TCP_LISTEN => {
                    return refuse(
                        file,
                        context,
                        "connections that wait to be accepted can't be carried yet",
                    );
                }
                _ => return refuse(file, context, "a TCP connection can't be carried yet"),
            }
        } else {
            body.remote = match getpeername(socket.as_raw_fd()) {
                Err(Errno::ENOTCONN) => None,
                found => address(found).map_err(wrap("read the other address of"))?,
            };
            if has_events(socket.as_fd(), PollFlags::POLLIN).map_err(wrap("poll"))? {
                return refuse(file, context, "datagrams that wait in a socket can't be carried yet");
            }
        }
        if has_error(socket.as_fd()).map_err(wrap("poll"))? {
            return refuse(
                file,
                context,
                "a socket with an error that nobody has read can't be carried yet",
            );
        }
        if [body.local, body.remote].into_iter().flatten().any(has_scope) {
            return refuse(
                file,
                context,
                "an address of one network device (scope) can't be carried yet",
            );
        }
        let fresh = floe_sys::socket::new(family, kind, protocol).map_err(wrap("make a socket like"))?;
        let levels = [libc::SOL_SOCKET, protocol, libc::IPPROTO_IP, libc::IPPROTO_IPV6];
        let differing = options::differing(socket.as_fd(), fresh.as_fd(), &levels);
        let (options, others) = differing.map_err(wrap("read the options of"))?;
        if !others.is_empty() {
            return refuse(file, context, &options::refusal(&others));
        }
        body.options = options;
        Ok(Some(codec::encode(&body)?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body = possible(record)?;
        // In the tree's network namespace.
        let puppet = Maker::of(1).puppet(record.id, context)?;
        let mut batch = puppet.batch();
        let kind = (body.kind | libc::SOCK_CLOEXEC) as u64;
        let arguments = [body.family as u64, kind, body.protocol as u64];
        let made = batch.call("make a socket", libc::SYS_socket, &arguments);
        puppet.run(&mut batch)?;
        let socket = fetch(record.id, puppet, &[batch.result(made) as i32])?.remove(0);
        set_up(&socket, &body).map_err(|(action, source)| system(action, record.id, source.into()))?;
        set_status(socket.as_fd(), record)?;
        Ok(socket)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let protocol = match body.protocol {
            libc::IPPROTO_TCP => "tcp",
            libc::IPPROTO_UDP => "udp",
            _ => "udplite",
        };
        let local = body.local.map(|local| format!(" {local}")).unwrap_or_default();
        let state = match (body.listens, body.remote) {
            (Some(_), _) => ", listens".to_owned(),
            (None, Some(remote)) => format!(", sends to {remote}"),
            (None, None) => String::new(),
        };
        Ok(format!("{protocol}{local}{state}"))
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        possible(record).map(|_| None)
    }
}

fn set_up(socket: &OwnedFd, body: &Body) -> Result<(), (&'static str, Errno)> {
    let failed = |action| move |source| (action, source);
    options::set(socket.as_fd(), &body.options).map_err(failed("set the options of"))?;
    if let Some(local) = body.local {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local)).map_err(failed("bind (is its port taken?)"))?;
    }
    if let Some(remote) = body.remote {
        connect(socket.as_raw_fd(), &SockaddrStorage::from(remote)).map_err(failed("connect"))?;
    }
    if let Some(most) = body.listens {
        floe_sys::socket::listen(socket.as_fd(), most).map_err(failed("listen at"))?;
    }
    Ok(())
}

/// `None` where it is none: no address and no port.
fn address(found: Result<SockaddrStorage, Errno>) -> Result<Option<SocketAddr>, Errno> {
    let found = found?;
    let address = match (found.as_sockaddr_in(), found.as_sockaddr_in6()) {
        (Some(four), _) => SocketAddr::V4(SocketAddrV4::from(*four)),
        (_, Some(six)) => SocketAddr::V6(SocketAddrV6::from(*six)),
        _ if found.len() <= 2 => return Ok(None),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    Ok(Some(address).filter(|address| address.port() != 0 || !address.ip().is_unspecified()))
}

fn has_scope(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(six) if six.scope_id() != 0)
}

fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    if body.is_possible() {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no such internet socket".to_owned(),
        })
    }
}
