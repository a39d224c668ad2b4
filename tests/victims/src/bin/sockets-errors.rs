//! Errors that wait in sockets until somebody reads them: of UDP, where what was sent did not get there; of TCP, where a
//! connection was reset, or refused.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};
use victims::{Findings, play, socket, wait_until};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = Vec::new();
        for place in ["127.0.0.1:0", "[::1]:0"] {
            checks.push(Box::new(unreachable(place)));
            checks.push(Box::new(reset(place, b"")));
            checks.push(Box::new(reset(place, b"read me first")));
            checks.push(Box::new(refused(place)));
        }
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Whether an error waits.
fn has_error(socket: &impl AsRawFd) -> bool {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one struct.
    unsafe { libc::poll(&raw mut asked, 1, 0) };
    asked.revents & libc::POLLERR != 0
}

/// Takes the error.
fn error(socket: &impl AsRawFd) -> Option<i32> {
    let value = socket::get(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 4).ok()?;
    Some(i32::from_ne_bytes(value.try_into().ok()?))
}

/// Nobody has the port to which it sends; something waits in it too.
fn unreachable(place: &'static str) -> impl FnMut(&mut Findings) {
    let socket = UdpSocket::bind(place).expect("bind");
    socket.set_nonblocking(true).expect("set");
    let gone = UdpSocket::bind(place).expect("bind");
    let to = gone.local_addr().expect("an address");
    gone.send_to(b"before", socket.local_addr().expect("an address"))
        .expect("send");
    socket.connect(to).expect("connect");
    drop(gone);
    let fail = move |socket: &UdpSocket| {
        socket.send(b"to nobody").expect("send");
        wait_until(|| has_error(socket))
    };
    assert!(fail(&socket), "an error comes");
    move |findings| {
        if findings.sabotage() {
            error(&socket);
        }
        findings.same("other end", &Some(to), &socket.peer_addr().ok());
        findings.same("error of UDP", &Some(libc::ECONNREFUSED), &error(&socket));
        findings.same("error of UDP, once more", &Some(0), &error(&socket));
        findings.same("what waits", &Some(6), &socket.recv(&mut [0; 10]).ok());
        let again = UdpSocket::bind(to).expect("bind");
        findings.take(
            "send",
            again.send_to(b"before", socket.local_addr().expect("an address")),
        );
        drop(again);
        findings.that(fail(&socket), "no error comes");
    }
}

/// The other end has closed it though it had not read all.
fn reset(place: &'static str, queue: &'static [u8]) -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind(place).expect("bind");
    let make = move || {
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        server.write_all(queue).expect("write");
        (&client).write_all(b"unread").expect("write");
        assert!(wait_until(|| server.peek(&mut [0; 6]).is_ok_and(|bytes| bytes == 6)));
        drop(server);
        assert!(wait_until(|| has_error(&client)), "a reset comes");
        client.set_nonblocking(true).expect("set");
        client
    };
    let mut socket = make();
    let mut local = socket.local_addr().ok();
    move |findings| {
        findings.same("address", &local, &socket.local_addr().ok());
        let mut got = vec![0; queue.len()];
        findings.take("read", socket.read_exact(&mut got));
        findings.same("what waits in front of the error", queue, &got[..]);
        let end = socket.read(&mut [0; 10]).map_err(|error| error.raw_os_error());
        findings.same("a read behind that", &Err(Some(libc::ECONNRESET)), &end);
        findings.same("the next one", &Some(0), &socket.read(&mut [0; 10]).ok());
        socket = make();
        local = socket.local_addr().ok();
    }
}

/// It connected without waiting, and nobody listened.
fn refused(place: &'static str) -> impl FnMut(&mut Findings) {
    let place: SocketAddr = place.parse().expect("an address");
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let nobody = socket::new(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
    socket::bind(nobody.as_raw_fd(), &socket::address(place)).expect("bind");
    let to = socket::name(nobody.as_raw_fd()).expect("a name");
    let make = move || {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = socket::new(family, kind, 0);
        let _nobody = &nobody;
        assert!(socket::connect(socket.as_raw_fd(), &to).is_err(), "it does not wait");
        assert!(wait_until(|| has_error(&socket)), "an error comes");
        socket
    };
    let mut socket = make();
    move |findings| {
        findings.same("error of a connect", &Some(libc::ECONNREFUSED), &error(&socket));
        findings.same("the same once more", &Some(0), &error(&socket));
        // It is told once more, and can connect then.
        let listener = TcpListener::bind(place).expect("bind");
        let there = socket::address(listener.local_addr().expect("an address"));
        let connect = || socket::connect(socket.as_raw_fd(), &there).map_err(|error| error.raw_os_error());
        findings.same("connect anew", &Err(Some(libc::ECONNABORTED)), &connect());
        let begun = connect();
        let is_under_way = [Ok(()), Err(Some(libc::EINPROGRESS))].contains(&begun);
        findings.that(is_under_way, format!("connect anew, once more: {begun:?}"));
        if is_under_way {
            findings.take("accept", listener.accept());
        }
        socket = make();
    }
}
