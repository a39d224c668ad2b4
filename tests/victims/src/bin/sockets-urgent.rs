//! Urgent bytes of TCP connections (MSG_OOB): that wait, were read before what comes before them, are the next to be read, or
//! are on their way still; of connections that have ended, or wait to be accepted; and SIGURG, which comes once.

use std::{
    io::{Read, Write},
    mem,
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use victims::{
    Findings, play, socket,
    urgent::{self, at_mark},
    wait_until,
};

type Check = Box<dyn FnMut(&mut Findings)>;

const PLACES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = Vec::new();
        for state in states() {
            checks.push(Box::new(seen(state)));
        }
        checks.push(Box::new(behind_much()));
        for inline in [false, true] {
            checks.push(Box::new(on_its_way(inline)));
        }
        checks.push(Box::new(unaccepted()));
        checks.push(Box::new(signalled()));
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// What was sent and read.
#[derive(Debug, Clone, Copy)]
struct State {
    place: &'static str,
    before: &'static [u8],
    behind: &'static [u8],
    /// What comes before it was read.
    at_mark: bool,
    /// It was read by MSG_OOB.
    read: bool,
    /// SO_OOBINLINE is set, at last.
    inline: bool,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    None,
    /// The sender has said its last.
    Half,
    /// The sender has closed its end.
    Closed,
    /// Both have ended it.
    Both,
    /// The sender has reset it.
    Reset,
}

fn states() -> Vec<State> {
    let mut all = Vec::new();
    for (before, behind) in [
        (&b"before"[..], &b"behind"[..]),
        (b"", b"behind"),
        (b"before", b""),
        (b"", b""),
    ] {
        for flags in 0..8 {
            let place = PLACES[all.len() % 2];
            let [at_mark, read, inline] = [1, 2, 4].map(|bit| flags & bit != 0);
            all.push(State {
                place,
                before,
                behind,
                at_mark,
                read,
                inline,
                ending: Ending::None,
            });
        }
    }
    for ending in [Ending::Half, Ending::Closed, Ending::Both, Ending::Reset] {
        for read in [false, true] {
            all.push(State { read, ending, ..all[0] });
        }
    }
    all
}

/// Client, server, and what accepted.
fn connection(place: &str) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind(place).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("getsockname")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (client, server, listener)
}

fn events(socket: &impl AsRawFd) -> i16 {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one struct.
    unsafe { libc::poll(&raw mut asked, 1, 0) };
    asked.revents
}

fn has_urgent(socket: &impl AsRawFd) -> bool {
    events(socket) & libc::POLLPRI != 0
}

impl State {
    /// Both ends; the sender's where it is open.
    fn make(self) -> (Option<TcpStream>, TcpStream) {
        let (mut client, mut server, _) = connection(self.place);
        client.write_all(self.before).expect("write");
        urgent::send(&client, b'!');
        client.write_all(self.behind).expect("write");
        wait_until(|| has_urgent(&server));
        if self.at_mark {
            server.read_exact(&mut vec![0; self.before.len()]).expect("read");
        }
        if self.read {
            assert_eq!(urgent::receive(&server), Ok(Some(b'!')));
        }
        if self.inline {
            socket::set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
        }
        server.set_nonblocking(true).expect("set non-blocking");
        let ended = |event: i16| wait_until(|| events(&server) & event != 0);
        match self.ending {
            Ending::None => return (Some(client), server),
            Ending::Half => {
                client.shutdown(Shutdown::Write).expect("shut down");
                ended(libc::POLLRDHUP);
                return (Some(client), server);
            }
            Ending::Closed => {
                drop(client);
                ended(libc::POLLRDHUP);
            }
            Ending::Both => {
                drop(client);
                ended(libc::POLLRDHUP);
                server.shutdown(Shutdown::Write).expect("shut down");
                ended(libc::POLLHUP);
            }
            Ending::Reset => {
                let at_once = [1_i32, 0].map(i32::to_ne_bytes).concat();
                socket::try_set(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &at_once).expect("SO_LINGER");
                drop(client);
                ended(libc::POLLERR);
            }
        }
        (None, server)
    }
}

/// What a reader sees step by step: whether it is at the mark, events, bytes to be read, and what it reads, bytes and the urgent
/// one.
type Step = (bool, i16, i32, Result<Vec<u8>, i32>, Result<Option<u8>, i32>);

fn observe((sender, server): &mut (Option<TcpStream>, TcpStream)) -> Vec<Step> {
    let mut steps = Vec::new();
    for round in 0..8 {
        if round == 4
            && let Some(sender) = sender
        {
            let _ = sender.write_all(b"more");
            wait_until(|| events(server) & (libc::POLLIN | libc::POLLRDHUP) != 0);
        }
        let mut bytes = vec![0; 100];
        let before = (at_mark(server), events(server), unread(server));
        let read = server.read(&mut bytes).map(|got| bytes[..got].to_vec());
        let read = read.map_err(|error| error.raw_os_error().unwrap_or(0));
        steps.push((before.0, before.1, before.2, read, urgent::receive(server)));
    }
    if let Some(sender) = sender {
        server.write_all(b"back").expect("write");
        sender.read_exact(&mut [0; 4]).expect("read");
    }
    steps
}

fn unread(socket: &impl AsRawFd) -> i32 {
    let mut bytes = 0;
    // SAFETY: room for a number.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    bytes
}

/// It looks as it did when nothing had happened to it.
fn seen(state: State) -> impl FnMut(&mut Findings) {
    let wanted = observe(&mut state.make());
    let mut ends = state.make();
    move |findings| {
        if findings.sabotage() {
            let _ = urgent::receive(&ends.1);
        }
        findings.same(format!("{state:?}"), &wanted, &observe(&mut ends));
        ends = state.make();
    }
}

/// More than a new connection takes unread.
const MUCH: usize = 600_000;

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

/// The byte waits behind more than a new connection would take.
fn behind_much() -> impl FnMut(&mut Findings) {
    let make = || {
        let (mut client, server, _) = connection(PLACES[0]);
        let room = (4 * MUCH as i32).to_ne_bytes();
        socket::try_set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room).expect("room");
        client.write_all(&pattern(MUCH)).expect("write");
        urgent::send(&client, b'!');
        wait_until(|| has_urgent(&server));
        (client, server)
    };
    let mut ends = make();
    move |findings| {
        findings.that(has_urgent(&ends.1), "the urgent byte is not there");
        findings.same("bytes before it", &(MUCH as i32), &unread(&ends.1));
        let mut bytes = vec![0; MUCH];
        findings.take("read", ends.1.read_exact(&mut bytes));
        findings.that(bytes == pattern(MUCH), "other bytes came");
        findings.same("urgent byte", &Ok(Some(b'!')), &urgent::receive(&ends.1));
        ends = make();
    }
}

/// The reader has no room for it.
fn on_its_way(inline: bool) -> impl FnMut(&mut Findings) {
    let make = move || {
        let (mut client, server, _) = connection(PLACES[usize::from(inline)]);
        socket::set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, inline.into());
        client.set_nonblocking(true).expect("set non-blocking");
        let (piece, mut sent) = (pattern(251 * 100), 0);
        while let Ok(bytes) = client.write(&piece[sent % piece.len()..]) {
            sent += bytes;
        }
        let room = (1_i32 << 24).to_ne_bytes();
        socket::try_set(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room).expect("room");
        urgent::send(&client, b'!');
        client.write_all(b"behind").expect("write");
        (client, server, sent)
    };
    let mut ends = make();
    move |findings| {
        let (_, server, sent) = &mut ends;
        server
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("SO_RCVTIMEO");
        let mut bytes: Vec<u8> = Vec::new();
        // A read ends at the mark.
        while !at_mark(server) && bytes.len() <= *sent {
            let mut some = vec![0; 100_000];
            let Some(got) = findings.take("read", server.read(&mut some)) else {
                break;
            };
            bytes.extend(&some[..got]);
        }
        findings.same("bytes before it", sent, &bytes.len());
        let wrong = bytes
            .iter()
            .zip(0_usize..)
            .find(|(byte, at)| usize::from(**byte) != at % 251);
        findings.same("first wrong byte", &None, &wrong);
        wait_until(|| has_urgent(server));
        let mut rest = vec![0; 6 + usize::from(inline)];
        if !inline {
            findings.same("urgent byte", &Ok(Some(b'!')), &urgent::receive(server));
        }
        findings.take("read", server.read_exact(&mut rest));
        findings.same("the rest", &&b"!behind"[1 - usize::from(inline)..], &&rest[..]);
        ends = make();
    }
}

/// Nobody has accepted it yet.
fn unaccepted() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind(PLACES[0]).expect("bind");
    let connect = {
        let address = listener.local_addr().expect("getsockname");
        move || {
            let mut client = TcpStream::connect(address).expect("connect");
            client.write_all(b"before").expect("write");
            urgent::send(&client, b'!');
            client.write_all(b"behind").expect("write");
            client
        }
    };
    let mut wanted = None;
    let mut client = connect();
    move |findings| {
        let look = |client: TcpStream| {
            let (server, _) = listener.accept().expect("accept");
            server.set_nonblocking(true).expect("set non-blocking");
            wait_until(|| has_urgent(&server));
            observe(&mut (Some(client), server))
        };
        let now = look(mem::replace(&mut client, connect()));
        let wanted = wanted.get_or_insert_with(|| look(mem::replace(&mut client, connect())));
        findings.same("a connection that was not accepted", wanted, &now);
    }
}

/// How often SIGURG came.
static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Two bytes, of which the first was told by SIGURG, and the second is told when it is not blocked any more.
fn signalled() -> impl FnMut(&mut Findings) {
    // SAFETY: the handler touches a number alone.
    unsafe { libc::signal(libc::SIGURG, count as *const () as libc::sighandler_t) };
    let make = || {
        SIGNALS.store(0, Ordering::Relaxed);
        let (client, server, _) = connection(PLACES[1]);
        // SAFETY: plain numbers.
        unsafe { libc::fcntl(server.as_raw_fd(), libc::F_SETOWN, std::process::id()) };
        urgent::send(&client, b'1');
        wait_until(|| SIGNALS.load(Ordering::Relaxed) == 1);
        block(libc::SIG_BLOCK);
        urgent::send(&client, b'2');
        wait_until(is_pending);
        (client, server)
    };
    let mut ends = make();
    move |findings| {
        findings.same("signals", &1, &SIGNALS.load(Ordering::Relaxed));
        findings.that(is_pending(), "SIGURG does not wait any more");
        block(libc::SIG_UNBLOCK);
        findings.same("signals", &2, &SIGNALS.load(Ordering::Relaxed));
        findings.same("urgent byte", &Ok(Some(b'2')), &urgent::receive(&ends.1));
        urgent::send(&ends.0, b'3');
        wait_until(|| SIGNALS.load(Ordering::Relaxed) == 3);
        ends = make();
    }
}

fn set_of_urgent() -> libc::sigset_t {
    // SAFETY: a set of numbers, which is made empty and gets a signal.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGURG);
        set
    }
}

fn block(how: i32) {
    let set = set_of_urgent();
    // SAFETY: a set that is there.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

fn is_pending() -> bool {
    let mut set = set_of_urgent();
    // SAFETY: room for a set; a number.
    unsafe {
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, libc::SIGURG) == 1
    }
}
