//! TCP connections that wait to be accepted: with nothing sent, with bytes that wait, with more than fits, shut down, closed
//! already; of clients here and in a child, beside one that was accepted before, at sockets of both families.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    time::Duration,
};
use victims::{Findings, Peer, play};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|_stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(in_order(Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into())),
            Box::new(in_order(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into())),
            // An IPv4 client at a socket of both families.
            Box::new(in_order(Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into())),
            Box::new(more_than_fits()),
            Box::new(of_a_child()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 37 / 8) as u8).collect()
}

fn listen(ip: IpAddr) -> (TcpListener, u16) {
    let listener = TcpListener::bind((ip, 0)).expect("bind");
    let port = listener.local_addr().expect("getsockname").port();
    (listener, port)
}

fn own(end: &TcpStream) -> SocketAddr {
    let address = end.local_addr().expect("getsockname");
    (address.ip().to_canonical(), address.port()).into()
}

/// The next connection, and who it is with.
fn next(findings: &mut Findings, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).expect("F_SETFL");
    let (end, from) = findings.take("accept", listener.accept())?;
    listener.set_nonblocking(false).expect("F_SETFL");
    end.set_read_timeout(Some(Duration::from_secs(20)))
        .expect("SO_RCVTIMEO");
    Some((end, (from.ip().to_canonical(), from.port()).into()))
}

fn rest(findings: &mut Findings, end: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    findings.take("read", end.read_to_end(&mut all));
    all
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
    listener: TcpListener,
    /// Who waits.
    names: [SocketAddr; 4],
    quiet: TcpStream,
    sent: TcpStream,
    shut: TcpStream,
    /// Both ends of one that was accepted before.
    accepted: [TcpStream; 2],
}

fn in_order(ip: IpAddr, from: IpAddr) -> impl FnMut(&mut Findings) {
    again(move || arrange_queue(ip, from), check_queue)
}

fn arrange_queue(ip: IpAddr, from: IpAddr) -> Queue {
    let (listener, port) = listen(ip);
    let connect = || TcpStream::connect((from, port)).expect("connect");
    let (first, quiet, mut sent, mut shut) = (connect(), connect(), connect(), connect());
    let (early, _) = listener.accept().expect("accept");
    let mut closed = connect();
    sent.write_all(b"before").expect("write");
    shut.write_all(&pattern(30_000)).expect("write");
    shut.shutdown(Shutdown::Write).expect("shut down");
    closed.write_all(b"farewell").expect("write");
    quiet.set_nodelay(true).expect("TCP_NODELAY");
    Queue {
        names: [own(&quiet), own(&sent), own(&shut), own(&closed)],
        listener,
        quiet,
        sent,
        shut,
        accepted: [first, early],
    }
}

fn check_queue(findings: &mut Findings, mut queue: Queue) {
    let mut found = Vec::new();
    for name in queue.names {
        let Some((end, from)) = next(findings, &queue.listener) else {
            return;
        };
        findings.same("who waits", &name, &from);
        found.push(end);
    }
    queue.listener.set_nonblocking(true).expect("F_SETFL");
    let none = queue.listener.accept().err().map(|error| error.kind());
    findings.same("one more", &Some(ErrorKind::WouldBlock), &none);
    if findings.sabotage() {
        findings.take("read", found[1].read_exact(&mut [0; 3]));
        findings.take("write", queue.sent.write_all(b"bad"));
    }
    let [first, second, third, fourth] = &mut found[..] else {
        return;
    };
    let mut three = [0; 3];
    findings.that(queue.quiet.nodelay().is_ok_and(|on| on), "TCP_NODELAY is gone");
    findings.take("write", queue.quiet.write_all(b"now"));
    findings.take("read", first.read_exact(&mut three));
    findings.same("bytes", b"now", &three);
    findings.take("write", first.write_all(b"yes"));
    findings.take("read", queue.quiet.read_exact(&mut three));
    findings.same("bytes on the way back", b"yes", &three);
    let mut all = [0; 16];
    findings.take("write", queue.sent.write_all(b" and after"));
    findings.take("read", second.read_exact(&mut all));
    findings.same("bytes", b"before and after", &all);
    let all = rest(findings, third);
    findings.that(all == pattern(30_000), "other bytes came than were sent");
    findings.take("write", third.write_all(b"yes"));
    findings.take("read", queue.shut.read_exact(&mut three));
    findings.same("bytes to who shut down", b"yes", &three);
    let all = rest(findings, fourth);
    findings.same("the last of who is gone", &b"farewell"[..], &all[..]);
    let [client, server] = &mut queue.accepted;
    findings.take("write", client.write_all(b"yes"));
    findings.take("read", server.read_exact(&mut three));
    findings.same("bytes of who was accepted", b"yes", &three);
}

fn more_than_fits() -> impl FnMut(&mut Findings) {
    let arrange = || {
        let (listener, port) = listen(Ipv4Addr::LOCALHOST.into());
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
        client.set_nonblocking(true).expect("F_SETFL");
        let (all, mut sent) = (pattern(8 << 20), 0);
        while let Ok(bytes) = client.write(&all[sent..]) {
            sent += bytes;
        }
        assert!(sent > 100_000, "{sent} bytes are not much");
        (listener, client, sent)
    };
    again(arrange, |findings, (listener, mut client, sent)| {
        let Some((mut end, _)) = next(findings, &listener) else {
            return;
        };
        let mut seen = vec![0; sent];
        findings.take("read", end.read_exact(&mut seen));
        findings.that(seen == pattern(sent), "other bytes came than were sent");
        client.set_nonblocking(false).expect("F_SETFL");
        findings.take("write", client.write_all(b"more"));
        findings.take("read", end.read_exact(&mut seen[..4]));
        findings.same("bytes behind", &b"more"[..], &seen[..4]);
    })
}

/// The child connects where it is told to, and later says something there.
fn of_a_child() -> impl FnMut(&mut Findings) {
    let mut connected: Option<TcpStream> = None;
    let child = Peer::start(move |port| match (u16::try_from(port), &mut connected) {
        (Ok(0), Some(end)) => end.write_all(b"child").is_ok().into(),
        (Ok(port), _) => {
            connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
            connected.is_some().into()
        }
        _ => -1,
    });
    let child = Rc::new(child);
    let asked = Rc::clone(&child);
    let arrange = move || {
        let (listener, port) = listen(Ipv4Addr::LOCALHOST.into());
        assert_eq!(asked.ask(port.into()).ok(), Some(1), "the child does not connect");
        listener
    };
    again(arrange, move |findings, listener| {
        let Some((mut end, _)) = next(findings, &listener) else {
            return;
        };
        findings.same("whether the child wrote", &Some(1), &child.ask(0).ok());
        let mut all = [0; 5];
        findings.take("read", end.read_exact(&mut all));
        findings.same("bytes", b"child", &all);
    })
}
