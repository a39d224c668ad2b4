//! Unix sockets: pairs of every kind with what waits in them, ends whose other end is closed or shut down, sockets that
//! listen at a path and at an abstract name with connections that they accepted, and datagram sockets with names.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
        },
    },
    time::Duration,
};
use victims::{Findings, Peer, Stage, play, waiting::spawn_into};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(streams()),
            Box::new(packets(libc::SOCK_SEQPACKET)),
            Box::new(packets(libc::SOCK_DGRAM)),
            Box::new(widowed()),
            Box::new(half_shut()),
            Box::new(options()),
            Box::new(credentials()),
            Box::new(at_a_path(stage)),
            Box::new(abstract_name(stage)),
            Box::new(named_client(stage)),
            Box::new(datagrams(stage)),
            Box::new(shared()),
            Box::new(waiting_calls(stage)),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Bytes wait on both sides.
fn streams() -> impl FnMut(&mut Findings) {
    let (mut one, mut two) = UnixStream::pair().expect("a pair");
    two.set_nonblocking(true).expect("set non-blocking");
    let there: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(37) / 8) as u8).collect();
    one.write_all(&there).expect("write");
    two.write_all(b"and back").expect("write");
    move |findings| {
        if findings.sabotage() {
            two.read_exact(&mut [0]).expect("read");
        }
        let (mut seen, mut back) = (Vec::new(), [0; 8]);
        let end = two.read_to_end(&mut seen).expect_err("the other end is open");
        findings.same("error behind the bytes", &ErrorKind::WouldBlock, &end.kind());
        findings.that(
            seen == there,
            format!("{} bytes wait, not those that were sent", seen.len()),
        );
        findings.take("read", one.read_exact(&mut back));
        findings.same("bytes on the way back", b"and back", &back);
        findings.take("write", one.write_all(&there));
        findings.take("write", two.write_all(&back));
    }
}

/// Messages keep their lengths and their order.
fn packets(kind: i32) -> impl FnMut(&mut Findings) {
    let [one, two] = pair(kind);
    let messages: [&[u8]; 4] = [b"first", &[7; 9000], b"", b"last"];
    let send_all = move || {
        for message in messages {
            assert_eq!(send(one, message), message.len() as isize, "send");
        }
    };
    send_all();
    move |findings| {
        for message in messages {
            findings.that(
                receive(two) == Some(message.to_vec()),
                format!("message of {} bytes", message.len()),
            );
        }
        findings.same("more messages", &None, &receive(two));
        send_all();
    }
}

fn widowed() -> impl FnMut(&mut Findings) {
    let (mut one, mut gone) = UnixStream::pair().expect("a pair");
    gone.write_all(b"last words").expect("write");
    drop(gone);
    let (empty, _) = UnixStream::pair().expect("a pair");
    move |findings| {
        let mut seen = [0; 32];
        // SAFETY: room for 32 bytes.
        let got = unsafe { libc::recv(one.as_raw_fd(), seen.as_mut_ptr().cast(), 32, libc::MSG_PEEK) };
        findings.same("last words", &&b"last words"[..], &&seen[..got.max(0) as usize]);
        findings.same("read of an empty one", &0, &(&empty).read(&mut seen).expect("read"));
        let error = one.write(b"?").expect_err("nobody is there");
        findings.same("write to nobody", &ErrorKind::BrokenPipe, &error.kind());
    }
}

fn half_shut() -> impl FnMut(&mut Findings) {
    let (one, two) = UnixStream::pair().expect("a pair");
    one.shutdown(std::net::Shutdown::Write).expect("shutdown");
    move |findings| {
        let mut seen = [0; 4];
        findings.same("read behind the end", &0, &(&two).read(&mut seen).expect("read"));
        findings.take("write back", (&two).write_all(b"back"));
        findings.take("read", (&one).read_exact(&mut seen));
        findings.same("bytes", b"back", &seen);
        findings.that(
            (&one).write(b"?").is_err(),
            "an end that was shut down can be written to",
        );
    }
}

fn options() -> impl FnMut(&mut Findings) {
    let (one, two) = UnixStream::pair().expect("a pair");
    one.set_read_timeout(Some(Duration::from_millis(1500)))
        .expect("SO_RCVTIMEO");
    set(one.as_raw_fd(), libc::SO_SNDBUF, 40_000);
    set(two.as_raw_fd(), libc::SO_PASSCRED, 1);
    let buffer = get(one.as_raw_fd(), libc::SO_SNDBUF);
    move |findings| {
        findings.same(
            "time-out",
            &Some(Duration::from_millis(1500)),
            &one.read_timeout().expect("SO_RCVTIMEO"),
        );
        findings.same("buffer", &buffer, &get(one.as_raw_fd(), libc::SO_SNDBUF));
        findings.same("SO_PASSCRED", &1, &get(two.as_raw_fd(), libc::SO_PASSCRED));
        findings.same("SO_PASSCRED of the other", &0, &get(one.as_raw_fd(), libc::SO_PASSCRED));
    }
}

/// Messages tell who sent them, and sockets who made them.
fn credentials() -> impl FnMut(&mut Findings) {
    let [one, two] = pair(libc::SOCK_DGRAM);
    set(two, libc::SO_PASSCRED, 1);
    let peer = Peer::start(move |_| send(one, b"from a child") as i64);
    peer.ask(0).expect("ask");
    let own = (std::process::id() as i32, 0, 0);
    move |findings| {
        findings.same("sender", &Some((peer.pid, 0, 0)), &sender(two));
        findings.same("maker of the pair", &own, &maker(one));
        findings.take("ask", peer.ask(0));
    }
}

/// One that listens at a path, with a connection of a child's that it accepted.
fn at_a_path(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("listens here");
    let listener = UnixListener::bind(&path).expect("bind");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o641)).expect("chmod");
    let connected = path.clone();
    let mut client = None;
    // The child connects, says something, and then sends what it reads back.
    let peer = Peer::start(move |question| {
        let client = client.get_or_insert_with(|| UnixStream::connect(&connected).expect("connect"));
        let mut bytes = [0; 5];
        match question {
            0 => client.write(b"hello").map_or(-1, |sent| sent as i64),
            _ => match client.read_exact(&mut bytes) {
                Ok(()) => i64::from(&bytes == b"reply"),
                Err(_) => -2,
            },
        }
    });
    peer.ask(0).expect("ask");
    let (mut server, _) = listener.accept().expect("accept");
    let own = (std::process::id() as i32, 0, 0);
    move |findings| {
        let mut bytes = [0; 5];
        findings.take("read", server.read_exact(&mut bytes));
        findings.same("what the child said", b"hello", &bytes);
        findings.take("write", server.write_all(b"reply"));
        findings.same("answer of the child", &Some(1), &findings_answer(&peer, 1));
        findings.same("sent by the child", &Some(5), &findings_answer(&peer, 0));
        findings.same("client", &(peer.pid, 0, 0), &maker(server.as_raw_fd()));
        findings.same("who listens", &own, &maker(listener.as_raw_fd()));
        for (what, address) in [
            ("listener", listener.local_addr()),
            ("server's end", server.local_addr()),
        ] {
            let address = address.expect("getsockname");
            findings.same(
                format!("name of the {what}"),
                &Some(path.as_path()),
                &address.as_pathname(),
            );
        }
        findings.that(
            server.peer_addr().expect("getpeername").is_unnamed(),
            "the client has a name",
        );
        let mode = fs::metadata(&path).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
        findings.same("permissions of the path", &0o641, &mode);
        findings.same(
            "new connection",
            &b"new".to_vec(),
            &connect_anew(&listener, || UnixStream::connect(&path)),
        );
    }
}

fn findings_answer(peer: &Peer, question: i64) -> Option<i64> {
    peer.ask(question).ok()
}

fn connect_anew(listener: &UnixListener, connect: impl FnOnce() -> std::io::Result<UnixStream>) -> Vec<u8> {
    let mut client = connect().expect("connect anew");
    let (mut server, _) = listener.accept().expect("accept anew");
    client.write_all(b"new").expect("write");
    let mut bytes = vec![0; 3];
    server.read_exact(&mut bytes).expect("read");
    bytes
}

fn abstract_name(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let name = format!("floe\0victim {}", number_of(stage));
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("bind");
    let mut client = UnixStream::connect_addr(&address).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    server.write_all(b"unread").expect("write");
    move |findings| {
        let own = client.peer_addr().expect("getpeername");
        findings.same("name", &Some(name.as_bytes()), &own.as_abstract_name());
        let mut bytes = [0; 6];
        findings.take("read", client.read_exact(&mut bytes));
        findings.same("bytes", b"unread", &bytes);
        findings.take("write", server.write_all(&bytes));
        let anew = connect_anew(&listener, || UnixStream::connect_addr(&address));
        findings.same("new connection", &b"new".to_vec(), &anew);
    }
}

/// A client that has a name too.
fn named_client(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let [there, here] = ["server of a named client", "named client"].map(|name| stage.path(name));
    let listener = UnixListener::bind(&there).expect("bind");
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    for (call, path) in [(libc::SYS_bind, &here), (libc::SYS_connect, &there)] {
        let mut address = libc::sockaddr_un {
            sun_family: libc::AF_UNIX as u16,
            sun_path: [0; 108],
        };
        for (place, byte) in address.sun_path.iter_mut().zip(path.as_os_str().as_encoded_bytes()) {
            *place = *byte as libc::c_char;
        }
        // SAFETY: an address of this size is read.
        let result = unsafe { libc::syscall(call, socket, &raw const address, size_of_val(&address)) };
        assert_eq!(result, 0, "bind, connect");
    }
    // SAFETY: just made, and nobody else's.
    let mut client = unsafe { UnixStream::from_raw_fd(socket) };
    let (mut server, _) = listener.accept().expect("accept");
    server.write_all(b"unread").expect("write");
    move |findings| {
        let mut bytes = [0; 6];
        findings.take("read", client.read_exact(&mut bytes));
        findings.same("bytes", b"unread", &bytes);
        findings.take("write", server.write_all(&bytes));
        for (what, address) in [("client", client.local_addr()), ("other end", server.peer_addr())] {
            let address = address.expect("an address");
            findings.same(
                format!("name of the {what}"),
                &Some(here.as_path()),
                &address.as_pathname(),
            );
        }
        findings.that(here.exists(), "the file of the client's name is gone");
        let listens = listener.local_addr().expect("getsockname");
        findings.same("name of the listener", &Some(there.as_path()), &listens.as_pathname());
    }
}

/// A datagram socket with a name, and one that sends there.
fn datagrams(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("datagrams");
    let server = UnixDatagram::bind(&path).expect("bind");
    let client = UnixDatagram::unbound().expect("a socket");
    client.connect(&path).expect("connect");
    move |findings| {
        findings.take("send", client.send(b"to a name"));
        let mut bytes = [0; 32];
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("SO_RCVTIMEO");
        let got = server.recv(&mut bytes).unwrap_or(0);
        server.set_read_timeout(None).expect("SO_RCVTIMEO");
        findings.same("datagram", &&b"to a name"[..], &&bytes[..got]);
    }
}

/// A socket that a child and its duplicate have too.
fn shared() -> impl FnMut(&mut Findings) {
    let (mut one, two) = UnixStream::pair().expect("a pair");
    let duplicate = one.try_clone().expect("dup");
    let number = two.as_raw_fd();
    let peer = Peer::start(move |byte| send(number, &[byte as u8]) as i64);
    move |findings| {
        duplicate.set_nonblocking(false).expect("set blocking");
        findings.take("ask", peer.ask(42));
        let mut byte = [0];
        findings.take("read", one.read_exact(&mut byte));
        findings.same("byte of the child", &[42], &byte);
        findings.that(two.take_error().expect("SO_ERROR").is_none(), "an error waits");
    }
}

/// Threads that wait in accept, recv and a recv with a time-out.
fn waiting_calls(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let name = format!("floe waits {}", number_of(stage));
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("bind");
    spawn_into(&[libc::SYS_accept4], move || {
        loop {
            let (mut connection, _) = listener.accept().expect("accept");
            connection.write_all(b"accepted").expect("write");
        }
    });
    let [mut plain, mut timed] = [None, Some(Duration::from_secs(3600))].map(|time| {
        let (mut inside, outside) = UnixStream::pair().expect("a pair");
        inside.set_read_timeout(time).expect("SO_RCVTIMEO");
        spawn_into(&[libc::SYS_recvfrom], move || {
            loop {
                let mut byte = [0];
                inside.read_exact(&mut byte).expect("read");
                inside.write_all(&byte).expect("write");
            }
        });
        outside
    });
    move |findings| {
        let mut bytes = [0; 8];
        let mut connection = UnixStream::connect_addr(&address).expect("connect");
        findings.take("read", connection.read_exact(&mut bytes));
        findings.same("accept that waited", b"accepted", &bytes);
        for end in [&mut plain, &mut timed] {
            findings.take("write", end.write_all(&[9]));
            findings.take("read", end.read_exact(&mut bytes[..1]));
            findings.same("echo", &9, &bytes[0]);
        }
    }
}

/// No two stages at a time have the same. Abstract names belong to the whole network namespace.
fn number_of(stage: &Stage) -> u64 {
    fs::metadata(stage.dir()).expect("the stage").ino()
}

fn pair(kind: i32) -> [RawFd; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
    assert_eq!(made, 0, "socketpair");
    ends
}

fn send(socket: RawFd, bytes: &[u8]) -> isize {
    // SAFETY: the bytes are there.
    unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0) }
}

fn receive(socket: RawFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 16 << 10];
    // SAFETY: room for as many bytes.
    let got = unsafe { libc::recv(socket, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
    let got = usize::try_from(got).ok()?;
    bytes.truncate(got);
    Some(bytes)
}

/// Takes a message; who sent it.
fn sender(socket: RawFd) -> Option<(i32, u32, u32)> {
    let (mut bytes, mut control) = ([0_u8; 32], [0_u64; 16]);
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: zeros are a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: all that the header names is there.
    let got = unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_DONTWAIT) };
    // SAFETY: the kernel has filled it.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    if got < 0 || first.is_null() {
        return None;
    }
    // SAFETY: not null, and the only message that was asked for.
    let credentials: libc::ucred = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(first).cast()) };
    Some((credentials.pid, credentials.uid, credentials.gid))
}

/// SO_PEERCRED.
fn maker(socket: RawFd) -> (i32, u32, u32) {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&credentials) as u32;
    // SAFETY: room for the struct.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "SO_PEERCRED");
    (credentials.pid, credentials.uid, credentials.gid)
}

fn get(socket: RawFd, name: i32) -> i32 {
    let (mut value, mut length) = (0, 4);
    // SAFETY: room for a number.
    let result = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
    assert_eq!(result, 0, "getsockopt");
    value
}

fn set(socket: RawFd, name: i32, value: i32) {
    // SAFETY: a number is read.
    let result = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, name, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "setsockopt");
}
