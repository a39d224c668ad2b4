//! TCP connections of which both ends are here: with bytes that wait, with more on their way than fit, half closed, closed
//! on the other side, accepted by sockets that are open or closed by now, of both families, with a child.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};
use victims::{Findings, Peer, play, waiting::spawn_into};

type Check = Box<dyn FnMut(&mut Findings)>;

const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(both_ways(FOUR)),
            Box::new(both_ways(SIX)),
            Box::new(of_any_address()),
            Box::new(more_than_fits()),
            Box::new(half_closed()),
            Box::new(closed_there()),
            Box::new(with_options()),
            Box::new(with_a_child()),
            Box::new(waiting_read()),
            Box::new(closed_for_reading()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Client, server, and what accepted.
fn connection(ip: IpAddr) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind((ip, 0)).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("getsockname")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (client, server, listener)
}

fn both_ways(ip: IpAddr) -> impl FnMut(&mut Findings) {
    let (mut client, mut server, listener) = connection(ip);
    let there: Vec<u8> = (0..20_000_u32).map(|n| (n.wrapping_mul(37) / 8) as u8).collect();
    client.write_all(&there).expect("write");
    server.write_all(b"and back").expect("write");
    let addresses = (
        client.local_addr().expect("an address"),
        server.local_addr().expect("an address"),
    );
    move |findings| {
        if findings.sabotage() {
            client.read_exact(&mut [0; 8]).expect("read");
            server.write_all(b"damaged!").expect("write");
        }
        let (mut seen, mut back) = (vec![0; there.len()], [0; 8]);
        server
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("SO_RCVTIMEO");
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("SO_RCVTIMEO");
        findings.take("read", server.read_exact(&mut seen));
        findings.that(seen == there, "other bytes came than were sent");
        findings.take("read", client.read_exact(&mut back));
        findings.same("bytes on the way back", b"and back", &back);
        let now = (
            client.local_addr().expect("an address"),
            server.local_addr().expect("an address"),
        );
        findings.same("addresses", &addresses, &now);
        findings.same("peer", &addresses.1, &client.peer_addr().expect("getpeername"));
        findings.same("peer", &addresses.0, &server.peer_addr().expect("getpeername"));
        findings.take("write", client.write_all(&there));
        findings.take("write", server.write_all(&back));
        connect_anew(findings, &listener);
    }
}

/// The other end closes first, so the port does not stay taken.
fn connect_anew(findings: &mut Findings, listener: &TcpListener) {
    let address = listener.local_addr().expect("getsockname");
    let mut client = TcpStream::connect(address).expect("connect anew");
    let (mut server, _) = listener.accept().expect("accept anew");
    findings.take("write", client.write_all(b"new"));
    let mut bytes = [0; 3];
    findings.take("read", server.read_exact(&mut bytes));
    findings.same("bytes of a new connection", b"new", &bytes);
}

/// A listener of both families that is closed since.
fn of_any_address() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("bind");
    let port = listener.local_addr().expect("getsockname").port();
    let mut four = TcpStream::connect((FOUR, port)).expect("connect");
    let (mut mapped, _) = listener.accept().expect("accept");
    let mut six = TcpStream::connect((SIX, port)).expect("connect");
    let (mut plain, _) = listener.accept().expect("accept");
    drop(listener);
    mapped.write_all(b"mapped").expect("write");
    plain.write_all(b"plain!").expect("write");
    move |findings| {
        for (client, server, text) in [(&mut four, &mut mapped, b"mapped"), (&mut six, &mut plain, b"plain!")] {
            let mut bytes = [0; 6];
            findings.take("read", client.read_exact(&mut bytes));
            findings.same("bytes", text, &bytes);
            findings.take("write", client.write_all(b"answer"));
            findings.take("read", server.read_exact(&mut bytes));
            findings.same("answer", b"answer", &bytes);
            findings.take("write", server.write_all(text));
            findings.same("family", &server.local_addr().expect("an address").is_ipv6(), &true);
        }
    }
}

/// The reader is slow, so that some of it is still with the sender.
fn more_than_fits() -> impl FnMut(&mut Findings) {
    let (mut client, mut server, _listener) = connection(FOUR);
    set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 16_384);
    set(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 65_536);
    let piece: Vec<u8> = (0..10_007_u32).map(|n| (n % 251) as u8).collect();
    let mut written = 0_usize;
    let mut fill = move |client: &mut TcpStream| {
        client.set_nonblocking(true).expect("set non-blocking");
        let before = written;
        while let Ok(sent) = client.write(&piece[written % piece.len()..]) {
            written += sent;
        }
        client.set_nonblocking(false).expect("set blocking");
        (before, written)
    };
    let (_, mut all) = fill(&mut client);
    let mut read = 0_usize;
    move |findings| {
        findings.that(
            all - read > 50_000,
            format!("only {} bytes are on their way", all - read),
        );
        server
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("SO_RCVTIMEO");
        let mut bytes = vec![0; all - read];
        findings.take("read", server.read_exact(&mut bytes));
        let wrong = bytes
            .iter()
            .enumerate()
            .position(|(at, byte)| *byte != ((read + at) % 10_007 % 251) as u8);
        findings.same("first wrong byte", &None, &wrong);
        read = all;
        all = fill(&mut client).1;
    }
}

fn half_closed() -> impl FnMut(&mut Findings) {
    let (mut client, mut server, _listener) = connection(FOUR);
    client.write_all(b"last").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    let mut first = true;
    move |findings| {
        let mut bytes = [0; 4];
        if std::mem::take(&mut first) {
            findings.take("read", server.read_exact(&mut bytes));
            findings.same("last bytes", b"last", &bytes);
        }
        findings.same("read behind the end", &0, &server.read(&mut bytes).expect("read"));
        findings.take("write back", server.write_all(b"back"));
        findings.take("read", client.read_exact(&mut bytes));
        findings.same("bytes", b"back", &bytes);
        let error = client.write(b"?").expect_err("it was shut down");
        findings.same("write", &ErrorKind::BrokenPipe, &error.kind());
    }
}

fn closed_there() -> impl FnMut(&mut Findings) {
    let (mut client, server, _listener) = connection(FOUR);
    client.write_all(b"last words").expect("write");
    drop(client);
    move |findings| {
        let mut seen = [0; 32];
        let flags = libc::MSG_PEEK;
        // SAFETY: room for 32 bytes.
        let got = unsafe { libc::recv(server.as_raw_fd(), seen.as_mut_ptr().cast(), 32, flags) };
        findings.same("last words", &&b"last words"[..], &&seen[..got.max(0) as usize]);
    }
}

fn with_options() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind((FOUR, 0)).expect("bind");
    set(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30);
    let mut client = TcpStream::connect(listener.local_addr().expect("getsockname")).expect("connect");
    client.write_all(b"at once").expect("write");
    let (server, _) = listener.accept().expect("accept");
    // What it has from the socket that listens is switched off again.
    set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
    let numbers = [
        (client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 99),
        (client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 5000),
        (server.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, 0x10),
    ];
    for (socket, level, name, value) in numbers {
        set(socket, level, name, value);
    }
    move |findings| {
        for (socket, level, name, value) in numbers {
            findings.same(format!("option {level}/{name}"), &value, &get(socket, level, name));
        }
        let of = |socket: RawFd, level, name| get(socket, level, name);
        findings.same(
            "SO_KEEPALIVE of the server's end",
            &0,
            &of(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        );
        findings.same(
            "SO_REUSEADDR of the client",
            &0,
            &of(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR),
        );
        findings.that(
            of(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) > 0,
            "TCP_DEFER_ACCEPT is lost",
        );
        let mut seen = [0; 7];
        // SAFETY: room for 7 bytes.
        let got = unsafe { libc::recv(server.as_raw_fd(), seen.as_mut_ptr().cast(), 7, libc::MSG_PEEK) };
        findings.same("bytes", &(7, *b"at once"), &(got, seen));
    }
}

fn with_a_child() -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind((FOUR, 0)).expect("bind");
    let address: SocketAddr = listener.local_addr().expect("getsockname");
    let mut client = None;
    let peer = Peer::start(move |byte| {
        let client = client.get_or_insert_with(|| TcpStream::connect(address).expect("connect"));
        let mut back = [0];
        let echoed = client
            .write_all(&[byte as u8])
            .and_then(|()| client.read_exact(&mut back));
        echoed.map_or(-1, |()| i64::from(back[0]))
    });
    let serving = std::thread::spawn(move || {
        let (mut server, _) = listener.accept().expect("accept");
        let mut byte = [0];
        while server.read_exact(&mut byte).is_ok() {
            server.write_all(&[byte[0].wrapping_add(1)]).expect("write");
        }
    });
    assert_eq!(peer.ask(41).expect("ask"), 42);
    move |findings| {
        findings.same("answer of the child", &Some(8), &peer.ask(7).ok());
        findings.that(!serving.is_finished(), "the server has ended");
    }
}

/// A thread waits in read, and another one with a time-out.
fn waiting_read() -> impl FnMut(&mut Findings) {
    let [mut plain, mut timed] = [None, Some(Duration::from_secs(3600))].map(|time| {
        let (client, mut server, _listener) = connection(FOUR);
        server.set_read_timeout(time).expect("SO_RCVTIMEO");
        spawn_into(&[libc::SYS_recvfrom], move || {
            loop {
                let mut byte = [0];
                server.read_exact(&mut byte).expect("read");
                server.write_all(&byte).expect("write");
            }
        });
        client
    });
    move |findings| {
        for end in [&mut plain, &mut timed] {
            let mut byte = [0];
            findings.take("write", end.write_all(&[9]));
            findings.take("read", end.read_exact(&mut byte));
            findings.same("echo", &9, &byte[0]);
        }
    }
}

fn closed_for_reading() -> impl FnMut(&mut Findings) {
    let (mut client, mut server, _listener) = connection(FOUR);
    client.shutdown(Shutdown::Read).expect("shutdown");
    move |findings| {
        let mut bytes = [0; 4];
        findings.same("read", &0, &client.read(&mut bytes).expect("read"));
        findings.take("write", client.write_all(b"ping"));
        findings.take("read", server.read_exact(&mut bytes));
        findings.same("bytes", b"ping", &bytes);
    }
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
