//! Socket options: those that differ from a new socket's are carried.

use super::{has_error, number_option};
use floe_sys::socket::{has_filter, option, set_option};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, getpeername, recv},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
};

/// An option that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("socket option {level}/{name} (level/name)")]
pub(super) struct OptionError {
    level: i32,
    name: i32,
    #[source]
    source: Errno,
}

impl From<OptionError> for io::Error {
    fn from(error: OptionError) -> Self {
        Self::other(error)
    }
}

/// An option that is not as in a new socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SocketOption {
    level: i32,
    name: i32,
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
}

/// The options of a level. Those that are neither carried nor no settings, and differ, are refused.
struct Level {
    level: i32,
    /// All there are so far.
    names: Range<i32>,
    carried: &'static [i32],
    /// What tells of the other end, of the kind of socket, or of what happened to it; or does something when it is asked
    /// for (SO_ERROR is taken away by that, SO_PEERPIDFD makes a descriptor).
    no_settings: &'static [i32],
}

const LEVELS: [Level; 6] = [
    // asm-generic/socket.h: REUSEADDR, DONTROUTE, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, OOBINLINE, PRIORITY, LINGER,
    // REUSEPORT, PASSCRED, RCVLOWAT, RCVTIMEO, SNDTIMEO, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, PEEK_OFF, SELECT_ERR_QUEUE,
    // MAX_PACING_RATE, ZEROCOPY, TIMESTAMP_NEW, TIMESTAMPNS_NEW, BUF_LOCK, TXREHASH, RCVMARK, PASSPIDFD, PASSRIGHTS.
    Level {
        level: libc::SOL_SOCKET,
        names: 1..90,
        carried: &[
            2, 5, 6, 7, 8, 9, 10, 12, 13, 15, 16, 18, 20, 21, 29, 34, 35, 36, 42, 45, 47, 60, 63, 64, 72, 74, 75, 76,
            83,
        ],
        // TYPE, ERROR, PEERCRED, GET_FILTER (asked for apart), BINDTODEVICE (a string, and refused by SO_BINDTOIFINDEX), PEERNAME, ACCEPTCONN, PEERSEC,
        // PROTOCOL, DOMAIN, INCOMING_CPU, MEMINFO, INCOMING_NAPI_ID, COOKIE, PEERGROUPS, RCVTIMEO_NEW and
        // SNDTIMEO_NEW (other names), NETNS_COOKIE, PEERPIDFD.
        no_settings: &[3, 4, 17, 25, 26, 28, 30, 31, 38, 39, 49, 55, 56, 57, 59, 66, 67, 71, 77],
    },
    // netinet/tcp.h: NODELAY, MAXSEG, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, WINDOW_CLAMP,
    // CONGESTION, THIN_*, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, SAVE_SYN, FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE, INQ, TX_DELAY.
    Level {
        level: libc::IPPROTO_TCP,
        names: 1..45,
        carried: &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 23, 25, 27, 30, 34, 36, 37,
        ],
        // INFO, QUICKACK (the kernel changes it as it goes), REPAIR*, QUEUE_SEQ, TIMESTAMP, CC_INFO, SAVED_SYN, ZEROCOPY_RECEIVE.
        no_settings: &[11, 12, 19, 20, 21, 22, 24, 26, 28, 29, 35],
    },
    // linux/in.h: TOS, TTL, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, PASSSEC,
    // TRANSPARENT, ORIGDSTADDR, MINTTL, NODEFRAG, BIND_ADDRESS_NO_PORT, MULTICAST_TTL, _LOOP, _ALL, LOCAL_PORT_RANGE.
    Level {
        level: libc::IPPROTO_IP,
        names: 1..53,
        carried: &[
            1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 24, 33, 34, 49, 51,
        ],
        // PKTOPTIONS, MTU, PROTOCOL (of others than raw sockets the port).
        no_settings: &[9, 14, 52],
    },
    // linux/in6.h: UNICAST_HOPS, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, V6ONLY, RECVPKTINFO, RECVHOPLIMIT,
    // RECVTCLASS, TCLASS, AUTOFLOWLABEL, FREEBIND.
    Level {
        level: libc::IPPROTO_IPV6,
        names: 1..81,
        carried: &[16, 18, 19, 23, 25, 26, 49, 51, 66, 67, 70, 78],
        // ADDRFORM, 2292PKTOPTIONS, MTU, PATHMTU.
        no_settings: &[1, 6, 24, 61],
    },
    Level {
        level: libc::IPPROTO_UDP,
        names: 1..105,
        carried: &OF_UDP,
        no_settings: &[],
    },
    // The same, and SEND_CSCOV and RECV_CSCOV.
    Level {
        level: libc::IPPROTO_UDPLITE,
        names: 1..105,
        carried: &[10, 11, 101, 102, 103, 104],
        no_settings: &[],
    },
];

/// linux/udp.h: NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO. CORK and ENCAP are refused.
const OF_UDP: [i32; 4] = [101, 102, 103, 104];

/// Those whose value the kernel doubles when it is set, and the name by which it sets more than its limit.
const BUFFERS: [(i32, i32); 2] = [
    (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE),
    (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE),
];
const LONGEST: usize = 64;

/// What in a connection tells how it goes or how it was made: the size of segments and the window; device and hops of
/// multicast, which TCP has no use for; V6ONLY, which bind(2) changes too.
const OF_A_CONNECTION: [(i32, i32); 7] = [
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
];

/// Whether the sizes of the buffers are fixed, 1 for sending and 2 for receiving; else the kernel chooses them as it goes.
pub(super) const SO_BUF_LOCK: i32 = 72;

impl SocketOption {
    /// Level and name.
    pub(super) fn which(&self) -> (i32, i32) {
        (self.level, self.name)
    }
}

/// Those that are carried, and level and name of those that can't be.
type Differing = (Vec<SocketOption>, Vec<(i32, i32)>);

/// Options of `socket` on these levels that are not as those of `fresh`.
pub(super) fn differing(socket: BorrowedFd<'_>, fresh: BorrowedFd<'_>, levels: &[i32]) -> Result<Differing, Errno> {
    let (mut carried, mut others) = (Vec::new(), Vec::new());
    if has_filter(socket)? {
        others.push((libc::SOL_SOCKET, libc::SO_ATTACH_FILTER));
    }
    // Before Linux 5.14 nobody can tell.
    let fixed = number_option(socket, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(3);
    let is_connected = levels.contains(&libc::IPPROTO_TCP) && has_been_connected(socket);
    let is_chosen = |level, name| {
        let is = |buffer, bit| (level, name) == (libc::SOL_SOCKET, buffer) && fixed & bit == 0;
        let of_a_connection = is_connected && OF_A_CONNECTION.contains(&(level, name));
        is(libc::SO_SNDBUF, 1) || is(libc::SO_RCVBUF, 2) || of_a_connection
    };
    for table in LEVELS.iter().filter(|table| levels.contains(&table.level)) {
        let level = table.level;
        for name in table.names.clone().filter(|name| !table.no_settings.contains(name)) {
            let (is, usual) = (read(socket, level, name)?, read(fresh, level, name)?);
            let differs = is.filter(|is| Some(is) != usual.as_ref() && !is_chosen(level, name));
            let Some(value) = differs else {
                continue;
            };
            if table.carried.contains(&name) {
                carried.push(SocketOption { level, name, value });
            } else {
                others.push((level, name));
            }
        }
    }
    Ok((carried, others))
}

/// Whether a TCP socket has a connection, or had one. A new one says so when it is read; one whose connection has ended reads
/// its end. Where an error waits, which reading takes away, there was one too.
pub(super) fn has_been_connected(socket: BorrowedFd<'_>) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok()
        || has_error(socket) == Ok(true)
        || recv(socket.as_raw_fd(), &mut [0], flags) != Err(Errno::ENOTCONN)
}

/// What a finding says of options that can't be carried.
pub(super) fn refusal(others: &[(i32, i32)]) -> String {
    let listed: Vec<_> = others.iter().map(|(level, name)| format!("{level}/{name}")).collect();
    format!("socket options (level/name) {} can't be carried yet", listed.join(", "))
}

/// `None` where such sockets or this kernel don't have it.
fn read(socket: BorrowedFd<'_>, level: i32, name: i32) -> Result<Option<Vec<u8>>, Errno> {
    match option(socket, level, name) {
        Ok(value) => Ok(Some(value)),
        Err(
            Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::EINVAL
            | Errno::ENODATA
            | Errno::ENOTCONN
            | Errno::EADDRNOTAVAIL
            | Errno::EPERM
            | Errno::ENOENT
            | Errno::EFAULT,
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that may wait in what a socket has sent, as the kernel counts them.
pub(super) fn room(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    Ok(number_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF)?.max(0) as usize)
}

/// Sends so many bytes by `send`, for which room is made meanwhile.
pub(super) fn with_room(
    socket: BorrowedFd<'_>,
    bytes: usize,
    send: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    if bytes == 0 {
        return send();
    }
    let (before, fixed) = (room(socket)?, number_option(socket, libc::SOL_SOCKET, SO_BUF_LOCK)?);
    set_room(socket, (before / 2).max(4 * bytes))?;
    send()?;
    set_room(socket, before / 2)?;
    // The kernel may choose its size again, if it might before.
    set_option(socket, libc::SOL_SOCKET, SO_BUF_LOCK, &fixed.to_ne_bytes())
}

/// Makes room for as many bytes; the kernel counts twice as many.
pub(super) fn set_room(socket: BorrowedFd<'_>, bytes: usize) -> Result<(), Errno> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX / 2);
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes.to_ne_bytes())
}

/// Whether an option of level and name is among them, and not 0.
pub(super) fn is_on(options: &[SocketOption], which: (i32, i32)) -> bool {
    let mut found = options.iter().filter(|option| option.which() == which);
    found.any(|option| option.value.iter().any(|byte| *byte != 0))
}

pub(super) fn are_possible(options: &[SocketOption]) -> bool {
    let known = |option: &SocketOption| {
        let mut tables = LEVELS.iter().filter(|table| table.level == option.level);
        tables.any(|table| table.carried.contains(&option.name))
    };
    options
        .iter()
        .all(|option| known(option) && option.value.len() <= LONGEST)
}

/// Has a socket's options on these levels be `options`, and else those of `fresh`: what was accepted has got some from
/// the socket that listens.
pub(super) fn set_all(
    socket: BorrowedFd<'_>,
    fresh: BorrowedFd<'_>,
    options: &[SocketOption],
    levels: &[i32],
) -> Result<(), io::Error> {
    set(socket, options)?;
    let (differing, _) = differing(socket, fresh, levels)?;
    for mut option in differing {
        if options.iter().all(|wanted| wanted.which() != option.which())
            && let Some(usual) = read(fresh, option.level, option.name)?
        {
            option.value = usual;
            set(socket, &[option])?;
        }
    }
    Ok(())
}

/// Sets them, where they are not so already.
pub(super) fn set(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), OptionError> {
    for SocketOption { level, name, value } in options {
        if option(socket, *level, *name).is_ok_and(|is| is == *value) {
            continue;
        }
        let forced = BUFFERS
            .iter()
            .find(|(buffer, _)| *level == libc::SOL_SOCKET && buffer == name);
        let done = match (forced, <[u8; 4]>::try_from(value.as_slice())) {
            (Some((_, force)), Ok(bytes)) => {
                let half = i32::from_ne_bytes(bytes) / 2;
                set_option(socket, libc::SOL_SOCKET, *force, &half.to_ne_bytes())
            }
            _ => set_option(socket, *level, *name, value),
        };
        done.map_err(|source| OptionError {
            level: *level,
            name: *name,
            source,
        })?;
    }
    Ok(())
}
