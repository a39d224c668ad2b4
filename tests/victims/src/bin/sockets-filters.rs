//! Filters of TCP sockets, connected and listening, and of unix sockets: what came before them is there, what they hold back
//! they still hold back, and accepted sockets have got them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::PathBuf,
    time::Duration,
};
use victims::{
    Findings,
    filter::{self, NOTHING, attach, attached, detach, without, without_bytes},
    play, socket, wait_until,
};

type Check = Box<dyn FnMut(&mut Findings)>;

const PLACES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = Vec::new();
        for place in PLACES {
            checks.push(Box::new(held_back(place)));
            checks.push(Box::new(end_came(place)));
            checks.push(Box::new(end_held_back(place)));
            checks.push(Box::new(inherited(place)));
            checks.push(Box::new(nobody_connects(place)));
        }
        checks.push(Box::new(of_the_client()));
        checks.push(Box::new(letters(libc::SOCK_DGRAM)));
        checks.push(Box::new(letters(libc::SOCK_SEQPACKET)));
        checks.push(Box::new(streams(stage.path("filtered"))));
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Client, server, and what accepted.
fn connection(place: &str) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind(place).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("getsockname")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    server
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("SO_RCVTIMEO");
    (client, server, listener)
}

fn unread(socket: &impl AsRawFd) -> i32 {
    let mut bytes = 0;
    // SAFETY: room for a number.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    bytes
}

fn has_end(socket: &impl AsRawFd) -> bool {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one struct.
    unsafe { libc::poll(&raw mut asked, 1, 0) };
    asked.revents & libc::POLLRDHUP != 0
}

fn read(findings: &mut Findings, server: &mut TcpStream, wanted: &[u8]) {
    let mut bytes = vec![0; wanted.len()];
    findings.take("read", server.read_exact(&mut bytes));
    findings.same("bytes", wanted, &bytes);
}

/// Some bytes came before the filter, and some come when it is gone.
fn held_back(place: &'static str) -> impl FnMut(&mut Findings) {
    let make = move || {
        let (mut client, server, _) = connection(place);
        client.write_all(b"before").expect("write");
        wait_until(|| unread(&server) == 6);
        attach(&server, &without_bytes());
        client.write_all(b"held back").expect("write");
        (client, server)
    };
    let (mut client, mut server) = make();
    move |findings| {
        if findings.sabotage() {
            detach(&server).expect("detach");
        }
        findings.same("filter", &without_bytes().to_vec(), &attached(&server));
        findings.same("bytes that came", &6, &unread(&server));
        read(findings, &mut server, b"before");
        findings.take("write", client.write_all(b"!"));
        findings.same("bytes that came", &0, &unread(&server));
        findings.take("write", server.write_all(b"back"));
        findings.take("read", client.read_exact(&mut [0; 4]));
        findings.take("detach", detach(&server));
        read(findings, &mut server, b"held back!");
        (client, server) = make();
    }
}

/// The other end's last came before a filter that lets nothing pass.
fn end_came(place: &'static str) -> impl FnMut(&mut Findings) {
    let make = move || {
        let (mut client, server, _) = connection(place);
        client.write_all(b"last").expect("write");
        client.shutdown(Shutdown::Write).expect("shut down");
        wait_until(|| has_end(&server));
        attach(&server, &NOTHING);
        socket::set(server.as_raw_fd(), libc::SOL_SOCKET, filter::LOCK, 1);
        (client, server)
    };
    let (mut client, mut server) = make();
    move |findings| {
        let refused = detach(&server).map_err(|error| error.raw_os_error());
        findings.same("detach where it is locked", &Err(Some(libc::EPERM)), &refused);
        read(findings, &mut server, b"last");
        findings.same("the end", &Some(0), &server.read(&mut [0]).ok());
        findings.take("write", server.write_all(b"back"));
        findings.take("read", client.read_exact(&mut [0; 4]));
        (client, server) = make();
    }
}

/// It does not come before the filter is gone.
fn end_held_back(place: &'static str) -> impl FnMut(&mut Findings) {
    let make = move || {
        let (mut client, server, _) = connection(place);
        client.write_all(b"last").expect("write");
        wait_until(|| unread(&server) == 4);
        attach(&server, &NOTHING);
        client.shutdown(Shutdown::Write).expect("shut down");
        (client, server)
    };
    let mut ends = make();
    move |findings| {
        let (_, server) = &mut ends;
        findings.that(!has_end(server), "the end came through a filter");
        read(findings, server, b"last");
        findings.take("set", server.set_nonblocking(true));
        let nothing = server.read(&mut [0]).map_err(|error| error.kind());
        findings.same("what came", &Err(ErrorKind::WouldBlock), &nothing);
        findings.take("set", server.set_nonblocking(false));
        findings.take("detach", detach(server));
        findings.same("the end", &Some(0), &server.read(&mut [0]).ok());
        ends = make();
    }
}

/// What is accepted has the filter of the socket that listens, and its lock; one that was accepted before that has none.
fn inherited(place: &'static str) -> impl FnMut(&mut Findings) {
    let (mut before, mut early, listener) = connection(place);
    let to = listener.local_addr().expect("getsockname");
    // Lets all pass: no header has this byte.
    let program = without(12, 0xff);
    attach(&listener, &program);
    socket::set(listener.as_raw_fd(), libc::SOL_SOCKET, filter::LOCK, 1);
    let connect = move || TcpStream::connect(to).expect("connect");
    let mut behind = connect();
    let (mut late, _) = listener.accept().expect("accept");
    move |findings| {
        let all = program.to_vec();
        findings.same("filter of the one that listens", &all, &attached(&listener));
        findings.same("filter of one accepted before", &Vec::new(), &attached(&early));
        findings.same("filter of one accepted behind", &all, &attached(&late));
        let refused = detach(&late).map_err(|error| error.raw_os_error());
        findings.same("detach where it is locked", &Err(Some(libc::EPERM)), &refused);
        let new = connect();
        let (accepted, _) = listener.accept().expect("accept");
        findings.same("filter of a new one", &all, &attached(&accepted));
        drop(new);
        for (client, server) in [(&mut before, &mut early), (&mut behind, &mut late)] {
            findings.take("write", client.write_all(b"there"));
            read(findings, server, b"there");
        }
    }
}

/// A filter of a socket that listens lets no new ones come, while those that it had accepted go on.
fn nobody_connects(place: &'static str) -> impl FnMut(&mut Findings) {
    let (mut client, mut server, listener) = connection(place);
    let to: SocketAddr = listener.local_addr().expect("getsockname");
    let mut waiting = TcpStream::connect(to).expect("connect");
    attach(&listener, &NOTHING);
    move |findings| {
        let refused = TcpStream::connect_timeout(&to, Duration::from_millis(100)).map_err(|error| error.kind());
        findings.same("a new connection", &Err(ErrorKind::TimedOut), &refused.map(drop));
        findings.take("write", client.write_all(b"there"));
        read(findings, &mut server, b"there");
        // One waited when the filter came.
        findings.take("write", waiting.write_all(b"there"));
        let (mut accepted, _) = listener.accept().expect("accept");
        findings.same("filter of one that waited", &Vec::new(), &attached(&accepted));
        read(findings, &mut accepted, b"there");
        findings.take("detach", detach(&listener));
        waiting = TcpStream::connect(to).expect("connect");
        attach(&listener, &NOTHING);
    }
}

/// The filter is that of an end whose connection nobody has accepted.
fn of_the_client() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind(PLACES[0]).expect("bind");
    let to: SocketAddr = listener.local_addr().expect("getsockname");
    let connect = move || {
        let client = TcpStream::connect(to).expect("connect");
        attach(&client, &NOTHING);
        client
    };
    let mut client = connect();
    move |findings| {
        findings.same("filter of the client", &NOTHING.to_vec(), &attached(&client));
        let (mut server, _) = listener.accept().expect("accept");
        findings.take("write", server.write_all(b"held back"));
        findings.same("bytes that came", &0, &unread(&client));
        findings.take("detach", detach(&client));
        read(findings, &mut client, b"held back");
        client = connect();
    }
}

/// Messages of unix sockets pass the filter of the one that receives them.
fn letters(kind: i32) -> impl FnMut(&mut Findings) {
    let mut pair = [0; 2];
    // SAFETY: room for two numbers.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0, pair.as_mut_ptr()) };
    assert_eq!(made, 0, "socketpair");
    // SAFETY: just made, and nobody else's.
    let [from, to] =
        pair.map(|number| UnixDatagram::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) }));
    let fill = move |from: &UnixDatagram, to: &UnixDatagram| {
        let _ = detach(to);
        for text in [b"x0", b"y1", b"x2"] {
            from.send(text).expect("send");
        }
        attach(to, &without(0, b'x'));
        for text in [b"x3", b"y4"] {
            from.send(text).expect("send");
        }
    };
    fill(&from, &to);
    move |findings| {
        findings.same("filter", &without(0, b'x').to_vec(), &attached(&to));
        findings.take("send", from.send(b"x5"));
        findings.take("send", from.send(b"y6"));
        let (mut got, mut buffer) = (Vec::new(), [0; 2]);
        while to.recv(&mut buffer).is_ok() {
            got.push(buffer[1] - b'0');
        }
        findings.same("what a filter lets pass", &vec![0, 1, 2, 4, 6], &got);
        fill(&from, &to);
    }
}

/// Streams and sockets that listen have them, and take no notice.
fn streams(path: PathBuf) -> impl FnMut(&mut Findings) {
    let listener = UnixListener::bind(&path).expect("bind");
    let (mut one, mut two) = UnixStream::pair().expect("a pair");
    attach(&listener, &NOTHING);
    attach(&two, &NOTHING);
    socket::set(two.as_raw_fd(), libc::SOL_SOCKET, filter::LOCK, 1);
    one.write_all(b"there").expect("write");
    move |findings| {
        findings.same("filter of a stream", &NOTHING.to_vec(), &attached(&two));
        findings.same("filter of one that listens", &NOTHING.to_vec(), &attached(&listener));
        let refused = detach(&two).map_err(|error| error.raw_os_error());
        findings.same("detach where it is locked", &Err(Some(libc::EPERM)), &refused);
        let mut bytes = [0; 5];
        findings.take("read", two.read_exact(&mut bytes));
        findings.same("bytes", b"there", &bytes);
        findings.take("write", one.write_all(b"there"));
        let client = UnixStream::connect(&path).expect("connect");
        let (accepted, _) = listener.accept().expect("accept");
        findings.same("filter of one that was accepted", &Vec::new(), &attached(&accepted));
        drop(client);
    }
}
