//! Socket options: those that differ from a new socket's are carried.

mod filter;
mod hidden;
mod levels;
mod usual;

pub(super) use filter::{EXTENDED, Filter, filter};
pub(super) use hidden::{devices, has_groups, hidden, of_packets, unreadable_groups};
pub(super) use usual::Usual;
use usual::UsualOption;
pub(in crate::file) use usual::UsualOptions;

use super::{has_error, number_option};
use floe_sys::socket::{option, set_option};
use levels::LEVELS;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, getpeername, recv},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    rc::Rc,
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

/// Those whose value the kernel doubles when it is set, and the name by which it sets more than its limit.
const BUFFERS: [(i32, i32); 2] = [
    (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE),
    (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE),
];
/// Bytes of the longest value: a filter of 4096 instructions.
const LONGEST: usize = 32 << 10;

/// asm-generic/socket.h.
const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
const SO_LOCK_FILTER: i32 = 44;
/// linux/if_packet.h.
const SOL_PACKET: i32 = 263;
const PACKET_FANOUT: i32 = 18;

/// What chooses among those that share a port, which is set when the socket has its address and what waits in it.
const CHOICE: [(i32, i32); 2] = [
    (SOL_PACKET, PACKET_FANOUT),
    (libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF),
];
/// What looks at what comes in, and what forbids to change that; set behind that, in this order, when nothing more comes that
/// it did not look at.
const FILTER: [(i32, i32); 2] = [
    (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
    (libc::SOL_SOCKET, SO_LOCK_FILTER),
];

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
    /// One that is a number.
    pub(super) fn number(level: i32, name: i32, value: i32) -> Self {
        let value = value.to_ne_bytes().to_vec();
        Self { level, name, value }
    }

    fn is_late(&self) -> bool {
        CHOICE.contains(&self.which()) || self.is_of_filter()
    }

    /// Whether it is a filter, or forbids to change that.
    pub(super) fn is_of_filter(&self) -> bool {
        FILTER.contains(&self.which())
    }

    /// Level and name.
    pub(super) fn which(&self) -> (i32, i32) {
        (self.level, self.name)
    }
}

/// Those that are carried, and level and name of those that can't be.
type Differing = (Vec<SocketOption>, Vec<(i32, i32)>);

/// Which options may differ.
#[derive(Debug, Clone)]
pub(super) enum Suspects {
    /// Any.
    All,
    /// Those that an accepted socket has got from the one that listens, or that were changed on the way: level and name.
    These(Rc<[(i32, i32)]>),
}

impl Suspects {
    fn has(&self, option: &UsualOption) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.contains(&(option.level, option.name)),
        }
    }
}

/// Options of `socket` that are not as usual.
pub(super) fn differing(socket: BorrowedFd<'_>, usual: &Usual) -> Result<Differing, Errno> {
    differing_among(&Suspects::All, socket, usual)
}

fn differing_among(suspects: &Suspects, socket: BorrowedFd<'_>, usual: &Usual) -> Result<Differing, Errno> {
    let (mut carried, mut others) = (Vec::new(), Vec::new());
    // Before Linux 5.14 nobody can tell.
    let fixed = number_option(socket, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(3);
    let is_tcp = usual.all().iter().any(|option| option.level == libc::IPPROTO_TCP);
    let is_connected = is_tcp && has_been_connected(socket);
    let is_chosen = |level, name| {
        let is = |buffer, bit| (level, name) == (libc::SOL_SOCKET, buffer) && fixed & bit == 0;
        let of_a_connection = is_connected && OF_A_CONNECTION.contains(&(level, name));
        is_connected && (is(libc::SO_SNDBUF, 1) || is(libc::SO_RCVBUF, 2)) || of_a_connection
    };
    for option in usual.all().iter().filter(|option| suspects.has(option)) {
        let (level, name) = (option.level, option.name);
        let is = read(socket, level, name)?;
        let differs = is.filter(|is| Some(is) != option.value.as_ref() && !is_chosen(level, name));
        let Some(value) = differs else {
            continue;
        };
        if option.carried && value.len() <= LONGEST {
            carried.push(SocketOption { level, name, value });
        } else {
            others.push((level, name));
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

/// Sends so many bytes by `send`, for which room is made meanwhile.
pub(super) fn with_room(
    socket: BorrowedFd<'_>,
    bytes: usize,
    send: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    if bytes == 0 {
        return send();
    }
    let _room = Room::make(socket, Buffer::Send, 4 * bytes)?;
    send()
}

/// A buffer of a socket's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffer {
    /// Of what it sends.
    Send,
    /// Of what it receives.
    Receive,
}

/// More room than usual in a buffer of a socket's, until this is dropped.
pub(super) struct Room<'a> {
    socket: BorrowedFd<'a>,
    buffer: Buffer,
    /// Bytes that might wait, as the kernel counts them.
    before: usize,
    /// SO_BUF_LOCK, which nobody can tell before Linux 5.14.
    fixed: Option<i32>,
}

impl<'a> Room<'a> {
    pub(super) fn make(socket: BorrowedFd<'a>, buffer: Buffer, bytes: usize) -> Result<Self, Errno> {
        let before = number_option(socket, libc::SOL_SOCKET, buffer.names().0)?.max(0) as usize;
        let fixed = number_option(socket, libc::SOL_SOCKET, SO_BUF_LOCK).ok();
        buffer.set(socket, (before / 2).max(bytes))?;
        Ok(Self {
            socket,
            buffer,
            before,
            fixed,
        })
    }

    fn put_back(&self) -> Result<(), Errno> {
        self.buffer.set(self.socket, self.before / 2)?;
        // The kernel may choose its size again, if it might before.
        let fixed = self.fixed.map(i32::to_ne_bytes);
        fixed.map_or(Ok(()), |fixed| {
            set_option(self.socket, libc::SOL_SOCKET, SO_BUF_LOCK, &fixed)
        })
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "the buffer of a socket is not what it was");
        }
    }
}

impl Buffer {
    /// By which it is told, and set.
    fn names(self) -> (i32, i32) {
        BUFFERS[self as usize]
    }

    /// Makes room for as many bytes; the kernel counts twice as many.
    fn set(self, socket: BorrowedFd<'_>, bytes: usize) -> Result<(), Errno> {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX / 2);
        set_buffer(socket, self.names(), bytes)
    }
}

/// Sets the size of a buffer, whatever the host's limit (net.core.wmem_max, rmem_max) is; where only the host's root may go
/// beyond that, as far as the limit allows.
fn set_buffer(socket: BorrowedFd<'_>, (name, force): (i32, i32), bytes: i32) -> Result<(), Errno> {
    match set_option(socket, libc::SOL_SOCKET, force, &bytes.to_ne_bytes()) {
        Err(Errno::EPERM) => set_option(socket, libc::SOL_SOCKET, name, &bytes.to_ne_bytes()),
        result => result,
    }
}

/// Whether an option of level and name is among them, and not 0.
pub(super) fn is_on(options: &[SocketOption], which: (i32, i32)) -> bool {
    let mut found = options.iter().filter(|option| option.which() == which);
    found.any(|option| option.value.iter().any(|byte| *byte != 0))
}

/// The name of the network device that a socket with these is bound to (SO_BINDTODEVICE).
pub(super) fn bound_device(options: &[SocketOption]) -> Option<String> {
    let which = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    let found = options.iter().find(|option| option.which() == which)?;
    let name = found.value.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(name).into_owned()).filter(|name| !name.is_empty())
}

/// Binds a socket to its device, if to any: before that it can't have an address that means something only there.
pub(super) fn set_device(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), Errno> {
    match bound_device(options) {
        Some(name) => set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_bytes()),
        None => Ok(()),
    }
}

pub(super) fn are_possible(options: &[SocketOption]) -> bool {
    let known = |option: &SocketOption| {
        let mut tables = LEVELS.iter().filter(|table| table.level == option.level);
        tables.any(|table| table.carried.contains(&option.name))
            || hidden::is_hidden(option.which())
            || option.is_late()
    };
    options
        .iter()
        .all(|option| known(option) && option.value.len() <= LONGEST)
}

/// Has a socket's options be `options`, and else as usual, which those that are suspected may not be.
pub(super) fn set_all(
    socket: BorrowedFd<'_>,
    usual: &Usual,
    options: &[SocketOption],
    suspects: &Suspects,
) -> Result<(), io::Error> {
    set(socket, options)?;
    let (differing, _) = differing_among(suspects, socket, usual)?;
    for mut option in differing {
        let mut all = usual.all().iter();
        let one = all.find(|usual| (usual.level, usual.name) == option.which());
        if options.iter().all(|wanted| wanted.which() != option.which())
            && let Some(value) = one.and_then(|usual| usual.value.clone())
        {
            option.value = value;
            set(socket, &[option])?;
        }
    }
    Ok(())
}

/// Sets those that come early. Some change others (IP_TOS the priority), hence twice; but who joins a group twice is a
/// member twice.
pub(super) fn set_early(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), OptionError> {
    let (hidden, told): (Vec<_>, Vec<_>) = options
        .iter()
        .filter(|option| !option.is_late())
        .partition(|option| hidden::is_hidden(option.which()));
    let mut all = told.iter().chain(&told).chain(&hidden);
    all.try_for_each(|option| set_one(socket, option))
}

/// Sets those that come when the socket has its address and what waits in it.
pub(super) fn set_late(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), OptionError> {
    set_choice(socket, options)?;
    set_filter(socket, options)
}

/// Sets what chooses among those that share a port.
pub(super) fn set_choice(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), OptionError> {
    set_in_order(socket, options, &CHOICE)
}

/// Sets what looks at what comes in.
pub(super) fn set_filter(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), OptionError> {
    set_in_order(socket, options, &FILTER)
}

/// Those but the filter, and what is about that.
pub(super) fn without_filter(options: &[SocketOption]) -> Vec<SocketOption> {
    options
        .iter()
        .filter(|option| !option.is_of_filter())
        .cloned()
        .collect()
}

fn set_in_order(socket: BorrowedFd<'_>, options: &[SocketOption], which: &[(i32, i32)]) -> Result<(), OptionError> {
    for which in which {
        let mut meant = options.iter().filter(|option| option.which() == *which);
        meant.try_for_each(|option| set_one(socket, option))?;
    }
    Ok(())
}

/// Sets them, where they are not so already.
pub(super) fn set(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), OptionError> {
    set_early(socket, options)?;
    set_late(socket, options)
}

fn set_one(socket: BorrowedFd<'_>, SocketOption { level, name, value }: &SocketOption) -> Result<(), OptionError> {
    let failed = |source| OptionError {
        level: *level,
        name: *name,
        source,
    };
    if [libc::SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF].contains(name) && *level == libc::SOL_SOCKET {
        return filter::attach(socket, *name, value).map_err(failed);
    }
    // What is asked for by its name is not told by it.
    if !hidden::is_hidden((*level, *name)) && read(socket, *level, *name).is_ok_and(|is| is.as_ref() == Some(value)) {
        return Ok(());
    }
    let forced = BUFFERS
        .iter()
        .find(|(buffer, _)| *level == libc::SOL_SOCKET && buffer == name);
    match (forced, <[u8; 4]>::try_from(value.as_slice())) {
        (Some(names), Ok(bytes)) => {
            let half = i32::from_ne_bytes(bytes) / 2;
            set_buffer(socket, *names, half).and_then(|()| {
                let is = number_option(socket, *level, *name)?;
                if is / 2 < half { Err(Errno::EPERM) } else { Ok(()) }
            })
        }
        _ => set_option(socket, *level, *name, value),
    }
    .map_err(failed)
}
