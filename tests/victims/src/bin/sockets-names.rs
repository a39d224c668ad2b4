//! Unix sockets whose names are not what they were: removed, taken by another one, left by one that is closed; and datagrams
//! that came from sockets with and without names.

#[path = "names/letters.rs"]
mod letters;
#[path = "names/urgent.rs"]
mod urgent;

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
};
use victims::{Findings, Peer, Stage, play};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(removed(stage)),
            Box::new(replaced(stage)),
            Box::new(orphans(stage)),
            Box::new(made_by_others(stage)),
            Box::new(groups()),
            Box::new(options()),
            Box::new(letters::from_everybody(stage)),
            Box::new(letters::to_a_removed_name(stage)),
            Box::new(letters::abandoned(stage)),
            Box::new(letters::named_pair(stage)),
            Box::new(letters::with_files(stage)),
            Box::new(urgent::in_the_middle()),
            Box::new(urgent::first(false)),
            Box::new(urgent::first(true)),
            Box::new(urgent::alone()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn path_of(address: std::io::Result<SocketAddr>) -> Option<std::path::PathBuf> {
    address.ok()?.as_pathname().map(Path::to_owned)
}

/// The connection works both ways.
fn talk(findings: &mut Findings, one: &UnixStream, two: &UnixStream) {
    for (mut from, mut to) in [(one, two), (two, one)] {
        let mut bytes = [0; 4];
        findings.take("write", from.write_all(b"talk"));
        findings.take("read", to.read_exact(&mut bytes));
        findings.same("bytes", b"talk", &bytes);
    }
}

/// One that listens at a path that is nothing any more, with a connection.
fn removed(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("removed");
    let listener = UnixListener::bind(&path).expect("bind");
    let client = UnixStream::connect(&path).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    fs::remove_file(&path).expect("remove");
    move |findings| {
        findings.that(!path.exists(), "there is something at the removed path");
        findings.same("name", &Some(path.clone()), &path_of(listener.local_addr()));
        findings.same("name of an end", &Some(path.clone()), &path_of(server.local_addr()));
        findings.same(
            "name of the other end",
            &Some(path.clone()),
            &path_of(client.peer_addr()),
        );
        if findings.sabotage() {
            fs::write(&path, "").expect("write");
            findings.that(!path.exists(), "there is something at the removed path");
        }
        talk(findings, &client, &server);
        listener.set_nonblocking(true).expect("set non-blocking");
        let error = listener.accept().map(drop).expect_err("nobody can connect");
        findings.same("error", &std::io::ErrorKind::WouldBlock, &error.kind());
        listener.set_nonblocking(false).expect("set blocking");
    }
}

/// Another socket is at the path of one that listens, and a file at that of another.
fn replaced(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("replaced");
    let before = UnixListener::bind(&path).expect("bind");
    let old_client = UnixStream::connect(&path).expect("connect");
    let (old_server, _) = before.accept().expect("accept");
    fs::remove_file(&path).expect("remove");
    let now = UnixListener::bind(&path).expect("bind");
    let by_file = stage.path("replaced by a file");
    let hidden = UnixListener::bind(&by_file).expect("bind");
    fs::remove_file(&by_file).expect("remove");
    fs::write(&by_file, "precious").expect("write");
    move |findings| {
        for listener in [&before, &now] {
            findings.same("name", &Some(path.clone()), &path_of(listener.local_addr()));
        }
        findings.same(
            "name of a hidden one",
            &Some(by_file.clone()),
            &path_of(hidden.local_addr()),
        );
        let text = fs::read_to_string(&by_file).unwrap_or_default();
        findings.same("the file at its path", "precious", text.as_str());
        talk(findings, &old_client, &old_server);
        before.set_nonblocking(true).expect("set non-blocking");
        let client = UnixStream::connect(&path).expect("connect");
        let (server, _) = now.accept().expect("accept");
        talk(findings, &client, &server);
        findings.that(before.accept().is_err(), "the first one was connected with");
        before.set_nonblocking(false).expect("set blocking");
    }
}

/// Connections whose listening sockets are closed: their paths left there, removed, and an abstract name.
fn orphans(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let [left, removed] = ["left by a listener", "removed by a listener"].map(|name| stage.path(name));
    let hidden = format!("floe orphan {}", stage.dir().display());
    let hidden = SocketAddr::from_abstract_name(hidden).expect("an address");
    let addresses = [
        SocketAddr::from_pathname(&left).expect("an address"),
        SocketAddr::from_pathname(&removed).expect("an address"),
        hidden,
    ];
    let mut connections = Vec::new();
    for address in &addresses {
        let listener = UnixListener::bind_addr(address).expect("bind");
        let client = UnixStream::connect_addr(address).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        server.write_all(b"unread").expect("write");
        connections.push((client, server));
    }
    fs::remove_file(removed).expect("remove");
    // Of one only the accepted end is left.
    let listener = UnixListener::bind(stage.path("half an orphan")).expect("bind");
    drop(UnixStream::connect(stage.path("half an orphan")).expect("connect"));
    let (mut alone, _) = listener.accept().expect("accept");
    drop(listener);
    move |findings| {
        for (address, (client, server)) in addresses.iter().zip(&mut connections) {
            let mut bytes = [0; 6];
            findings.take("read", client.read_exact(&mut bytes));
            findings.same("bytes", b"unread", &bytes);
            talk(findings, client, server);
            findings.take("write", server.write_all(b"unread"));
            let told = |address: SocketAddr| format!("{address:?}");
            let peer = client.peer_addr().map(told).unwrap_or_default();
            findings.same("name of the other end", &told(address.clone()), &peer);
            findings.that(
                UnixStream::connect_addr(address).is_err(),
                format!("somebody listens at {address:?}"),
            );
        }
        findings.that(left.exists(), "the path that was left is gone");
        findings.same("bytes of one that is alone", &Some(0), &alone.read(&mut [0]).ok());
        let name = path_of(alone.local_addr());
        findings.that(
            name.is_some_and(|name| name.ends_with("half an orphan")),
            "its name is gone",
        );
    }
}

/// A child listened and closed, or connected: each end tells who the other is.
fn made_by_others(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("a child listened");
    let (near, far) = UnixStream::pair().expect("a pair");
    let own = path.clone();
    let mut listener = None;
    let child = Peer::start(move |question| {
        if question == 0 {
            listener = Some(UnixListener::bind(&own).expect("bind"));
        } else if let Some(listener) = listener.take() {
            let (server, _) = listener.accept().expect("accept");
            victims::letter::send(near.as_raw_fd(), b"s", &[server.as_fd()]).expect("send");
        }
        0
    });
    child.ask(0).expect("ask");
    let client = UnixStream::connect(&path).expect("connect");
    child.ask(1).expect("ask");
    let got = victims::letter::receive(far.as_raw_fd(), 1, 0)
        .expect("receive")
        .expect("a message");
    let server = got.files.into_iter().next().expect("a file");
    move |findings| {
        findings.same("who listened", &child.pid, &peer_of(client.as_raw_fd()));
        findings.same(
            "who connected",
            &(std::process::id() as i32),
            &peer_of(server.as_raw_fd()),
        );
    }
}

fn peer_of(socket: i32) -> i32 {
    let mut told = [0_i32; 3];
    let mut length = 12;
    // SAFETY: room for struct ucred.
    unsafe {
        let place = told.as_mut_ptr().cast();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length);
    }
    told[0]
}

/// A pair that was made with supplementary groups.
fn groups() -> impl FnMut(&mut Findings) {
    const SO_PEERGROUPS: i32 = 59;
    let set = |groups: &[u32]| {
        // SAFETY: the groups are read.
        let status = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
        assert_eq!(status, 0, "setgroups");
    };
    set(&[1, 7, 4000]);
    let (one, _two) = UnixStream::pair().expect("a pair");
    set(&[]);
    let (none, _other) = UnixStream::pair().expect("a pair");
    move |findings| {
        let _open = (&_two, &_other);
        for (socket, expected) in [(&one, &[1, 7, 4000][..]), (&none, &[])] {
            let mut told = [0_u32; 16];
            let mut length = 64;
            // SAFETY: room for sixteen groups.
            unsafe {
                let place = told.as_mut_ptr().cast();
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    SO_PEERGROUPS,
                    place,
                    &raw mut length,
                );
            }
            findings.same("groups", expected, &told[..length as usize / 4]);
        }
    }
}

/// Many options are set; all of them are told as before.
fn options() -> impl FnMut(&mut Findings) {
    let (one, two) = UnixStream::pair().expect("a pair");
    let sockets = [one, two];
    let numbers = [
        (libc::SO_PASSCRED, 1),
        (libc::SO_KEEPALIVE, 1),
        (libc::SO_OOBINLINE, 1),
        (libc::SO_PRIORITY, 5),
        (libc::SO_RCVLOWAT, 1),
        (libc::SO_SNDBUF, 30_000),
        (libc::SO_TIMESTAMP, 1),
        (libc::SO_PEEK_OFF, 3),
        (libc::SO_MARK, 0x1234),
        // SO_PASSSEC, SO_PASSPIDFD, SO_PASSRIGHTS.
        (34, 1),
        (76, 1),
        (83, 0),
    ];
    for (option, value) in numbers {
        // SAFETY: four bytes are read. Not all kernels know all of them.
        unsafe {
            let place = (&raw const value).cast();
            libc::setsockopt(sockets[0].as_raw_fd(), libc::SOL_SOCKET, option, place, 4);
        }
    }
    let before = sockets.each_ref().map(all_options);
    move |findings| {
        for (before, socket) in before.iter().zip(&sockets) {
            for (was, is) in before.iter().zip(all_options(socket)) {
                findings.same("option", was, &is);
            }
        }
    }
}

/// All that can be asked for without changing anything, but what counts (SO_COOKIE and its like) or tells of others.
fn all_options(socket: &UnixStream) -> Vec<(i32, Option<Vec<u8>>)> {
    // ERROR, GET_FILTER, MEMINFO, COOKIE, PEERGROUPS, NETNS_COOKIE, PEERPIDFD.
    const NOT: [i32; 7] = [4, 26, 55, 57, 59, 71, 77];
    let names = (1..100).filter(|name| !NOT.contains(name));
    let read = |name| {
        let mut value = vec![0_u8; 256];
        let mut length = 256;
        // SAFETY: room for 256 bytes.
        let status = unsafe {
            let place = value.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, &raw mut length)
        };
        value.truncate(length as usize);
        (name, (status == 0).then_some(value))
    };
    names.map(read).collect()
}
