//! Unix sockets of a process with a root directory of its own, and those connected with them from outside of it, by a path
//! that means nothing there: a connection that was accepted, one that waits, datagrams; and a socket that has its path where
//! that process does not see it.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::chroot,
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
};
use victims::{Findings, Peer, play};

/// What the process in its own root is asked to do: make its sockets, take a connection or another one, answer on one of
/// them, take a letter.
const MAKE: i64 = 0;
const ACCEPT: i64 = 1;
const EARLY: i64 = 2;
const ANSWER: i64 = 3;
const LETTER: i64 = 4;

struct Jailed {
    listener: UnixListener,
    letters: UnixDatagram,
    accepted: Vec<UnixStream>,
}

fn main() {
    play(|stage| {
        let (root, early) = (stage.path("jail"), stage.path("early"));
        fs::create_dir_all(&root).expect("a folder");
        let listens = UnixListener::bind(&early).expect("bind");
        let (jail, own, mut held) = (root.clone(), listens.try_clone().expect("dup"), None);
        let peer = Peer::start(move |what| match obey(what, (&jail, &own), &mut held) {
            Ok(()) => 1,
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
        });
        drop(listens);
        let ask = move |what| peer.ask(what).unwrap_or(0);
        assert_eq!(ask(MAKE), 1);
        let server = root.join("s");
        let connect = |path: &Path| UnixStream::connect(path).expect("connect");
        let client = connect(&server);
        assert_eq!(ask(ACCEPT), 1);
        let mut waits = connect(&server);
        let letters = UnixDatagram::unbound().expect("a socket");
        letters.connect(root.join("d")).expect("connect");
        letters.send(b"letter").expect("send");
        move |findings| {
            if findings.sabotage() {
                ask(LETTER);
            }
            findings.same("the letter", &1, &ask(LETTER));
            findings.take("send a letter", letters.send(b"letter"));
            talk(findings, "one that was accepted", (&client, 0), &ask);
            findings.same("one that waits", &1, &ask(ACCEPT));
            talk(findings, "one that waited", (&waits, 1), &ask);
            findings.same("one outside", &1, &{
                let _end = connect(&early);
                ask(EARLY)
            });
            waits = connect(&server);
        }
    })
}

/// Sends a byte, to which the other end, the last or the first that was accepted, answers.
fn talk(findings: &mut Findings, what: &str, (mut end, last): (&UnixStream, i64), ask: &impl Fn(i64) -> i64) {
    findings.take("write", end.write_all(b"?"));
    findings.same(what, &1, &ask(ANSWER + 10 * last));
    let mut answer = [0; 1];
    findings.take("read", end.read_exact(&mut answer));
    findings.same(what, b"!", &answer);
}

fn obey(what: i64, (jail, early): (&Path, &UnixListener), held: &mut Option<Jailed>) -> io::Result<()> {
    if what == MAKE {
        chroot(jail)?;
        std::env::set_current_dir("/")?;
        let (listener, letters) = (UnixListener::bind("/s")?, UnixDatagram::bind("/d")?);
        for socket in [&listener, early] {
            socket.set_nonblocking(true)?;
        }
        letters.set_nonblocking(true)?;
        *held = Some(Jailed {
            listener,
            letters,
            accepted: Vec::new(),
        });
    }
    let held = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
    match what % 10 {
        ACCEPT => held.accepted.push(held.listener.accept()?.0),
        EARLY => drop(early.accept()?),
        ANSWER => {
            let end = if what > 10 {
                held.accepted.last()
            } else {
                held.accepted.first()
            };
            let mut end = end.ok_or(io::ErrorKind::NotConnected)?;
            let mut bytes = [0; 1];
            end.read_exact(&mut bytes)?;
            end.write_all(b"!")?;
        }
        LETTER => {
            let mut bytes = [0; 10];
            let count = held.letters.recv(&mut bytes)?;
            if bytes[..count] != *b"letter" {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        _ => {}
    }
    Ok(())
}
