//! Sets that ipset(8) makes, in a network namespace of each test's own.

#![expect(clippy::print_stdout, reason = "a test that can't do all says why")]

use super::{Quiet, Set, SetError, differing, load, read};
use nix::sched::{CloneFlags, unshare};
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Times are such that the last three digits of them can run.
const SETS: &str = include_str!("tests.ipset");

/// A network namespace with these sets; `None` where what makes them is not installed.
fn with(lines: &str) -> Option<Vec<Set>> {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let lines = possible(lines);
    let child = Command::new("ipset").arg("restore").stdin(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        crate::netfilter::skip("ipset");
        return None;
    };
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.as_bytes()).expect("write");
    drop(input);
    assert!(child.wait().expect("wait").success(), "ipset");
    Some(read().expect("read"))
}

/// Without sets of types that this kernel does not have.
fn possible(lines: &str) -> String {
    let has = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, name, kind, ..] = words[..] else { return false };
        let mut make = Command::new("ipset");
        let made = make.args(&words).stderr(Stdio::null()).status();
        let made = made.is_ok_and(|status| status.success());
        if made {
            let destroyed = Command::new("ipset").args(["destroy", name]).status();
            assert!(destroyed.expect("ipset").success(), "{line}");
        } else {
            println!("skip: there is no ipset, or this kernel has no {kind}");
        }
        made
    };
    let made: Vec<&str> = lines.lines().filter(|line| line.starts_with("create ")).collect();
    let made: Vec<&str> = (made.into_iter().filter(|line| has(line)))
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    let lines = lines.lines().filter(|line| {
        let mut words = line.split(' ').skip(1);
        words.next().is_some_and(|name| made.contains(&name))
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// As ipset tells them, in order; times of a hundred seconds and more without the last digits.
fn listed() -> Vec<String> {
    let saved = Command::new("ipset").args(["save"]).output().expect("ipset");
    let text = String::from_utf8(saved.stdout).expect("text");
    let word = |word: &str| match word.parse::<u32>() {
        Ok(number) if number > 99_900 => (number / 1000 * 1000).to_string(),
        _ => word.to_owned(),
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines
}

fn again(sets: &[Set]) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    load(sets).expect("load");
}

#[test]
fn sets_of_all_types_are_made_again() {
    let Some(sets) = with(SETS) else { return };
    assert!(sets.iter().all(Set::is_known));
    let text = listed();
    again(&sets);
    assert_eq!(listed(), text);
    let now = read().expect("read");
    assert_eq!(differing(&sets, &now, Quiet::All), None);
    let numbers = |sets: &[Set]| sets.iter().map(|set| set.index).collect::<Vec<_>>();
    assert_eq!(numbers(&now), numbers(&sets));
    assert!(
        numbers(&now).windows(2).any(|two| two[1] > two[0] + 1),
        "a number is free"
    );
}

#[test]
fn a_large_set_comes_back() {
    let mut lines = "create many hash:net,port family inet6 comment counters timeout 100900\n".to_owned();
    for i in 0..30_000 {
        lines += &format!("add many 2001:db8:{i:x}::/48,tcp:{i} comment \"one of many, {i}\" packets {i}\n");
    }
    let Some(sets) = with(&lines) else { return };
    assert_eq!(sets[0].elements.len(), 30_000);
    let text = listed();
    again(&sets);
    assert_eq!(listed(), text);
}

#[test]
fn what_differs_is_named() {
    let lines = "create a hash:ip counters\nadd a 1.1.1.1 packets 3\ncreate b hash:ip timeout 9\nadd b 2.2.2.2\n";
    let Some(mut sets) = with(lines) else { return };
    let before = sets.clone();
    sets[1].elements.clear();
    assert_eq!(differing(&before, &sets, Quiet::All), None, "as if time had passed");
    let counted = with("create a hash:ip counters\nadd a 1.1.1.1 packets 4\n").expect("ipset");
    sets[0].elements.clone_from(&counted[0].elements);
    assert_eq!(differing(&before, &sets, Quiet::Elements), None);
    assert_eq!(differing(&before, &sets, Quiet::All), Some("a".to_owned()));
    sets[0].elements.clear();
    assert_eq!(differing(&before, &sets, Quiet::Elements), Some("a".to_owned()));
    assert_eq!(differing(&before, &sets, Quiet::No), None);
    assert_eq!(differing(&before, &sets[..1], Quiet::No), Some("b".to_owned()));
}

#[test]
fn what_the_kernel_does_not_take_is_named() {
    let Some(mut sets) = with("create a hash:ip\nadd a 1.1.1.1\n") else {
        return;
    };
    sets[0].elements[0] = vec![12, 0, 1, 0x80, 8, 0, 1, 0x40, 0, 0, 0];
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let (name, error) = load(&sets).expect_err("an element that is none");
    assert_eq!(name, "a");
    assert!(matches!(error, SetError::Refused(_)), "{error}");
    let place = sets[0].attributes.windows(7).position(|seven| seven == b"hash:ip");
    sets[0].attributes[place.expect("its type") + 5] = b'x';
    assert!(!sets[0].is_known());
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    assert_eq!(load(&sets), Err(("a".to_owned(), SetError::Type)));
}
