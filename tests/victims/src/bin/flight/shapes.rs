//! How messages with descriptors stand beside others, and what they may be nested in.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixDatagram, UnixStream},
    },
};
use victims::{Findings, Peer, Stage, call, letter};

/// A count of its own by which an eventfd is known.
fn numbered(count: u32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: plain numbers.
    let made = call::checked(i64::from(unsafe { libc::eventfd(count, libc::EFD_NONBLOCK) })).expect("eventfd");
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(made as i32) }
}

fn number(file: &OwnedFd) -> u64 {
    let bytes = call::read(file.as_raw_fd(), 8).unwrap_or_default();
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

/// In a stream descriptors come with the first byte of their piece, and a read ends behind it.
pub fn borders() -> impl FnMut(&mut Findings) {
    let (near, far) = UnixStream::pair().expect("a pair");
    let fill = move || {
        let [one, two, three] = [11, 12, 13].map(numbered);
        let send = |bytes: &[u8], files: &[BorrowedFd<'_>]| {
            assert_eq!(letter::send(near.as_raw_fd(), bytes, files).expect("send"), bytes.len());
        };
        send(b"plain ", &[]);
        send(b"again ", &[]);
        send(b"with one", &[one.as_fd()]);
        send(b"with two", &[two.as_fd(), three.as_fd()]);
        send(&[b'x'; 100_000], &[]);
        send(b"last", &[one.as_fd()]);
    };
    fill();
    move |findings| {
        let far = far.as_raw_fd();
        let expect = |findings: &mut Findings, most: usize, bytes: &[u8], counts: &[u64]| {
            let Some(Some(got)) = findings.take("receive", letter::receive(far, most, 0)) else {
                return findings.add("nothing more waits");
            };
            findings.same(
                "bytes",
                &String::from_utf8_lossy(bytes),
                &String::from_utf8_lossy(&got.bytes),
            );
            let seen: Vec<u64> = got.files.iter().map(number).collect();
            findings.same("files", counts, &seen[..]);
        };
        expect(findings, 8, b"plain ag", &[]);
        expect(findings, 4, b"ain ", &[]);
        expect(findings, 4, b"with", &[11]);
        expect(findings, 4, b" one", &[]);
        expect(findings, 100, b"with two", &[12, 13]);
        let mut rest = vec![0; 100_000];
        let mut socket = &*victims::descriptor::borrowed(far);
        findings.take("read", socket.read_exact(&mut rest));
        findings.that(rest.iter().all(|byte| *byte == b'x'), "the plain bytes differ");
        // It is the first one's file, whose count has been read.
        expect(findings, 100, b"last", &[0]);
        fill();
    }
}

/// As many as a message takes.
pub fn many_at_once(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (near, far) = UnixStream::pair().expect("a pair");
    let path = stage.path("many in flight");
    std::fs::write(&path, vec![0; 1000]).expect("write");
    for _ in 0..3 {
        let files: Vec<File> = (0..253)
            .map(|place| {
                let mut file = File::open(&path).expect("open");
                file.seek(SeekFrom::Start(place)).expect("seek");
                file
            })
            .collect();
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        letter::send(near.as_raw_fd(), b"many", &files).expect("send");
    }
    move |findings| {
        for _ in 0..3 {
            let Some(Some(got)) = findings.take("receive", letter::receive(far.as_raw_fd(), 100, 0)) else {
                return findings.add("no message with many files");
            };
            findings.same("files", &253, &got.files.len());
            for (place, file) in (0..).zip(&got.files) {
                let mut file = File::from(file.try_clone().expect("dup"));
                findings.same("position", &place, &file.stream_position().expect("seek"));
            }
            let files: Vec<_> = got.files.iter().map(AsFd::as_fd).collect();
            letter::send(near.as_raw_fd(), b"many", &files).expect("send");
        }
    }
}

/// What is in a table and in two messages is one open file, also for a child.
pub fn shared(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("shared in flight");
    std::fs::write(&path, "0123456789").expect("write");
    let mut file = File::open(path).expect("open");
    let (near, far) = UnixDatagram::pair().expect("a pair");
    let send = move |file: BorrowedFd<'_>| {
        for name in [&b"one"[..], b"two"] {
            letter::send(near.as_raw_fd(), name, &[file]).expect("send");
        }
    };
    send(file.as_fd());
    let number = file.as_raw_fd();
    let peer = Peer::start(move |place| victims::descriptor::seek(number, place, libc::SEEK_SET).unwrap_or(-1));
    move |findings| {
        findings.take("ask", peer.ask(6));
        findings.same("position in the table", &6, &file.stream_position().expect("seek"));
        for place in [7, 8] {
            let Some(Some(got)) = findings.take("receive", letter::receive(far.as_raw_fd(), 10, 0)) else {
                return findings.add("no message with the shared file");
            };
            let Some(flying) = got.files.first() else {
                return findings.add("no shared file");
            };
            File::from(flying.try_clone().expect("dup"))
                .read_exact(&mut [0])
                .expect("read");
            findings.same("position in the table", &place, &file.stream_position().expect("seek"));
        }
        send(file.as_fd());
    }
}

/// A file in a socket in a socket in a socket.
pub fn nested() -> impl FnMut(&mut Findings) {
    let (outer, mut holds) = UnixStream::pair().expect("a pair");
    let wrap = move || {
        let mut inside = numbered(99);
        for _ in 0..3 {
            let (near, far) = UnixStream::pair().expect("a pair");
            letter::send(near.as_raw_fd(), b"n", &[inside.as_fd()]).expect("send");
            letter::send(near.as_raw_fd(), b"with its other end", &[near.as_fd()]).expect("send");
            inside = far.into();
        }
        letter::send(outer.as_raw_fd(), b"o", &[inside.as_fd()]).expect("send");
    };
    wrap();
    move |findings| {
        let mut inside: Option<OwnedFd> = None;
        for _ in 0..4 {
            let socket = inside.as_ref().map_or(holds.as_raw_fd(), AsRawFd::as_raw_fd);
            let Some(Some(mut got)) = findings.take("receive", letter::receive(socket, 1, 0)) else {
                return findings.add("a nested socket is empty");
            };
            inside = got.files.pop();
            if inside.is_none() {
                return findings.add("a nested socket is not with its message");
            }
        }
        findings.same("count of what is inside", &Some(99), &inside.as_ref().map(number));
        findings.take("look", holds.set_nonblocking(true));
        findings.that(holds.read(&mut [0]).is_err(), "more waits");
        wrap();
    }
}

/// Two ends of a pair, each of which waits in the other, and all that wait in a third.
pub fn through_each_other() -> impl FnMut(&mut Findings) {
    let (near, far) = UnixDatagram::pair().expect("a pair");
    let wrap = move || {
        let (one, two) = UnixStream::pair().expect("a pair");
        letter::send(one.as_raw_fd(), b"1", &[one.as_fd()]).expect("send");
        letter::send(two.as_raw_fd(), b"2", &[two.as_fd()]).expect("send");
        letter::send(near.as_raw_fd(), b"both", &[one.as_fd()]).expect("send");
    };
    wrap();
    move |findings| {
        let Some(Some(got)) = findings.take("receive", letter::receive(far.as_raw_fd(), 10, 0)) else {
            return findings.add("no message with an end");
        };
        let Some(one) = got.files.first() else {
            return findings.add("no end");
        };
        // What waits in it was sent by the other.
        let Some(Some(got)) = findings.take("receive", letter::receive(one.as_raw_fd(), 1, 0)) else {
            return findings.add("nothing waits in an end");
        };
        findings.same("byte", &b"2"[..], &got.bytes[..]);
        let Some(two) = got.files.first() else {
            return findings.add("no other end");
        };
        call::write(one.as_raw_fd(), b"through").expect("write");
        let Some(Some(mut got)) = findings.take("receive", letter::receive(two.as_raw_fd(), 1, 0)) else {
            return findings.add("nothing waits in the other end");
        };
        findings.same("byte", &b"1"[..], &got.bytes[..]);
        findings.same("files", &1, &got.files.len());
        let again = got.files.pop();
        let text = call::read(two.as_raw_fd(), 100).unwrap_or_default();
        findings.same("bytes", &b"through"[..], &text[..]);
        drop(again);
        wrap();
    }
}

/// The other end is closed.
pub fn nobody_sends() -> impl FnMut(&mut Findings) {
    let wrap = || {
        let (near, far) = UnixStream::pair().expect("a pair");
        letter::send(near.as_raw_fd(), b"before", &[]).expect("send");
        letter::send(near.as_raw_fd(), b"last", &[numbered(5).as_fd()]).expect("send");
        far
    };
    let mut far = wrap();
    move |findings| {
        let got = letter::receive(far.as_raw_fd(), 100, 0)
            .expect("receive")
            .expect("bytes");
        findings.same("bytes", &b"beforelast"[..], &got.bytes[..]);
        let seen: Vec<u64> = got.files.iter().map(number).collect();
        findings.same("files", &vec![5], &seen);
        findings.same("bytes behind the end", &Some(0), &far.read(&mut [0]).ok());
        far = wrap();
    }
}

/// A child's, whose name comes with it.
pub fn with_sender() -> impl FnMut(&mut Findings) {
    let (near, far) = UnixDatagram::pair().expect("a pair");
    let on = 1;
    // SAFETY: four bytes are read.
    unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(far.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, value, 4);
    }
    let peer = Peer::start(move |count| {
        let file = numbered(count as u32);
        letter::send(near.as_raw_fd(), b"mine", &[file.as_fd()]).map_or(-1, |sent| sent as i64)
    });
    peer.ask(3).expect("ask");
    move |findings| {
        let Some(Some(got)) = findings.take("receive", letter::receive(far.as_raw_fd(), 10, 0)) else {
            return findings.add("no message of the child");
        };
        findings.same("sender", &Some((peer.pid, 0, 0)), &got.sender);
        let seen: Vec<u64> = got.files.iter().map(number).collect();
        findings.same("files", &vec![3], &seen);
        findings.take("ask", peer.ask(3));
    }
}

/// An epoll instance of the table watches what is on its way.
pub fn watched() -> impl FnMut(&mut Findings) {
    let (mut near, far) = UnixStream::pair().expect("a pair");
    let (through, other) = UnixDatagram::pair().expect("a pair");
    // SAFETY: a number.
    let epoll = unsafe { libc::epoll_create1(0) };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 42,
    };
    // SAFETY: the event is read.
    let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, far.as_raw_fd(), &raw mut event) };
    assert_eq!(added, 0, "epoll_ctl");
    letter::send(through.as_raw_fd(), b"watched", &[far.as_fd()]).expect("send");
    drop(far);
    move |findings| {
        let mut seen = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        let mut wait = || unsafe { libc::epoll_wait(epoll, &raw mut seen, 1, 0) };
        findings.same("ready before", &0, &wait());
        near.write_all(b"!").expect("write");
        findings.same("ready", &1, &wait());
        let got = letter::receive(other.as_raw_fd(), 10, 0).ok().flatten();
        let Some(far) = got.and_then(|mut got| got.files.pop()) else {
            return findings.add("the watched socket is gone");
        };
        findings.same("byte", &Some(b"!".to_vec()), &call::read(far.as_raw_fd(), 1).ok());
        letter::send(through.as_raw_fd(), b"watched", &[far.as_fd()]).expect("send");
    }
}
