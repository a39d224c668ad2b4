//! Urgent bytes in streams.

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
};
use victims::{
    Findings,
    urgent::{self, at_mark},
};

fn send_urgent(socket: &UnixStream) {
    urgent::send(socket, b'!');
}

fn urgent(socket: &UnixStream) -> Option<u8> {
    urgent::receive(socket).ok().flatten()
}

fn next(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    let got = socket.read(&mut bytes).unwrap_or(0);
    bytes.truncate(got);
    bytes
}

/// A read ends before it, and the next goes on behind it.
pub fn in_the_middle() -> impl FnMut(&mut Findings) {
    let (mut one, mut two) = UnixStream::pair().expect("a pair");
    two.set_nonblocking(true).expect("set non-blocking");
    let mut send = move || {
        one.write_all(b"before").expect("write");
        send_urgent(&one);
        one.write_all(b"behind").expect("write");
    };
    send();
    move |findings| {
        findings.that(!at_mark(&two), "the urgent byte is the first");
        findings.same("bytes before", &b"before".to_vec(), &next(&mut two));
        findings.that(at_mark(&two), "the urgent byte is not the next");
        findings.same("urgent byte", &Some(b'!'), &urgent(&two));
        findings.same("bytes behind", &b"behind".to_vec(), &next(&mut two));
        send();
    }
}

/// It comes first, and is one of the others where the socket says so (SO_OOBINLINE).
pub fn first(inline: bool) -> impl FnMut(&mut Findings) {
    let (mut one, mut two) = UnixStream::pair().expect("a pair");
    two.set_nonblocking(true).expect("set non-blocking");
    let value = i32::from(inline);
    // SAFETY: four bytes are read.
    unsafe {
        let place = (&raw const value).cast();
        libc::setsockopt(two.as_raw_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, place, 4);
    }
    let mut send = move || {
        send_urgent(&one);
        one.write_all(b"behind").expect("write");
    };
    send();
    move |findings| {
        findings.that(at_mark(&two), "the urgent byte is not the first");
        if inline {
            findings.same("all bytes", &b"!behind".to_vec(), &next(&mut two));
        } else {
            findings.same("urgent byte", &Some(b'!'), &urgent(&two));
            findings.same("bytes behind", &b"behind".to_vec(), &next(&mut two));
        }
        send();
    }
}

pub fn alone() -> impl FnMut(&mut Findings) {
    let (one, two) = UnixStream::pair().expect("a pair");
    send_urgent(&one);
    move |findings| {
        findings.same("urgent byte", &Some(b'!'), &urgent(&two));
        findings.same("more", &None, &urgent(&two));
        send_urgent(&one);
    }
}
