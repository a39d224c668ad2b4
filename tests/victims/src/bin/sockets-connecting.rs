//! TCP connections that are being made: nobody has answered yet, because where they connect to there is no room. One that
//! does not wait for it, and one that does.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::mpsc::{Receiver, channel},
};
use victims::{Findings, play, socket, wait_until, waiting::spawn_into};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = ["127.0.0.1:0", "[::1]:0"]
            .map(|place| Box::new(unanswered(place)) as Check)
            .into();
        checks.push(Box::new(waiting()));
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// A listener with room for one, which is taken.
fn full(place: &str) -> (TcpListener, TcpStream) {
    let place: SocketAddr = place.parse().expect("an address");
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let listener = socket::new(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
    socket::bind(listener.as_raw_fd(), &socket::address(place)).expect("bind");
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0, "listen");
    let listener = TcpListener::from(listener);
    let first = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    (listener, first)
}

/// TCP_SYN_SENT, as TCP_INFO tells.
fn is_connecting(socket: &impl AsRawFd) -> bool {
    let info = socket::get(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 8);
    info.is_ok_and(|info| info[0] == 2)
}

fn unanswered(place: &'static str) -> impl FnMut(&mut Findings) {
    let connecting = move |listener: &TcpListener| -> OwnedFd {
        let to = listener.local_addr().expect("an address");
        let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = socket::new(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        socket::set(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        let begun = socket::connect(socket.as_raw_fd(), &socket::address(to));
        assert_eq!(
            begun.err().and_then(|error| error.raw_os_error()),
            Some(libc::EINPROGRESS)
        );
        assert!(is_connecting(&socket), "nobody has answered");
        socket
    };
    let (mut listener, mut first) = full(place);
    let mut second = connecting(&listener);
    let mut name = socket::name(second.as_raw_fd()).ok();
    move |findings| {
        if findings.sabotage() {
            socket::set(second.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 0);
        }
        findings.that(is_connecting(&second), "it does not connect any more");
        findings.same("its own address", &name, &socket::name(second.as_raw_fd()).ok());
        let value = socket::get(second.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 4).ok();
        findings.same("TCP_NODELAY", &Some(vec![1, 0, 0, 0]), &value);
        // Now there is room.
        let mut byte = [0];
        for client in [first.as_raw_fd(), second.as_raw_fd()] {
            let (mut server, _) = listener.accept().expect("accept");
            findings.that(
                wait_until(|| socket::send(client, b"x", &[]).is_ok()),
                "nothing can be sent",
            );
            findings.take("read", server.read_exact(&mut byte));
        }
        (listener, first) = full(place);
        second = connecting(&listener);
        name = socket::name(second.as_raw_fd()).ok();
    }
}

/// A thread waits for it.
fn waiting() -> impl FnMut(&mut Findings) {
    let make = || -> (TcpListener, TcpStream, Receiver<std::io::Result<TcpStream>>) {
        let (listener, first) = full("127.0.0.1:0");
        let to = listener.local_addr().expect("an address");
        let (tell, hear) = channel();
        spawn_into(&[libc::SYS_connect], move || drop(tell.send(TcpStream::connect(to))));
        (listener, first, hear)
    };
    let mut made = make();
    move |findings| {
        let (listener, _first, hear) = &made;
        findings.take("accept", listener.accept());
        let (mut server, _) = listener.accept().expect("accept");
        match hear.recv().expect("an answer") {
            Err(error) => findings.add(format!("connect that waited: {error}")),
            Ok(mut client) => {
                findings.take("write", client.write_all(b"x"));
                findings.take("read", server.read_exact(&mut [0]));
            }
        }
        made = make();
    }
}
