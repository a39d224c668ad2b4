//! Connections that wait to be accepted at unix sockets, streams and packets, at a path and at an abstract name: with nothing
//! sent, with bytes, with more than one buffer, with a descriptor, with senders' names, shut down, of a client with a name,
//! closed already; of clients here and in a child, beside one that was accepted before.

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, connect, getpeername,
        getsockopt, listen, setsockopt, shutdown, socket,
        sockopt::{PassCred, PeerCredentials},
    },
};
use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    rc::Rc,
};
use victims::{
    Findings, Peer, Stage,
    letter::{receive, send},
    play,
    socket::get,
};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|stage| {
        // The child first, which would have all sockets that are there.
        let mut checks: Vec<Check> = vec![Box::new(of_a_child(stage))];
        for kind in [SockType::Stream, SockType::SeqPacket] {
            for place in [
                Place::Path(stage.path(&format!("{kind:?}"))),
                Place::named(&format!("{kind:?}"), stage),
            ] {
                checks.push(Box::new(in_order(kind, place, stage)));
            }
        }
        checks.push(Box::new(with_a_file(stage)));
        checks.push(Box::new(with_senders(stage)));
        checks.push(Box::new(more_than_it_says(stage)));
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Where a socket listens.
#[derive(Clone)]
enum Place {
    Path(PathBuf),
    /// An abstract name.
    Name(String),
}

impl Place {
    /// An abstract name that no other victim has.
    fn named(name: &str, stage: &Stage) -> Self {
        let number = fs::metadata(stage.dir()).expect("its folder").ino();
        Self::Name(format!("unaccepted-{name}-{number}"))
    }

    fn address(&self) -> UnixAddr {
        match self {
            Self::Path(path) => UnixAddr::new(path),
            Self::Name(name) => UnixAddr::new_abstract(name.as_bytes()),
        }
        .expect("an address")
    }
}

fn new(kind: SockType) -> OwnedFd {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

fn listen_at(kind: SockType, place: &Place, most: i32) -> OwnedFd {
    if let Place::Path(path) = place {
        let _ = fs::remove_file(path);
    }
    let listener = new(kind);
    bind(listener.as_raw_fd(), &place.address()).expect("bind");
    listen(&listener, Backlog::new(most).expect("a number")).expect("listen");
    listener
}

fn connect_to(kind: SockType, place: &Place) -> OwnedFd {
    let client = new(kind);
    connect(client.as_raw_fd(), &place.address()).expect("connect");
    client
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 37 / 8) as u8).collect()
}

/// The next connection, where one waits.
fn next(listener: &OwnedFd) -> Option<OwnedFd> {
    let ask = |on: bool| {
        let flags = nix::fcntl::OFlag::from_bits_retain(if on { libc::O_NONBLOCK } else { 0 });
        nix::fcntl::fcntl(listener, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("F_SETFL")
    };
    ask(true);
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC);
    ask(false);
    match accepted {
        Err(Errno::EAGAIN) => None,
        // SAFETY: the kernel has just given this number.
        accepted => Some(unsafe { OwnedFd::from_raw_fd(accepted.expect("accept")) }),
    }
}

fn bytes_in(end: &OwnedFd) -> Option<Vec<u8>> {
    let letter = receive(end.as_raw_fd(), 1 << 20, 0).expect("receive");
    letter.map(|letter| letter.bytes)
}

fn say(findings: &mut Findings, what: &str, from: &OwnedFd, to: &OwnedFd) {
    findings.take("send", send(from.as_raw_fd(), what.as_bytes(), &[]));
    findings.same("bytes", &Some(what.as_bytes().to_vec()), &bytes_in(to));
}

/// Checks what `arrange` made, and makes it anew.
fn again<T>(arrange: impl Fn() -> T, check: impl Fn(&mut Findings, T)) -> impl FnMut(&mut Findings) {
    let mut now = Some(arrange());
    move |findings| {
        if let Some(state) = now.take() {
            check(findings, state);
        }
        now = Some(arrange());
    }
}

struct Queue {
    listener: OwnedFd,
    quiet: OwnedFd,
    sent: OwnedFd,
    shut: OwnedFd,
    /// Both ends of one that was accepted before.
    accepted: [OwnedFd; 2],
    /// The names of a client that waits, and of one that is closed.
    names: [UnixAddr; 2],
}

fn in_order(kind: SockType, place: Place, stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let closed = Place::named(&format!("closed-{kind:?}"), stage);
    let own = match &place {
        Place::Path(_) => stage.path(&format!("client-of-path-{kind:?}")),
        Place::Name(_) => stage.path(&format!("client-of-name-{kind:?}")),
    };
    again(move || arrange_queue(kind, &place, (&own, &closed)), check_queue)
}

fn arrange_queue(kind: SockType, place: &Place, (own, closed): (&PathBuf, &Place)) -> Queue {
    let listener = listen_at(kind, place, 10);
    let _ = fs::remove_file(own);
    let names = [Place::Path(own.clone()), closed.clone()];
    let names = names.map(|name| name.address());
    let named = |name: &UnixAddr| {
        let client = new(kind);
        bind(client.as_raw_fd(), name).expect("bind");
        connect(client.as_raw_fd(), &place.address()).expect("connect");
        client
    };
    let first = connect_to(kind, place);
    let early = next(&listener).expect("it waits");
    let (quiet, sent) = (named(&names[0]), connect_to(kind, place));
    let (shut, closed) = (connect_to(kind, place), named(&names[1]));
    send(sent.as_raw_fd(), b"before", &[]).expect("send");
    send(sent.as_raw_fd(), b" and", &[]).expect("send");
    send(shut.as_raw_fd(), &pattern(90_000), &[]).expect("send");
    shutdown(shut.as_raw_fd(), Shutdown::Write).expect("shut down");
    send(closed.as_raw_fd(), b"farewell", &[]).expect("send");
    Queue {
        listener,
        quiet,
        sent,
        shut,
        accepted: [first, early],
        names,
    }
}

fn check_queue(findings: &mut Findings, queue: Queue) {
    let mut found = Vec::new();
    for _ in 0..4 {
        let Some(end) = next(&queue.listener) else {
            findings.add(format!("{} of 4 connections wait", found.len()));
            return;
        };
        found.push(end);
    }
    findings.that(next(&queue.listener).is_none(), "one more waits");
    if findings.sabotage() {
        let _ = bytes_in(&found[1]);
    }
    let told = [0, 3].map(|at| getpeername::<UnixAddr>(found[at].as_raw_fd()).ok());
    findings.same("names of clients", &queue.names.map(Some), &told);
    let ends = [&queue.quiet, &queue.sent, &queue.shut, &queue.accepted[0], &found[1]];
    findings.same("buffers of a fixed size", &[0; 5], &ends.map(fixed));
    say(findings, "now", &queue.quiet, &found[0]);
    say(findings, "yes", &found[0], &queue.quiet);
    let is_stream = getsockopt(&queue.sent, nix::sys::socket::sockopt::SockType) == Ok(SockType::Stream);
    let wanted: &[&[u8]] = if is_stream {
        &[b"before and"]
    } else {
        &[b"before", b" and"]
    };
    for wanted in wanted {
        findings.same("what was sent before", &Some(wanted.to_vec()), &bytes_in(&found[1]));
    }
    say(findings, "after", &queue.sent, &found[1]);
    let all = bytes_in(&found[2]);
    findings.that(all == Some(pattern(90_000)), "other bytes came than were sent");
    findings.same("what follows", &Some(Vec::new()), &bytes_in(&found[2]));
    say(findings, "back", &found[2], &queue.shut);
    findings.same(
        "the last of who is gone",
        &Some(b"farewell".to_vec()),
        &bytes_in(&found[3]),
    );
    findings.same("what follows", &Some(Vec::new()), &bytes_in(&found[3]));
    say(findings, "old", &queue.accepted[0], &queue.accepted[1]);
}

/// SO_BUF_LOCK: whether the sizes of its buffers are fixed.
fn fixed(socket: &OwnedFd) -> i32 {
    const SO_BUF_LOCK: i32 = 72;
    let bytes = get(socket.as_raw_fd(), libc::SOL_SOCKET, SO_BUF_LOCK, 4).expect("SO_BUF_LOCK");
    bytes.try_into().map_or(-1, i32::from_ne_bytes)
}

/// A file that this process has too comes with what was sent.
fn with_a_file(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("sent");
    let place = Place::named("file", stage);
    let arrange = move || {
        let listener = listen_at(SockType::Stream, &place, 1);
        let client = connect_to(SockType::Stream, &place);
        fs::write(&path, "some bytes").expect("write");
        let mut file = File::open(&path).expect("open");
        send(client.as_raw_fd(), b"first", &[]).expect("send");
        send(client.as_raw_fd(), b"with it", &[file.as_fd(), listener.as_fd()]).expect("send");
        file.seek(std::io::SeekFrom::Start(5)).expect("seek");
        (listener, client, file)
    };
    again(arrange, |findings, (listener, client, _file)| {
        let Some(end) = next(&listener) else {
            return findings.add("no connection waits");
        };
        findings.same("what comes first", &Some(b"first".to_vec()), &receive_some(&end, 5));
        let letter = receive(end.as_raw_fd(), 100, 0).expect("receive");
        let Some(letter) = letter else {
            return findings.add("nothing comes with the file");
        };
        findings.same("what comes with it", &b"with it"[..], &letter.bytes);
        findings.same("files", &2, &letter.files.len());
        let Some(file) = letter.files.into_iter().next() else {
            return;
        };
        let mut rest = String::new();
        findings.take("read", File::from(file).read_to_string(&mut rest));
        findings.same("what is read from it", "bytes", &rest);
        findings.same("buffers of a fixed size", &[0; 2], &[&client, &end].map(fixed));
        say(findings, "after", &client, &end);
    })
}

fn receive_some(end: &OwnedFd, most: usize) -> Option<Vec<u8>> {
    let letter = receive(end.as_raw_fd(), most, 0).expect("receive");
    letter.map(|letter| letter.bytes)
}

/// A socket that wants to know who sends.
fn with_senders(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let place = Place::named("senders", stage);
    let arrange = move || {
        let listener = listen_at(SockType::SeqPacket, &place, 5);
        setsockopt(&listener, PassCred, &true).expect("SO_PASSCRED");
        let client = connect_to(SockType::SeqPacket, &place);
        send(client.as_raw_fd(), b"who", &[]).expect("send");
        (listener, client)
    };
    again(arrange, |findings, (listener, _client)| {
        let Some(end) = next(&listener) else {
            return findings.add("no connection waits");
        };
        let letter = receive(end.as_raw_fd(), 100, 0).expect("receive");
        let sender = letter.and_then(|letter| letter.sender);
        let own = (
            std::process::id() as i32,
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        findings.same("sender", &Some(own), &sender);
    })
}

/// It was told to have fewer wait than there were, and its path is gone.
fn more_than_it_says(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("many");
    let place = Place::Path(path.clone());
    let arrange = move || {
        let listener = listen_at(SockType::Stream, &place, 20);
        let clients: Vec<OwnedFd> = (0..9).map(|_| connect_to(SockType::Stream, &place)).collect();
        listen(&listener, Backlog::new(2).expect("a number")).expect("listen");
        fs::remove_file(&path).expect("remove");
        (listener, clients)
    };
    again(arrange, |findings, (listener, clients)| {
        for (number, client) in clients.iter().enumerate() {
            let Some(end) = next(&listener) else {
                return findings.add(format!("{number} of 9 connections wait"));
            };
            say(findings, "here", client, &end);
        }
    })
}

/// That connects.
const USER: u32 = 1000;

/// The child connects when it is told to, and later says something there.
fn of_a_child(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let place = Place::named("child", stage);
    let address = place.address();
    let mut connected: Option<OwnedFd> = None;
    let child = Peer::start(move |question| match (question, &connected) {
        (0, Some(end)) => send(end.as_raw_fd(), b"child", &[]).is_ok().into(),
        (1, _) => {
            let client = new(SockType::Stream);
            let user = |id: u32| nix::unistd::seteuid(id.into()).expect("seteuid");
            user(USER);
            let made = connect(client.as_raw_fd(), &address).is_ok();
            user(0);
            connected = Some(client);
            made.into()
        }
        _ => -1,
    });
    let child = Rc::new(child);
    let asked = Rc::clone(&child);
    let arrange = move || {
        let listener = listen_at(SockType::Stream, &place, 1);
        assert_eq!(asked.ask(1).ok(), Some(1), "the child does not connect");
        listener
    };
    again(arrange, move |findings, listener| {
        let Some(end) = next(&listener) else {
            return findings.add("no connection waits");
        };
        let maker = getsockopt(&end, PeerCredentials).expect("SO_PEERCRED");
        findings.same("who connected", &(child.pid, USER), &(maker.pid(), maker.uid()));
        findings.same("whether the child wrote", &Some(1), &child.ask(0).ok());
        findings.same("bytes", &Some(b"child".to_vec()), &bytes_in(&end));
    })
}
