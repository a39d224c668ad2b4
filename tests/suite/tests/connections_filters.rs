//! Filters (SO_ATTACH_FILTER) of TCP connections with ends outside of the tree, which are this test's own: what came before
//! them is there, and what they hold back they still hold back.

use floe_suite::{
    Host,
    talker::{Talker, WAYS, expect_alive, pattern, receive},
    until,
};
use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd,
};

/// How many bytes the other end has not acknowledged.
fn unacknowledged(end: &TcpStream) -> i32 {
    let mut count: libc::c_int = 0;
    // SAFETY: room for the number.
    unsafe { libc::ioctl(end.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    count
}

#[test]
fn what_is_held_back_stays_so() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        let mut end = talker.connection("c", way);
        end.write_all(&pattern(2000, 1)).expect("write");
        until("what came before", || unacknowledged(&end) == 0);
        talker.done("filter c bytes");
        end.write_all(&pattern(3000, 2)).expect("write");
        talker.done("send c 4000 4");
        talker.round_trips();
        receive(&mut end, 4000, 4, "from the one with a filter");
        assert_eq!(talker.ask("receive c 2000 1"), "2000 True", "{way:?}");
        let steps = talker.ask("steps c 1");
        assert!(steps.starts_with("[[0, 0, 0, 11,"), "{way:?}: {steps}");
        assert_eq!(unacknowledged(&end), 3000, "{way:?}");
        talker.done("unfilter c");
        assert_eq!(talker.ask("receive c 3000 2"), "3000 True", "{way:?}");
        expect_alive(&mut talker, "c", &mut end);
    }
}

#[test]
fn an_end_that_came_before_is_there() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        let mut end = talker.connection("c", way);
        end.write_all(&pattern(2000, 1)).expect("write");
        end.shutdown(Shutdown::Write).expect("shut down");
        // POLLIN and POLLRDHUP.
        until("the end", || talker.ask("ready c") == "8193");
        talker.done("filter c nothing");
        talker.round_trips();
        assert_eq!(talker.ask("receive c 2000 1"), "2000 True", "{way:?}");
        assert_eq!(talker.ask("end c"), "b''", "{way:?}");
        talker.done("send c 5000 4");
        receive(&mut end, 5000, 4, "to the one that has ended");
        // Acknowledgements do not pass, so it is sent again and again.
        talker.done("unfilter c");
        talker.done("close c");
    }
}

#[test]
fn an_end_that_is_held_back_comes_later() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        let mut end = talker.connection("c", way);
        end.write_all(&pattern(2000, 1)).expect("write");
        until("what came before", || unacknowledged(&end) == 0);
        talker.done("filter c nothing");
        end.shutdown(Shutdown::Write).expect("shut down");
        talker.round_trips();
        assert_eq!(talker.ask("ready c"), "1", "{way:?}");
        assert_eq!(talker.ask("receive c 2000 1"), "2000 True", "{way:?}");
        talker.done("unfilter c");
        assert_eq!(talker.ask("end c"), "b''", "{way:?}");
        talker.done("close c");
    }
}
