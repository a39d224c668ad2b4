//! Datagrams that wait in sockets with names.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixDatagram,
    },
};
use victims::{Findings, Peer, Stage, letter};

/// From sockets that have names, had names, and have none; and from a child, whose name the socket wants to know.
pub fn from_everybody(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("letters");
    let server = UnixDatagram::bind(&path).expect("bind");
    let [living, gone] = ["a living sender", "a sender that is gone"].map(|name| stage.path(name));
    let named = UnixDatagram::bind(&living).expect("bind");
    let on = 1;
    // SAFETY: four bytes are read.
    unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, value, 4);
    }
    let place = path.clone();
    let child = Peer::start(move |_| {
        let sender = UnixDatagram::unbound().expect("a socket");
        sender.send_to(b"from a child", &place).map_or(-1, |sent| sent as i64)
    });
    let send_all = {
        let gone = gone.clone();
        move || {
            named.send_to(b"first", &path).expect("send");
            let for_a_moment = UnixDatagram::bind(&gone).expect("bind");
            for_a_moment.send_to(b"", &path).expect("send");
            drop(for_a_moment);
            fs::remove_file(&gone).expect("remove");
            child.ask(0).expect("ask");
            named.send_to(&[9; 5000], &path).expect("send");
            child.pid
        }
    };
    let child = send_all();
    move |findings| {
        let own = std::process::id() as i32;
        let names = [&living, &gone].map(|path| path.as_os_str().as_encoded_bytes().to_vec());
        let expected: [(&[u8], i32, &[u8]); 4] = [
            (b"first", own, &names[0]),
            (b"", own, &names[1]),
            (b"from a child", child, b""),
            (&[9; 5000], own, &names[0]),
        ];
        for (bytes, pid, name) in expected {
            let Some(Some(got)) = findings.take("receive", letter::receive(server.as_raw_fd(), 10_000, 0)) else {
                return findings.add("a letter is missing");
            };
            findings.that(got.bytes == bytes, format!("a letter has {} bytes", got.bytes.len()));
            findings.same("sender", &Some(pid), &got.sender.map(|sender| sender.0));
            findings.same(
                "where it came from",
                &String::from_utf8_lossy(name),
                &String::from_utf8_lossy(&got.from),
            );
        }
        findings.that(!gone.exists(), "there is a file of a sender that is gone");
        let more = letter::receive(server.as_raw_fd(), 100, 0).expect("receive");
        findings.that(more.is_none(), "there are more letters");
        send_all();
    }
}

/// A socket whose path was removed, with letters, and one that sends to it.
pub fn to_a_removed_name(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("removed letters");
    let server = UnixDatagram::bind(&path).expect("bind");
    let client = UnixDatagram::unbound().expect("a socket");
    client.connect(&path).expect("connect");
    fs::remove_file(&path).expect("remove");
    client.send(b"to nowhere").expect("send");
    move |findings| {
        let got = letter::receive(server.as_raw_fd(), 100, 0).ok().flatten();
        findings.same("letter", &Some(b"to nowhere".to_vec()), &got.map(|got| got.bytes));
        findings.take("send", client.send(b"to nowhere"));
        findings.that(!path.exists(), "there is something at the removed path");
        let name = client.peer_addr().expect("getpeername");
        findings.same("name", &Some(path.as_path()), &name.as_pathname());
    }
}

/// What it sent to is closed: the first try says so.
pub fn abandoned(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("abandoned");
    let client = UnixDatagram::unbound().expect("a socket");
    let abandon = {
        let path = path.clone();
        move |client: &UnixDatagram| {
            let server = UnixDatagram::bind(&path).expect("bind");
            client.connect(&path).expect("connect");
            drop(server);
            fs::remove_file(&path).expect("remove");
        }
    };
    abandon(&client);
    move |findings| {
        let name = client.peer_addr().expect("getpeername");
        findings.same("name", &Some(path.as_path()), &name.as_pathname());
        let error = client.send(b"?").map(drop).expect_err("nobody is there");
        findings.same("error", &Some(libc::ECONNREFUSED), &error.raw_os_error());
        abandon(&client);
    }
}

/// A pair, one end of which has got a name, and both ends of another.
pub fn named_pair(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let bind = |socket: &UnixDatagram, name: &str| {
        let path = stage.path(name);
        let address = nix::sys::socket::UnixAddr::new(&path).expect("an address");
        nix::sys::socket::bind(socket.as_raw_fd(), &address).expect("bind");
        path
    };
    let (one, two) = UnixDatagram::pair().expect("a pair");
    let (three, four) = UnixDatagram::pair().expect("a pair");
    let names = [
        bind(&one, "one end"),
        bind(&three, "the third end"),
        bind(&four, "the fourth end"),
    ];
    one.send(b"unread").expect("send");
    four.send(b"unread").expect("send");
    move |findings| {
        for (from, to) in [(&one, &two), (&four, &three)] {
            let mut bytes = [0; 20];
            let got = to.recv(&mut bytes).unwrap_or(0);
            findings.same("bytes", &b"unread"[..], &bytes[..got]);
            findings.take("send back", to.send(b"back"));
            findings.same("bytes back", &Some(4), &from.recv(&mut bytes).ok());
            findings.take("send", from.send(b"unread"));
        }
        for (socket, name) in [&one, &three, &four].into_iter().zip(&names) {
            let own = socket.local_addr().expect("getsockname");
            findings.same("name", &Some(name.as_path()), &own.as_pathname());
            findings.that(name.exists(), "its file is gone");
        }
        findings.that(two.local_addr().expect("getsockname").is_unnamed(), "an end has a name");
    }
}

/// Descriptors come with letters too.
pub fn with_files(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("letters with files");
    let server = UnixDatagram::bind(&path).expect("bind");
    let client = UnixDatagram::unbound().expect("a socket");
    client.connect(&path).expect("connect");
    let send = move || {
        let file = fs::File::open("/dev/zero").expect("open");
        letter::send(client.as_raw_fd(), b"zero", &[file.as_fd()]).expect("send");
    };
    send();
    move |findings| {
        let got = letter::receive(server.as_raw_fd(), 10, 0).ok().flatten();
        let Some(file) = got.and_then(|mut got| got.files.pop()) else {
            return findings.add("a letter with a file is missing");
        };
        let bytes = victims::call::read(file.as_raw_fd(), 3);
        findings.same("bytes", &Some(vec![0; 3]), &bytes.ok());
        send();
    }
}
