//! TCP sockets whose connection has ended: closed by both sides with bytes that nobody has read, closed by this side first,
//! reset, in both families, with a child.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
};
use victims::{Findings, Peer, call, play};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = Vec::new();
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            checks.push(Box::new(with_bytes(ip)));
            checks.push(Box::new(first_here(ip)));
            checks.push(Box::new(reset(ip)));
        }
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// Server and client; the port stays taken by who listens.
fn connection(ip: IpAddr) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind((ip, 0)).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("getsockname")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (server, client, listener)
}

/// TCP_CLOSE of TCP_INFO.
fn await_end(end: &TcpStream) {
    while state(end) != 7 {
        std::thread::yield_now();
    }
}

fn state(end: &TcpStream) -> u8 {
    let mut state = 0_u8;
    let mut length = 1_u32;
    let place = (
        std::ptr::from_mut(&mut state) as usize,
        std::ptr::from_mut(&mut length) as usize,
    );
    let arguments = [
        end.as_raw_fd() as usize,
        libc::IPPROTO_TCP as usize,
        libc::TCP_INFO as usize,
        place.0,
        place.1,
    ];
    // SAFETY: one byte is written, and its length; both outlive the call.
    unsafe { call::raw(libc::SYS_getsockopt, &arguments) }.expect("TCP_INFO");
    state
}

/// What shows of such an end without anything being taken.
fn expect_ended(findings: &mut Findings, end: &mut TcpStream, name: &SocketAddr) {
    findings.same("state", &7, &state(end));
    findings.same("name", &Some(*name), &end.local_addr().ok());
    let peer = end.peer_addr().err().map(|error| error.kind());
    findings.same("peer", &Some(ErrorKind::NotConnected), &peer);
    let wrote = end.write(b"x").err().map(|error| error.kind());
    findings.same("writing", &Some(ErrorKind::BrokenPipe), &wrote);
}

fn with_bytes(ip: IpAddr) -> impl FnMut(&mut Findings) {
    let make = move || {
        let (mut end, mut other, listener) = connection(ip);
        other.write_all(b"last words").expect("write");
        drop(other);
        end.shutdown(Shutdown::Write).expect("shut down");
        await_end(&end);
        let name = end.local_addr().expect("getsockname");
        end.set_nodelay(true).expect("TCP_NODELAY");
        let mut first = [0; 5];
        end.read_exact(&mut first).expect("read");
        ((end, name), Some(listener))
    };
    let ((mut end, mut name), mut listener) = make();
    move |findings| {
        expect_ended(findings, &mut end, &name);
        findings.that(end.nodelay().is_ok_and(|on| on), "TCP_NODELAY is gone");
        if findings.sabotage() {
            findings.take("read", end.read_exact(&mut [0; 2]));
        }
        let mut rest = Vec::new();
        findings.take("read", end.read_to_end(&mut rest));
        findings.same("what waited", &b"words"[..], &rest);
        drop(listener.take());
        ((end, name), listener) = make();
    }
}

fn first_here(ip: IpAddr) -> impl FnMut(&mut Findings) {
    let (mut end, other, listener) = connection(ip);
    end.shutdown(Shutdown::Write).expect("shut down");
    drop(other);
    await_end(&end);
    let name = end.local_addr().expect("getsockname");
    let number = end.as_raw_fd();
    let child = Peer::start(move |_| {
        let mut byte = 0_u8;
        // SAFETY: one byte is written, which outlives the call.
        let read = unsafe {
            call::raw(
                libc::SYS_read,
                &[number as usize, std::ptr::from_mut(&mut byte) as usize, 1],
            )
        };
        read.unwrap_or(-1)
    });
    move |findings| {
        expect_ended(findings, &mut end, &name);
        findings.same("read", &Some(0), &end.read(&mut [0]).ok());
        findings.same("read by the child", &Some(0), &child.ask(0).ok());
        let _kept = &listener;
    }
}

fn reset(ip: IpAddr) -> impl FnMut(&mut Findings) {
    let (mut end, other, listener) = connection(ip);
    end.write_all(b"unread").expect("write");
    // What is closed with bytes unread sends a reset.
    while other.peek(&mut [0]).expect("peek") == 0 {}
    drop(other);
    let error = end.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let name = end.local_addr().expect("getsockname");
    move |findings| {
        expect_ended(findings, &mut end, &name);
        findings.same("read", &Some(0), &end.read(&mut [0]).ok());
        let _kept = &listener;
    }
}
