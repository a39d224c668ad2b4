//! Sockets: options by number, and what sock_diag(7) tells of unix sockets.

use crate::descriptor::adopt;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// Values of options are asked for with room for so many bytes, and once more with room for more if they take all of it.
const OPTION_BYTES: usize = 256;
const MOST_BYTES: usize = 32 << 10;

/// A new socket of any family, kind and protocol, socket(2).
///
/// # Errors
/// Those of socket(2).
pub fn new(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    let made = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    Errno::result(made).map(adopt)
}

/// Has a socket listen, with so many connections that may wait, listen(2).
///
/// # Errors
/// Those of listen(2).
pub fn listen(socket: BorrowedFd<'_>, most: u32) -> Result<(), Errno> {
    let most = i32::try_from(most).unwrap_or(i32::MAX);
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), most) }).map(drop)
}

/// Which of these events (POLL*) a file has now, poll(2); POLLERR and POLLHUP also where they are not asked for.
///
/// # Errors
/// Those of poll(2).
pub fn events(file: BorrowedFd<'_>, wanted: i16) -> Result<i16, Errno> {
    let mut asked = libc::pollfd {
        fd: file.as_raw_fd(),
        events: wanted,
        revents: 0,
    };
    // SAFETY: one struct, which outlives the call.
    Errno::result(unsafe { libc::poll(&raw mut asked, 1, 0) })?;
    Ok(asked.revents)
}

/// Bytes that were written and that the other end has not acknowledged, SIOCOUTQ of tcp(7).
///
/// # Errors
/// Those of ioctl(2).
pub fn unacknowledged(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    count(socket, libc::TIOCOUTQ)
}

/// Bytes that were written and not sent yet, SIOCOUTQNSD of linux/sockios.h.
///
/// # Errors
/// Those of ioctl(2).
pub fn unsent(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    const SIOCOUTQNSD: libc::Ioctl = 0x894B;
    count(socket, SIOCOUTQNSD)
}

/// Bytes that wait to be read, SIOCINQ of tcp(7).
///
/// # Errors
/// Those of ioctl(2).
pub fn unread(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    count(socket, libc::FIONREAD)
}

fn count(socket: BorrowedFd<'_>, request: libc::Ioctl) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes a number, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) };
    Errno::result(result)?;
    Ok(bytes.max(0) as usize)
}

/// The instructions (struct sock_filter, 8 bytes each) of a packet filter as it was attached to a socket by SO_ATTACH_FILTER,
/// none where it has none.
///
/// # Errors
/// EACCES for a filter of bpf(2), which has none of these; others of getsockopt(2).
pub fn classic_filter(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    /// BPF_MAXINSNS of linux/bpf_common.h.
    const MOST: usize = 4096;
    // Counted in instructions, not in bytes. With no room it only tells how many there are.
    let mut instructions: libc::socklen_t = 0;
    let mut ask = |place: *mut libc::c_void| {
        // SAFETY: the kernel writes as many instructions as it is told, and there is room for those; the length outlives
        // the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_GET_FILTER,
                place,
                &raw mut instructions,
            )
        };
        Errno::result(result).map(|_| instructions as usize)
    };
    let mut program = vec![0_u8; 8 * ask(std::ptr::null_mut())?.min(MOST)];
    if program.is_empty() {
        return Ok(program);
    }
    let got = ask(program.as_mut_ptr().cast())?;
    program.truncate(8 * got);
    Ok(program)
}

/// Gives a socket a program of such instructions: SO_ATTACH_FILTER and its like.
///
/// # Errors
/// EINVAL for one that is none, and others of setsockopt(2).
pub fn set_program(socket: BorrowedFd<'_>, level: i32, name: i32, program: &[u8]) -> Result<(), Errno> {
    let count = u16::try_from(program.len() / 8).map_err(|_| Errno::EINVAL)?;
    let mut instructions: Vec<libc::sock_filter> = Vec::with_capacity(count.into());
    for bytes in program.chunks_exact(8) {
        instructions.push(libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        });
    }
    let whole = libc::sock_fprog {
        len: count,
        filter: instructions.as_mut_ptr(),
    };
    let length = size_of_val(&whole) as libc::socklen_t;
    // SAFETY: the structure names as many instructions as there are, and outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const whole).cast(), length) };
    Errno::result(result).map(drop)
}

/// The bytes of an option, getsockopt(2).
///
/// # Errors
/// ENOPROTOOPT and others of getsockopt(2); EINVAL for SO_GET_FILTER, which does not count in bytes.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> Result<Vec<u8>, Errno> {
    match sized_option(socket, level, name, OPTION_BYTES) {
        // There may be more of it.
        Ok(value) if value.len() == OPTION_BYTES => sized_option(socket, level, name, MOST_BYTES),
        value => value,
    }
}

/// The same of an option that the kernel tells only where there is room for just so many bytes.
///
/// # Errors
/// As for [`option`].
pub fn sized_option(socket: BorrowedFd<'_>, level: i32, name: i32, bytes: usize) -> Result<Vec<u8>, Errno> {
    if (level, name) == (libc::SOL_SOCKET, libc::SO_GET_FILTER) {
        return Err(Errno::EINVAL);
    }
    let mut value = vec![0_u8; bytes];
    let mut length = libc::socklen_t::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `length` bytes, which are there.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    value.truncate(length as usize);
    Ok(value)
}

/// Sets an option, setsockopt(2).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which are there.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(result).map(drop)
}

/// A unix socket as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// The bytes of its `sun_path`, where it has a name: a path, or a NUL and an abstract name.
    pub name: Option<Vec<u8>>,
    /// Device and inode number (32 bits of it) of the file that a path stands for.
    pub file: Option<(u32, u32)>,
    /// Inode number of the socket it is connected with, while that lives.
    pub peer: Option<u32>,
    /// Whether it listens (TCP_LISTEN).
    pub listens: bool,
    /// What was shut down: 1 for reading, 2 for writing.
    pub shutdown: u8,
    /// Of one that listens: connections that nobody has accepted yet, and how many of them may wait. Of others: bytes to
    /// be read, and bytes sent that nobody has read.
    pub queues: (u32, u32),
    /// Inode numbers of those whose connections wait to be accepted here.
    pub waiting: Vec<u32>,
}

/// All unix sockets of the calling thread's network namespace, by inode number.
///
/// # Errors
/// Those of netlink(7); EPROTO for an answer that is none.
pub fn unix_sockets() -> Result<HashMap<u32, UnixSocket>, Errno> {
    // UDIAG_SHOW_NAME, _VFS, _PEER, _ICONS, _RQLEN.
    const SHOW: u32 = 1 | 2 | 4 | 8 | 16;
    // struct unix_diag_req of linux/unix_diag.h.
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    request.extend([0xff; 8]);
    let mut found = HashMap::new();
    dump(&request, |message| {
        let attributes = message.get(UNIX_MESSAGE..).ok_or(Errno::EPROTO)?;
        found.insert(number(message, 4)?, parse_unix(message, attributes)?);
        Ok(())
    })?;
    Ok(found)
}

/// Bytes of struct unix_diag_msg.
const UNIX_MESSAGE: usize = 16;

/// Ends the TCP sockets of the calling thread's network namespace that have this port, that no process has any more and that
/// have nothing left to send: those that only wait (FIN_WAIT2, TIME_WAIT). Returns how many.
///
/// # Errors
/// Those of netlink(7); EOPNOTSUPP where the kernel is built without CONFIG_INET_DIAG_DESTROY.
pub fn end_leftovers(port: u16) -> Result<usize, Errno> {
    end_sockets(WAITING, |_, identity| identity[..2] == port.to_be_bytes())
}

/// FIN_WAIT2, TIME_WAIT of include/net/tcp_states.h, as bits.
const WAITING: u32 = 1 << 5 | 1 << 6;

/// Whether nothing but what [`end_leftovers`] ends has this port in the calling thread's network namespace.
///
/// # Errors
/// Those of netlink(7).
pub fn has_leftovers_alone(port: u16) -> Result<bool, Errno> {
    let (mut leftovers, mut others) = (0, 0);
    // All states, that of what is bound and does nothing among them.
    dump_tcp(u32::MAX, |_, message| {
        let identity = message.get(IDENTITY).ok_or(Errno::EPROTO)?;
        if identity[..2] == port.to_be_bytes() {
            // Its state stands behind the family.
            let waits = 1_u32.checked_shl(message[1].into()).unwrap_or(0) & WAITING != 0;
            let is_leftover = waits && number(message, INODE)? == 0;
            *(if is_leftover { &mut leftovers } else { &mut others }) += 1;
        }
        Ok(())
    })?;
    Ok(leftovers > 0 && others == 0)
}

/// Asks for the TCP sockets of the calling thread's network namespace in some states; what is told of each, with its family.
fn dump_tcp(states: u32, mut take: impl FnMut(i32, &[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        // struct inet_diag_req_v2.
        let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        request.extend(states.to_ne_bytes());
        request.extend([0; IDENTITY.end - IDENTITY.start]);
        dump(&request, |message| take(family, message))?;
    }
    Ok(())
}

/// Ends sockets in some states that no process has any more and that are `meant`: family and struct inet_diag_sockid.
fn end_sockets(states: u32, meant: impl Fn(i32, &[u8]) -> bool) -> Result<usize, Errno> {
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        // struct inet_diag_req_v2.
        let head = [family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        let mut request = head.to_vec();
        request.extend(states.to_ne_bytes());
        request.extend([0; IDENTITY.end - IDENTITY.start]);
        let mut leftovers = Vec::new();
        dump(&request, |message| {
            let identity = message.get(IDENTITY).ok_or(Errno::EPROTO)?;
            if number(message, INODE)? == 0 && meant(family, identity) {
                leftovers.push(identity.to_vec());
            }
            Ok(())
        })?;
        for identity in leftovers {
            let mut request = head.to_vec();
            request.extend(states.to_ne_bytes());
            request.extend(identity);
            match ask((SOCK_DESTROY, libc::NLM_F_ACK), &request, |_| Ok(())) {
                // It may have ended by itself.
                Ok(()) | Err(Errno::ENOENT) => ended += 1,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// Ends the TCP sockets of the calling thread's network namespace that have these addresses, its own first, and that no
/// process has any more. Returns how many.
///
/// # Errors
/// As for [`end_leftovers`].
pub fn end_orphans(connections: &[(SocketAddr, SocketAddr)]) -> Result<usize, Errno> {
    let end = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let wanted: HashSet<_> = connections
        .iter()
        .map(|(local, remote)| [end(*local), end(*remote)])
        .collect();
    end_sockets(u32::MAX, |family, identity| wanted.contains(&ends(family, identity)))
}

/// The addresses at which TCP sockets of the calling thread's network namespace listen.
///
/// # Errors
/// Those of netlink(7).
pub fn listening() -> Result<Vec<SocketAddr>, Errno> {
    /// include/net/tcp_states.h.
    const LISTEN: u32 = 1 << 10;
    let mut found = Vec::new();
    dump_tcp(LISTEN, |family, message| {
        let identity = message.get(IDENTITY).ok_or(Errno::EPROTO)?;
        found.push(ends(family, identity)[0].into());
        Ok(())
    })?;
    Ok(found)
}

/// Whether some process has the TCP socket of the calling thread's network namespace that has these addresses, its own first.
///
/// # Errors
/// Those of netlink(7).
pub fn is_somebodys(local: SocketAddr, remote: SocketAddr) -> Result<bool, Errno> {
    let mut found = false;
    list(local, remote, |message| {
        found |= number(message, INODE)? != 0;
        Ok(())
    })?;
    Ok(found)
}

/// Bytes that wait in that socket, behind an urgent one too, where [`unread`] ends; the other end's last counts as one.
/// `None` where there is none.
///
/// # Errors
/// Those of netlink(7).
pub fn listed_unread(local: SocketAddr, remote: SocketAddr) -> Result<Option<u32>, Errno> {
    let mut found = None;
    list(local, remote, |message| {
        found = Some(number(message, UNREAD)?);
        Ok(())
    })?;
    Ok(found)
}

/// Takes what sock_diag(7) tells of TCP sockets with these addresses.
fn list(local: SocketAddr, remote: SocketAddr, mut take: impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    let wanted = [local, remote].map(|address| (address.ip().to_canonical(), address.port()));
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        request.extend(u32::MAX.to_ne_bytes());
        request.extend([0; IDENTITY.end - IDENTITY.start]);
        dump(&request, |message| {
            let identity = message.get(IDENTITY).ok_or(Errno::EPROTO)?;
            if ends(family, identity) == wanted {
                take(message)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// struct inet_diag_msg: family, state, two more; the addresses; when it expires, what waits to be read and to be sent, user;
/// inode.
const IDENTITY: std::ops::Range<usize> = 4..52;
const UNREAD: usize = 56;
const INODE: usize = 68;

/// The two ends that struct inet_diag_sockid tells, 48 bytes.
fn ends(family: i32, identity: &[u8]) -> [(IpAddr, u16); 2] {
    [(0, 4), (2, 20)].map(|(port, address)| {
        let port = u16::from_be_bytes([identity[port], identity[port + 1]]);
        let bytes: [u8; 16] = identity[address..address + 16].try_into().expect("16 bytes");
        let ip = if family == libc::AF_INET {
            IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
        } else {
            IpAddr::from(bytes)
        };
        (ip.to_canonical(), port)
    })
}

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// Asks sock_diag(7) for all sockets that a request is about.
fn dump(request: &[u8], take: impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    ask((SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP), request, take)
}

/// Sends a request of this type and these flags, and takes the answers.
fn ask(
    (kind, flags): (u16, i32),
    request: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // struct nlmsghdr.
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if parse_answer(&buffer[..got], &mut take)? {
            return Ok(());
        }
    }
}

const HEADER: usize = 16;

/// Takes the messages out of one datagram; true where it was the last.
fn parse_answer(mut bytes: &[u8], take: &mut impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<bool, Errno> {
    while bytes.len() >= HEADER {
        let length = number(bytes, 0)? as usize;
        let kind = i32::from(u16::from_ne_bytes([bytes[4], bytes[5]]));
        let message = bytes.get(HEADER..length).ok_or(Errno::EPROTO)?;
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                return match number(message, 0)? as i32 {
                    0 => Ok(true),
                    error => Err(Errno::from_raw(-error)),
                };
            }
            _ => take(message)?,
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// struct unix_diag_msg and its attributes.
fn parse_unix(message: &[u8], mut attributes: &[u8]) -> Result<UnixSocket, Errno> {
    const TCP_LISTEN: u8 = 10;
    const UNIX_DIAG_NAME: u16 = 0;
    const UNIX_DIAG_VFS: u16 = 1;
    const UNIX_DIAG_PEER: u16 = 2;
    const UNIX_DIAG_ICONS: u16 = 3;
    const UNIX_DIAG_RQLEN: u16 = 4;
    const UNIX_DIAG_SHUTDOWN: u16 = 6;
    let mut socket = UnixSocket {
        kind: i32::from(message[1]),
        listens: message[2] == TCP_LISTEN,
        ..UnixSocket::default()
    };
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let value = attributes.get(4..length).ok_or(Errno::EPROTO)?;
        match kind {
            UNIX_DIAG_NAME => socket.name = Some(name(value)),
            UNIX_DIAG_VFS => socket.file = Some((number(value, 4)?, number(value, 0)?)),
            UNIX_DIAG_PEER => socket.peer = Some(number(value, 0)?).filter(|inode| *inode != 0),
            UNIX_DIAG_ICONS => {
                let numbers = (0..value.len() / 4).map(|at| number(value, at * 4));
                socket.waiting = numbers.collect::<Result<_, _>>()?;
            }
            UNIX_DIAG_RQLEN => socket.queues = (number(value, 0)?, number(value, 4)?),
            UNIX_DIAG_SHUTDOWN => socket.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(socket)
}

/// A path comes with the NUL at its end.
fn name(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [first, .., 0] if *first != 0 => bytes[..bytes.len() - 1].to_vec(),
        _ => bytes.to_vec(),
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::{option, unix_sockets};
    use nix::errno::Errno;
    use std::net::{TcpListener, TcpStream};
    use std::os::{
        fd::{AsFd, AsRawFd},
        linux::fs::MetadataExt,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    };

    fn inode(file: &impl AsFd) -> u32 {
        let file = std::fs::File::from(file.as_fd().try_clone_to_owned().expect("dup"));
        file.metadata().expect("stat").st_ino() as u32
    }

    #[test]
    fn pairs_know_each_other() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (single, gone) = UnixDatagram::pair().expect("a pair");
        drop(gone);
        one.shutdown(std::net::Shutdown::Write).expect("shut down");
        let all = unix_sockets().expect("sock_diag");
        let [first, second] = [inode(&one), inode(&other)].map(|inode| &all[&inode]);
        assert_eq!((first.kind, first.peer), (libc::SOCK_STREAM, Some(inode(&other))));
        assert_eq!((first.shutdown, second.shutdown), (2, 1));
        assert_eq!(second.peer, Some(inode(&one)));
        assert_eq!(
            (all[&inode(&single)].kind, all[&inode(&single)].peer),
            (libc::SOCK_DGRAM, None)
        );
    }

    #[test]
    fn names_are_told() {
        let folder = std::env::temp_dir().join(format!("floe-socket-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let path = folder.join("here");
        let listener = UnixListener::bind(&path).expect("bind");
        let waits = UnixStream::connect(&path).expect("connect");
        let found = unix_sockets()
            .expect("sock_diag")
            .remove(&inode(&listener))
            .expect("it");
        let metadata = std::fs::metadata(&path).expect("stat");
        std::fs::remove_dir_all(&folder).expect("tidy up");
        assert_eq!(found.name.as_deref(), Some(path.as_os_str().as_encoded_bytes()));
        assert_eq!(found.file.map(|(_, inode)| inode), Some(metadata.st_ino() as u32));
        assert!(found.listens && found.peer.is_none());
        assert_eq!((found.queues.0, found.waiting), (1, vec![inode(&waits)]));
    }

    #[test]
    fn what_a_closed_connection_leaves_can_be_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        // The one that closes first waits.
        let ends = (address, client.local_addr().expect("an address"));
        assert_eq!(super::is_somebodys(ends.0, ends.1), Ok(true));
        drop(server);
        assert_eq!(super::is_somebodys(ends.0, ends.1), Ok(false));
        drop(client);
        assert_eq!(super::has_leftovers_alone(address.port()), Ok(false));
        drop(listener);
        assert_eq!(super::has_leftovers_alone(address.port()), Ok(true));
        let end = super::end_leftovers(address.port());
        if end == Err(Errno::EOPNOTSUPP) {
            return;
        }
        assert_eq!(end, Ok(1));
        assert_eq!(super::end_leftovers(address.port()), Ok(0));
        assert_eq!(super::has_leftovers_alone(address.port()), Ok(false));
    }

    #[test]
    fn what_waits_behind_an_urgent_byte_is_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        let ends = (server.local_addr().expect("own"), server.peer_addr().expect("other"));
        assert_eq!(super::listed_unread(ends.0, ends.1), Ok(Some(0)));
        std::io::Write::write_all(&mut client, b"before").expect("write");
        nix::sys::socket::send(client.as_raw_fd(), b"!", nix::sys::socket::MsgFlags::MSG_OOB).expect("send");
        std::io::Write::write_all(&mut client, b"behind").expect("write");
        assert_eq!(super::listed_unread(ends.0, ends.1), Ok(Some(13)));
        assert_eq!(super::unread(server.as_fd()), Ok(6));
        assert_eq!(super::listed_unread(ends.0, (ends.1.ip(), 1).into()), Ok(None));
    }

    #[test]
    fn filters_are_told_as_they_were_attached() {
        let (one, other) = UnixStream::pair().expect("a pair");
        // BPF_RET with all.
        let allow_all = [6, 0, 0, 0, 255, 255, 255, 255].repeat(100);
        let set = super::set_program(one.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &allow_all);
        set.expect("attach");
        assert_eq!(super::classic_filter(one.as_fd()), Ok(allow_all));
        assert_eq!(super::classic_filter(other.as_fd()), Ok(Vec::new()));
        assert_eq!(
            option(one.as_fd(), libc::SOL_SOCKET, libc::SO_GET_FILTER),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn options_have_their_length() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let kind = option(one.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE).expect("getsockopt");
        assert_eq!(kind, libc::SOCK_STREAM.to_ne_bytes());
    }
}
