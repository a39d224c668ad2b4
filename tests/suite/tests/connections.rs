//! TCP connections with ends outside of the tree, which are this test's own: nothing is lost, doubled or reset while the tree
//! is away, however it ended.

use floe_suite::{
    Host, run, spawn,
    talker::{Talker, WAYS, Way, expect_alive, expect_end, pattern, receive},
    times, until,
};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Kills of a checkpoint.
const KILLS: u32 = 24;

#[test]
fn quiet_ones_and_their_options_come_back() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    let ends = talker.one_each();
    let mut told = Vec::new();
    for (name, _) in &ends {
        talker.done(&format!("options {name}"));
        told.push(talker.ask(&format!("told {name}")));
    }
    talker.round_trips();
    for ((name, mut end), told) in ends.into_iter().zip(told) {
        assert_eq!(talker.ask(&format!("told {name}")), told);
        expect_alive(&mut talker, &name, &mut end);
        talker.done(&format!("close {name}"));
        expect_end(&mut end, &name);
    }
}

#[test]
fn what_waits_at_either_end_is_not_lost() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        let mut end = talker.connection("c", way);
        end.write_all(&pattern(50_000, 1)).expect("write");
        talker.done("send c 60000 2");
        talker.round_trips();
        assert_eq!(talker.ask("receive c 50000 1"), "50000 True", "{way:?}");
        receive(&mut end, 60_000, 2, "what was sent before");
        expect_alive(&mut talker, "c", &mut end);
    }
}

#[test]
fn what_the_other_end_has_no_room_for_is_sent_later() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        let mut end = talker.connection("c", way);
        let sent: usize = talker.ask("fill c 3").parse().expect("a number");
        assert!(sent > 100_000, "{sent} bytes were enough");
        talker.round_trips();
        receive(&mut end, sent, 3, "what filled both buffers");
        expect_alive(&mut talker, "c", &mut end);
    }
}

#[test]
fn half_closed_ones_stay_so() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for way in WAYS {
        // The other end has said its last.
        let mut end = talker.connection("c", way);
        end.write_all(&pattern(2000, 1)).expect("write");
        end.shutdown(Shutdown::Write).expect("shut down");
        talker.round_trips();
        assert_eq!(talker.ask("receive c 2000 1"), "2000 True", "{way:?}");
        assert_eq!(talker.ask("end c"), "b''", "{way:?}");
        talker.done("send c 5000 4");
        receive(&mut end, 5000, 4, "to the one that is shut");
        talker.done("close c");
        expect_end(&mut end, "at last");

        // This end has.
        let mut end = talker.connection("c", way);
        talker.done("send c 2000 2");
        talker.done("shut c");
        talker.round_trips();
        receive(&mut end, 2000, 2, "before the end");
        expect_end(&mut end, "of what was sent");
        end.write_all(&pattern(5000, 3)).expect("write");
        assert_eq!(talker.ask("receive c 5000 3"), "5000 True", "{way:?}");
        drop(end);
        assert_eq!(talker.ask("end c"), "b''", "{way:?}");

        // It has, but the other end has no room for it.
        let mut end = talker.connection("c", way);
        let sent: usize = talker.ask("fill c 3").parse().expect("a number");
        talker.done("shut c");
        talker.round_trips();
        receive(&mut end, sent, 3, "what filled both buffers");
        expect_end(&mut end, "behind that");
        end.write_all(&pattern(5000, 3)).expect("write");
        assert_eq!(talker.ask("receive c 5000 3"), "5000 True", "{way:?}");

        // Both have.
        let mut end = talker.connection("c", way);
        let sent: usize = talker.ask("fill c 3").parse().expect("a number");
        end.write_all(&pattern(2000, 1)).expect("write");
        end.shutdown(Shutdown::Write).expect("shut down");
        talker.done("shut c");
        talker.round_trips();
        receive(&mut end, sent, 3, "what filled both buffers");
        expect_end(&mut end, "behind that");
        assert_eq!(talker.ask("receive c 2000 1"), "2000 True", "{way:?}");
        assert_eq!(talker.ask("end c"), "b''", "{way:?}");
    }
}

#[test]
fn nothing_is_reset_while_the_tree_is_away() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    let mut ends = talker.one_each();
    talker.checkpoint(&["--tcp", "established"]);
    for (name, end) in &mut ends {
        end.write_all(&pattern(9000, 7)).expect("write");
        end.set_read_timeout(Some(Duration::from_millis(300)))
            .expect("a time-out");
        let nothing = end.read(&mut [0]).expect_err("nobody is there");
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "{name}");
        end.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    }
    // One that fails at the last leaves all as it was.
    let image = talker.image();
    let failed = run(host.command(&["restore", "-d", &image]).env("FLOE_FAIL_AT", "thaw"));
    assert_eq!(failed.status, 1, "{}", failed.err);
    talker.restore(&[]);
    for (name, end) in &mut ends {
        assert_eq!(talker.ask(&format!("receive {name} 9000 7")), "9000 True");
        expect_alive(&mut talker, name, end);
    }
}

#[test]
fn a_checkpoint_that_does_not_end_the_tree_goes_unnoticed() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    let mut end = talker.connection("c", Way::In("127.0.0.1"));
    let image = talker.image();
    for (fail_at, options) in [
        ("", "--leave-running"),
        ("inspect", "--tcp=established"),
        ("commit", "--tcp=established"),
        ("end", "--tcp=established"),
    ] {
        talker.done("send c 60000 2");
        let line = ["checkpoint", &talker.sandbox, "-o", &image, "--tcp", "established"];
        let mut command = host.command(&line[..if options == "--leave-running" { 6 } else { 4 }]);
        let outcome = run(command.arg(options).env("FLOE_FAIL_AT", fail_at));
        assert_eq!(outcome.status, i32::from(!fail_at.is_empty()), "{}", outcome.err);
        receive(&mut end, 60_000, 2, fail_at);
        expect_alive(&mut talker, "c", &mut end);
    }
}

/// A checkpoint that is killed at any moment leaves the tree and its connections as they were, or has ended the tree; then
/// a restore goes on with them.
#[test]
fn whenever_floe_is_killed_no_byte_is_lost() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    let mut ends = talker.one_each();
    let image = talker.image();
    let begin = Instant::now();
    talker.round_trips();
    let usual = begin.elapsed() / 4;
    let mut ended = 0;
    let kills = times(KILLS);
    for round in 0..kills {
        for (name, end) in &mut ends {
            talker.done(&format!("send {name} 5000 2"));
            end.write_all(&pattern(7000, 1)).expect("write");
        }
        let _ = fs::remove_file(&image);
        let line = ["checkpoint", &talker.sandbox, "-o", &image, "--tcp", "established"];
        let mut child = spawn(&mut host.command(&line));
        // Any moment will do; they are spread over all of it.
        std::thread::sleep(usual * round / kills * 2);
        child.kill().expect("kill");
        let _ = child.wait().expect("wait");
        // It tells by an answer that it runs on. If it is ending, it never read the question.
        let question = talker.begin("receive c0 7000 1");
        let mut state = String::new();
        until("an answer, or the end of the sandbox", || {
            state = host.state(&talker.sandbox);
            talker.answer(question).is_some() || ["exited", "none"].contains(&state.as_str())
        });
        if talker.answer(question).is_none() {
            ended += 1;
            if state == "exited" {
                host.done(&["rm", &talker.sandbox]);
            }
            // The question was asked, in a file that the talker reads, while it was away.
            host.done(&["restore", "-d", "--files", "ignore", &image]);
        }
        assert_eq!(talker.end(question), "7000 True", "round {round}");
        for (name, end) in &mut ends {
            if name != "c0" {
                assert_eq!(
                    talker.ask(&format!("receive {name} 7000 1")),
                    "7000 True",
                    "round {round}"
                );
            }
            receive(end, 5000, 2, &format!("round {round}"));
            expect_alive(&mut talker, name, end);
        }
    }
    assert!(ended < kills, "no kill came early enough");
}

#[test]
fn without_a_word_they_stand_in_the_way() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    let mut end = talker.connection("c", Way::In("127.0.0.1"));
    let image = talker.image();
    let refused = host
        .floe(&["checkpoint", &talker.sandbox, "-o", &image])
        .expect_failed();
    assert!(
        refused.contains("is outside of the tree") && refused.contains("--tcp established"),
        "{refused}"
    );
    expect_alive(&mut talker, "c", &mut end);
    talker.checkpoint(&["--tcp", "established", "--leave-running"]);
    let refused = host
        .floe(&["restore", "-d", "--name", "other", "--tcp", "refuse", &image])
        .expect_failed();
    assert!(
        refused.contains("--tcp established") && refused.contains("--tcp close"),
        "{refused}"
    );
    let refused = host.floe(&["restore", "-d", "--name", "other", &image]).expect_failed();
    assert!(refused.contains("is the tree still running?"), "{refused}");
    expect_alive(&mut talker, "c", &mut end);
}

#[test]
fn those_that_are_given_up_are_reset() {
    let host = Host::new();
    let mut talker = Talker::start(&host);
    for when in ["checkpoint", "restore"] {
        for way in WAYS {
            let mut end = talker.connection("c", way);
            let address = end.local_addr().expect("an address");
            talker.checkpoint(&["--tcp", if when == "checkpoint" { "close" } else { "established" }]);
            talker.restore(&["--tcp", "close"]);
            assert_eq!(talker.ask("end c"), "error Connection reset by peer", "{way:?}");
            assert_eq!(talker.ask("end c"), "b''", "{way:?}");
            expect_over(&mut end, address, when);
            talker.done("close c");
        }
    }
}

/// The other end is told at the latest when it says something.
fn expect_over(end: &mut TcpStream, address: SocketAddr, when: &str) {
    until("the end of a connection", || {
        let wrote = end.write_all(b"x");
        end.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time-out");
        match (wrote, end.read(&mut [0])) {
            (_, Ok(0)) => true,
            (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::WouldBlock => false,
            (Err(_), _) | (_, Err(_)) => true,
            (Ok(()), Ok(_)) => panic!("{when}: {address} was sent something"),
        }
    });
}
