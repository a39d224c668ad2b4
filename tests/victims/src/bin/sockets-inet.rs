//! Internet sockets without a connection: some that listen, with their options, datagram ones, and new ones.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};
use victims::{Findings, play, waiting::spawn_into};

type Check = Box<dyn FnMut(&mut Findings)>;

const ANY: u16 = 0;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(listening((Ipv4Addr::LOCALHOST, ANY).into())),
            Box::new(listening((Ipv6Addr::LOCALHOST, ANY).into())),
            Box::new(waiting_accept()),
            Box::new(datagrams((Ipv4Addr::LOCALHOST, ANY).into())),
            Box::new(datagrams((Ipv6Addr::LOCALHOST, ANY).into())),
            Box::new(idle()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn listening(address: SocketAddr) -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind(address).expect("bind");
    let numbers = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 11),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 5),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
        (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0),
        (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
    ];
    for (level, name, value) in numbers {
        set(listener.as_raw_fd(), level, name, value);
    }
    listener.set_nonblocking(true).expect("set non-blocking");
    let address = listener.local_addr().expect("getsockname");
    move |findings| {
        findings.same("address", &address, &listener.local_addr().expect("getsockname"));
        if findings.sabotage() {
            set(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
        }
        for (level, name, value) in numbers {
            findings.same(
                format!("option {level}/{name}"),
                &value,
                &get(listener.as_raw_fd(), level, name),
            );
        }
        findings.same(
            "SO_ACCEPTCONN",
            &1,
            &get(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
        );
        let mut client = TcpStream::connect(address).expect("connect");
        client.write_all(b"hello").expect("write");
        listener.set_nonblocking(false).expect("set blocking");
        let (mut server, _) = listener.accept().expect("accept");
        listener.set_nonblocking(true).expect("set non-blocking");
        let mut bytes = [0; 5];
        findings.take("read", server.read_exact(&mut bytes));
        findings.same("bytes", b"hello", &bytes);
        // The port is free again at once where the client closes first.
        drop(client);
        findings.same("read behind the end", &0, &server.read(&mut bytes).expect("read"));
    }
}

/// A thread waits in accept.
fn waiting_accept() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ANY)).expect("bind");
    let address = listener.local_addr().expect("getsockname");
    spawn_into(&[libc::SYS_accept4], move || {
        loop {
            let (mut connection, _) = listener.accept().expect("accept");
            connection.write_all(b"accepted").expect("write");
            let mut end = [0];
            assert_eq!(connection.read(&mut end).expect("read"), 0);
        }
    });
    move |findings| {
        let mut bytes = [0; 8];
        let mut connection = TcpStream::connect(address).expect("connect");
        findings.take("read", connection.read_exact(&mut bytes));
        findings.same("accept that waited", b"accepted", &bytes);
    }
}

/// One that receives, and one that has another end.
fn datagrams(address: SocketAddr) -> impl FnMut(&mut Findings) {
    let server = UdpSocket::bind(address).expect("bind");
    let client = UdpSocket::bind(address).expect("bind");
    let (there, here) = (
        server.local_addr().expect("an address"),
        client.local_addr().expect("an address"),
    );
    client.connect(there).expect("connect");
    server
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("SO_RCVTIMEO");
    move |findings| {
        findings.take("send", client.send(b"datagram"));
        let mut bytes = [0; 32];
        let got = findings.take("receive", server.recv_from(&mut bytes));
        findings.same("sender", &Some((8, here)), &got);
        findings.same("other end", &there, &client.peer_addr().expect("getpeername"));
    }
}

/// New sockets, and one that is bound and does nothing.
fn idle() -> impl FnMut(&mut Findings) {
    let new = socket(libc::AF_INET, libc::SOCK_STREAM);
    let datagram = socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK);
    set(datagram.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ANY)).expect("bind");
    let address = listener.local_addr().expect("getsockname");
    let mut new = Some(new);
    move |findings| {
        findings.same(
            "V6ONLY",
            &1,
            &get(datagram.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        );
        if let Some(socket) = new.take() {
            let SocketAddr::V4(four) = address else {
                return findings.add("the address is another one");
            };
            let to = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: four.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*four.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: an address of this size is read.
            let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), size_of_val(&to) as u32) };
            findings.same("connect of a new socket", &0, &result);
            findings.take("accept", listener.accept());
            new = Some(self::socket(libc::AF_INET, libc::SOCK_STREAM));
        }
    }
}

fn socket(family: i32, kind: i32) -> OwnedFd {
    // SAFETY: plain numbers.
    let made = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    assert!(made >= 0, "socket");
    // SAFETY: just made, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(made) }
}

fn get(socket: RawFd, level: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0, 4);
    // SAFETY: room for a number.
    let result = unsafe { libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut length) };
    assert_eq!(result, 0, "getsockopt {level}/{name}");
    value
}

fn set(socket: RawFd, level: i32, name: i32, value: i32) {
    // SAFETY: a number is read.
    let result = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "setsockopt {level}/{name}");
}
