//! Urgent bytes (MSG_OOB) of TCP connections with ends outside of the tree, which are this test's own: where they were, each
//! once, and told of by SIGURG once.

use floe_suite::{
    Host,
    talker::{Talker, WAYS, expect_alive, pattern, receive},
    until,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
};

fn send_urgent(end: &TcpStream, byte: u8) {
    // SAFETY: one byte is read.
    let sent = unsafe { libc::send(end.as_raw_fd(), (&raw const byte).cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1, "{}", std::io::Error::last_os_error());
}

fn receive_urgent(end: &TcpStream) -> Option<u8> {
    let mut byte = 0_u8;
    // SAFETY: room for one byte.
    let got = unsafe { libc::recv(end.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_OOB) };
    (got == 1).then_some(byte)
}

/// linux/sockios.h.
const SIOCATMARK: libc::Ioctl = 0x8905;
const SIOCOUTQNSD: libc::Ioctl = 0x894B;

fn count(end: &TcpStream, request: libc::Ioctl) -> i32 {
    let mut answer: libc::c_int = 0;
    // SAFETY: room for the number.
    unsafe { libc::ioctl(end.as_raw_fd(), request, &raw mut answer) };
    answer
}

fn is_at_mark(end: &TcpStream) -> bool {
    count(end, SIOCATMARK) != 0
}

fn set(end: &TcpStream, name: i32, value: i32) {
    // SAFETY: a number is read.
    let result = unsafe { libc::setsockopt(end.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// What comes before it and behind it, and what the talker does.
const STATES: [(&str, &str, &[&str]); 11] = [
    ("before", "behind", &[]),
    ("before", "", &[]),
    ("", "behind", &[]),
    ("", "", &[]),
    ("before", "behind", &["urgent-read c"]),
    ("before", "", &["urgent-read c"]),
    ("", "", &["urgent-read c"]),
    ("before", "behind", &["inline c 1"]),
    ("before", "behind", &["urgent-read c", "inline c 1"]),
    ("before", "behind", &["to-mark c 0"]),
    ("before", "behind", &["to-mark c 0", "urgent-read c"]),
];

#[test]
fn those_that_came_are_where_they_were() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for ((before, behind, commands), way) in STATES.into_iter().zip(WAYS.into_iter().cycle()) {
        let mut wanted = None;
        for is_saved in [false, true] {
            let mut end = talker.connection("c", way);
            let signals: u32 = talker.ask("signals").parse().expect("a number");
            talker.done("own c");
            end.write_all(before.as_bytes()).expect("write");
            send_urgent(&end, b'!');
            end.write_all(behind.as_bytes()).expect("write");
            until("SIGURG", || talker.ask("signals") == (signals + 1).to_string());
            for command in commands {
                assert!(!talker.ask(command).starts_with("error"), "{command}");
            }
            if is_saved {
                talker.round_trips();
                assert_eq!(talker.ask("signals"), (signals + 1).to_string(), "signals");
            }
            let seen = talker.ask("steps c 4");
            let what = format!("{way:?} {before} {behind} {commands:?}");
            assert_eq!(wanted.get_or_insert_with(|| seen.clone()), &seen, "{what}");
            expect_alive(&mut talker, "c", &mut end);
            talker.done("inline c 0");
            send_urgent(&end, b'?');
            until("SIGURG", || talker.ask("signals") == (signals + 2).to_string());
            assert_eq!(talker.ask("urgent-read c"), "b'?'", "{what}");
        }
    }
}

/// Fills what the talker takes, but not so much that it can't be told of what comes behind.
fn fill(end: &mut TcpStream) -> usize {
    set(end, libc::SO_SNDBUF, 8192);
    end.set_nonblocking(true).expect("set non-blocking");
    let (all, mut sent) = (pattern(16 << 20, 3), 0);
    // All that was sent has come, and there is more.
    let is_full = |end: &TcpStream| count(end, libc::TIOCOUTQ) == count(end, SIOCOUTQNSD);
    while count(end, SIOCOUTQNSD) == 0 || !is_full(end) {
        match end.write(&all[sent..(sent + 4096).min(all.len())]) {
            Ok(bytes) => sent += bytes,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    set(end, libc::SO_SNDBUF, 1 << 20);
    end.set_nonblocking(false).expect("set blocking");
    sent
}

#[test]
fn those_that_were_only_told_of_come_and_are_not_told_of_again() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        let mut end = talker.connection("c", way);
        let signals: u32 = talker.ask("signals").parse().expect("a number");
        talker.done("own c");
        let sent = fill(&mut end);
        send_urgent(&end, b'!');
        end.write_all(b"behind").expect("write");
        until("SIGURG", || talker.ask("signals") == (signals + 1).to_string());
        assert_eq!(talker.ask("urgent-read c"), "error Resource temporarily unavailable");
        talker.round_trips();
        assert_eq!(talker.ask("to-mark c 3"), format!("{sent} True"), "{way:?}");
        until("the byte", || talker.ask("urgent-read c") == "b'!'");
        assert_eq!(talker.ask("signals"), (signals + 1).to_string(), "{way:?}");
        assert!(talker.ask("steps c 1").contains("b'behind'"), "{way:?}");
        expect_alive(&mut talker, "c", &mut end);
    }
}

/// Both what was sent and what had no room yet.
#[test]
fn those_that_the_tree_sent_come() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        for inline in [false, true] {
            let mut end = talker.connection("c", way);
            set(&end, libc::SO_OOBINLINE, inline.into());
            let sent: usize = talker.ask("fill c 3").parse().expect("a number");
            talker.done("room c 16000000");
            talker.done("urgent c !");
            talker.done("send c 1000 4");
            talker.round_trips();
            let mut got: Vec<u8> = Vec::new();
            while !is_at_mark(&end) {
                let mut some = vec![0; 1 << 20];
                let count = end.read(&mut some).expect("read");
                got.extend(&some[..count]);
            }
            assert_eq!(got.len(), sent, "{way:?}");
            assert!(got == pattern(sent, 3), "{way:?}");
            if inline {
                let mut byte = [0];
                end.read_exact(&mut byte).expect("read");
                assert_eq!(byte, *b"!");
            } else {
                until("the byte", || receive_urgent(&end) == Some(b'!'));
            }
            receive(&mut end, 1000, 4, "behind it");
            expect_alive(&mut talker, "c", &mut end);
        }
    }
}

/// What was sent, and lost on the way.
#[test]
fn those_that_were_sent_while_the_tree_was_away_come() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    let ends = talker.one_each();
    let mut signals: u32 = talker.ask("signals").parse().expect("a number");
    for (name, mut end) in ends {
        talker.done(&format!("own {name}"));
        talker.checkpoint(&["--tcp", "established"]);
        end.write_all(&pattern(100, 5)).expect("write");
        send_urgent(&end, b'!');
        talker.restore(&[]);
        assert_eq!(talker.ask(&format!("to-mark {name} 5")), "100 True");
        until("the byte", || talker.ask(&format!("urgent-read {name}")) == "b'!'");
        signals += 1;
        assert_eq!(talker.ask("signals"), signals.to_string());
    }
}
