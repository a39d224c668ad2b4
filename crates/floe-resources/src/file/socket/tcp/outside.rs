//! Connections whose other end is outside of the tree: their sequence numbers, windows and options are saved, and put
//! into a new socket in repair mode, so that the other end notices nothing but packets that were lost.
//!
//! What this end has sent and the other has not acknowledged counts as sent: the other end may acknowledge it at once, and
//! what was lost on the way the kernel sends again. What was not sent yet is sent when packets may pass again.

use super::{
    Body, Look, Stream,
    make::await_end,
    repair::{Queue, Repair, choose, peek},
    sent::urgent_sent,
    stream::{Mark, send_all, send_marked},
};
use crate::file::{
    FileError, OpenContext,
    socket::{datagram::inject, inet, number_option, options, supply::new_in_tree, system, tcp_state::TcpState},
};
use floe_sys::{
    netfilter,
    packet::{self, Segment},
    socket::{option, set_option, sized_option, unacknowledged, unsent},
};
use nix::{
    errno::Errno,
    sys::socket::{SockaddrStorage, bind, connect, shutdown},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// linux/tcp.h, include/net/tcp.h.
const TCP_REPAIR_WINDOW: i32 = 29;
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_WSCALE: u8 = 4;
const TCPOPT_MAXSEG: u32 = 2;
const TCPOPT_WINDOW: u32 = 3;
const TCPOPT_SACK_PERM: u32 = 4;
const TCPOPT_TIMESTAMP: u32 = 8;
/// TCP_MIN_MSS and MAX_TCP_WINDOW, between which TCP_MAXSEG may be.
const SEGMENT: (u32, u32) = (88, 32767);
const TCP_REPAIR_ON: i32 = 1;
const TCP_REPAIR_OFF: i32 = 0;

/// What the other end relies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outside {
    /// Sequence number of the first byte that the other end has not acknowledged.
    send_from: u32,
    /// What was sent from there on.
    #[serde(with = "serde_bytes")]
    sent: Vec<u8>,
    /// What was to be sent behind that.
    #[serde(with = "serde_bytes")]
    unsent: Vec<u8>,
    /// How many bytes there are from the first of these to one that is urgent.
    urgent: Option<u32>,
    /// Sequence number behind the last byte that has come.
    receive_next: u32,
    /// struct tcp_repair_window.
    window: Window,
    /// Largest segment that the other end takes.
    largest: u32,
    /// By how many bits windows are shifted, the other end's and this one's.
    scale: Option<[u8; 2]>,
    /// Whether it understands selective acknowledgements.
    selective: bool,
    /// What the clock of timestamps shows.
    timestamp: Option<u32>,
    /// Bytes of the receive buffer, as the kernel counts them.
    room: u32,
}

/// struct tcp_repair_window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

impl Window {
    fn read(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let bytes = sized_option(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, 20)?;
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|four| u32::from_ne_bytes(four.try_into().expect("4 bytes")))
            .collect();
        let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = words[..] else {
            return Err(Errno::EPROTO);
        };
        Ok(Self {
            snd_wl1,
            snd_wnd,
            max_window,
            rcv_wnd,
            rcv_wup,
        })
    }

    fn set(self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let words = [self.snd_wl1, self.snd_wnd, self.max_window, self.rcv_wnd, self.rcv_wup];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        set_option(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &bytes)
    }

    /// The same when less has come: what comes then has room.
    fn before(mut self, next: u32) -> Self {
        let behind = self.rcv_wup.wrapping_add(self.rcv_wnd);
        self.rcv_wup = next;
        self.rcv_wnd = behind.wrapping_sub(next);
        self
    }

    /// The same before the other end's last was seen.
    fn without_end(mut self, receive_next: u32) -> Self {
        if self.rcv_wup == receive_next.wrapping_add(1) {
            self.rcv_wup = receive_next;
            self.rcv_wnd = self.rcv_wnd.saturating_add(1);
        }
        self
    }
}

impl Outside {
    pub(super) fn is_possible(&self) -> bool {
        let bytes = self.sent.len() + self.unsent.len();
        self.urgent.is_none_or(|urgent| (urgent as usize) < bytes)
    }

    /// Which byte is urgent: of what was sent, and of what was not.
    fn urgent_bytes(&self) -> (Option<usize>, Option<usize>) {
        let urgent = self.urgent.map(|urgent| urgent as usize);
        let (of_sent, sent) = (urgent.filter(|urgent| *urgent < self.sent.len()), self.sent.len());
        (of_sent, urgent.and_then(|urgent| urgent.checked_sub(sent)))
    }

    /// A segment from the other end, to this one, with nothing in it yet.
    fn segment(&self, body: &Body, sequence: u32) -> Segment<'static> {
        Segment {
            from: body.remote,
            to: body.local,
            sequence,
            acknowledged: self.send_from,
            flags: packet::ACK,
            // It is taken for news only if it is no older than what is known.
            window: (self.window.snd_wnd >> self.scale.map_or(0, |[theirs, _]| theirs)).min(65535) as u16,
            urgent: 0,
            bytes: &[],
        }
    }
}

/// Reads an end, what waits in it to be read, and whether the other end has said that it sends no more. Nothing may come or be acknowledged meanwhile.
pub(super) fn read(socket: BorrowedFd<'_>, (keeper, memory): Look<'_>) -> io::Result<(Outside, Stream, bool)> {
    let state = TcpState::read(socket)?;
    let info = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let [_, _, _, _, _, kinds, scales, ..] = info[..] else {
        return Err(Errno::EPROTO.into());
    };
    let end = u32::from(state.has_sent_end()) as usize;
    // The end counts, as long as it is not acknowledged or sent.
    let bytes = unacknowledged(socket)?.saturating_sub(end);
    let unsent = unsent(socket)?.saturating_sub(end);
    let room = number_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF)?;
    let queue = Stream::read(socket, (keeper, memory))?;
    let urgent = urgent_sent(socket, memory)?;
    let repair = Repair::of(socket, keeper)?;
    let number = |name| number_option(socket, libc::IPPROTO_TCP, name).map(|number| number as u32);
    let behind = repair.queue(Queue::Send)?.wrapping_sub(end as u32);
    let mut sent = peek(socket)?;
    // Its beginning may be acknowledged already.
    let from = sent.len().checked_sub(bytes).ok_or(Errno::EPROTO)?;
    sent.drain(..from);
    let unsent = sent.split_off(bytes.checked_sub(unsent).ok_or(Errno::EPROTO)?);
    let send_from = behind.wrapping_sub(bytes as u32);
    let receive_next = repair.queue(Queue::Receive)?.wrapping_sub(state.has_got_end().into());
    let window = Window::read(socket)?;
    Ok((
        Outside {
            send_from,
            sent,
            unsent,
            urgent: urgent.map(|urgent| urgent.wrapping_sub(send_from).wrapping_sub(1)),
            receive_next,
            window: if state.has_got_end() {
                window.without_end(receive_next)
            } else {
                window
            },
            largest: number(libc::TCP_MAXSEG)?,
            scale: (kinds & TCPI_OPT_WSCALE != 0).then_some([scales & 15, scales >> 4]),
            selective: kinds & TCPI_OPT_SACK != 0,
            timestamp: if kinds & TCPI_OPT_TIMESTAMPS != 0 {
                Some(number(libc::TCP_TIMESTAMP)?)
            } else {
                None
            },
            room: room.max(0) as u32,
        },
        queue,
        state.has_got_end(),
    ))
}

/// The end, in repair mode, in which it neither sends nor tells when it is closed.
pub(super) fn make(
    id: u32,
    (body, outside): (&Body, &Outside),
    context: &mut OpenContext<'_>,
) -> Result<OwnedFd, FileError> {
    // Where the tree listens at this address that must come first: its port would be in use.
    inet::listener((context.network(id), super::canonical(body.local)), context)?;
    let socket = new_in_tree(id, (body.family, libc::SOCK_STREAM, libc::IPPROTO_TCP), context)?;
    let fill = || -> Result<(), Errno> {
        let set = |name, value: u32| set_option(socket.as_fd(), libc::IPPROTO_TCP, name, &value.to_ne_bytes());
        choose(socket.as_fd(), Queue::Send)?;
        set(libc::TCP_QUEUE_SEQ, outside.send_from)?;
        choose(socket.as_fd(), Queue::Receive)?;
        let first = outside.receive_next.wrapping_sub(body.queue.bytes.len() as u32);
        set(libc::TCP_QUEUE_SEQ, first)?;
        // How large segments are is chosen in connect(2), before it is known what was negotiated.
        set(libc::TCP_MAXSEG, outside.largest.clamp(SEGMENT.0, SEGMENT.1))
    };
    let wrap = |action| move |source: Errno| system(action, id, source.into());
    let on = set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_REPAIR,
        &TCP_REPAIR_ON.to_ne_bytes(),
    );
    on.map_err(wrap("repair the connection of"))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(body.local))
        .map_err(wrap("bind (does this host have its address?)"))?;
    fill().map_err(wrap("set the sequence numbers of"))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(body.remote))
        .map_err(wrap("take up the connection (is there another one like it?) of"))?;
    negotiated(socket.as_fd(), outside).map_err(wrap("set what was negotiated for"))?;
    choose(socket.as_fd(), Queue::Send)
        .and_then(|()| {
            options::with_room(socket.as_fd(), outside.sent.len(), || {
                send_marked(socket.as_fd(), &outside.sent, outside.urgent_bytes().0)
            })
        })
        .map_err(wrap("put back what was sent by"))?;
    receive(id, socket.as_fd(), (body, outside), context)?;
    Ok(socket)
}

fn negotiated(socket: BorrowedFd<'_>, outside: &Outside) -> Result<(), Errno> {
    let mut pairs = vec![[TCPOPT_MAXSEG, outside.largest]];
    if let Some([theirs, own]) = outside.scale {
        pairs.push([TCPOPT_WINDOW, u32::from(theirs) | u32::from(own) << 16]);
    }
    if outside.selective {
        pairs.push([TCPOPT_SACK_PERM, 0]);
    }
    if outside.timestamp.is_some() {
        pairs.push([TCPOPT_TIMESTAMP, 0]);
    }
    let bytes: Vec<u8> = pairs.concat().into_iter().flat_map(u32::to_ne_bytes).collect();
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, &0_u32.to_ne_bytes())?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &bytes)?;
    match outside.timestamp {
        Some(clock) => set_option(socket, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP, &clock.to_ne_bytes()),
        None => Ok(()),
    }
}

/// As much as fits into one buffer of the kernel's.
const PIECE: usize = 16 << 10;

/// Puts back what waited.
fn receive(
    id: u32,
    socket: BorrowedFd<'_>,
    (body, outside): (&Body, &Outside),
    context: &OpenContext<'_>,
) -> Result<(), FileError> {
    let wrap = |source: Errno| system("put back what waited in", id, source.into());
    let bytes = &body.queue.bytes;
    // A buffer's book-keeping counts too.
    let most = (4 * bytes.len()).max(outside.room as usize) / 2;
    let force = |bytes: usize| {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX / 2);
        set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes.to_ne_bytes())
    };
    force(most)
        .and_then(|()| choose(socket, Queue::Receive))
        .map_err(wrap)?;
    let mut rest = &bytes[..];
    if let Some(mark) = body.queue.marks.first() {
        let (before, behind) = bytes.split_at((mark.at as usize).min(bytes.len()));
        put(socket, before).map_err(wrap)?;
        tell_urgent(id, socket, ((body, outside), mark), context)?;
        rest = behind.get(1..).unwrap_or_default();
    }
    put(socket, rest)
        .and_then(|()| outside.window.set(socket))
        .map_err(wrap)?;
    force(outside.room as usize / 2).map_err(wrap)?;
    // The kernel may choose its size again.
    set_option(socket, libc::SOL_SOCKET, options::SO_BUF_LOCK, &0_i32.to_ne_bytes()).map_err(wrap)
}

/// In repair mode what is sent goes into the queue that is chosen.
fn put(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    bytes.chunks(PIECE).try_for_each(|piece| send_all(socket, piece))
}

/// Tells of an urgent byte, before which all has been put back, by a segment as the other end sent it: with the byte in it, if
/// that has come. It passes though packets are held back, and what is answered does not.
fn tell_urgent(
    id: u32,
    socket: BorrowedFd<'_>,
    ((body, outside), mark): ((&Body, &Outside), &Mark),
    context: &OpenContext<'_>,
) -> Result<(), FileError> {
    let wrap = |source: Errno| system("tell of an urgent byte to", id, source.into());
    let (bytes, at) = (&body.queue.bytes, mark.at as usize);
    let next = outside.receive_next.wrapping_sub(bytes.len().saturating_sub(at) as u32);
    outside.window.before(next).set(socket).map_err(wrap)?;
    let packet = packet::tcp(&Segment {
        flags: packet::ACK | packet::URG,
        urgent: 1 + at.saturating_sub(bytes.len()) as u16,
        bytes: bytes.get(at..=at).unwrap_or_default(),
        ..outside.segment(body, next)
    });
    let before = TcpState::segments(socket).map_err(wrap)?;
    let has_come = || Ok(TcpState::segments(socket)? != before);
    inject(id, &packet, has_come, (context, Some(netfilter::PASS)))?;
    if at < bytes.len() {
        mark.arrive(socket).map_err(wrap)?;
    }
    Ok(())
}

/// Ends repair mode and sends what is to be sent. Packets must pass by now.
pub(super) fn go_on(
    socket: BorrowedFd<'_>,
    (body, outside): (&Body, &Outside),
    raw: &mut dyn FnMut(&packet::Packet) -> Result<(), Errno>,
) -> io::Result<()> {
    let reuse = number_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    let off = TCP_REPAIR_OFF.to_ne_bytes();
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &off)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse.to_ne_bytes())?;
    // There must be room for what was sent as well.
    let room = outside.sent.len() + outside.unsent.len();
    let urgent = outside.urgent_bytes().1;
    options::with_room(socket, room, || send_marked(socket, &outside.unsent, urgent))?;
    if body.got_end {
        // The other end has sent its last long ago, and says nothing more.
        raw(&packet::tcp(&Segment {
            flags: packet::FIN | packet::ACK,
            ..outside.segment(body, outside.receive_next)
        }))?;
        await_end(socket)?;
        options::set_filter(socket, &body.options)?;
    }
    match body.shut().map(|how| shutdown(socket.as_raw_fd(), how)) {
        // The other end has ended it meanwhile.
        Some(Err(Errno::ENOTCONN)) | None => Ok(()),
        Some(result) => Ok(result?),
    }
}
